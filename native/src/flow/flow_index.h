/* SPDX-License-Identifier: Apache-2.0 */
/* From hash to record number: buckets of one cache line, a second bucket for overflow. Knows tags and numbers, not keys. */
#ifndef JARVIS_FLOW_INDEX_H
#define JARVIS_FLOW_INDEX_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { BUCKET_SLOTS = 8 };

struct flow_bucket {
    uint16_t tag[BUCKET_SLOTS]; /* 0: the slot is free */
    uint32_t record[BUCKET_SLOTS];
    uint32_t overflow; /* entries of this bucket that live in their second one */
    uint8_t foreign;   /* bit per slot: the entry's first bucket is the other one */
    uint8_t again;     /* bit per slot: found since the hand passed it last */
    uint8_t hand;      /* slot at which the search for a victim begins */
    uint8_t reserved[9];
};
static_assert(sizeof(struct flow_bucket) == 64, "one cache line");

struct flow_index {
    struct flow_bucket *buckets;
    uint32_t mask; /* buckets - 1 */
};

/* Room for `records` entries at one to two thirds load: at most 24 bytes each. False: no memory. */
bool flow_index_init(struct flow_index *index, uint32_t records);
void flow_index_destroy(struct flow_index *index);
uint64_t flow_index_bytes(const struct flow_index *index);

static inline uint16_t flow_index_tag(uint64_t hash) {
    uint16_t tag = hash >> 48;
    return tag ? tag : 1;
}

static inline uint32_t flow_index_first(const struct flow_index *index, uint64_t hash) {
    return (uint32_t)hash & index->mask;
}

/* The other bucket of an entry, from either: needs the tag only, so an entry can be moved without its key. Never the same one. */
static inline uint32_t flow_index_other(const struct flow_index *index, uint32_t bucket, uint16_t tag) {
    return bucket ^ ((tag * 0x9e3779b1u >> 8 | 1) & index->mask);
}

/* Bit per slot whose tag is this one. */
static inline uint32_t flow_bucket_match(const struct flow_bucket *bucket, uint16_t tag) {
#ifdef __SSE2__
    __m128i equal = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)bucket->tag), _mm_set1_epi16((short)tag));
    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128()));
#else
    uint32_t slots = 0;
    for (int i = 0; i < BUCKET_SLOTS; i++)
        slots |= (uint32_t)(bucket->tag[i] == tag) << i;
    return slots;
#endif
}

static inline uint32_t flow_bucket_used(const struct flow_bucket *bucket) {
    return ~flow_bucket_match(bucket, 0) & 0xff;
}

/* The entry was found: it gets a second chance. */
static inline void flow_bucket_note_use(struct flow_bucket *bucket, int slot) {
    uint8_t again = bucket->again | (uint8_t)(1u << slot);
    if (__builtin_expect(again != bucket->again, 0))
        bucket->again = again;
}

/* The slot whose entry has to leave when room is needed, or -1 if none is used: from the hand on the first that was not found
 * again since the hand passed it (the clock algorithm, which comes near to least recently used without a look at the records). */
static inline int flow_bucket_victim(const struct flow_bucket *bucket) {
    uint32_t used = flow_bucket_used(bucket), idle = used & ~(uint32_t)bucket->again;
    uint32_t twice = (idle ? idle : used) * 0x101u >> bucket->hand; /* bit n: slot hand + n, round the end */
    return twice ? (int)((uint32_t)__builtin_ctz(twice) + bucket->hand) % BUCKET_SLOTS : -1;
}

/* Puts an entry into its first bucket, else its second, else makes room by moving one neighbour to its other bucket.
 * False: all that is full; the caller evicts one of the entries in the two buckets. */
bool flow_index_insert(struct flow_index *index, uint64_t hash, uint32_t record);

/* The victim of `hash`'s first bucket, in that slot, makes place for the new entry. Moves the hand. */
void flow_index_replace(struct flow_index *index, uint64_t hash, int slot, uint32_t record);

/* The entry must be there. */
void flow_index_remove(struct flow_index *index, uint64_t hash, uint32_t record);

#endif
