/* SPDX-License-Identifier: Apache-2.0 */
/* Gives later fragments the protocol and ports of their first one. Bounded: sets of four, the oldest entry makes room. */
#ifndef JARVIS_FRAGMENT_CACHE_H
#define JARVIS_FRAGMENT_CACHE_H

#include <stdbool.h>

#include "decode/packet.h"
#include "flow/flow_hash.h"

enum { FRAGMENT_WAYS = 4 };
#define FRAGMENT_LIFETIME_NS 30000000000u /* packet time; RFC 791 reassembly: up to 15 s, RFC 8200: 60 s */

struct fragment_entry;

struct fragment_cache {
    struct fragment_entry *entries;
    uint32_t slots; /* power of two */
    struct hash_seed seed;
    uint64_t matched;
    uint64_t unmatched;
};

/* False: no memory. */
bool fragment_cache_init(struct fragment_cache *cache, uint32_t slots, uint64_t hash_seed);
void fragment_cache_destroy(struct fragment_cache *cache);
uint64_t fragment_cache_bytes(const struct fragment_cache *cache);

/* Before packet_canonicalise, for packets with fragment != PACKET_WHOLE: remembers a first fragment, completes a later one. */
void fragment_cache_resolve(struct fragment_cache *cache, struct packet *packet);

#endif
