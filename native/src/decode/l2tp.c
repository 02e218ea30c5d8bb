/* SPDX-License-Identifier: Apache-2.0 */
/* L2TP: version 2 (RFC 2661) over UDP with PPP inside, version 3 (RFC 3931) over UDP and over IP with Ethernet or bare IP inside.
 *
 * Between version 3's session id and what it carries stand a cookie of 0, 4 or 8 bytes and a sublayer of 0 or 4; how many was
 * agreed on when the session was set up, and the packet does not say. So a header is looked for at each of the four places that
 * come of it, and only where exactly one place has one whose every check fits, length included, it is taken. */
#include "decode/tunnel.h"

enum l2tp_flag {
    L2TP_CONTROL = 0x8000,
    L2TP_LENGTH = 0x4000,
    L2TP_SEQUENCE = 0x0800,
    L2TP_OFFSET = 0x0200,
    L2TP_VERSION = 0x000f,
};

enum l2tp_v3 {
    L2TP_V3_UDP_HEADER = 4, /* flags, version, reserved: over IP it is missing */
    L2TP_V3_SESSION = 4,
    L2TP_V3_PLACES = 4, /* 0, 4, 8 and 12 bytes behind the session id */
    L2TP_V3_PLACE = 4,
};

enum inner_header {
    ETHERNET_HEADER = 14,
    ETHERNET_LEAST = 60, /* without checksum; a shorter packet is filled up to it, and tags may be put in afterwards */
    ETHERNET_TAG = 4,
    ETHERNET_GROUP = 0x01,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    MULTICAST_V4 = 224,
    MULTICAST_V6 = 0xff,
};

static enum decode_result l2tp_v2(struct cursor cursor, uint16_t flags, struct packet *packet) {
    uint32_t ids_at = flags & L2TP_LENGTH ? 4 : 2;
    uint32_t header = ids_at + 4 + (flags & L2TP_SEQUENCE ? 4 : 0) + (flags & L2TP_OFFSET ? 2 : 0);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_L2TP, load_be32(cursor.at + ids_at));
    if (flags & L2TP_OFFSET)
        header += load_be16(cursor.at + header - 2);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    cursor_skip(&cursor, header);
    return decode_ppp(cursor, packet);
}

static bool ipv4_checksum_fits(const uint8_t *at, uint32_t header) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < header; i += 2)
        sum += load_be16(at + i);
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

/* `filled`: an Ethernet frame may go on behind the packet. */
static bool length_fits(uint32_t length, uint32_t wire, bool filled) {
    return length == wire || (filled && length < wire);
}

static bool is_ipv4(const struct cursor *cursor, bool filled) {
    const uint8_t *at = cursor->at;
    if (cursor->left < IPV4_HEADER || at[0] >> 4 != 4)
        return false;
    uint32_t header = (at[0] & 0x0f) * 4u, length = load_be16(at + 2);
    return header >= IPV4_HEADER && cursor->left >= header && length >= header && length_fits(length, cursor->wire, filled) &&
           at[8] != 0 && at[12] < MULTICAST_V4 && ipv4_checksum_fits(at, header);
}

/* What IPv6 packets begin with: extension headers, and the protocols that hosts and routers speak. */
static bool is_next_header(uint8_t next) {
    static const uint8_t known[] = {0,  4,  6,  17,  41,  43,  44,  46,  47,  50,  51, 58,
                                    59, 60, 89, 103, 112, 115, 132, 135, 136, 139, 140};
    return memchr(known, next, sizeof(known)) != NULL;
}

/* 2000::/3 (global), fc00::/7 (unique local), fe80::/10 (link local): where all addresses of hosts are. */
static bool is_unicast_v6(const uint8_t *addr) {
    return addr[0] >> 5 == 1 || (addr[0] & 0xfe) == 0xfc || (addr[0] == 0xfe && (addr[1] & 0xc0) == 0x80);
}

