/* SPDX-License-Identifier: Apache-2.0 */
/* One TCP connection as its segments' headers tell it: what was seen of each side's sequence numbers, the handshake's times, and
 * whether a FIN or RST may be believed (RFC 9293; docs/flow-semantics.md has the definitions). Memory and work are bounded: of
 * the gaps in a side's sequence numbers the newest TCP_GAPS are remembered. Sequence numbers are compared modulo 2^32. */
#ifndef JARVIS_TCP_STATISTICS_H
#define JARVIS_TCP_STATISTICS_H

#include "decode/packet.h"

enum { TCP_GAPS = 4 };

/* Sequence numbers that later ones have overtaken: from `start` to before `end`. */
struct tcp_gap {
    uint32_t start, end;
};

/* What one endpoint has sent. */
struct tcp_side {
    uint32_t next;                /* after the highest sequence number */
    uint32_t initial;             /* sequence number of its SYN */
    uint32_t ack;                 /* the highest acknowledgement */
    uint32_t edge;                /* the furthest right edge of the window that it announced */
    struct tcp_gap gap[TCP_GAPS]; /* ascending */
    uint32_t retransmissions;
    uint32_t out_of_order;
    uint32_t zero_windows;
    uint8_t gaps;
    uint8_t seen;  /* enum tcp_seen, or'ed */
    uint8_t scale; /* of its SYN's window scale option; TCP_SCALE_NONE: it had none */
    uint8_t reserved;
};

struct tcp_statistics {
    struct tcp_side side[2]; /* by endpoint of the flow key */
    uint64_t handshake_ns;   /* time of the last SYN, then of the last SYN-ACK */
    uint64_t syn_to_synack_ns;
    uint64_t synack_to_ack_ns;
    uint8_t handshake; /* enum tcp_handshake */
    uint8_t initiator; /* endpoint that sent the SYN */
    uint8_t reserved[6];
};
static_assert(sizeof(struct tcp_statistics) == 160, "what docs/flow-semantics.md says a flow takes");

/* Takes a packet of the flow into account; `payload` is its transport payload's length on the wire. False: it carries a FIN or
 * RST that its receiver would not accept. A packet without a readable TCP header changes nothing, and what its flags say holds.
 */
bool tcp_statistics_count(struct tcp_statistics *tcp, const struct packet *packet, uint32_t payload);

/* The record ends and the connection goes on: what was counted begins anew, what was seen stays. */
void tcp_statistics_carry(struct tcp_statistics *tcp);

#endif
