/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in every snapshot of a capture's counters. */
#ifndef JARVIS_TEST_BALANCE_H
#define JARVIS_TEST_BALANCE_H

#include "check.h"
#include "jarvis_capture.h"

static inline void check_balance(const struct capture_stats *stats) {
    CHECK_EQUAL(stats->received, stats->metered + stats->filtered + stats->unsampled + stats->non_ip + stats->malformed +
                                     stats->paused + stats->dropped_nic + stats->dropped_kernel + stats->dropped_user +
                                     stats->in_flight);
    uint64_t ended_flows = 0;
    for (int reason = 1; reason <= CAPTURE_FLOW_END_RESOURCES; reason++)
        ended_flows += stats->flows_ended[reason];
    CHECK_EQUAL(stats->flows_total, stats->flows_active + ended_flows);
}

static inline struct capture_stats stats_of(capture_t *capture) {
    struct capture_stats stats;
    CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
    check_balance(&stats);
    return stats;
}

#endif
