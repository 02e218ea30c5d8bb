/* SPDX-License-Identifier: Apache-2.0 */
/* GRE (RFC 2784, RFC 2890; source routing of RFC 1701 is refused), PPTP's version of it (RFC 2637) and the mirrored Ethernet
 * frames of ERSPAN types I, II and III (draft-foschiano-erspan-03). */
#include "decode/tunnel.h"

enum gre_flag {
    GRE_CHECKSUM = 0x8000,
    GRE_ROUTING = 0x4000,
    GRE_KEY = 0x2000,
    GRE_SEQUENCE = 0x1000,
    GRE_ACKNOWLEDGMENT = 0x0080, /* PPTP only */
    GRE_VERSION = 0x0007,
};

enum gre_protocol {
    GRE_ETHERNET = 0x6558, /* transparent Ethernet bridging; NVGRE too */
    GRE_PPP = 0x880b,
    GRE_ERSPAN_II = 0x88be, /* and I, which has no header of its own and no sequence number */
    GRE_ERSPAN_III = 0x22eb,
    GRE_LEAST_ETHERTYPE = 0x0600,
};

enum erspan {
    ERSPAN_II_HEADER = 8,
    ERSPAN_III_HEADER = 12,
    ERSPAN_II_VERSION = 1,
    ERSPAN_III_VERSION = 2,
    ERSPAN_VLAN = 0x0fff,
    ERSPAN_SESSION = 0x03ff,
    ERSPAN_FRAME_TYPE_SHIFT = 10, /* 5 bits of the last 16 bits of the type III header */
    ERSPAN_FRAME_TYPE_MASK = 0x1f,
    ERSPAN_FRAME_ETHERNET = 0,
    ERSPAN_FRAME_IP = 2,
    ERSPAN_OPTIONAL = 0x0001, /* likewise: a subheader of 8 bytes follows */
    ERSPAN_SUBHEADER = 8,
    ERSPAN_HARDWARE_SHIFT = 4, /* 6 bits, likewise */
    ERSPAN_HARDWARE_MASK = 0x3f,
    ERSPAN_GRANULARITY_SHIFT = 1, /* 2 bits, likewise */
    ERSPAN_GRANULARITY_MASK = 0x03,
    ERSPAN_100_US = 0,
    ERSPAN_100_NS = 1,
    ERSPAN_IEEE_1588 = 2,        /* nanoseconds here, seconds in the subheaders of the platforms that have them: */
    ERSPAN_PLATFORM_SHIFT = 2,   /* 6 bits of the subheader's first byte */
    ERSPAN_PLATFORM_SECONDS = 5, /* ... in its last 4 bytes; 6 likewise */
    ERSPAN_PLATFORM_SECONDS_TOO = 6,
    PROTOCOL_GRE = 47,
};

static enum decode_result erspan_frame(struct cursor cursor, uint16_t vlan_id, struct packet *packet) {
    packet->key.vlan_id = vlan_id;
    return decode_ethernet(cursor, vlan_id != 0, packet);
}

static enum decode_result erspan_i(struct cursor cursor, struct packet *packet) {
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_ERSPAN, 0);
    return erspan_frame(cursor, 0, packet);
}

static enum decode_result erspan_ii(struct cursor cursor, struct packet *packet) {
    if (cursor.left < ERSPAN_II_HEADER)
        return DECODE_MALFORMED;
    uint16_t version_vlan = load_be16(cursor.at);
    if (version_vlan >> 12 != ERSPAN_II_VERSION)
        return DECODE_NON_IP;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_ERSPAN, load_be16(cursor.at + 2) & ERSPAN_SESSION);
    cursor_skip(&cursor, ERSPAN_II_HEADER);
    return erspan_frame(cursor, version_vlan & ERSPAN_VLAN, packet);
}

static enum decode_result erspan_iii(struct cursor cursor, struct packet *packet) {
    if (cursor.left < ERSPAN_III_HEADER)
        return DECODE_MALFORMED;
    uint16_t version_vlan = load_be16(cursor.at), last = load_be16(cursor.at + 10);
    if (version_vlan >> 12 != ERSPAN_III_VERSION)
        return DECODE_NON_IP;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_ERSPAN, load_be16(cursor.at + 2) & ERSPAN_SESSION);
    uint32_t header = ERSPAN_III_HEADER + (last & ERSPAN_OPTIONAL ? ERSPAN_SUBHEADER : 0);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    cursor_skip(&cursor, header);
    switch (last >> ERSPAN_FRAME_TYPE_SHIFT & ERSPAN_FRAME_TYPE_MASK) {
    case ERSPAN_FRAME_ETHERNET:
        return erspan_frame(cursor, version_vlan & ERSPAN_VLAN, packet);
    case ERSPAN_FRAME_IP:
        packet->key.vlan_id = version_vlan & ERSPAN_VLAN;
        return decode_raw(cursor, packet);
    default:
        return DECODE_NON_IP;
    }
}

