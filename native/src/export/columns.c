/* SPDX-License-Identifier: Apache-2.0 */
#include "export/columns.h"

#include <string.h>

/* IPv4 as ::ffff:a.b.c.d, so that one column of 16 bytes serves both. */
static void put_address(uint8_t *column, uint32_t row, const uint8_t *addr, uint8_t ip_version) {
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (!column)
        return;
    uint8_t *out = column + (size_t)row * 16;
    if (ip_version == 4) {
        memcpy(out, mapped, 12);
        memcpy(out + 12, addr, 4);
    } else {
        memcpy(out, addr, 16);
    }
}

/* 6 bytes each; 0: none. */
static void put_mac(uint8_t *column, uint32_t row, const uint8_t *mac) {
    if (column)
        memcpy(column + (size_t)row * 6, mac, 6);
}

#define PUT(column, value)                                                                                                       \
    do {                                                                                                                         \
        if (columns->column)                                                                                                     \
            columns->column[row] = (value);                                                                                      \
    } while (0)

#define PUT_SPREAD(name, unit)                                                                                                   \
    do {                                                                                                                         \
        PUT(name##_min##unit, statistics->name.min);                                                                             \
        PUT(name##_max##unit, statistics->name.max);                                                                             \
        PUT(name##_mean##unit, statistics->name.mean);                                                                           \
        PUT(name##_stddev##unit, statistics->name.stddev);                                                                       \
    } while (0)

#define PUT_HEADERS(way)                                                                                                         \
    do {                                                                                                                         \
        put_mac(columns->way##_src_mac, row, statistics->way##_headers.src_mac);                                                 \
        put_mac(columns->way##_dst_mac, row, statistics->way##_headers.dst_mac);                                                 \
        PUT(way##_inner_vlan_id, statistics->way##_headers.inner_vlan_id);                                                       \
        PUT(way##_min_ttl, statistics->way##_headers.min_ttl);                                                                   \
        PUT(way##_max_ttl, statistics->way##_headers.max_ttl);                                                                   \
        PUT(way##_flow_label, statistics->way##_headers.flow_label);                                                             \
    } while (0)

static void put_statistics(const struct capture_flow_columns *columns, uint32_t row,
                           const struct capture_flow_statistics *statistics) {
    PUT(fwd_retransmissions, statistics->fwd_retransmissions);
    PUT(rev_retransmissions, statistics->rev_retransmissions);
    PUT(fwd_out_of_order, statistics->fwd_out_of_order);
    PUT(rev_out_of_order, statistics->rev_out_of_order);
    PUT(fwd_zero_windows, statistics->fwd_zero_windows);
    PUT(rev_zero_windows, statistics->rev_zero_windows);
    PUT(syn_to_synack_ns, statistics->syn_to_synack_ns);
    PUT(synack_to_ack_ns, statistics->synack_to_ack_ns);
    PUT_SPREAD(fwd_payload, );
    PUT_SPREAD(rev_payload, );
    PUT_SPREAD(fwd_interval, _ns);
    PUT_SPREAD(rev_interval, _ns);
    PUT_HEADERS(fwd);
    PUT_HEADERS(rev);
}

void columns_put(const struct capture_flow_columns *columns, uint32_t row, const struct capture_flow *flow,
                 const struct capture_flow_statistics *statistics) {
    static const struct capture_flow_statistics none;
    put_statistics(columns, row, statistics ? statistics : &none);
    put_address(columns->src_addr, row, flow->src_addr, flow->ip_version);
    put_address(columns->dst_addr, row, flow->dst_addr, flow->ip_version);
    PUT(flow_id, flow->flow_id);
    PUT(src_port, flow->src_port);
    PUT(dst_port, flow->dst_port);
    PUT(ip_version, flow->ip_version);
    PUT(ip_protocol, flow->ip_protocol);
    PUT(vlan_id, flow->vlan_id);
    PUT(fwd_packets, flow->fwd_packets);
    PUT(fwd_octets, flow->fwd_octets);
    PUT(rev_packets, flow->rev_packets);
    PUT(rev_octets, flow->rev_octets);
    PUT(start_time_ns, (int64_t)flow->start_time_ns);
    PUT(end_time_ns, (int64_t)flow->end_time_ns);
    PUT(first_packet_id, flow->first_packet_id);
    PUT(last_packet_id, flow->last_packet_id);
    PUT(fwd_tcp_flags, flow->fwd_tcp_flags);
    PUT(rev_tcp_flags, flow->rev_tcp_flags);
    PUT(interface_index, flow->interface_index);
    PUT(icmp_type, flow->icmp_type);
    PUT(icmp_code, flow->icmp_code);
    PUT(dscp, flow->dscp);
    PUT(state, flow->state);
    PUT(end_reason, flow->end_reason);
    PUT(tunnel_id, flow->tunnel_id);
    PUT(tunnel_type, flow->tunnel_type);
    PUT(second_interface_index, flow->second_interface_index);
    PUT(sampling_interval, flow->sampling_interval);
}
