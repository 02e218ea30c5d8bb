/* SPDX-License-Identifier: Apache-2.0 */
/* The fragment cache on arbitrary sequences of fragments of few datagrams: ports are those of some first fragment or 0, counters
 * add up. */
#include <stdlib.h>
#include <string.h>

#include "flow/fragment_cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The ports follow from the datagram, so that those of another one show. */
static uint16_t port_of(uint32_t id) {
    return (uint16_t)(1 + id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fragment_cache cache;
    uint64_t later = 0;
    if (!fragment_cache_init(&cache, 256, 1))
        return 0;
    for (; size >= 4; data += 4, size -= 4) {
        uint32_t id = data[0] | data[1] << 8;
        struct packet packet = {.ts_ns = data[2] * 1000000000ull, .fragment_id = id, .fragment_protocol = 17};
        packet.key.ip_version = data[3] & 2 ? 6 : 4;
        packet.key.protocol = 17;
        packet.fragment = data[3] & 1 ? PACKET_FRAGMENT_FIRST : PACKET_FRAGMENT_LATER;
        bool first = packet.fragment == PACKET_FRAGMENT_FIRST;
        later += !first;
        if (first)
            packet.key.port[0] = packet.key.port[1] = port_of(id);
        fragment_cache_resolve(&cache, &packet);
        if (packet.key.port[0] != port_of(id) && (first || packet.key.port[0] != 0))
            abort();
    }
    if (cache.matched + cache.unmatched != later)
        abort();
    fragment_cache_destroy(&cache);
    return 0;
}
