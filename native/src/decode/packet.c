/* SPDX-License-Identifier: Apache-2.0 */
/* The canonical order of a key's endpoints: addresses as big-endian numbers, then ports. */
#include "decode/packet.h"

#include "decode/cursor.h"

static bool source_is_lower(const struct flow_key *key)
{
    uint64_t a = load_be64(key->addr[0]), b = load_be64(key->addr[1]);
    if (a != b)
        return a < b;
    a = load_be64(key->addr[0] + 8), b = load_be64(key->addr[1] + 8);
    if (a != b)
        return a < b;
    return key->port[0] <= key->port[1];
}

void packet_canonicalise(struct packet *packet)
{
    struct flow_key *key = &packet->key;
    if (source_is_lower(key))
        return;
    uint8_t addr[16];
    memcpy(addr, key->addr[0], 16);
    memcpy(key->addr[0], key->addr[1], 16);
    memcpy(key->addr[1], addr, 16);
    uint16_t port = key->port[0];
    key->port[0] = key->port[1];
    key->port[1] = port;
    packet->from = 1;
}
