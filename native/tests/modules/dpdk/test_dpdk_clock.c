/* SPDX-License-Identifier: Apache-2.0 */
/* Ticks of a card into Unix time; which clock a frame has. No EAL. */
#include "check.h"
#include "dpdk/clock.h"

#define SECOND UINT64_C(1000000000)

static void two_readings_give_the_rate(void) {
    struct tick_clock clock = {.ticks = 5000, .unix_ns = 1700000000 * SECOND};
    CHECK(tick_clock_follow(&clock, 5000 + 15625000, 1700000000 * SECOND + SECOND / 10)); /* 156.25 MHz */
    uint64_t later = tick_clock_ns(&clock, clock.ticks + 156250000);
    CHECK_EQUAL(1700000001 * SECOND + SECOND / 10, later);
    CHECK_EQUAL(1700000000 * SECOND, tick_clock_ns(&clock, 5000)); /* before the reading, too */
}

static void a_drifting_card_is_followed(void) {
    struct tick_clock clock = {.ticks = 0, .unix_ns = SECOND};
    uint64_t ticks = 0;
    for (uint64_t second = 2; second < 100; second++) {
        ticks += 1000000000 + second * 100; /* 100 ppb faster each second */
        CHECK(tick_clock_follow(&clock, ticks, second * SECOND));
        CHECK_EQUAL(second * SECOND, tick_clock_ns(&clock, ticks));
    }
}

static void a_clock_that_went_back_does_not_spoil_the_rate(void) {
    struct tick_clock clock = {.ticks = 1000, .unix_ns = SECOND};
    CHECK(tick_clock_follow(&clock, 2000, 2 * SECOND));
    double rate = clock.ns_per_tick;
    CHECK(!tick_clock_follow(&clock, 1500, 3 * SECOND)); /* the card's */
    CHECK(!tick_clock_follow(&clock, 3000, SECOND));     /* the system's */
    CHECK(!tick_clock_follow(&clock, 2000, 2 * SECOND));
    CHECK(rate == clock.ns_per_tick);
    CHECK_EQUAL(3 * SECOND, tick_clock_ns(&clock, 3000));
}

static void a_frame_has_the_time_of_its_field_where_the_driver_filled_it(void) {
    struct rte_mbuf mbuf = {.ol_flags = 4};
    struct frame_clock clock = {.kind = FRAME_CLOCK_DRIVER,
                                .flag = 4,
                                .offset = offsetof(struct rte_mbuf, dynfield1) + 4,
                                .ns_per_cycle = 1,
                                .card = {.ticks = 0, .unix_ns = 7, .ns_per_tick = 2}};
    rte_mbuf_timestamp_t value = 1700000000123456;
    memcpy((char *)&mbuf + clock.offset, &value, sizeof value);
    CHECK_EQUAL(1700000000123456000, frame_clock_stamp(&clock, &mbuf));
    clock.kind = FRAME_CLOCK_HARDWARE;
    CHECK_EQUAL(2 * 1700000000123456 + 7, frame_clock_stamp(&clock, &mbuf));
    mbuf.ol_flags = 0;
    clock.burst_ns = 42 * SECOND;
    clock.burst_tsc = rte_rdtsc();
    uint64_t stamp = frame_clock_stamp(&clock, &mbuf);
    CHECK(stamp >= 42 * SECOND && stamp < 43 * SECOND);
}

int main(void) {
    RUN(two_readings_give_the_rate);
    RUN(a_drifting_card_is_followed);
    RUN(a_clock_that_went_back_does_not_spoil_the_rate);
    RUN(a_frame_has_the_time_of_its_field_where_the_driver_filled_it);
    return 0;
}
