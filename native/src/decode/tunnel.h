/* SPDX-License-Identifier: Apache-2.0 */
/* The tunnels' headers, each from its first byte on: what it carries is decoded into *packet, whose key gets the tunnel's type
 * and id. packet->ts_ns and interface_index are already set, everything else is 0. */
#ifndef JARVIS_TUNNEL_H
#define JARVIS_TUNNEL_H

#include "decode/cursor.h"
#include "jarvis_capture.h"

enum decode_result tunnel_gre(struct cursor cursor, struct packet *packet);
enum decode_result tunnel_l2tp_ip(struct cursor cursor, struct packet *packet); /* L2TPv3 right over IP */

/* From behind the UDP header on. */
enum decode_result tunnel_vxlan(struct cursor cursor, struct packet *packet);
enum decode_result tunnel_geneve(struct cursor cursor, struct packet *packet);
enum decode_result tunnel_gtp_u(struct cursor cursor, struct packet *packet);
enum decode_result tunnel_teredo(struct cursor cursor, struct packet *packet);
enum decode_result tunnel_l2tp(struct cursor cursor, struct packet *packet);

static inline void tunnel_note(struct packet *packet, uint8_t type, uint32_t id) {
    packet->key.tunnel_type = type;
    packet->key.tunnel_id = id;
}

#endif
