/* SPDX-License-Identifier: Apache-2.0 */
/* When is loss worth an event? Counters and times in, a verdict out; it asks nobody and keeps no time of its own. */
#ifndef JARVIS_LOSS_WATCH_H
#define JARVIS_LOSS_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "jarvis_capture.h"

enum loss_place { LOSS_NIC, LOSS_KERNEL, LOSS_CORE, LOSS_PACKET_RING, LOSS_FLOW_TABLE, LOSS_PLACES };

enum { LOSS_LOOKS = 8 };

struct loss_watch {
    uint64_t threshold;
    struct {
        uint64_t mono_ns, lost;
    } looks[LOSS_LOOKS]; /* the newest, in a circle */
    uint32_t count;
    uint64_t told[LOSS_PLACES]; /* the counters at the last report */
    uint64_t told_ns;           /* 0: there was none */
    bool pending;               /* the threshold was passed less than a second after the last report */
};

struct loss_report {
    uint64_t lost;                /* since the last report, over all places */
    uint64_t places[LOSS_PLACES]; /* its parts: frames, and in the last place flow records that a full table ended early */
};

/* Starts anew at counters of 0. More than `threshold` lost within a second are worth a report. */
void loss_watch_init(struct loss_watch *watch, uint64_t threshold, uint64_t mono_ns);

/* A look at the counters. True: *report is to be told now. Reports lie a second apart, but for the one of the `last` look. What
 * was lost between two looks counts as lost within a second, however far they lie apart. */
bool loss_watch_look(struct loss_watch *watch, const struct capture_stats *stats, uint64_t mono_ns, bool last,
                     struct loss_report *report);

/* When the report that is pending may be told, monotonic clock; UINT64_MAX: none is pending. */
uint64_t loss_watch_due(const struct loss_watch *watch);

/* One sentence: what was lost where. */
void loss_report_describe(const struct loss_report *report, char *text, uint32_t size);

#endif
