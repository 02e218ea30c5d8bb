/* SPDX-License-Identifier: Apache-2.0 */
/* From the link-layer header to the IP header: LINKTYPE_* values from https://www.tcpdump.org/linktypes.html. */
#include "decode/cursor.h"
#include "link_type.h"

enum decode_result decode_raw(struct cursor cursor, struct packet *packet) {
    if (cursor.left == 0)
        return DECODE_MALFORMED;
    switch (cursor.at[0] >> 4) {
    case 4:
        return decode_ipv4(cursor, packet);
    case 6:
        return decode_ipv6(cursor, packet);
    default:
        return DECODE_MALFORMED;
    }
}

/* RFC 3032. The stack does not say what it carries: the first nibble tells IP, anything else is a pseudowire. */
static enum decode_result decode_mpls(struct cursor cursor, struct packet *packet) {
    for (int labels = 0; labels < DECODE_MAX_TAGS; labels++) {
        if (cursor.left < 4)
            return DECODE_MALFORMED;
        bool bottom = cursor.at[2] & 1;
        cursor_skip(&cursor, 4);
        if (!bottom)
            continue;
        if (cursor.left == 0)
            return DECODE_MALFORMED;
        uint8_t version = cursor.at[0] >> 4;
        return version == 4 || version == 6 ? decode_raw(cursor, packet) : DECODE_NON_IP;
    }
    return DECODE_MALFORMED;
}

/* IEEE 802.2 LLC with SNAP and organisation 0 carries an Ethertype (RFC 1042). Returns it, or 0: anything else. */
static uint16_t snap_ethertype(struct cursor *cursor) {
    static const uint8_t snap[6] = {0xaa, 0xaa, 0x03, 0, 0, 0};
    if (cursor->left < 8 || memcmp(cursor->at, snap, sizeof(snap)) != 0)
        return 0;
    uint16_t type = load_be16(cursor->at + 6);
    cursor_skip(cursor, 8);
    return type > ETHERTYPE_MAX_LENGTH ? type : 0;
}

/* From behind an Ethertype on. Of the tags the outermost is in the key, and the next one beside it. */
enum decode_result decode_ethertype(struct cursor cursor, uint16_t type, bool tagged, struct packet *packet) {
    bool second = false;
    for (int tags = 0; tags <= DECODE_MAX_TAGS; tags++) {
        switch (type) {
        case ETHERTYPE_IPV4:
            return decode_ipv4(cursor, packet);
        case ETHERTYPE_IPV6:
            return decode_ipv6(cursor, packet);
        case ETHERTYPE_MPLS:
        case ETHERTYPE_MPLS_UPSTREAM:
            return decode_mpls(cursor, packet);
        case ETHERTYPE_PPPOE_SESSION:
            return decode_pppoe(cursor, packet);
        case ETHERTYPE_VLAN:
        case ETHERTYPE_SERVICE_VLAN:
        case ETHERTYPE_QINQ:
            if (cursor.left < 4)
                return DECODE_MALFORMED;
            if (!tagged)
                packet->key.vlan_id = load_be16(cursor.at) & 0x0fff;
            else if (!second)
                packet->inner_vlan_id = load_be16(cursor.at) & 0x0fff;
            second = tagged;
            tagged = true;
            type = load_be16(cursor.at + 2);
            cursor_skip(&cursor, 4);
            break;
        default:
            if (type > ETHERTYPE_MAX_LENGTH || (type = snap_ethertype(&cursor)) == 0)
                return DECODE_NON_IP;
        }
    }
    return DECODE_MALFORMED;
}

enum decode_result decode_ethernet(struct cursor cursor, bool tagged, struct packet *packet) {
    if (cursor.left < 14)
        return DECODE_MALFORMED;
    uint16_t type = load_be16(cursor.at + 12);
    packet->link = cursor.at;
    cursor_skip(&cursor, 14);
    return decode_ethertype(cursor, type, tagged, packet);
}

