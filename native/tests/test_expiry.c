/* SPDX-License-Identifier: Apache-2.0 */
/* When flows end and why: timeouts before the packet counts, TCP end and linger, time that goes back, the wheel's horizon. */
#include "check.h"
#include "flow/flow_expiry.h"
#include "flow/timer_wheel.h"
#include "frames.h"

enum { IDLE_S = 30, ACTIVE_S = 300, KEPT = 64 };

#define AT(seconds) ((uint64_t)((seconds)*1e9) + 1700000000ull * SECOND)

static struct capture_flow ended[KEPT];
static uint32_t ended_count;
static struct flow_table table;

static void keep(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    (void)context;
    (void)statistics;
    CHECK(ended_count < KEPT);
    ended[ended_count++] = *flow;
}

static void begin(uint64_t idle_s, uint64_t active_s) {
    struct flow_table_config config = {.max_flows = 4096,
                                       .idle_timeout_ns = idle_s * SECOND,
                                       .active_timeout_ns = active_s * SECOND,
                                       .hash_seed = 1,
                                       .hash_mask = UINT64_MAX,
                                       .emit = keep};
    if (table.records)
        flow_table_destroy(&table);
    CHECK(flow_table_init(&table, &config));
    ended_count = 0;
}

static void add_tcp_packet(uint32_t flow, uint8_t from, uint64_t ts_ns, uint16_t flags) {
    struct packet packet = packet_of(flow, from, ts_ns);
    packet.key.protocol = flags ? 6 : 17;
    packet.tcp_flags = flags;
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    flow_table_set_time(&table, ts_ns, 1);
}

static void add(uint32_t flow, uint64_t ts_ns) {
    add_tcp_packet(flow, 0, ts_ns, 0);
}

static void expire_at(uint64_t ts_ns) {
    flow_table_set_time(&table, ts_ns, 0);
    while (flow_table_expire(&table, 10))
        continue;
}

static void flush(void) {
    while (!flow_table_flush(&table, 3))
        continue;
}

static void a_gap_of_exactly_the_idle_timeout_does_not_split_a_flow(void) {
    begin(IDLE_S, 0);
    add(1, AT(0));
    add(1, AT(30));
    CHECK_EQUAL(0, ended_count);
    add(1, AT(60) + 1);
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_IDLE, ended[0].end_reason);
    CHECK_EQUAL(2, ended[0].fwd_packets);
    CHECK_EQUAL(AT(30), ended[0].end_time_ns);
    flush();
    CHECK_EQUAL(CAPTURE_FLOW_END_FORCED, ended[1].end_reason);
    CHECK_EQUAL(1, ended[1].fwd_packets);
    CHECK_EQUAL(AT(60) + 1, ended[1].start_time_ns);
}

static void the_packet_at_the_active_timeout_starts_the_next_record(void) {
    begin(IDLE_S, ACTIVE_S);
    for (int second = 0; second < 600; second += 20)
        add(1, AT(second));
    flush();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_ACTIVE, ended[0].end_reason);
    CHECK_EQUAL(15, ended[0].fwd_packets);
    CHECK_EQUAL(AT(280), ended[0].end_time_ns);
    CHECK_EQUAL(AT(300), ended[1].start_time_ns);
}

static void the_timeout_that_comes_first_gives_the_reason_however_late_one_looks(void) {
    for (int looked = 0; looked < 2; looked++) {
        begin(IDLE_S, ACTIVE_S);
        for (int second = 0; second <= 290; second += 10)
            add(1, AT(second));
        if (looked)
            expire_at(AT(1000));
        else
            add(1, AT(1000));
        CHECK_EQUAL(1, ended_count);
        CHECK_EQUAL(CAPTURE_FLOW_END_ACTIVE, ended[0].end_reason);
    }
}

