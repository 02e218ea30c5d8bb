/* SPDX-License-Identifier: Apache-2.0 */
/* PPP (RFC 1661) with and without HDLC's address and control field (RFC 1662), and PPPoE sessions (RFC 2516). */
#include "decode/cursor.h"

enum ppp_protocol { PPP_IPV4 = 0x0021, PPP_IPV6 = 0x0057, PPP_MPLS = 0x0281, PPP_MPLS_MULTICAST = 0x0283 };

enum {
    PPPOE_HEADER = 6,
    PPPOE_VERSION_TYPE = 0x11,
    ETHERTYPE_MPLS = 0x8847,
};

enum decode_result decode_ppp(struct cursor cursor, struct packet *packet) {
    if (cursor.left >= 2 && cursor.at[0] == 0xff && cursor.at[1] == 0x03)
        cursor_skip(&cursor, 2);
    if (cursor.left < 1)
        return DECODE_MALFORMED;
    bool compressed = cursor.at[0] & 1; /* RFC 1661 6.5: one byte of an odd value is the whole field */
    if (cursor.left < (compressed ? 1 : 2))
        return DECODE_MALFORMED;
    uint16_t protocol = compressed ? cursor.at[0] : load_be16(cursor.at);
    cursor_skip(&cursor, compressed ? 1 : 2);
    switch (protocol) {
    case PPP_IPV4:
        return decode_ipv4(cursor, packet);
    case PPP_IPV6:
        return decode_ipv6(cursor, packet);
    case PPP_MPLS:
    case PPP_MPLS_MULTICAST:
        return decode_ethertype(cursor, ETHERTYPE_MPLS, true, packet);
    default:
        return DECODE_NON_IP;
    }
}

enum decode_result decode_pppoe(struct cursor cursor, struct packet *packet) {
    if (cursor.left < PPPOE_HEADER)
        return DECODE_MALFORMED;
    if (cursor.at[0] != PPPOE_VERSION_TYPE || cursor.at[1] != 0) /* code 0: session data */
        return DECODE_NON_IP;
    cursor_skip(&cursor, PPPOE_HEADER);
    return decode_ppp(cursor, packet);
}
