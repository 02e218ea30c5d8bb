/* SPDX-License-Identifier: Apache-2.0 */
/* Open addressing; keys are digests, so that their first bytes are a hash. */
#include "trust/used_ids.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY_FIRST = 64 };

static bool is_empty(const struct used_id *slot) {
    return !(slot->key[USED_KEY_BYTES - 1] & 1);
}

/* The slot of this key, or the empty one where it belongs. */
static struct used_id *find(struct used_id *slots, uint32_t capacity, const uint8_t *key) {
    uint32_t at;
    memcpy(&at, key, sizeof(at));
    for (;; at++) {
        struct used_id *slot = &slots[at & (capacity - 1)];
        if (is_empty(slot) || memcmp(slot->key, key, USED_KEY_BYTES) == 0)
            return slot;
    }
}

static bool grow(struct used_ids *used) {
    uint32_t capacity = used->capacity ? used->capacity * 2 : CAPACITY_FIRST;
    struct used_id *slots = calloc(capacity, sizeof(*slots));
    if (!slots)
        return false;
    for (uint32_t i = 0; i < used->capacity; i++)
        if (!is_empty(&used->slots[i]))
            *find(slots, capacity, used->slots[i].key) = used->slots[i];
    free(used->slots);
    used->slots = slots;
    used->capacity = capacity;
    return true;
}

enum used_verdict used_ids_note(struct used_ids *used, const struct used_id *id) {
    struct used_id wanted = *id;
    wanted.key[USED_KEY_BYTES - 1] |= 1;
    if (2 * (used->count + 1) > used->capacity && used->count < USED_IDS_MAX && !grow(used))
        return USED_NO_MEMORY;
    struct used_id *slot = find(used->slots, used->capacity, wanted.key);
    if (!is_empty(slot))
        return memcmp(slot->digest, wanted.digest, USED_KEY_BYTES) == 0 ? USED_SAME : USED_OTHER;
    if (used->count >= USED_IDS_MAX)
        return USED_FULL;
    *slot = wanted;
    used->count++;
    return USED_NEW;
}

void used_ids_free(struct used_ids *used) {
    free(used->slots);
    *used = (struct used_ids){0};
}
