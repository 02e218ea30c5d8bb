/* SPDX-License-Identifier: Apache-2.0 */
#include "export/flow_batch.h"

#include <string.h>

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2 };

enum flow_record_field { /* FlowRecord in flow.proto */
                         RECORD_FLOW_ID = 1,
                         RECORD_START_DELTA,
                         RECORD_END_DELTA,
                         RECORD_SRC_ADDR,
                         RECORD_DST_ADDR,
                         RECORD_SRC_PORT,
                         RECORD_DST_PORT,
                         RECORD_IP_PROTOCOL,
                         RECORD_FWD_PACKETS,
                         RECORD_FWD_OCTETS,
                         RECORD_REV_PACKETS,
                         RECORD_REV_OCTETS,
                         RECORD_FWD_TCP_FLAGS,
                         RECORD_REV_TCP_FLAGS,
                         RECORD_END_REASON,
                         RECORD_VLAN_ID,
                         RECORD_STATE,
                         RECORD_INTERFACE_INDEX,
                         RECORD_ICMP_TYPE_CODE,
                         RECORD_DSCP,
                         RECORD_FIRST_PACKET_ID,
                         RECORD_LAST_PACKET_ID,
                         RECORD_TUNNEL_ID = 24,
                         RECORD_TUNNEL_TYPE,
                         RECORD_SECOND_INTERFACE_INDEX,
                         RECORD_SAMPLING_INTERVAL,
                         RECORD_FWD_RETRANSMISSIONS,
                         RECORD_REV_RETRANSMISSIONS,
                         RECORD_FWD_OUT_OF_ORDER,
                         RECORD_REV_OUT_OF_ORDER,
                         RECORD_FWD_ZERO_WINDOWS,
                         RECORD_REV_ZERO_WINDOWS,
                         RECORD_SYN_TO_SYNACK,
                         RECORD_SYNACK_TO_ACK,
                         RECORD_FWD_PAYLOAD = 36, /* and three more: min, max, mean, stddev, as each of these */
                         RECORD_REV_PAYLOAD = 40,
                         RECORD_FWD_INTERVAL = 44,
                         RECORD_REV_INTERVAL = 48,
                         RECORD_FWD_SRC_MAC = 52,
                         RECORD_FWD_DST_MAC,
                         RECORD_REV_SRC_MAC,
                         RECORD_REV_DST_MAC,
                         RECORD_FWD_INNER_VLAN_ID,
                         RECORD_REV_INNER_VLAN_ID,
                         RECORD_FWD_MIN_TTL,
                         RECORD_FWD_MAX_TTL,
                         RECORD_REV_MIN_TTL,
                         RECORD_REV_MAX_TTL,
                         RECORD_FWD_FLOW_LABEL,
                         RECORD_REV_FLOW_LABEL,
};

enum flow_batch_field {
    BATCH_SHARD = 1,
    BATCH_FIRST_SEQUENCE,
    BATCH_NEXT_SEQUENCE,
    BATCH_BASE_TIME,
    BATCH_RESUME_TOKEN,
    BATCH_RECORDS
};

enum { RESPONSE_BATCH = 2 };

