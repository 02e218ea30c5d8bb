/* SPDX-License-Identifier: Apache-2.0 */
/* Two hashes of a flow key: the seeded one for the table's index, FNV-1a for the public flow id. */
#ifndef JARVIS_FLOW_HASH_H
#define JARVIS_FLOW_HASH_H

#include <string.h>

#include "decode/packet.h"

struct hash_seed {
    uint64_t word[6];
};

static inline uint64_t hash_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Multiply-fold over the six words of the key, as wyhash does: who does not know the seed cannot make keys collide. */
static inline uint64_t flow_key_hash(const struct flow_key *key, const struct hash_seed *seed) {
    uint64_t low = hash_fold(flow_key_word(key, 0) ^ seed->word[0], flow_key_word(key, 1) ^ seed->word[1]);
    uint64_t high = hash_fold(flow_key_word(key, 2) ^ seed->word[2], flow_key_word(key, 3) ^ seed->word[3]);
    return hash_fold(low ^ flow_key_word(key, 4) ^ seed->word[4], high ^ flow_key_word(key, 5) ^ seed->word[5]);
}

/* Expands 64 bits of seed (splitmix64). */
void hash_seed_expand(struct hash_seed *seed, uint64_t value);

/* FNV-1a 64 over: ip_version(1) protocol(1) vlan_id(2) lower address(4|16) its port(2) higher address(4|16) its port(2), and for
 * inner flows tunnel_type(1) tunnel_id(4), big-endian. */
uint64_t flow_key_id(const struct flow_key *key);

#endif
