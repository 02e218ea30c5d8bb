/* SPDX-License-Identifier: Apache-2.0 */
/* A flow table that keeps statistics, and everything that left it since it was begun. */
#ifndef JARVIS_KEPT_FLOWS_H
#define JARVIS_KEPT_FLOWS_H

#include "check.h"
#include "flow/flow_table.h"

enum { KEPT = 256 };

static struct flow_table table;
static struct capture_flow ended[KEPT];
static struct capture_flow_statistics kept[KEPT];
static uint32_t ended_count;

static inline void keep(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    (void)context;
    CHECK(ended_count < KEPT);
    kept[ended_count] = *statistics;
    ended[ended_count++] = *flow;
}

/* The table anew, with these sizes, timeouts and statistics. */
static inline void begin_table(struct flow_table_config config) {
    config.hash_seed = 1;
    config.hash_mask = UINT64_MAX;
    config.emit = keep;
    if (table.records)
        flow_table_destroy(&table);
    CHECK(flow_table_init(&table, &config));
    ended_count = 0;
}

#endif