static void packet_time_ends_idle_flows_without_a_packet_of_theirs(void) {
    begin(IDLE_S, ACTIVE_S);
    for (uint32_t flow = 0; flow < 40; flow++)
        add(flow, AT(0));
    expire_at(AT(30));
    CHECK_EQUAL(0, ended_count);
    expire_at(AT(30.5));
    CHECK_EQUAL(40, ended_count);
    CHECK_EQUAL(0, table.live);
    for (int i = 0; i < 40; i++)
        CHECK_EQUAL(CAPTURE_FLOW_END_IDLE, ended[i].end_reason);
}

static void a_flow_that_goes_on_is_only_moved_along_the_wheel(void) {
    begin(IDLE_S, 0);
    for (int second = 0; second < 10000; second += 25) {
        add(1, AT(second));
        expire_at(AT(second));
    }
    CHECK_EQUAL(0, ended_count);
    CHECK_EQUAL(1, table.live);
}

static void a_timeout_beyond_the_wheels_horizon_is_kept(void) {
    begin(86400, 0);
    add(1, AT(0));
    for (int second = 0; second <= 86400; second += 60)
        expire_at(AT(second));
    CHECK_EQUAL(0, ended_count);
    expire_at(AT(86401));
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_IDLE, ended[0].end_reason);
}

static void a_leap_of_years_passes_every_slot_once(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, AT(0));
    expire_at(AT(1e9));
    CHECK_EQUAL(1, ended_count);
    add(2, AT(1e9));
    expire_at(AT(1e9 + 31));
    CHECK_EQUAL(2, ended_count);
}

static void both_fins_close_a_flow_which_lingers_for_late_acks(void) {
    begin(IDLE_S, ACTIVE_S);
    add_tcp_packet(1, 0, AT(0), TCP_SYN);
    add_tcp_packet(1, 0, AT(1), TCP_FIN | TCP_ACK);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, table.records[0].state);
    add_tcp_packet(1, 1, AT(2), TCP_FIN | TCP_ACK);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, table.records[0].state);
    add_tcp_packet(1, 0, AT(3.9), TCP_ACK);
    expire_at(AT(3.99));
    CHECK_EQUAL(0, ended_count);
    expire_at(AT(4.5));
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[0].end_reason);
    CHECK_EQUAL(3, ended[0].fwd_packets);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, ended[0].state);
}

static void two_fins_of_one_side_do_not_close(void) {
    begin(IDLE_S, ACTIVE_S);
    add_tcp_packet(1, 0, AT(0), TCP_FIN | TCP_ACK);
    add_tcp_packet(1, 0, AT(1), TCP_FIN | TCP_ACK);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, table.records[0].state);
}

static void a_reset_closes_and_a_packet_after_the_linger_starts_anew(void) {
    begin(IDLE_S, ACTIVE_S);
    add_tcp_packet(1, 0, AT(0), TCP_SYN);
    add_tcp_packet(1, 1, AT(1), TCP_RST | TCP_ACK);
    add_tcp_packet(1, 0, AT(3), TCP_ACK);
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[0].end_reason);
    CHECK_EQUAL(TCP_RST | TCP_ACK, ended[0].rev_tcp_flags);
    CHECK_EQUAL(1, table.live);
}

static void a_new_syn_on_a_closed_flow_starts_a_new_record_at_once(void) {
    begin(IDLE_S, ACTIVE_S);
    add_tcp_packet(1, 0, AT(0), TCP_SYN);
    add_tcp_packet(1, 1, AT(0.1), TCP_RST);
    add_tcp_packet(1, 0, AT(0.2), TCP_SYN);
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[0].end_reason);
    add_tcp_packet(1, 1, AT(0.3), TCP_SYN | TCP_ACK);
    flush();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(1, ended[1].fwd_packets);
    CHECK_EQUAL(1, ended[1].rev_packets);
    CHECK_EQUAL(CAPTURE_FLOW_END_FORCED, ended[1].end_reason);
}

