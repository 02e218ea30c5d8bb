/* SPDX-License-Identifier: Apache-2.0 */
/* Ports, TCP flags, ICMP type and code: whatever of them was captured. A cut transport header never makes a packet malformed. */
#ifndef JARVIS_TRANSPORT_H
#define JARVIS_TRANSPORT_H

#include "decode/cursor.h"

enum ip_protocol {
    IP_PROTOCOL_ICMP = 1,
    IP_PROTOCOL_TCP = 6,
    IP_PROTOCOL_UDP = 17,
    IP_PROTOCOL_ICMPV6 = 58,
    IP_PROTOCOL_SCTP = 132,
};

static inline void decode_transport(const struct cursor *cursor, struct packet *packet) {
    const uint8_t *at = packet->payload = cursor->at;
    uint32_t left = packet->payload_left = cursor->left;
    packet->payload_wire = cursor->wire;
    uint8_t protocol = packet->key.protocol;
    if (protocol == IP_PROTOCOL_TCP || protocol == IP_PROTOCOL_UDP || protocol == IP_PROTOCOL_SCTP) {
        if (left < 4)
            return;
        packet->key.port[0] = load_be16(at);
        packet->key.port[1] = load_be16(at + 2);
        if (protocol == IP_PROTOCOL_TCP && left >= 14)
            packet->tcp_flags = load_be16(at + 12) & 0x0fff; /* RFC 7125: reserved bits as observed, data offset off */
    } else if (left >= 2 && protocol == (packet->key.ip_version == 4 ? IP_PROTOCOL_ICMP : IP_PROTOCOL_ICMPV6)) {
        packet->icmp_type = at[0];
        packet->icmp_code = at[1];
    }
}

#endif
