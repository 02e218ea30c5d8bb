/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/record_log.h"

#include <assert.h>

static_assert(sizeof(struct capture_flow) == RECORD_LOG_FLOW_WORDS * sizeof(uint64_t), "copied word by word");
static_assert(sizeof(struct capture_flow_statistics) == RECORD_LOG_STATISTICS_WORDS * sizeof(uint64_t), "copied word by word");

bool record_log_init(struct record_log *log, uint32_t records, bool statistics) {
    return word_ring_init(&log->ring, records, RECORD_LOG_FLOW_WORDS + (statistics ? RECORD_LOG_STATISTICS_WORDS : 0));
}

void record_log_destroy(struct record_log *log) {
    word_ring_destroy(&log->ring);
}

uint64_t record_log_bytes(const struct record_log *log) {
    return word_ring_bytes(&log->ring);
}

void record_log_write(struct record_log *log, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    _Atomic uint64_t *slot = word_ring_claim(&log->ring);
    word_ring_store(slot, flow, RECORD_LOG_FLOW_WORDS);
    if (record_log_has_statistics(log))
        word_ring_store(slot + RECORD_LOG_FLOW_WORDS, statistics, RECORD_LOG_STATISTICS_WORDS);
    word_ring_publish(&log->ring);
}

uint64_t record_log_oldest(const struct record_log *log) {
    return word_ring_oldest(&log->ring);
}

uint32_t record_log_read(const struct record_log *log, uint64_t at, struct capture_flow *out,
                         struct capture_flow_statistics *statistics, uint32_t max, uint64_t *lost) {
    uint64_t ready = record_log_head(log) - at;
    uint32_t count = ready < max ? (uint32_t)ready : max;
    for (uint32_t n = 0; n < count; n++) {
        const _Atomic uint64_t *slot = word_ring_slot(&log->ring, at + n);
        word_ring_load(&out[n], slot, RECORD_LOG_FLOW_WORDS);
        if (record_log_has_statistics(log))
            word_ring_load(&statistics[n], slot + RECORD_LOG_FLOW_WORDS, RECORD_LOG_STATISTICS_WORDS);
    }
    *lost = word_ring_overtaken(&log->ring, at);
    return *lost ? 0 : count;
}