static inline uint8_t *put_varint(uint8_t *out, uint64_t value) {
    while (value >= 0x80) {
        *out++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

static inline uint8_t *put_tag(uint8_t *out, uint32_t field, enum wire_type type) {
    return put_varint(out, field << 3 | type);
}

static inline uint8_t *put_unsigned(uint8_t *out, uint32_t field, uint64_t value) {
    return value ? put_varint(put_tag(out, field, WIRE_VARINT), value) : out;
}

/* Modulo 2^64, so that even absurd times come back exact. */
static inline uint8_t *put_delta(uint8_t *out, uint32_t field, uint64_t value, uint64_t base) {
    uint64_t delta = value - base;
    return put_unsigned(out, field, delta << 1 ^ (0 - (delta >> 63)));
}

static inline uint8_t *put_fixed64(uint8_t *out, uint32_t field, uint64_t value) {
    if (!value)
        return out;
    out = put_tag(out, field, WIRE_FIXED64);
    for (int shift = 0; shift < 64; shift += 8)
        *out++ = (uint8_t)(value >> shift);
    return out;
}

static inline uint8_t *put_bytes(uint8_t *out, uint32_t field, const uint8_t *bytes, uint32_t length) {
    if (!length)
        return out;
    out = put_varint(put_tag(out, field, WIRE_BYTES), length);
    memcpy(out, bytes, length);
    return out + length;
}

static inline uint8_t *put_double(uint8_t *out, uint32_t field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return put_fixed64(out, field, bits);
}

static uint8_t *put_spread(uint8_t *out, uint32_t first_field, const struct capture_spread *spread) {
    out = put_unsigned(out, first_field, spread->min);
    out = put_unsigned(out, first_field + 1, spread->max);
    out = put_double(out, first_field + 2, spread->mean);
    return put_double(out, first_field + 3, spread->stddev);
}

static uint8_t *put_mac(uint8_t *out, uint32_t field, const uint8_t *mac) {
    static const uint8_t none[6];
    return put_bytes(out, field, mac, memcmp(mac, none, sizeof(none)) ? sizeof(none) : 0);
}

static uint8_t *put_headers(uint8_t *out, const struct capture_headers *forward, const struct capture_headers *reverse) {
    out = put_mac(out, RECORD_FWD_SRC_MAC, forward->src_mac);
    out = put_mac(out, RECORD_FWD_DST_MAC, forward->dst_mac);
    out = put_mac(out, RECORD_REV_SRC_MAC, reverse->src_mac);
    out = put_mac(out, RECORD_REV_DST_MAC, reverse->dst_mac);
    out = put_unsigned(out, RECORD_FWD_INNER_VLAN_ID, forward->inner_vlan_id);
    out = put_unsigned(out, RECORD_REV_INNER_VLAN_ID, reverse->inner_vlan_id);
    out = put_unsigned(out, RECORD_FWD_MIN_TTL, forward->min_ttl);
    out = put_unsigned(out, RECORD_FWD_MAX_TTL, forward->max_ttl);
    out = put_unsigned(out, RECORD_REV_MIN_TTL, reverse->min_ttl);
    out = put_unsigned(out, RECORD_REV_MAX_TTL, reverse->max_ttl);
    out = put_unsigned(out, RECORD_FWD_FLOW_LABEL, forward->flow_label);
    return put_unsigned(out, RECORD_REV_FLOW_LABEL, reverse->flow_label);
}

static uint8_t *put_statistics(uint8_t *out, const struct capture_flow_statistics *statistics) {
    out = put_unsigned(out, RECORD_FWD_RETRANSMISSIONS, statistics->fwd_retransmissions);
    out = put_unsigned(out, RECORD_REV_RETRANSMISSIONS, statistics->rev_retransmissions);
    out = put_unsigned(out, RECORD_FWD_OUT_OF_ORDER, statistics->fwd_out_of_order);
    out = put_unsigned(out, RECORD_REV_OUT_OF_ORDER, statistics->rev_out_of_order);
    out = put_unsigned(out, RECORD_FWD_ZERO_WINDOWS, statistics->fwd_zero_windows);
    out = put_unsigned(out, RECORD_REV_ZERO_WINDOWS, statistics->rev_zero_windows);
    out = put_unsigned(out, RECORD_SYN_TO_SYNACK, statistics->syn_to_synack_ns);
    out = put_unsigned(out, RECORD_SYNACK_TO_ACK, statistics->synack_to_ack_ns);
    out = put_spread(out, RECORD_FWD_PAYLOAD, &statistics->fwd_payload);
    out = put_spread(out, RECORD_REV_PAYLOAD, &statistics->rev_payload);
    out = put_spread(out, RECORD_FWD_INTERVAL, &statistics->fwd_interval);
    out = put_spread(out, RECORD_REV_INTERVAL, &statistics->rev_interval);
    return put_headers(out, &statistics->fwd_headers, &statistics->rev_headers);
}

static uint8_t *put_record(uint8_t *out, const struct capture_flow *flow, uint64_t base) {
    uint32_t address = flow->ip_version == 4 ? 4 : 16;
    out = put_fixed64(out, RECORD_FLOW_ID, flow->flow_id);
    out = put_delta(out, RECORD_START_DELTA, flow->start_time_ns, base);
    out = put_delta(out, RECORD_END_DELTA, flow->end_time_ns, base);
    out = put_bytes(out, RECORD_SRC_ADDR, flow->src_addr, address);
    out = put_bytes(out, RECORD_DST_ADDR, flow->dst_addr, address);
    out = put_unsigned(out, RECORD_SRC_PORT, flow->src_port);
    out = put_unsigned(out, RECORD_DST_PORT, flow->dst_port);
    out = put_unsigned(out, RECORD_IP_PROTOCOL, flow->ip_protocol);
    out = put_unsigned(out, RECORD_FWD_PACKETS, flow->fwd_packets);
    out = put_unsigned(out, RECORD_FWD_OCTETS, flow->fwd_octets);
    out = put_unsigned(out, RECORD_REV_PACKETS, flow->rev_packets);
    out = put_unsigned(out, RECORD_REV_OCTETS, flow->rev_octets);
    out = put_unsigned(out, RECORD_FWD_TCP_FLAGS, flow->fwd_tcp_flags);
    out = put_unsigned(out, RECORD_REV_TCP_FLAGS, flow->rev_tcp_flags);
    out = put_unsigned(out, RECORD_END_REASON, flow->end_reason);
    out = put_unsigned(out, RECORD_VLAN_ID, flow->vlan_id);
    out = put_unsigned(out, RECORD_STATE, flow->state);
    out = put_unsigned(out, RECORD_INTERFACE_INDEX, flow->interface_index);
    out = put_unsigned(out, RECORD_ICMP_TYPE_CODE, flow->icmp_type * 256u + flow->icmp_code);
    out = put_unsigned(out, RECORD_DSCP, flow->dscp);
    out = put_unsigned(out, RECORD_FIRST_PACKET_ID, flow->first_packet_id);
    out = put_unsigned(out, RECORD_LAST_PACKET_ID, flow->last_packet_id);
    out = put_unsigned(out, RECORD_TUNNEL_ID, flow->tunnel_id);
    out = put_unsigned(out, RECORD_TUNNEL_TYPE, flow->tunnel_type);
    out = put_unsigned(out, RECORD_SECOND_INTERFACE_INDEX, flow->second_interface_index);
    return put_unsigned(out, RECORD_SAMPLING_INTERVAL, flow->sampling_interval);
}

/* The length stands before the record and is 1 or 2 bytes: room for one is left, and the record moved in the rare other case. */
uint8_t *flow_batch_record(uint8_t *out, const struct capture_flow *flow, const struct capture_flow_statistics *statistics,
                           uint64_t base_time_ns) {
    out = put_tag(out, BATCH_RECORDS, WIRE_BYTES);
    uint8_t *end = put_record(out + 1, flow, base_time_ns);
    if (statistics)
        end = put_statistics(end, statistics);
    size_t length = (size_t)(end - out - 1);
    if (length >= 0x80) {
        memmove(out + 2, out + 1, length);
        end++;
    }
    put_varint(out, length);
    return end;
}

uint8_t *flow_batch_head(uint8_t *out, const struct flow_batch_head *head) {
    out = put_unsigned(out, BATCH_SHARD, head->shard);
    out = put_unsigned(out, BATCH_FIRST_SEQUENCE, head->first_sequence);
    out = put_unsigned(out, BATCH_NEXT_SEQUENCE, head->next_sequence);
    out = put_fixed64(out, BATCH_BASE_TIME, head->base_time_ns);
    return put_bytes(out, BATCH_RESUME_TOKEN, head->token, head->token_length);
}

uint8_t *flow_batch_response(uint8_t *out, uint64_t batch_length) {
    return put_varint(put_tag(out, RESPONSE_BATCH, WIRE_BYTES), batch_length);
}

int64_t capture_flow_encode(const struct capture_flow *flows, const struct capture_flow_statistics *statistics, uint32_t count,
                            uint8_t *out, uint64_t capacity) {
    /* A record is at most 203 bytes, or 515 with statistics, so that so many for each leave room for the head (9 bytes). */
    if (capacity / (statistics ? FLOW_BATCH_STATISTICS_MAX : FLOW_BATCH_RECORD_MAX) < count)
        return CAPTURE_ERR_SPACE;
    struct flow_batch_head head = {.base_time_ns = count ? flows[0].start_time_ns : 0};
    uint8_t *end = count ? flow_batch_head(out, &head) : out;
    for (uint32_t i = 0; i < count; i++)
        end = flow_batch_record(end, &flows[i], statistics ? &statistics[i] : NULL, head.base_time_ns);
    return end - out;
}
