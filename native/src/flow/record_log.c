/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/record_log.h"

#include <assert.h>
#include <string.h>

#include "flow/memory.h"

static_assert(sizeof(struct capture_flow) == RECORD_LOG_FLOW_WORDS * sizeof(uint64_t), "copied word by word");
static_assert(sizeof(struct capture_flow_statistics) == RECORD_LOG_STATISTICS_WORDS * sizeof(uint64_t), "copied word by word");

bool record_log_init(struct record_log *log, uint32_t records, bool statistics) {
    memset(log, 0, sizeof(*log));
    log->mask = records - 1;
    log->slot_words = RECORD_LOG_FLOW_WORDS + (statistics ? RECORD_LOG_STATISTICS_WORDS : 0);
    log->words = memory_map(record_log_bytes(log));
    return log->words != NULL;
}

void record_log_destroy(struct record_log *log) {
    memory_unmap(log->words, record_log_bytes(log));
    log->words = NULL;
}

uint64_t record_log_bytes(const struct record_log *log) {
    return (log->mask + 1) * log->slot_words * sizeof(uint64_t);
}

static _Atomic uint64_t *slot_of(const struct record_log *log, uint64_t sequence) {
    return &log->words[(sequence & log->mask) * log->slot_words];
}

/* The word stores are releases: who reads one of them sees the claim. On x86 that costs nothing. */
static inline void store_words(_Atomic uint64_t *to, const void *from, int count) {
    for (int i = 0; i < count; i++) {
        uint64_t word;
        memcpy(&word, (const char *)from + i * sizeof(word), sizeof(word));
        atomic_store_explicit(&to[i], word, memory_order_release);
    }
}

static inline void load_words(void *to, const _Atomic uint64_t *from, int count) {
    for (int i = 0; i < count; i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_acquire);
        memcpy((char *)to + i * sizeof(word), &word, sizeof(word));
    }
}

void record_log_write(struct record_log *log, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    uint64_t sequence = atomic_load_explicit(&log->head, memory_order_relaxed);
    _Atomic uint64_t *slot = slot_of(log, sequence);
    atomic_store_explicit(&log->claimed, sequence + 1, memory_order_relaxed);
    store_words(slot, flow, RECORD_LOG_FLOW_WORDS);
    if (record_log_has_statistics(log))
        store_words(slot + RECORD_LOG_FLOW_WORDS, statistics, RECORD_LOG_STATISTICS_WORDS);
    atomic_store_explicit(&log->head, sequence + 1, memory_order_release);
}

uint64_t record_log_oldest(const struct record_log *log) {
    uint64_t claimed = atomic_load_explicit(&log->claimed, memory_order_acquire);
    return claimed > log->mask + 1 ? claimed - (log->mask + 1) : 0;
}

uint32_t record_log_read(const struct record_log *log, uint64_t at, struct capture_flow *out,
                         struct capture_flow_statistics *statistics, uint32_t max, uint64_t *lost) {
    *lost = 0;
    uint64_t ready = record_log_head(log) - at;
    uint32_t count = ready < max ? (uint32_t)ready : max;
    for (uint32_t n = 0; n < count; n++) {
        const _Atomic uint64_t *slot = slot_of(log, at + n);
        load_words(&out[n], slot, RECORD_LOG_FLOW_WORDS);
        if (record_log_has_statistics(log))
            load_words(&statistics[n], slot + RECORD_LOG_FLOW_WORDS, RECORD_LOG_STATISTICS_WORDS);
    }
    /* Whatever was overwritten while it was copied had been claimed before: the records from `oldest` on are whole. */
    uint64_t oldest = record_log_oldest(log);
    if (oldest > at) {
        *lost = oldest - at;
        return 0;
    }
    return count;
}
