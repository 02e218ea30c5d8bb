/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which clock a port's frames have, and following a card's.
 *
 * A driver fills DPDK's dynamic timestamp field in units of its own. Known are two kinds: net_pcap, which fills it always, with
 * what libpcap says; and cards with RTE_ETH_RX_OFFLOAD_TIMESTAMP, whose ticks rte_eth_read_clock reads too, so that they can be
 * compared with the system's clock. Where no one stamps, a frame gets the system's clock when it is handed over, which is up to
 * one polling interval later than it came.
 */
#define ALLOW_EXPERIMENTAL_API /* rte_eth_read_clock, "not yet part of stable ABI" since 19.08 */
#include "clock.h"

#include "error.h"

#include <rte_ethdev.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SECOND_NS = 1000000000, FIRST_BASELINE_US = 20000 };

static uint64_t unix_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static bool find_field(struct frame_clock *clock) {
    if (rte_mbuf_dyn_rx_timestamp_register(&clock->offset, &clock->flag) != 0)
        clock->flag = 0; /* no room among the dynamic fields: as if no driver filled it */
    return clock->flag != 0;
}

int frame_clock_choose(struct frame_clock *clock, uint16_t port, const struct capture_config *config, uint64_t capabilities,
                       const char *driver, uint64_t *offloads, struct capture_error_info *error) {
    *clock = (struct frame_clock){.kind = FRAME_CLOCK_SYSTEM, .port = port, .ns_per_cycle = 1e9 / (double)rte_get_tsc_hz()};
    *offloads = 0;
    if (config->timestamp_source == CAPTURE_TIMESTAMP_HARDWARE) {
        uint64_t ticks;
        if (!(capabilities & RTE_ETH_RX_OFFLOAD_TIMESTAMP) || !find_field(clock))
            return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                                "timestamp_source is 2 (hardware): %s (driver %s) has no hardware timestamps, accepted is 0",
                                config->interface, driver);
        if (rte_eth_read_clock(port, &ticks) == -ENOTSUP)
            return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                                "timestamp_source is 2 (hardware): driver %s of %s does not let its clock be read, so that its "
                                "timestamps have no known epoch, accepted is 0",
                                driver, config->interface);
        clock->kind = FRAME_CLOCK_HARDWARE;
        *offloads = RTE_ETH_RX_OFFLOAD_TIMESTAMP;
    } else if (strcmp(driver, "net_pcap") == 0 && find_field(clock)) {
        clock->kind = FRAME_CLOCK_DRIVER;
    }
    return CAPTURE_OK;
}

bool tick_clock_follow(struct tick_clock *clock, uint64_t ticks, uint64_t unix_ns) {
    if (ticks <= clock->ticks || unix_ns <= clock->unix_ns)
        return false; /* one of the clocks was set back: the old rate holds until both go on */
    clock->ns_per_tick = (double)(unix_ns - clock->unix_ns) / (double)(ticks - clock->ticks);
    clock->ticks = ticks;
    clock->unix_ns = unix_ns;
    return true;
}

/* Both clocks at one instant: the card's between two looks at the system's. */
static int read_both(uint16_t port, uint64_t *ticks, uint64_t *unix_ns) {
    uint64_t before = unix_now();
    int result = rte_eth_read_clock(port, ticks);
    *unix_ns = before + (unix_now() - before) / 2;
    return result;
}

int frame_clock_start(struct frame_clock *clock, struct capture_error_info *error) {
    if (clock->kind != FRAME_CLOCK_HARDWARE)
        return CAPTURE_OK;
    uint64_t ticks, unix_ns;
    if (read_both(clock->port, &clock->card.ticks, &clock->card.unix_ns) == 0) {
        usleep(FIRST_BASELINE_US);
        if (read_both(clock->port, &ticks, &unix_ns) == 0 && tick_clock_follow(&clock->card, ticks, unix_ns))
            return CAPTURE_OK;
    }
    return capture_fail(error, CAPTURE_ERR_IO, "timestamp_source",
                        "timestamp_source is 2 (hardware): the clock of port %u stands still or cannot be read", clock->port);
}

/* DPDK rounds the CPU's rate to 10 MHz: measured anew every second, unless the system's clock was set meanwhile. */
static void measure_cycles(struct frame_clock *clock) {
    if (clock->rate_ns && clock->burst_ns - clock->rate_ns < SECOND_NS)
        return;
    double nominal = 1e9 / (double)rte_get_tsc_hz();
    double measured =
        clock->rate_ns ? (double)(int64_t)(clock->burst_ns - clock->rate_ns) / (double)(clock->burst_tsc - clock->rate_tsc) : 0;
    if (measured > 0.99 * nominal && measured < 1.01 * nominal)
        clock->ns_per_cycle = measured;
    clock->rate_ns = clock->burst_ns;
    clock->rate_tsc = clock->burst_tsc;
}

void frame_clock_burst(struct frame_clock *clock) {
    clock->burst_ns = unix_now();
    clock->burst_tsc = rte_rdtsc();
    measure_cycles(clock);
    if (clock->kind == FRAME_CLOCK_HARDWARE && clock->burst_ns - clock->card.unix_ns >= SECOND_NS) {
        uint64_t ticks, unix_ns;
        if (read_both(clock->port, &ticks, &unix_ns) == 0)
            (void)tick_clock_follow(&clock->card, ticks, unix_ns); /* else the last rate goes on */
    }
}
