/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/mirror_clock.h"

#include <stdlib.h>

struct mirror_entry {
    uint8_t addr[16];    /* the mirror: source of the outer packet */
    uint64_t wrap_ns;    /* 0: free. Part of the key: a mirror that changes its unit has another clock */
    uint64_t mirror_ns;  /* one moment by the mirror's clock, below wrap_ns ... */
    uint64_t capture_ns; /* ... and by the capture's */
    uint64_t used_ns;
    uint16_t session_id;
    uint8_t hardware_id;
    uint8_t ip_version;
};

bool mirror_clock_init(struct mirror_clock *clock, uint64_t hash_seed) {
    hash_seed_expand(&clock->seed, hash_seed);
    clock->entries = calloc(MIRROR_SETS * MIRROR_WAYS, sizeof(struct mirror_entry));
    return clock->entries;
}

void mirror_clock_destroy(struct mirror_clock *clock) {
    free(clock->entries);
    clock->entries = NULL;
}

uint64_t mirror_clock_bytes(const struct mirror_clock *clock) {
    return clock->entries ? MIRROR_SETS * MIRROR_WAYS * sizeof(struct mirror_entry) : 0;
}

static struct mirror_entry *mirror_set(const struct mirror_clock *clock, const struct packet *outer,
                                       const struct mirror_stamp *stamp) {
    struct flow_key key = {.ip_version = outer->key.ip_version,
                           .protocol = stamp->hardware_id,
                           .port = {stamp->session_id, (uint16_t)__builtin_ctzll(stamp->wrap_ns)}};
    memcpy(key.addr[0], outer->key.addr[0], sizeof(key.addr[0]));
    return &clock->entries[flow_key_hash(&key, &clock->seed) % MIRROR_SETS * MIRROR_WAYS];
}

static bool mirror_matches(const struct mirror_entry *entry, const struct packet *outer, const struct mirror_stamp *stamp) {
    return entry->wrap_ns == stamp->wrap_ns && entry->session_id == stamp->session_id &&
           entry->hardware_id == stamp->hardware_id && entry->ip_version == outer->key.ip_version &&
           memcmp(entry->addr, outer->key.addr[0], sizeof(entry->addr)) == 0;
}

/* The mirror's entry, or a new one in the place of the one unused longest, with wrap_ns 0. */
static struct mirror_entry *mirror_find(const struct mirror_clock *clock, const struct packet *outer,
                                        const struct mirror_stamp *stamp) {
    struct mirror_entry *set = mirror_set(clock, outer, stamp), *oldest = set;
    for (int way = 0; way < MIRROR_WAYS; way++) {
        if (mirror_matches(&set[way], outer, stamp))
            return &set[way];
        if (set[way].used_ns < oldest->used_ns)
            oldest = &set[way];
    }
    *oldest = (struct mirror_entry){
        .session_id = stamp->session_id, .hardware_id = stamp->hardware_id, .ip_version = outer->key.ip_version};
    memcpy(oldest->addr, outer->key.addr[0], sizeof(oldest->addr));
    return oldest;
}

/* By how much the mirror's clock is ahead of the capture's since they were set, as the nearest of the values that differ by whole
 * wraps: in -wrap/2..wrap/2. No sum here leaves 64 bits: the largest wrap is 2^32 s. */
static int64_t mirror_ahead(const struct mirror_entry *entry, uint64_t mirror_ns, uint64_t capture_ns) {
    int64_t wrap = (int64_t)entry->wrap_ns;
    int64_t passed = (int64_t)(capture_ns - entry->capture_ns) % wrap;
    int64_t ahead = (int64_t)mirror_ns - (int64_t)entry->mirror_ns - passed; /* in -2 wraps..2 wraps */
    ahead %= wrap;
    if (ahead > wrap / 2)
        ahead -= wrap;
    if (ahead < -wrap / 2)
        ahead += wrap;
    return ahead;
}

static bool mirror_is_usable(const struct mirror_entry *entry, int64_t ahead, uint64_t capture_ns) {
    int64_t most = (int64_t)entry->wrap_ns / 4;
    if (most > MIRROR_DRIFT_MOST_NS)
        most = MIRROR_DRIFT_MOST_NS;
    bool in_time = ahead < 0 ? (uint64_t)-ahead <= capture_ns : (uint64_t)ahead <= UINT64_MAX - capture_ns;
    return ahead >= -most && ahead <= most && in_time;
}

uint64_t mirror_clock_time(struct mirror_clock *clock, const struct packet *outer, const struct mirror_stamp *stamp) {
    struct mirror_entry *entry = mirror_find(clock, outer, stamp);
    entry->used_ns = outer->ts_ns;
    if (entry->wrap_ns) {
        int64_t ahead = mirror_ahead(entry, stamp->time_ns, outer->ts_ns);
        if (mirror_is_usable(entry, ahead, outer->ts_ns))
            return outer->ts_ns + (uint64_t)ahead;
    }
    entry->wrap_ns = stamp->wrap_ns;
    entry->mirror_ns = stamp->time_ns;
    entry->capture_ns = outer->ts_ns;
    return outer->ts_ns;
}
