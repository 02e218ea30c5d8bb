/* SPDX-License-Identifier: Apache-2.0 */
/* VXLAN (RFC 7348), GENEVE (RFC 8926), GTP-U (3GPP TS 29.281), Teredo (RFC 4380): from behind the UDP header. */
#include "decode/tunnel.h"

enum vxlan { VXLAN_HEADER = 8, VXLAN_VNI_VALID = 0x08 };

enum geneve {
    GENEVE_HEADER = 8,
    GENEVE_VERSION = 0xc0,
    GENEVE_OPTIONS = 0x3f, /* length in words of 4 bytes */
    GENEVE_ETHERNET = 0x6558,
    GENEVE_LEAST_ETHERTYPE = 0x0600,
};

enum gtp_u {
    GTP_HEADER = 8,
    GTP_VERSION_TYPE = 0xf0, /* version and protocol type ... */
    GTP_VERSION_1 = 0x30,    /* ... of GTP version 1, not GTP' */
    GTP_EXTENSION = 0x04,
    GTP_SEQUENCE = 0x02,
    GTP_N_PDU = 0x01,
    GTP_OPTIONAL = 4, /* sequence number, N-PDU number, type of the next extension header */
    GTP_G_PDU = 255,
    GTP_MAX_EXTENSIONS = 8,
};

enum teredo {
    TEREDO_AUTHENTICATION = 0x0001,
    TEREDO_AUTHENTICATION_FIXED = 13, /* type, two lengths, nonce, confirmation */
    TEREDO_ORIGIN = 0x0000,
    TEREDO_ORIGIN_LENGTH = 8,
};

enum decode_result tunnel_vxlan(struct cursor cursor, struct packet *packet) {
    if (cursor.left < VXLAN_HEADER)
        return DECODE_MALFORMED;
    if (!(cursor.at[0] & VXLAN_VNI_VALID))
        return DECODE_NON_IP;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_VXLAN, load_be32(cursor.at + 4) >> 8);
    cursor_skip(&cursor, VXLAN_HEADER);
    return decode_ethernet(cursor, false, packet);
}

enum decode_result tunnel_geneve(struct cursor cursor, struct packet *packet) {
    if (cursor.left < GENEVE_HEADER)
        return DECODE_MALFORMED;
    if (cursor.at[0] & GENEVE_VERSION)
        return DECODE_NON_IP;
    uint32_t header = GENEVE_HEADER + (cursor.at[0] & GENEVE_OPTIONS) * 4u;
    uint16_t protocol = load_be16(cursor.at + 2);
    if (cursor.left < header)
        return DECODE_MALFORMED;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_GENEVE, load_be32(cursor.at + 4) >> 8);
    cursor_skip(&cursor, header);
    if (protocol == GENEVE_ETHERNET)
        return decode_ethernet(cursor, false, packet);
    return protocol < GENEVE_LEAST_ETHERTYPE ? DECODE_NON_IP : decode_ethertype(cursor, protocol, false, packet);
}

/* Past the extension headers: each is a length in words of 4 bytes, its content, and the type of the next one in its last byte.
 */
static bool skip_gtp_extensions(struct cursor *cursor, uint8_t next) {
    for (int extensions = 0; next != 0; extensions++) {
        uint32_t length = cursor->left ? cursor->at[0] * 4u : 0;
        if (length == 0 || length > cursor->left || extensions == GTP_MAX_EXTENSIONS)
            return false;
        next = cursor->at[length - 1];
        cursor_skip(cursor, length);
    }
    return true;
}

enum decode_result tunnel_gtp_u(struct cursor cursor, struct packet *packet) {
    if (cursor.left < GTP_HEADER)
        return DECODE_MALFORMED;
    uint8_t flags = cursor.at[0];
    if ((flags & GTP_VERSION_TYPE) != GTP_VERSION_1 || cursor.at[1] != GTP_G_PDU)
        return DECODE_NON_IP;
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_GTP_U, load_be32(cursor.at + 4));
    cursor_skip(&cursor, GTP_HEADER);
    if (flags & (GTP_EXTENSION | GTP_SEQUENCE | GTP_N_PDU)) {
        if (cursor.left < GTP_OPTIONAL)
            return DECODE_MALFORMED;
        uint8_t next = flags & GTP_EXTENSION ? cursor.at[3] : 0;
        cursor_skip(&cursor, GTP_OPTIONAL);
        if (!skip_gtp_extensions(&cursor, next))
            return DECODE_MALFORMED;
    }
    return decode_raw(cursor, packet);
}

enum decode_result tunnel_teredo(struct cursor cursor, struct packet *packet) {
    tunnel_note(packet, CAPTURE_TUNNEL_TYPE_TEREDO, 0);
    if (cursor.left >= 4 && load_be16(cursor.at) == TEREDO_AUTHENTICATION) {
        uint32_t length = TEREDO_AUTHENTICATION_FIXED + cursor.at[2] + cursor.at[3];
        if (length > cursor.left)
            return DECODE_MALFORMED;
        cursor_skip(&cursor, length);
    }
    if (cursor.left >= TEREDO_ORIGIN_LENGTH && load_be16(cursor.at) == TEREDO_ORIGIN)
        cursor_skip(&cursor, TEREDO_ORIGIN_LENGTH);
    return decode_ipv6(cursor, packet);
}