/* LINKTYPE_NULL and LINKTYPE_LOOP: an address family of 4 bytes, in the byte order of the writer or in network order. */
static enum decode_result decode_loopback(struct cursor cursor, struct packet *packet) {
    if (cursor.left < 4)
        return DECODE_MALFORMED;
    uint32_t family = load_be32(cursor.at);
    if (family > UINT16_MAX)
        family = __builtin_bswap32(family);
    cursor_skip(&cursor, 4);
    switch (family) {
    case 2: /* AF_INET everywhere */
        return decode_ipv4(cursor, packet);
    case 10: /* AF_INET6: Linux; NetBSD and OpenBSD; FreeBSD; Darwin */
    case 24:
    case 28:
    case 30:
        return decode_ipv6(cursor, packet);
    default:
        return DECODE_NON_IP;
    }
}

/* The two forms of Linux cooked captures. */
struct cooked {
    uint8_t header;            /* bytes */
    uint8_t type_at;           /* Ethertype */
    uint8_t address_length_at; /* the low byte of the sender's address length; 6: it is a MAC address */
    uint8_t addresses;         /* enum link_addresses */
};
static const struct cooked cooked_v1 = {16, 14, 5, LINK_ADDRESSES_SLL}, cooked_v2 = {20, 0, 11, LINK_ADDRESSES_SLL2};

static enum decode_result decode_cooked(struct cursor cursor, const struct cooked *form, bool tagged, struct packet *packet) {
    if (cursor.left < form->header)
        return DECODE_MALFORMED;
    uint16_t type = load_be16(cursor.at + form->type_at);
    if (cursor.at[form->address_length_at] == 6) {
        packet->link = cursor.at;
        packet->link_addresses = form->addresses;
    }
    cursor_skip(&cursor, form->header);
    /* Below 0x0600 stand Linux's own types (LLC, CAN, ...): 4 is LLC, which may carry SNAP. */
    if (type <= ETHERTYPE_MAX_LENGTH && type != 4)
        return DECODE_NON_IP;
    return decode_ethertype(cursor, type, tagged, packet);
}

enum decode_result decode_frame(const struct frame *frame, struct packet *packet) {
    uint32_t wire = frame->wirelen > frame->caplen ? frame->wirelen : frame->caplen;
    struct cursor cursor = {frame->data, frame->caplen, wire};
    bool tagged = frame->flags & FRAME_VLAN;
    packet_clear(packet);
    packet->key.vlan_id = tagged ? frame->vlan_tci & 0x0fff : 0;
    packet->ts_ns = frame->ts_ns;
    packet->interface_index = frame->interface_index;

    if (__builtin_expect(frame->link_type == LINK_ETHERNET, 1))
        return decode_ethernet(cursor, tagged, packet);
    packet->link = NULL;
    switch (frame->link_type) {
    case LINK_LINUX_SLL:
        return decode_cooked(cursor, &cooked_v1, tagged, packet);
    case LINK_LINUX_SLL2:
        return decode_cooked(cursor, &cooked_v2, tagged, packet);
    case LINK_NULL:
    case LINK_LOOP:
        return decode_loopback(cursor, packet);
    case LINK_RAW_IP:
    case LINK_DLT_RAW:
    case LINK_DLT_RAW_OPENBSD:
    case LINK_IPV4:
    case LINK_IPV6:
        return decode_raw(cursor, packet);
    case LINK_PPP:
    case LINK_PPP_HDLC:
        return decode_ppp(cursor, packet);
    case LINK_PPP_ETHER:
        return decode_pppoe(cursor, packet);
    case LINK_IEEE802_11:
        return decode_wifi(cursor, packet);
    case LINK_IEEE802_11_RADIOTAP:
        return decode_radiotap(cursor, packet);
    case LINK_PPI:
        return decode_ppi(cursor, packet);
    default:
        return DECODE_NON_IP;
    }
}
