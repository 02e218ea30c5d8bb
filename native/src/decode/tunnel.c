/* SPDX-License-Identifier: Apache-2.0 */
/* From an IP packet into the tunnel that it carries: by its protocol number, or by UDP port (IANA's, and 8472 for VXLAN as Linux
 * and OTV have it). A port alone proves nothing, so every header is checked and what does not fit is left as what carries it. */
#include "decode/tunnel.h"

#include "decode/transport.h"

enum tunnel_protocol { PROTOCOL_IPV4 = 4, PROTOCOL_IPV6 = 41, PROTOCOL_GRE = 47, PROTOCOL_L2TP = 115 };

enum tunnel_port {
    PORT_L2TP = 1701,
    PORT_GTP_U = 2152,
    PORT_TEREDO = 3544,
    PORT_VXLAN = 4789,
    PORT_GENEVE = 6081,
    PORT_VXLAN_LINUX = 8472,
};

enum { UDP_HEADER = 8 };

/* VXLAN, GENEVE and GTP-U are sent to their port both ways; L2TP and Teredo are answered from it. */
static enum decode_result enter_udp(const struct packet *carrier, struct cursor cursor, struct packet *packet) {
    if (cursor.left < UDP_HEADER)
        return DECODE_NON_IP;
    uint16_t source = carrier->key.port[0], destination = carrier->key.port[1];
    cursor_skip(&cursor, UDP_HEADER);
    switch (destination) {
    case PORT_VXLAN:
    case PORT_VXLAN_LINUX:
        return tunnel_vxlan(cursor, packet);
    case PORT_GENEVE:
        return tunnel_geneve(cursor, packet);
    case PORT_GTP_U:
        return tunnel_gtp_u(cursor, packet);
    default:
        break;
    }
    if (destination == PORT_TEREDO || source == PORT_TEREDO)
        return tunnel_teredo(cursor, packet);
    if (destination == PORT_L2TP || source == PORT_L2TP)
        return tunnel_l2tp(cursor, packet);
    return DECODE_NON_IP;
}

static enum decode_result enter_tunnel(const struct packet *carrier, struct packet *packet) {
    struct cursor cursor = {carrier->payload, carrier->payload_left, carrier->payload_wire};
    switch (carrier->key.protocol) {
    case IP_PROTOCOL_UDP:
        return enter_udp(carrier, cursor, packet);
    case PROTOCOL_GRE:
        return tunnel_gre(cursor, packet);
    case PROTOCOL_L2TP:
        return tunnel_l2tp_ip(cursor, packet);
    case PROTOCOL_IPV4:
        tunnel_note(packet, CAPTURE_TUNNEL_TYPE_IP_IN_IP, 0);
        return decode_ipv4(cursor, packet);
    case PROTOCOL_IPV6:
        tunnel_note(packet, CAPTURE_TUNNEL_TYPE_IP_IN_IP, 0);
        return decode_ipv6(cursor, packet);
    default:
        return DECODE_NON_IP;
    }
}

bool decode_tunnelled(const struct packet *outer, struct packet *inner) {
    struct packet level[2]; /* by turns: what carries, what is carried */
    const struct packet *carrier = outer;
    for (int depth = 0; depth < DECODE_MAX_TUNNELS && carrier->fragment != PACKET_FRAGMENT_LATER; depth++) {
        struct packet *packet = &level[depth & 1];
        packet_clear(packet);
        packet->link = NULL;
        packet->ts_ns = outer->ts_ns;
        packet->packet_id = outer->packet_id;
        packet->interface_index = outer->interface_index;
        if (enter_tunnel(carrier, packet) != DECODE_IP)
            break;
        carrier = packet;
    }
    if (carrier == outer)
        return false;
    *inner = *carrier;
    return true;
}
