/* SPDX-License-Identifier: Apache-2.0 */
/* IPv6 (RFC 8200) and its chain of extension headers (IANA "IPv6 Extension Header Types"), jumbograms (RFC 2675). */
#include "decode/transport.h"

enum {
    IPV6_HEADER = 40,
    JUMBO_OPTION = 0xc2,
    OFFLOAD_MIN = 8, /* fewer bytes after a header with payload length 0 are Ethernet padding, not an offloaded segment */
};

enum extension_header {
    EXTENSION_HOP_BY_HOP = 0,
    EXTENSION_ROUTING = 43,
    EXTENSION_FRAGMENT = 44,
    EXTENSION_AH = 51,
    EXTENSION_NO_NEXT = 59,
    EXTENSION_DESTINATION = 60,
    EXTENSION_MOBILITY = 135,
    EXTENSION_HIP = 139,
    EXTENSION_SHIM6 = 140,
};

/* Length in bytes of the extension header of this type at `at` (2 bytes readable), 0 when the type is none. ESP (50) hides what
 * follows: it ends the chain, as no-next-header does. */
static uint32_t extension_length(uint8_t type, const uint8_t *at) {
    switch (type) {
    case EXTENSION_HOP_BY_HOP:
    case EXTENSION_ROUTING:
    case EXTENSION_DESTINATION:
    case EXTENSION_MOBILITY:
    case EXTENSION_HIP:
    case EXTENSION_SHIM6:
        return (at[1] + 1u) * 8;
    case EXTENSION_FRAGMENT:
        return 8;
    case EXTENSION_AH:
        return (at[1] + 2u) * 4;
    default:
        return 0;
    }
}

/* Payload length of a jumbogram: its option stands first in the hop-by-hop header, which stands first in the packet. 0: there is
 * none. */
static uint32_t jumbo_length(const struct cursor *after_header, uint8_t next) {
    const uint8_t *at = after_header->at;
    if (next != EXTENSION_HOP_BY_HOP || after_header->left < 8 || at[2] != JUMBO_OPTION || at[3] != 4)
        return 0;
    return load_be32(at + 4);
}

static uint32_t ipv6_octets(const struct cursor *after_header, uint8_t next, uint32_t payload) {
    if (payload == 0) {
        uint32_t jumbo = jumbo_length(after_header, next);
        if (jumbo > UINT16_MAX && jumbo <= UINT32_MAX - IPV6_HEADER)
            payload = jumbo;
        else if (next != EXTENSION_NO_NEXT && after_header->wire >= OFFLOAD_MIN)
            payload = after_header->wire;
    }
    return IPV6_HEADER + payload;
}

/* Notes a fragment header; an atomic fragment (RFC 6946) is a whole packet. */
static void note_fragment(const uint8_t *at, struct packet *packet) {
    uint16_t offset_more = load_be16(at + 2);
    if (offset_more >> 3)
        packet->fragment = PACKET_FRAGMENT_LATER;
    else if (offset_more & 1)
        packet->fragment = PACKET_FRAGMENT_FIRST;
    else
        return;
    packet->fragment_id = load_be32(at + 4);
    packet->fragment_protocol = at[0];
}

/* Walks the chain; the protocol is the first next-header value that is no readable extension header. */
static void walk_extensions(struct cursor cursor, uint8_t next, struct packet *packet) {
    for (int headers = 0; headers < DECODE_MAX_EXTENSION_HEADERS && packet->fragment != PACKET_FRAGMENT_LATER; headers++) {
        uint32_t length = cursor.left >= 2 ? extension_length(next, cursor.at) : 0;
        if (length == 0 || length > cursor.left)
            break;
        if (next == EXTENSION_FRAGMENT)
            note_fragment(cursor.at, packet);
        next = cursor.at[0];
        cursor_skip(&cursor, length);
    }
    packet->key.protocol = next;
    if (packet->fragment == PACKET_FRAGMENT_LATER)
        packet->payload_wire = cursor.wire;
    else
        decode_transport(&cursor, packet);
}

enum decode_result decode_ipv6(struct cursor cursor, struct packet *packet) {
    const uint8_t *ip = cursor.at;
    if (cursor.left < IPV6_HEADER || ip[0] >> 4 != 6)
        return DECODE_MALFORMED;
    struct flow_key *key = &packet->key;
    packet->ip = ip;
    memcpy(key->addr, ip + 8, 32);
    key->ip_version = 6;
    packet->dscp = load_be16(ip) >> 6 & 0x3f;

    uint8_t next = ip[6];
    cursor_skip(&cursor, IPV6_HEADER);
    packet->octets = ipv6_octets(&cursor, next, load_be16(ip + 4));
    uint32_t payload = packet->octets - IPV6_HEADER;
    if (cursor.left > payload)
        cursor.left = payload;
    if (cursor.wire > payload)
        cursor.wire = payload;
    if (next == IP_PROTOCOL_TCP || next == IP_PROTOCOL_UDP) {
        key->protocol = next;
        decode_transport(&cursor, packet);
    } else {
        walk_extensions(cursor, next, packet);
    }
    return DECODE_IP;
}
