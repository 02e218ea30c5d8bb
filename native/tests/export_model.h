/* SPDX-License-Identifier: Apache-2.0 */
/* What the elements of a flow's records must be by docs/export.md, written without a look at how they are encoded. */
#ifndef JARVIS_TEST_EXPORT_MODEL_H
#define JARVIS_TEST_EXPORT_MODEL_H

#include <stddef.h>

#include "jarvis_capture.h"

enum { REVERSE = 29305, CERT = 6871, NTOP = 35632, NTOP_IN_NETFLOW9 = 57472, CERT_REVERSED = 0x4000 };

static inline bool model_is_icmp(const struct capture_flow *flow) {
    return flow->ip_protocol == 1 || flow->ip_protocol == 58;
}

static inline uint16_t model_icmp(const struct capture_flow *flow, bool reverse) {
    static const uint8_t pairs[][3] = {{1, 8, 0}, {1, 13, 14}, {1, 17, 18}, {58, 128, 129}, {58, 133, 134}, {58, 135, 136}};
    uint8_t type = flow->icmp_type;
    for (size_t i = 0; reverse && i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (flow->ip_protocol == pairs[i][0] && (flow->icmp_type == pairs[i][1] || flow->icmp_type == pairs[i][2]))
            type = (uint8_t)(pairs[i][1] + pairs[i][2] - flow->icmp_type);
    return model_is_icmp(flow) ? (uint16_t)(type * 256 + flow->icmp_code) : 0;
}

static inline bool model_initiator(const struct capture_flow *flow) {
    bool syn = flow->fwd_tcp_flags & 2, ack = flow->fwd_tcp_flags & 16, answered = flow->rev_tcp_flags & 2;
    return flow->ip_protocol == 6 && syn && (answered || !ack);
}

static inline uint64_t model_application(const struct capture_flow *flow) {
    uint16_t port = flow->dst_port;
    if ((port == 0 || port > 1023) && !model_initiator(flow))
        port = flow->src_port;
    return port > 0 && port < 1024 ? 3u << 24 | port : 1u << 24 | flow->ip_protocol;
}

struct model_row {
    uint32_t enterprise;
    uint16_t number;
    uint64_t value;
};

/* The row of an element; false: there is none. */
static inline bool model_find(const struct model_row *rows, size_t count, uint32_t enterprise, uint16_t number, uint64_t *value) {
    for (size_t i = 0; i < count; i++)
        if (rows[i].enterprise == enterprise && rows[i].number == number) {
            *value = rows[i].value;
            return true;
        }
    return false;
}

static inline bool model_statistics(const struct capture_flow *flow, const struct capture_flow_statistics *kept, bool reverse,
                                    uint32_t enterprise, uint16_t number, uint64_t *value) {
    const struct capture_headers *headers = reverse ? &kept->rev_headers : &kept->fwd_headers;
    const struct capture_spread *sizes = reverse ? &kept->rev_payload : &kept->fwd_payload;
    double packets = (double)(reverse ? flow->rev_packets : flow->fwd_packets);
    double interval = reverse ? kept->rev_interval.mean : kept->fwd_interval.mean;
    const struct model_row rows[] = {
        {0, 245, headers->inner_vlan_id},
        {0, 52, headers->min_ttl},
        {0, 53, headers->max_ttl},
        {0, 31, headers->flow_label},
        {NTOP, 109, reverse ? kept->rev_retransmissions : kept->fwd_retransmissions},
        {NTOP, 110, kept->rev_retransmissions},
        {NTOP, 111, reverse ? kept->rev_out_of_order : kept->fwd_out_of_order},
        {NTOP, 112, kept->rev_out_of_order},
        {NTOP, 123, (uint64_t)((double)kept->synack_to_ack_ns / 2e6 + 0.5)},
        {NTOP, 124, (uint64_t)((double)kept->syn_to_synack_ns / 2e6 + 0.5)},
        {CERT, 502, (uint64_t)(sizes->mean * packets + 0.5)},
        {CERT, 503, (uint64_t)(interval / 1e6 + 0.5)},
        {CERT, 506, sizes->max > 65535 ? 65535 : sizes->max},
    };
    return model_find(rows, sizeof(rows) / sizeof(rows[0]), enterprise, number, value);
}

/* Numbers; false: there is no such element. reverse: of a record of the reverse direction. */
static inline bool model_number(const struct capture_flow *flow, const struct capture_flow_statistics *kept, bool reverse,
                                bool netflow9, uint32_t enterprise, uint16_t number, uint64_t *value) {
    if (netflow9 && number > NTOP_IN_NETFLOW9)
        return model_statistics(flow, kept, reverse, NTOP, number - NTOP_IN_NETFLOW9, value);
    if (enterprise == REVERSE)
        return model_number(flow, kept, true, netflow9, 0, number, value);
    if (enterprise == CERT && number & CERT_REVERSED)
        return model_statistics(flow, kept, true, CERT, number & 0x3fff, value);
    uint16_t icmp = model_icmp(flow, reverse);
    const struct model_row rows[] = {
        {0, 7, reverse ? flow->dst_port : flow->src_port},
        {0, 11,
         netflow9 && model_is_icmp(flow) ? icmp
         : reverse                       ? flow->src_port
                                         : flow->dst_port},
        {0, 4, flow->ip_protocol},
        {0, 60, flow->ip_version},
        {0, 58, flow->vlan_id},
        {0, 243, flow->vlan_id},
        {0, 2, reverse ? flow->rev_packets : flow->fwd_packets},
        {0, 1, reverse ? flow->rev_octets : flow->fwd_octets},
        {0, 152, flow->start_time_ns / 1000000},
        {0, 153, flow->end_time_ns / 1000000},
        {0, 239, model_initiator(flow)},
        {0, 6, (reverse ? flow->rev_tcp_flags : flow->fwd_tcp_flags) & (netflow9 ? 0xff : 0xffff)},
        {0, 10, flow->interface_index},
        {0, 14, flow->second_interface_index},
        {0, 5, flow->dscp * 4u},
        {0, 32, icmp},
        {0, 139, icmp},
        {0, 136, flow->end_reason},
        {0, 148, flow->flow_id},
        {0, 351, flow->tunnel_type == 3 ? 1ull << 56 | flow->tunnel_id : 0},
        {0, 95, model_application(flow)},
    };
    return model_find(rows, sizeof(rows) / sizeof(rows[0]), enterprise, number, value) ||
           model_statistics(flow, kept, reverse, enterprise, number, value);
}

/* Addresses of IP and MAC, NULL: the element is none. reverse: of the reverse direction. */
static inline const uint8_t *model_address(const struct capture_flow *flow, const struct capture_flow_statistics *kept,
                                           bool reverse, uint16_t number) {
    const struct capture_headers *headers = reverse ? &kept->rev_headers : &kept->fwd_headers;
    switch (number) {
    case 8:
    case 27:
        return reverse ? flow->dst_addr : flow->src_addr;
    case 12:
    case 28:
        return reverse ? flow->src_addr : flow->dst_addr;
    case 56:
        return headers->src_mac;
    case 80:
        return headers->dst_mac;
    default:
        return NULL;
    }
}

/* NTP's 64 bits back to nanoseconds since 1970, in the era nearest to the flow's time. */
static inline uint64_t model_from_ntp(uint64_t value, uint64_t near) {
    uint64_t seconds = (uint32_t)((value >> 32) - 2208988800u) + (near / 1000000000 & ~(uint64_t)UINT32_MAX);
    if (seconds + 0x80000000u < near / 1000000000)
        seconds += 1ull << 32;
    return seconds * 1000000000 + (((value & UINT32_MAX) * 1000000000) >> 32);
}

#endif