/* PPTP: the key's lower half is the call id, and a packet without a sequence number only acknowledges. */
static enum decode_result gre_pptp(struct cursor cursor, uint16_t flags, struct packet *packet) {
    uint32_t header = 8 + (flags & GRE_SEQUENCE ? 4 : 0) + (flags & GRE_ACKNOWLEDGMENT ? 4 : 0);
    if (load_be16(cursor.at + 2) != GRE_PPP || !(flags & GRE_KEY) || !(flags & GRE_SEQUENCE))
        return DECODE_NON_IP;
    if (cursor.left < header)
        return DECODE_MALFORMED;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_GRE, load_be16(cursor.at + 6));
    cursor_skip(&cursor, header);
    return decode_ppp(cursor, packet);
}

static enum decode_result gre_payload(struct cursor cursor, uint16_t flags, uint16_t protocol, struct packet *packet) {
    switch (protocol) {
    case GRE_ETHERNET:
        return decode_ethernet(cursor, false, packet);
    case GRE_ERSPAN_II:
        return flags & GRE_SEQUENCE ? erspan_ii(cursor, packet) : erspan_i(cursor, packet);
    case GRE_ERSPAN_III:
        return erspan_iii(cursor, packet);
    case GRE_PPP:
        return decode_ppp(cursor, packet);
    default:
        return protocol < GRE_LEAST_ETHERTYPE ? DECODE_NON_IP : decode_ethertype(cursor, protocol, false, packet);
    }
}

static uint32_t gre_key_at(uint16_t flags) {
    return flags & GRE_CHECKSUM ? 8 : 4;
}

static uint32_t gre_header(uint16_t flags) {
    return gre_key_at(flags) + (flags & GRE_KEY ? 4 : 0) + (flags & GRE_SEQUENCE ? 4 : 0);
}

enum decode_result tunnel_gre(struct cursor cursor, struct packet *packet) {
    if (cursor.left < 4)
        return DECODE_MALFORMED;
    uint16_t flags = load_be16(cursor.at), protocol = load_be16(cursor.at + 2);
    if ((flags & GRE_VERSION) == 1 && !(flags & (GRE_CHECKSUM | GRE_ROUTING)))
        return gre_pptp(cursor, flags, packet);
    if (flags & (GRE_VERSION | GRE_ROUTING))
        return DECODE_NON_IP;
    uint32_t header = gre_header(flags);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_GRE, flags & GRE_KEY ? load_be32(cursor.at + gre_key_at(flags)) : 0);
    cursor_skip(&cursor, header);
    return gre_payload(cursor, flags, protocol, packet);
}

/* The header of type III from its first byte on, with `left` bytes captured of it and what follows. */
static bool erspan_stamp(const uint8_t *at, uint32_t left, struct mirror_stamp *stamp) {
    static const uint64_t second_ns = 1000000000, ticks = 1ull << 32;
    uint16_t last = load_be16(at + 10);
    uint64_t timestamp = load_be32(at + 4);
    stamp->session_id = load_be16(at + 2) & ERSPAN_SESSION;
    stamp->hardware_id = last >> ERSPAN_HARDWARE_SHIFT & ERSPAN_HARDWARE_MASK;
    switch (last >> ERSPAN_GRANULARITY_SHIFT & ERSPAN_GRANULARITY_MASK) {
    case ERSPAN_100_US:
        stamp->time_ns = timestamp * 100000;
        stamp->wrap_ns = ticks * 100000;
        return true;
    case ERSPAN_100_NS:
        stamp->time_ns = timestamp * 100;
        stamp->wrap_ns = ticks * 100;
        return true;
    case ERSPAN_IEEE_1588:
        break;
    default:
        return false;
    }
    stamp->time_ns = timestamp;
    stamp->wrap_ns = second_ns;
    if (timestamp >= second_ns)
        return false;
    if (!(last & ERSPAN_OPTIONAL) || left < ERSPAN_III_HEADER + ERSPAN_SUBHEADER)
        return true;
    uint8_t platform = at[ERSPAN_III_HEADER] >> ERSPAN_PLATFORM_SHIFT;
    if (platform == ERSPAN_PLATFORM_SECONDS || platform == ERSPAN_PLATFORM_SECONDS_TOO) {
        stamp->time_ns += load_be32(at + ERSPAN_III_HEADER + 4) * second_ns;
        stamp->wrap_ns = ticks * second_ns;
    }
    return true;
}

bool decode_mirror_stamp(const struct packet *outer, struct mirror_stamp *stamp) {
    if (outer->key.protocol != PROTOCOL_GRE || outer->fragment == PACKET_FRAGMENT_LATER || outer->payload_left < 4)
        return false;
    uint16_t flags = load_be16(outer->payload);
    uint32_t header = gre_header(flags);
    if (flags & (GRE_VERSION | GRE_ROUTING) || load_be16(outer->payload + 2) != GRE_ERSPAN_III ||
        outer->payload_left < header + ERSPAN_III_HEADER)
        return false;
    const uint8_t *erspan = outer->payload + header;
    return erspan[0] >> 4 == ERSPAN_III_VERSION && erspan_stamp(erspan, outer->payload_left - header, stamp);
}
