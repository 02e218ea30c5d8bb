/* SPDX-License-Identifier: Apache-2.0 */
/* One live flow: two cache lines, the first with the key and its times, the second with what each packet counts up. */
#ifndef JARVIS_FLOW_RECORD_H
#define JARVIS_FLOW_RECORD_H

#include "decode/packet.h"
#include "jarvis_capture.h"

struct flow_way {
    uint64_t packets;
    uint64_t octets;
};

/* No packet is in the record: the active timeout took them while one side had sent FIN, or while its sequence numbers are
 * followed. The record stays to remember that for the follow-on record; it is not a live flow and leaves without a trace. */
enum { FLOW_STATE_REMAINDER = CAPTURE_FLOW_STATE_CLOSED + 1 };

struct flow_record {
    struct flow_key key; /* ip_version 0: the record is free */
    uint64_t last_ns;
    uint64_t start_ns;
    struct flow_way way[2]; /* sent by endpoint 0, by endpoint 1 of the key */
    uint64_t first_packet_id;
    uint64_t last_packet_id;
    uint32_t closed_after_ms; /* state CLOSED: when it closed, ms after start_ns */
    uint16_t tcp_flags[2];    /* union, by endpoint */
    uint16_t interface_index;
    uint8_t dscp;
    uint8_t icmp_type;
    uint8_t icmp_code;
    uint8_t state;   /* enum capture_flow_state, or FLOW_STATE_REMAINDER */
    uint8_t forward; /* endpoint that sent the first packet */
    uint8_t
        fin_from; /* bit per endpoint that has sent FIN, in this record or in those before it that the active timeout cut off */
};
static_assert(sizeof(struct flow_record) == 128, "two cache lines a flow");
static_assert(offsetof(struct flow_record, way) == 64, "key and times fill the first line");

/* Begins a flow with its first packet. */
void flow_record_start(struct flow_record *record, const struct packet *packet);

/* The public form, forward = sender of the first packet. */
void flow_record_export(const struct flow_record *record, uint8_t end_reason, struct capture_flow *out);

#endif
