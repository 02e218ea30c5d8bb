/* SPDX-License-Identifier: Apache-2.0 */
/* When a frame came, ns since the Unix epoch: from the field that a driver fills in its mbuf, else from the system's clock. */
#ifndef JARVIS_DPDK_CLOCK_H
#define JARVIS_DPDK_CLOCK_H

#include "jarvis_capture.h"

#include <rte_cycles.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>

enum frame_clock_kind {
    FRAME_CLOCK_SYSTEM,  /* the system's clock when the frame is handed over: no one stamps it before */
    FRAME_CLOCK_DRIVER,  /* net_pcap: the file's or libpcap's timestamp, in microseconds since the Unix epoch */
    FRAME_CLOCK_HARDWARE /* the card's clock, followed against the system's */
};

/* A clock of the card: ticks made into Unix time by two readings of both clocks that lie apart. */
struct tick_clock {
    uint64_t ticks, unix_ns; /* the later reading */
    double ns_per_tick;
};

/* Each queue has its own; one thread uses it. */
struct frame_clock {
    enum frame_clock_kind kind;
    uint16_t port;
    int offset;    /* of the timestamp field in the mbuf */
    uint64_t flag; /* in ol_flags: the field is filled */
    struct tick_clock card;
    uint64_t burst_ns, burst_tsc; /* the system's clock and the CPU's counter at the last burst */
    double ns_per_cycle;
    uint64_t rate_ns, rate_tsc; /* both at the burst that `ns_per_cycle` was last measured from; 0: DPDK's estimate is in force */
};

/* Before the port is configured: may `source` be asked of it, and with which receive offloads? Fills kind, offset, flag and
 * *offloads (those to ask of the port). Any thread. */
int frame_clock_choose(struct frame_clock *clock, uint16_t port, const struct capture_config *config, uint64_t capabilities,
                       const char *driver, uint64_t *offloads, struct capture_error_info *error);

/* After the port has started. Takes 20 ms with a card's clock. */
int frame_clock_start(struct frame_clock *clock, struct capture_error_info *error);

/* Before the frames of a burst are stamped. */
void frame_clock_burst(struct frame_clock *clock);

/* A second reading of a card's clock. True when it moved `clock` on. */
bool tick_clock_follow(struct tick_clock *clock, uint64_t ticks, uint64_t unix_ns);

static inline uint64_t tick_clock_ns(const struct tick_clock *clock, uint64_t ticks) {
    return clock->unix_ns + (uint64_t)(int64_t)((double)(int64_t)(ticks - clock->ticks) * clock->ns_per_tick);
}

/* Nanoseconds since the Unix epoch. */
static inline uint64_t frame_clock_stamp(const struct frame_clock *clock, const struct rte_mbuf *mbuf) {
    if (clock->kind != FRAME_CLOCK_SYSTEM && mbuf->ol_flags & clock->flag) {
        uint64_t value = *RTE_MBUF_DYNFIELD(mbuf, clock->offset, const rte_mbuf_timestamp_t *);
        return clock->kind == FRAME_CLOCK_DRIVER ? value * 1000 : tick_clock_ns(&clock->card, value);
    }
    return clock->burst_ns + (uint64_t)((double)(rte_rdtsc() - clock->burst_tsc) * clock->ns_per_cycle);
}

#endif
