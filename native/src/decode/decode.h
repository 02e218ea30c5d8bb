/* SPDX-License-Identifier: Apache-2.0 */
/* Frame in, packet out: one pass with a cursor, no allocation, bounded work per frame, nothing read past caplen. */
#ifndef JARVIS_DECODE_H
#define JARVIS_DECODE_H

#include "decode/packet.h"
#include "frame.h"

enum decode_result {
    DECODE_IP = 0,        /* *packet is filled, endpoints in wire order */
    DECODE_NON_IP = 1,    /* a well-formed frame of another protocol, or a link type that carries none of ours */
    DECODE_MALFORMED = 2, /* a header is truncated or contradicts itself before the flow key could be read */
};

enum decode_limits {
    DECODE_MAX_TAGS = 16,              /* VLAN tags, MPLS labels: a longer stack is malformed */
    DECODE_MAX_EXTENSION_HEADERS = 16, /* of one IPv6 packet: after that many the next header counts as the protocol */
    DECODE_MAX_TUNNELS = 4,            /* one in another: what is deeper is not looked into */
};

/* Decodes the outermost IP header. packet->ts_ns and interface_index are copied from the frame; hash and packet_id are the
 * caller's. */
enum decode_result decode_frame(const struct frame *frame, struct packet *packet);

/* From a packet that decode_frame has just filled, neither canonicalised nor completed by the fragment cache, to the innermost IP
 * header that its tunnels let us see; *inner then has it, with the type and id of the tunnel right around it. False: it carries
 * no tunnel that we know, or nothing readable inside; *inner is undefined. The frame must still be there. */
bool decode_tunnelled(const struct packet *outer, struct packet *inner);

/* When a mirror copied a frame, by its own clock (ERSPAN III). */
struct mirror_stamp {
    uint64_t time_ns; /* below wrap_ns: from there the clock begins again at 0; its zero means nothing to us */
    uint64_t wrap_ns;
    uint16_t session_id;
    uint8_t hardware_id;
};

/* From a packet as decode_tunnelled takes it. False: there is no ERSPAN III header right behind its IP header, or its timestamp
 * has no unit that we know (granularity 11, 10^9 nanoseconds and more); *stamp is undefined. The frame must still be there. */
bool decode_mirror_stamp(const struct packet *outer, struct mirror_stamp *stamp);

#endif
