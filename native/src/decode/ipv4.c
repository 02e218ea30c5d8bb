/* SPDX-License-Identifier: Apache-2.0 */
/* IPv4 (RFC 791), options skipped; DSCP as in RFC 2474. */
#include "decode/transport.h"

enum {
    IPV4_HEADER_MIN = 20,
    IPV4_MORE_FRAGMENTS = 0x2000,
    IPV4_FRAGMENT_OFFSET = 0x1fff,
};

enum decode_result decode_ipv4(struct cursor cursor, struct packet *packet) {
    const uint8_t *ip = cursor.at;
    if (cursor.left < IPV4_HEADER_MIN || ip[0] >> 4 != 4)
        return DECODE_MALFORMED;
    uint32_t header = (ip[0] & 15u) * 4;
    uint32_t total = load_be16(ip + 2);
    if (total == 0)
        total = cursor.wire; /* segmentation offload: the kernel saw the packet before its length was filled in */
    if (header < IPV4_HEADER_MIN || header > cursor.left || total < header)
        return DECODE_MALFORMED;

    struct flow_key *key = &packet->key;
    packet->ip = ip;
    memset(key->addr, 0, sizeof(key->addr));
    memcpy(key->addr[0], ip + 12, 4);
    memcpy(key->addr[1], ip + 16, 4);
    key->protocol = ip[9];
    key->ip_version = 4;
    packet->octets = total;
    packet->dscp = ip[1] >> 2;

    uint16_t fragment = load_be16(ip + 6);
    if (fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) {
        packet->fragment_id = load_be16(ip + 4);
        packet->fragment_protocol = ip[9];
        packet->fragment = fragment & IPV4_FRAGMENT_OFFSET ? PACKET_FRAGMENT_LATER : PACKET_FRAGMENT_FIRST;
    }
    /* What follows the datagram is link-layer padding, not transport. */
    if (cursor.left > total)
        cursor.left = total;
    if (cursor.wire > total)
        cursor.wire = total;
    cursor_skip(&cursor, header);
    if (packet->fragment == PACKET_FRAGMENT_LATER)
        packet->payload_wire = cursor.wire;
    else
        decode_transport(&cursor, packet);
    return DECODE_IP;
}
