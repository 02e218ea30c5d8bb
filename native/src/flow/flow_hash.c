/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_hash.h"

void hash_seed_expand(struct hash_seed *seed, uint64_t value) {
    for (int i = 0; i < 6; i++) {
        uint64_t z = value += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        seed->word[i] = z ^ z >> 31;
    }
}

static uint64_t fnv1a(uint64_t hash, const uint8_t *bytes, uint32_t length) {
    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t fnv1a_be16(uint64_t hash, uint16_t value) {
    uint8_t bytes[2] = {value >> 8, value & 0xff};
    return fnv1a(hash, bytes, 2);
}

uint64_t flow_key_id(const struct flow_key *key) {
    uint32_t length = key->ip_version == 4 ? 4 : 16;
    uint64_t hash = 0xcbf29ce484222325u;
    hash = fnv1a(hash, &key->ip_version, 1);
    hash = fnv1a(hash, &key->protocol, 1);
    hash = fnv1a_be16(hash, key->vlan_id);
    for (int end = 0; end < 2; end++) {
        hash = fnv1a(hash, key->addr[end], length);
        hash = fnv1a_be16(hash, key->port[end]);
    }
    if (key->tunnel_type) {
        hash = fnv1a(hash, &key->tunnel_type, 1);
        hash = fnv1a_be16(hash, (uint16_t)(key->tunnel_id >> 16));
        hash = fnv1a_be16(hash, (uint16_t)key->tunnel_id);
    }
    return hash;
}