static void without_timeouts_nothing_splits_a_flow(void) {
    begin(0, 0);
    add_tcp_packet(1, 0, AT(1000), TCP_SYN);
    add_tcp_packet(1, 1, AT(1001), TCP_RST);
    add_tcp_packet(1, 0, AT(900000), TCP_SYN);
    add_tcp_packet(1, 0, AT(0), TCP_ACK);
    expire_at(AT(2e9));
    CHECK_EQUAL(0, ended_count);
    flush();
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[0].end_reason);
    CHECK_EQUAL(3, ended[0].fwd_packets);
    CHECK_EQUAL(AT(0), ended[0].start_time_ns);
    CHECK_EQUAL(AT(900000), ended[0].end_time_ns);
    CHECK_EQUAL(1, table.time_regressions);
}

static void packets_out_of_order_widen_the_flow_and_are_counted(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, AT(10));
    add(1, AT(9));
    add(1, AT(9.5));
    flush();
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(AT(9), ended[0].start_time_ns);
    CHECK_EQUAL(AT(10), ended[0].end_time_ns);
    CHECK_EQUAL(2, table.time_regressions);
}

static void a_step_back_beyond_the_idle_timeout_starts_a_new_record(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, AT(1000));
    add(1, AT(969));
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_FORCED, ended[0].end_reason);
    CHECK_EQUAL(AT(1000), ended[0].start_time_ns);
}

static void after_a_step_back_flows_expire_by_the_new_time(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, AT(1e8));
    expire_at(AT(1e8));
    add(2, AT(0));
    expire_at(AT(0));
    add(3, AT(20));
    expire_at(AT(31));
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(AT(0), ended[0].start_time_ns);
    expire_at(AT(51));
    CHECK_EQUAL(2, ended_count);
    flush();
    CHECK_EQUAL(3, ended_count);
    CHECK_EQUAL(AT(1e8), ended[2].start_time_ns);
}

static void times_near_the_end_of_the_counter_do_not_wrap(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, UINT64_MAX - 5);
    add(1, UINT64_MAX);
    add(2, 0);
    flush();
    CHECK_EQUAL(2, ended_count);
}

/* FIN of one side, the active timeout, FIN of the other; looked: the wheel finds the timeout before the next packet does. */
static void close_over_the_active_timeout(bool looked) {
    begin(IDLE_S, ACTIVE_S);
    for (int second = 0; second < 290; second += 10)
        add_tcp_packet(1, 0, AT(second), TCP_ACK);
    add_tcp_packet(1, 0, AT(295), TCP_FIN | TCP_ACK);
    if (looked)
        expire_at(AT(301));
    CHECK_EQUAL(looked, ended_count);
    CHECK_EQUAL(!looked, table.live);
    add_tcp_packet(1, 1, AT(302), TCP_ACK);
    CHECK_EQUAL(CAPTURE_FLOW_END_ACTIVE, ended[0].end_reason);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, ended[0].state);
    add_tcp_packet(1, 1, AT(303), TCP_FIN | TCP_ACK);
}

static void a_connection_that_the_active_timeout_splits_between_its_fins_is_seen_to_close(void) {
    for (int looked = 0; looked < 2; looked++) {
        close_over_the_active_timeout(looked);
        expire_at(AT(306));
        CHECK_EQUAL(2, ended_count);
        CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[1].end_reason);
        CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, ended[1].state);
        CHECK_EQUAL(2, ended[1].fwd_packets);
        CHECK_EQUAL(TCP_FIN | TCP_ACK, ended[1].fwd_tcp_flags); /* flags stay those of the record's own packets */
        CHECK_EQUAL(0, ended[1].rev_tcp_flags);
        CHECK_EQUAL(2, table.created);
        CHECK_EQUAL(0, table.live);
    }
}

static void a_connection_that_opens_anew_after_the_active_timeout_is_not_closing(void) {
    begin(IDLE_S, ACTIVE_S);
    for (int second = 0; second <= 280; second += 20)
        add_tcp_packet(1, 0, AT(second), TCP_FIN | TCP_ACK);
    add_tcp_packet(1, 1, AT(301), TCP_SYN);
    add_tcp_packet(1, 1, AT(302), TCP_FIN | TCP_ACK);
    flush();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, ended[1].state);
}

