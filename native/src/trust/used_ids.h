/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that were admitted under one lease: each id (method and request id) with what it asked for. */
#ifndef JARVIS_USED_IDS_H
#define JARVIS_USED_IDS_H

#include <stdint.h>

enum { USED_IDS_MAX = 65536, USED_KEY_BYTES = 16 };

enum used_verdict {
    USED_NEW = 0,   /* noted now */
    USED_SAME = 1,  /* came before, and asked for the same */
    USED_OTHER = 2, /* came before, and asked for something else */
    USED_FULL = 3,  /* USED_IDS_MAX are there; not noted */
    USED_NO_MEMORY = 4,
};

struct used_id {
    uint8_t key[USED_KEY_BYTES];    /* digest of method and request id; its last bit is set: all zero is an empty slot */
    uint8_t digest[USED_KEY_BYTES]; /* of the payload */
};

/* Zero-initialised: empty. */
struct used_ids {
    struct used_id *slots;
    uint32_t capacity; /* 0 or a power of two, at least twice count */
    uint32_t count;
};

enum used_verdict used_ids_note(struct used_ids *used, const struct used_id *id);

void used_ids_free(struct used_ids *used);

#endif
