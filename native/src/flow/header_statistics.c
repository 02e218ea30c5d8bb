/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/header_statistics.h"

enum { MAC = 6, NO_ADDRESS = UINT8_MAX, IPV4_TTL_AT = 8, IPV6_HOP_LIMIT_AT = 7 };

/* Offsets of the addresses, by enum link_addresses: LINKTYPE_LINUX_SLL and _SLL2 (tcpdump.org), IEEE 802.11-2020 9.3.2.1. */
static const struct {
    uint8_t source, destination;
} addresses_at[] = {
    [LINK_ADDRESSES_ETHERNET] = {6, 0},     [LINK_ADDRESSES_SLL] = {6, NO_ADDRESS}, [LINK_ADDRESSES_SLL2] = {12, NO_ADDRESS},
    [LINK_ADDRESSES_WIFI_DIRECT] = {10, 4}, [LINK_ADDRESSES_WIFI_TO_DS] = {10, 16}, [LINK_ADDRESSES_WIFI_FROM_DS] = {16, 4},
    [LINK_ADDRESSES_WIFI_BOTH] = {24, 16},
};

static void note_first(struct capture_headers *side, const struct packet *packet) {
    *side = (struct capture_headers){.inner_vlan_id = packet->inner_vlan_id, .min_ttl = UINT8_MAX};
    if (packet->link) {
        uint8_t source = addresses_at[packet->link_addresses].source;
        uint8_t destination = addresses_at[packet->link_addresses].destination;
        memcpy(side->src_mac, packet->link + source, MAC);
        if (destination != NO_ADDRESS)
            memcpy(side->dst_mac, packet->link + destination, MAC);
    }
    if (packet->key.ip_version == 6) /* RFC 8200 3: the low 20 bits of the first word */
        side->flow_label = (packet->ip[1] & 15u) << 16 | packet->ip[2] << 8 | packet->ip[3];
}

void header_statistics_count(struct header_statistics *headers, const struct packet *packet, bool first) {
    struct capture_headers *side = &headers->side[packet->from];
    if (first)
        note_first(side, packet);
    uint8_t ttl = packet->ip[packet->key.ip_version == 6 ? IPV6_HOP_LIMIT_AT : IPV4_TTL_AT];
    if (ttl < side->min_ttl)
        side->min_ttl = ttl;
    if (ttl > side->max_ttl)
        side->max_ttl = ttl;
}