static void what_is_kept_of_a_half_closed_connection_leaves_without_a_record(void) {
    for (int idle = 0; idle < 2; idle++) {
        begin(idle ? IDLE_S : 0, ACTIVE_S);
        for (int second = 0; second <= 280; second += 20)
            add_tcp_packet(1, 0, AT(second), TCP_FIN | TCP_ACK);
        expire_at(AT(301));
        CHECK_EQUAL(1, ended_count);
        expire_at(AT(600));
        CHECK_EQUAL(1, ended_count);
        add_tcp_packet(1, 1, AT(601), TCP_FIN | TCP_ACK); /* nothing is remembered so long */
        flush();
        CHECK_EQUAL(2, ended_count);
        CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, ended[1].state);
        CHECK_EQUAL(2, table.created);
    }
}

static void at_the_flush_a_flow_whose_time_had_come_keeps_its_reason(void) {
    begin(IDLE_S, ACTIVE_S);
    add(1, AT(0));
    add(2, AT(31));
    flush();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_IDLE, ended[0].end_reason);
    CHECK_EQUAL(CAPTURE_FLOW_END_FORCED, ended[1].end_reason);
}

static void the_wheel_gives_every_entry_back_once_and_not_early(void) {
    static struct timer_wheel wheel;
    enum { ENTRIES = 5000 };
    static uint64_t deadlines[ENTRIES];
    static bool given[ENTRIES];
    CHECK(timer_wheel_init(&wheel, ENTRIES));
    for (uint32_t i = 0; i < ENTRIES; i++) {
        deadlines[i] = (uint64_t)i * 7919 % 400 * SECOND;
        timer_wheel_insert(&wheel, i, deadlines[i]);
    }
    for (uint32_t i = 0; i < ENTRIES; i += 3) {
        timer_wheel_remove(&wheel, i);
        given[i] = true;
    }
    for (uint64_t now = 0; now <= 401ull * SECOND; now += SECOND / 2) {
        for (uint32_t entry; (entry = timer_wheel_pop(&wheel, now)) != WHEEL_NONE;) {
            CHECK(!given[entry]);
            CHECK(deadlines[entry] <= now);
            CHECK(now - deadlines[entry] <= SECOND);
            given[entry] = true;
        }
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        CHECK(given[i]);
    timer_wheel_destroy(&wheel);
}

int main(void) {
    RUN(a_gap_of_exactly_the_idle_timeout_does_not_split_a_flow);
    RUN(the_packet_at_the_active_timeout_starts_the_next_record);
    RUN(the_timeout_that_comes_first_gives_the_reason_however_late_one_looks);
    RUN(packet_time_ends_idle_flows_without_a_packet_of_theirs);
    RUN(a_flow_that_goes_on_is_only_moved_along_the_wheel);
    RUN(a_timeout_beyond_the_wheels_horizon_is_kept);
    RUN(a_leap_of_years_passes_every_slot_once);
    RUN(both_fins_close_a_flow_which_lingers_for_late_acks);
    RUN(two_fins_of_one_side_do_not_close);
    RUN(a_reset_closes_and_a_packet_after_the_linger_starts_anew);
    RUN(a_new_syn_on_a_closed_flow_starts_a_new_record_at_once);
    RUN(without_timeouts_nothing_splits_a_flow);
    RUN(packets_out_of_order_widen_the_flow_and_are_counted);
    RUN(a_step_back_beyond_the_idle_timeout_starts_a_new_record);
    RUN(after_a_step_back_flows_expire_by_the_new_time);
    RUN(times_near_the_end_of_the_counter_do_not_wrap);
    RUN(a_connection_that_the_active_timeout_splits_between_its_fins_is_seen_to_close);
    RUN(a_connection_that_opens_anew_after_the_active_timeout_is_not_closing);
    RUN(what_is_kept_of_a_half_closed_connection_leaves_without_a_record);
    RUN(at_the_flush_a_flow_whose_time_had_come_keeps_its_reason);
    RUN(the_wheel_gives_every_entry_back_once_and_not_early);
    flow_table_destroy(&table);
    return 0;
}
