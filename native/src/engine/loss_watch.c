/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/loss_watch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { WINDOW_NS = 1000000000 };

static void count_losses(const struct capture_stats *stats, uint64_t lost[LOSS_PLACES]) {
    lost[LOSS_NIC] = stats->dropped_nic;
    lost[LOSS_KERNEL] = stats->dropped_kernel;
    lost[LOSS_CORE] = stats->dropped_user;
    lost[LOSS_PACKET_RING] = stats->packet_ring_dropped;
    lost[LOSS_FLOW_TABLE] = stats->flows_ended[CAPTURE_FLOW_END_RESOURCES];
}

static void keep_look(struct loss_watch *watch, uint64_t mono_ns, uint64_t lost) {
    watch->looks[watch->count % LOSS_LOOKS].mono_ns = mono_ns;
    watch->looks[watch->count % LOSS_LOOKS].lost = lost;
    watch->count++;
}

void loss_watch_init(struct loss_watch *watch, uint64_t threshold, uint64_t mono_ns) {
    memset(watch, 0, sizeof(*watch));
    watch->threshold = threshold;
    keep_look(watch, mono_ns, 0);
}

/* The counters a second ago: by the newest look that is at least so old, else by the oldest. A window that is up to a look longer
 * than a second misses nothing. */
static uint64_t lost_before(const struct loss_watch *watch, uint64_t mono_ns) {
    uint32_t kept = watch->count < LOSS_LOOKS ? watch->count : LOSS_LOOKS;
    uint32_t oldest = watch->count - kept, at = watch->count - 1;
    while (at > oldest && mono_ns - watch->looks[at % LOSS_LOOKS].mono_ns < WINDOW_NS)
        at--;
    return watch->looks[at % LOSS_LOOKS].lost;
}

bool loss_watch_look(struct loss_watch *watch, const struct capture_stats *stats, uint64_t mono_ns, bool last,
                     struct loss_report *report) {
    uint64_t now[LOSS_PLACES], total = 0;
    count_losses(stats, now);
    for (int place = 0; place < LOSS_PLACES; place++)
        total += now[place];
    bool passed = total - lost_before(watch, mono_ns) > watch->threshold;
    keep_look(watch, mono_ns, total);
    *report = (struct loss_report){0};
    for (int place = 0; place < LOSS_PLACES; place++) {
        report->places[place] = now[place] - watch->told[place];
        report->lost += report->places[place];
    }
    watch->pending = report->lost > 0 && (watch->pending || passed);
    if (!watch->pending || (!last && watch->told_ns && mono_ns - watch->told_ns < WINDOW_NS))
        return false;
    memcpy(watch->told, now, sizeof(now));
    watch->told_ns = mono_ns;
    watch->pending = false;
    return true;
}

uint64_t loss_watch_due(const struct loss_watch *watch) {
    return watch->pending ? watch->told_ns + WINDOW_NS : UINT64_MAX;
}

void loss_report_describe(const struct loss_report *report, char *text, uint32_t size) {
    static const char *const places[LOSS_PLACES] = {
        [LOSS_NIC] = "frames by the network card",
        [LOSS_KERNEL] = "frames in the kernel's ring",
        [LOSS_CORE] = "frames in the core",
        [LOSS_PACKET_RING] = "frames in the packet ring",
        [LOSS_FLOW_TABLE] = "flow records evicted from the full table",
    };
    size_t used = (size_t)snprintf(text, size, "lost:");
    const char *separator = " ";
    for (int place = 0; place < LOSS_PLACES && used < size; place++) {
        if (!report->places[place])
            continue;
        used += (size_t)snprintf(text + used, size - used, "%s%" PRIu64 " %s", separator, report->places[place], places[place]);
        separator = ", ";
    }
}
