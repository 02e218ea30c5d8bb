/* SPDX-License-Identifier: Apache-2.0 */
/* The finished records of one worker, numbered from 0: a ring with one writer, and readers that never make it wait. A torn record
 * is never returned, and what was overwritten is known to the record; how: word_ring.h. */
#ifndef JARVIS_RECORD_LOG_H
#define JARVIS_RECORD_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "jarvis_capture.h"
#include "word_ring.h"

enum {
    RECORD_LOG_FLOW_WORDS = sizeof(struct capture_flow) / sizeof(uint64_t),
    RECORD_LOG_STATISTICS_WORDS = sizeof(struct capture_flow_statistics) / sizeof(uint64_t),
};

struct record_log {
    struct word_ring ring; /* a slot is a flow and, where they are kept, its statistics */
};

/* records: a power of two. statistics: each comes with its statistics. False: no memory. */
bool record_log_init(struct record_log *log, uint32_t records, bool statistics);
void record_log_destroy(struct record_log *log);
uint64_t record_log_bytes(const struct record_log *log);

/* The writer only. statistics: NULL in a log without. */
void record_log_write(struct record_log *log, const struct capture_flow *flow, const struct capture_flow_statistics *statistics);

static inline uint64_t record_log_head(const struct record_log *log) {
    return word_ring_head(&log->ring);
}

/* Sequence number of the oldest record still kept. */
uint64_t record_log_oldest(const struct record_log *log);

/* Copies up to `max` records from sequence `at` on; returns how many. When `at` was overwritten, returns 0 and sets *lost to the
 * number of records lost: go on at at + *lost. statistics is written in a log that has them only. */
uint32_t record_log_read(const struct record_log *log, uint64_t at, struct capture_flow *out,
                         struct capture_flow_statistics *statistics, uint32_t max, uint64_t *lost);

/* The log's records have statistics. */
static inline bool record_log_has_statistics(const struct record_log *log) {
    return log->ring.slot_words > RECORD_LOG_FLOW_WORDS;
}

#endif
