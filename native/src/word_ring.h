/* SPDX-License-Identifier: Apache-2.0 */
/* A ring of slots, numbered from 0, with one writer and readers that never make it wait.
 *
 *   writer   word_ring_claim -> word_ring_store ... -> word_ring_publish
 *   reader   word_ring_load ... of slots below the head, then word_ring_overtaken: what was overwritten meanwhile was claimed
 * before
 *
 * So a torn slot is never taken for a whole one, and what was overwritten is known to the slot. Words are copied with atomics: no
 * data race in the C11 sense. The word stores are releases: who reads one of them sees the claim. On x86 that costs nothing. */
#ifndef JARVIS_WORD_RING_H
#define JARVIS_WORD_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "flow/memory.h"

struct word_ring {
    _Atomic uint64_t *words; /* slot after slot */
    uint64_t mask;
    uint32_t slot_words;
    _Alignas(64) _Atomic uint64_t claimed; /* slots written or being written */
    _Atomic uint64_t head;                 /* slots written: the next number */
};

static inline uint64_t word_ring_bytes(const struct word_ring *ring) {
    return (ring->mask + 1) * ring->slot_words * sizeof(uint64_t);
}

/* slots: a power of two. False: no memory. */
static inline bool word_ring_init(struct word_ring *ring, uint32_t slots, uint32_t slot_words) {
    memset(ring, 0, sizeof(*ring));
    ring->mask = slots - 1;
    ring->slot_words = slot_words;
    ring->words = memory_map(word_ring_bytes(ring));
    return ring->words != NULL;
}

static inline void word_ring_destroy(struct word_ring *ring) {
    if (ring->words)
        memory_unmap(ring->words, word_ring_bytes(ring));
    ring->words = NULL;
}

static inline _Atomic uint64_t *word_ring_slot(const struct word_ring *ring, uint64_t number) {
    return &ring->words[(number & ring->mask) * ring->slot_words];
}

/* The writer only: the slot to be written next, from now on no reader's. */
static inline _Atomic uint64_t *word_ring_claim(struct word_ring *ring) {
    uint64_t number = atomic_load_explicit(&ring->head, memory_order_relaxed);
    atomic_store_explicit(&ring->claimed, number + 1, memory_order_relaxed);
    return word_ring_slot(ring, number);
}

static inline void word_ring_store(_Atomic uint64_t *to, const void *from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word;
        memcpy(&word, (const char *)from + i * sizeof(word), sizeof(word));
        atomic_store_explicit(&to[i], word, memory_order_release);
    }
}

/* The writer only: the claimed slot is whole. */
static inline void word_ring_publish(struct word_ring *ring) {
    uint64_t number = atomic_load_explicit(&ring->head, memory_order_relaxed);
    atomic_store_explicit(&ring->head, number + 1, memory_order_release);
}

static inline uint64_t word_ring_head(const struct word_ring *ring) {
    return atomic_load_explicit(&ring->head, memory_order_acquire);
}

/* Number of the oldest slot still kept. */
static inline uint64_t word_ring_oldest(const struct word_ring *ring) {
    uint64_t claimed = atomic_load_explicit(&ring->claimed, memory_order_acquire);
    return claimed > ring->mask + 1 ? claimed - (ring->mask + 1) : 0;
}

static inline void word_ring_load(void *to, const _Atomic uint64_t *from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_acquire);
        memcpy((char *)to + i * sizeof(word), &word, sizeof(word));
    }
}

/* How many slots from `at` on have been overwritten: asked after loading, 0 means that what was loaded from there on is whole. */
static inline uint64_t word_ring_overtaken(const struct word_ring *ring, uint64_t at) {
    uint64_t oldest = word_ring_oldest(ring);
    return oldest > at ? oldest - at : 0;
}

#endif
