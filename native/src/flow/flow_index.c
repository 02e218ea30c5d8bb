/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_index.h"

#include <stdlib.h>

#include "flow/memory.h"

bool flow_index_init(struct flow_index *index, uint32_t records) {
    uint32_t buckets = 2;
    while ((uint64_t)buckets * BUCKET_SLOTS < records + (uint64_t)records / 2)
        buckets *= 2;
    index->mask = buckets - 1;
    index->buckets = memory_map(buckets * sizeof(struct flow_bucket));
    return index->buckets != NULL;
}

void flow_index_destroy(struct flow_index *index) {
    memory_unmap(index->buckets, flow_index_bytes(index));
    index->buckets = NULL;
}

uint64_t flow_index_bytes(const struct flow_index *index) {
    return (index->mask + 1ull) * sizeof(struct flow_bucket);
}

static bool bucket_put(struct flow_bucket *bucket, uint16_t tag, uint32_t record, bool foreign) {
    uint32_t open = flow_bucket_match(bucket, 0);
    if (!open)
        return false;
    int slot = __builtin_ctz(open);
    bucket->tag[slot] = tag;
    bucket->record[slot] = record;
    if (foreign)
        bucket->foreign |= (uint8_t)(1u << slot);
    return true;
}

static void bucket_clear(struct flow_bucket *bucket, int slot) {
    bucket->tag[slot] = 0;
    bucket->foreign &= (uint8_t) ~(1u << slot);
    bucket->again &= (uint8_t) ~(1u << slot);
}

/* Moves one entry of a full bucket to its other bucket. False when those are all full too. */
static bool bucket_make_room(struct flow_index *index, uint32_t number) {
    struct flow_bucket *bucket = &index->buckets[number];
    for (int slot = 0; slot < BUCKET_SLOTS; slot++) {
        struct flow_bucket *other = &index->buckets[flow_index_other(index, number, bucket->tag[slot])];
        bool foreign = bucket->foreign >> slot & 1;
        if (!bucket_put(other, bucket->tag[slot], bucket->record[slot], !foreign))
            continue;
        if (foreign)
            other->overflow--; /* home again */
        else
            bucket->overflow++;
        bucket_clear(bucket, slot);
        return true;
    }
    return false;
}

bool flow_index_insert(struct flow_index *index, uint64_t hash, uint32_t record) {
    uint16_t tag = flow_index_tag(hash);
    uint32_t first = flow_index_first(index, hash);
    uint32_t second = flow_index_other(index, first, tag);
    if (bucket_put(&index->buckets[first], tag, record, false))
        return true;
    if (!bucket_put(&index->buckets[second], tag, record, true)) {
        if (bucket_make_room(index, first))
            return bucket_put(&index->buckets[first], tag, record, false);
        if (!bucket_make_room(index, second))
            return false;
        bucket_put(&index->buckets[second], tag, record, true);
    }
    index->buckets[first].overflow++;
    return true;
}

void flow_index_replace(struct flow_index *index, uint64_t hash, int slot, uint32_t record) {
    uint32_t first = flow_index_first(index, hash);
    struct flow_bucket *bucket = &index->buckets[first];
    if (bucket->foreign >> slot & 1) {
        index->buckets[flow_index_other(index, first, bucket->tag[slot])].overflow--;
        bucket->foreign &= (uint8_t) ~(1u << slot);
    }
    bucket->tag[slot] = flow_index_tag(hash);
    bucket->record[slot] = record;
    /* What the hand passes has had its second chance; when all were found again it has gone all the way round. */
    uint32_t passed = ((2u << ((uint32_t)slot - bucket->hand) % BUCKET_SLOTS) - 1) << bucket->hand;
    bucket->again = bucket->again >> slot & 1 ? 0 : bucket->again & (uint8_t) ~(passed | passed >> BUCKET_SLOTS);
    bucket->hand = (uint8_t)((slot + 1) % BUCKET_SLOTS);
}

static int bucket_find_record(const struct flow_bucket *bucket, uint16_t tag, uint32_t record) {
    for (uint32_t match = flow_bucket_match(bucket, tag); match; match &= match - 1) {
        int slot = __builtin_ctz(match);
        if (bucket->record[slot] == record)
            return slot;
    }
    return -1;
}

void flow_index_remove(struct flow_index *index, uint64_t hash, uint32_t record) {
    uint16_t tag = flow_index_tag(hash);
    struct flow_bucket *first = &index->buckets[flow_index_first(index, hash)];
    int slot = bucket_find_record(first, tag, record);
    if (slot >= 0) {
        bucket_clear(first, slot);
        return;
    }
    struct flow_bucket *second = &index->buckets[flow_index_other(index, flow_index_first(index, hash), tag)];
    slot = bucket_find_record(second, tag, record);
    if (slot < 0)
        abort(); /* the index has lost an entry: going on would count packets wrongly */
    bucket_clear(second, slot);
    first->overflow--;
}
