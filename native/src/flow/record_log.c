/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/record_log.h"

#include <assert.h>
#include <string.h>

#include "flow/memory.h"

static_assert(sizeof(struct capture_flow) == 136, "copied as 17 words");

bool record_log_init(struct record_log *log, uint32_t records) {
    memset(log, 0, sizeof(*log));
    log->mask = records - 1;
    log->slots = memory_map(record_log_bytes(log));
    return log->slots != NULL;
}

void record_log_destroy(struct record_log *log) {
    memory_unmap(log->slots, record_log_bytes(log));
    log->slots = NULL;
}

uint64_t record_log_bytes(const struct record_log *log) {
    return (log->mask + 1) * sizeof(struct capture_flow);
}

void record_log_write(struct record_log *log, const struct capture_flow *flow) {
    uint64_t words[RECORD_LOG_WORDS];
    memcpy(words, flow, sizeof(words));
    uint64_t sequence = atomic_load_explicit(&log->head, memory_order_relaxed);
    atomic_store_explicit(&log->claimed, sequence + 1, memory_order_relaxed);
    /* The word stores are releases: who reads one of them sees the claim. On x86 that costs nothing. */
    for (int i = 0; i < RECORD_LOG_WORDS; i++)
        atomic_store_explicit(&log->slots[sequence & log->mask][i], words[i], memory_order_release);
    atomic_store_explicit(&log->head, sequence + 1, memory_order_release);
}

uint64_t record_log_oldest(const struct record_log *log) {
    uint64_t claimed = atomic_load_explicit(&log->claimed, memory_order_acquire);
    return claimed > log->mask + 1 ? claimed - (log->mask + 1) : 0;
}

uint32_t record_log_read(const struct record_log *log, uint64_t at, struct capture_flow *out, uint32_t max, uint64_t *lost) {
    *lost = 0;
    uint64_t ready = record_log_head(log) - at;
    uint32_t count = ready < max ? (uint32_t)ready : max;
    for (uint32_t n = 0; n < count; n++) {
        uint64_t words[RECORD_LOG_WORDS];
        for (int i = 0; i < RECORD_LOG_WORDS; i++)
            words[i] = atomic_load_explicit(&log->slots[(at + n) & log->mask][i], memory_order_acquire);
        memcpy(&out[n], words, sizeof(words));
    }
    /* Whatever was overwritten while it was copied had been claimed before: the records from `oldest` on are whole. */
    uint64_t oldest = record_log_oldest(log);
    if (oldest > at) {
        *lost = oldest - at;
        return 0;
    }
    return count;
}