static bool is_ipv6(const struct cursor *cursor, bool filled) {
    const uint8_t *at = cursor->at;
    return cursor->left >= IPV6_HEADER && at[0] >> 4 == 6 && length_fits(IPV6_HEADER + load_be16(at + 4), cursor->wire, filled) &&
           is_next_header(at[6]) && at[7] != 0 && is_unicast_v6(at + 8) && (is_unicast_v6(at + 24) || at[24] == MULTICAST_V6);
}

/* The IP header in an Ethernet frame, or NULL: there is no such frame. */
static const uint8_t *ip_in_ethernet(struct cursor cursor) {
    static const uint8_t nobody[6];
    uint32_t length = cursor.wire, least = ETHERNET_LEAST;
    if (cursor.left < ETHERNET_HEADER || cursor.at[6] & ETHERNET_GROUP || memcmp(cursor.at + 6, nobody, sizeof(nobody)) == 0)
        return NULL;
    uint16_t type = load_be16(cursor.at + 12);
    cursor_skip(&cursor, ETHERNET_HEADER);
    for (int tags = 0; tags < DECODE_MAX_TAGS && (type == 0x8100 || type == 0x88a8 || type == 0x9100); tags++) {
        if (cursor.left < ETHERNET_TAG)
            return NULL;
        type = load_be16(cursor.at + 2);
        cursor_skip(&cursor, ETHERNET_TAG);
        least += ETHERNET_TAG;
    }
    bool filled = length <= least;
    bool fits = type == 0x0800 ? is_ipv4(&cursor, filled) : type == 0x86dd && is_ipv6(&cursor, filled);
    return fits ? cursor.at : NULL;
}

/* The one place from the cursor on where a header fits; false: there is none, or several. A frame's tag may be read as a source
 * address too, so that the frame seems to begin 4 bytes further on without it: both lead to one IP header, and the tag counts. */
static bool find_content(struct cursor *cursor, bool *ethernet) {
    struct cursor place = *cursor;
    const uint8_t *found = NULL;
    int headers = 0;
    for (int number = 0; number < L2TP_V3_PLACES; number++) {
        const uint8_t *framed = ip_in_ethernet(place);
        bool bare = is_ipv4(&place, false) || is_ipv6(&place, false), another = framed && framed != found;
        if (bare || another) {
            headers += bare + another;
            found = framed ? framed : place.at;
            *cursor = place;
            *ethernet = framed != NULL;
        }
        if (place.left < L2TP_V3_PLACE)
            break;
        cursor_skip(&place, L2TP_V3_PLACE);
    }
    return headers == 1;
}

/* From the session id on. */
static enum decode_result l2tp_v3(struct cursor cursor, struct packet *packet) {
    if (cursor.left < L2TP_V3_SESSION)
        return DECODE_MALFORMED;
    uint32_t session = load_be32(cursor.at);
    if (session == 0) /* a control message */
        return DECODE_NON_IP;
    cursor_skip(&cursor, L2TP_V3_SESSION);
    bool ethernet;
    if (!find_content(&cursor, &ethernet))
        return DECODE_NON_IP;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_L2TP_V3, session);
    return ethernet ? decode_ethernet(cursor, false, packet) : decode_raw(cursor, packet);
}

enum decode_result tunnel_l2tp(struct cursor cursor, struct packet *packet) {
    if (cursor.left < 2)
        return DECODE_MALFORMED;
    uint16_t flags = load_be16(cursor.at);
    if (flags & L2TP_CONTROL)
        return DECODE_NON_IP;
    if ((flags & L2TP_VERSION) == 2)
        return l2tp_v2(cursor, flags, packet);
    if ((flags & L2TP_VERSION) != 3 || cursor.left < L2TP_V3_UDP_HEADER)
        return DECODE_NON_IP;
    cursor_skip(&cursor, L2TP_V3_UDP_HEADER);
    return l2tp_v3(cursor, packet);
}

enum decode_result tunnel_l2tp_ip(struct cursor cursor, struct packet *packet) {
    return l2tp_v3(cursor, packet);
}
