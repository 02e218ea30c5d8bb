/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/fragment_cache.h"

#include "flow/memory.h"

/* One datagram in flight, keyed as RFC 791 and RFC 8200 identify it, within its VLAN and tunnel. */
struct fragment_entry {
    uint8_t addr[2][16]; /* source, destination */
    uint32_t id;
    uint16_t vlan_id;
    uint8_t fragment_protocol;
    uint8_t ip_version; /* 0: free */
    uint16_t port[2];
    uint8_t protocol;
    uint8_t tunnel_type;
    uint8_t reserved[2];
    uint32_t tunnel_id;
    uint32_t reserved_end;
    uint64_t ts_ns;
};
static_assert(sizeof(struct fragment_entry) == 64, "one cache line a datagram");

bool fragment_cache_init(struct fragment_cache *cache, uint32_t slots, uint64_t hash_seed) {
    memset(cache, 0, sizeof(*cache));
    cache->slots = slots;
    hash_seed_expand(&cache->seed, ~hash_seed);
    cache->entries = memory_map(slots * sizeof(struct fragment_entry));
    return cache->entries != NULL;
}

void fragment_cache_destroy(struct fragment_cache *cache) {
    memory_unmap(cache->entries, cache->slots * sizeof(struct fragment_entry));
    cache->entries = NULL;
}

uint64_t fragment_cache_bytes(const struct fragment_cache *cache) {
    return cache->slots * sizeof(struct fragment_entry);
}

static struct fragment_entry *fragment_set(const struct fragment_cache *cache, const struct packet *packet) {
    struct flow_key key = packet->key;
    key.protocol = packet->fragment_protocol;
    key.port[0] = packet->fragment_id >> 16; /* ports are not part of the identity; the identification is */
    key.port[1] = packet->fragment_id & 0xffff;
    uint64_t hash = flow_key_hash(&key, &cache->seed);
    return &cache->entries[hash & (cache->slots - 1) & ~(uint64_t)(FRAGMENT_WAYS - 1)];
}

static bool fragment_matches(const struct fragment_entry *entry, const struct packet *packet) {
    return entry->ip_version == packet->key.ip_version && entry->id == packet->fragment_id &&
           entry->fragment_protocol == packet->fragment_protocol && entry->vlan_id == packet->key.vlan_id &&
           entry->tunnel_type == packet->key.tunnel_type && entry->tunnel_id == packet->key.tunnel_id &&
           memcmp(entry->addr, packet->key.addr, sizeof(entry->addr)) == 0;
}

static bool fragment_is_fresh(const struct fragment_entry *entry, uint64_t ts_ns) {
    uint64_t age = ts_ns > entry->ts_ns ? ts_ns - entry->ts_ns : entry->ts_ns - ts_ns;
    return age <= FRAGMENT_LIFETIME_NS;
}

static void fragment_remember(struct fragment_entry *set, const struct packet *packet) {
    struct fragment_entry *slot = &set[0];
    for (int way = 0; way < FRAGMENT_WAYS; way++) {
        if (set[way].ip_version == 0 || fragment_matches(&set[way], packet)) {
            slot = &set[way];
            break;
        }
        if (set[way].ts_ns < slot->ts_ns)
            slot = &set[way];
    }
    memcpy(slot->addr, packet->key.addr, sizeof(slot->addr));
    slot->id = packet->fragment_id;
    slot->vlan_id = packet->key.vlan_id;
    slot->fragment_protocol = packet->fragment_protocol;
    slot->ip_version = packet->key.ip_version;
    slot->port[0] = packet->key.port[0];
    slot->port[1] = packet->key.port[1];
    slot->protocol = packet->key.protocol;
    slot->tunnel_type = packet->key.tunnel_type;
    slot->tunnel_id = packet->key.tunnel_id;
    slot->ts_ns = packet->ts_ns;
}

void fragment_cache_resolve(struct fragment_cache *cache, struct packet *packet) {
    struct fragment_entry *set = fragment_set(cache, packet);
    if (packet->fragment == PACKET_FRAGMENT_FIRST) {
        fragment_remember(set, packet);
        return;
    }
    for (int way = 0; way < FRAGMENT_WAYS; way++) {
        if (!fragment_matches(&set[way], packet) || !fragment_is_fresh(&set[way], packet->ts_ns))
            continue;
        packet->key.protocol = set[way].protocol;
        packet->key.port[0] = set[way].port[0];
        packet->key.port[1] = set[way].port[1];
        cache->matched++;
        return;
    }
    cache->unmatched++;
}
