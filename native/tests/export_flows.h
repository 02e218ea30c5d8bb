/* SPDX-License-Identifier: Apache-2.0 */
/* Random flows and exporters for tests of export. */
#ifndef JARVIS_TEST_EXPORT_FLOWS_H
#define JARVIS_TEST_EXPORT_FLOWS_H

#include "jarvis_capture.h"
#include <string.h>

static inline uint64_t random_next(uint64_t *state) {
    uint64_t value = *state += 0x9e3779b97f4a7c15;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
}

static inline void random_bytes(uint64_t *state, void *out, size_t length) {
    for (uint8_t *at = out; length--; at++)
        *at = (uint8_t)(random_next(state) >> 56);
}

static inline struct capture_spread random_spread(uint64_t *state) {
    struct capture_spread spread = {.min = random_next(state) % 1000};
    spread.max = spread.min + random_next(state) % 100000;
    spread.mean = (double)spread.min + (double)(random_next(state) % 1000000) / 1000;
    return spread;
}

static inline void random_statistics(uint64_t *state, struct capture_flow_statistics *statistics) {
    memset(statistics, 0, sizeof(*statistics));
    statistics->fwd_retransmissions = (uint32_t)random_next(state);
    statistics->rev_retransmissions = (uint32_t)random_next(state);
    statistics->fwd_out_of_order = (uint32_t)random_next(state);
    statistics->rev_out_of_order = (uint32_t)random_next(state);
    statistics->syn_to_synack_ns = random_next(state) % 3000000000;
    statistics->synack_to_ack_ns = random_next(state) % 3000000000;
    statistics->fwd_payload = random_spread(state);
    statistics->rev_payload = random_spread(state);
    statistics->fwd_interval = random_spread(state);
    statistics->rev_interval = random_spread(state);
    random_bytes(state, &statistics->fwd_headers, sizeof(statistics->fwd_headers));
    random_bytes(state, &statistics->rev_headers, sizeof(statistics->rev_headers));
}

/* Of either version, with packets in one direction or both. */
static inline void random_flow(uint64_t *state, struct capture_flow *flow) {
    static const uint8_t protocols[] = {6, 6, 17, 1, 58, 132, 47};
    uint64_t bits = random_next(state);
    memset(flow, 0, sizeof(*flow));
    flow->flow_id = random_next(state);
    flow->ip_version = bits & 1 ? 4 : 6;
    random_bytes(state, flow->src_addr, flow->ip_version == 4 ? 4 : 16);
    random_bytes(state, flow->dst_addr, flow->ip_version == 4 ? 4 : 16);
    flow->ip_protocol = protocols[(bits >> 1) % sizeof(protocols)];
    if (flow->ip_protocol == 6 || flow->ip_protocol == 17 || flow->ip_protocol == 132) {
        flow->src_port = (uint16_t)(bits & 256 ? random_next(state) : random_next(state) % 2000);
        flow->dst_port = (uint16_t)(bits & 512 ? random_next(state) : random_next(state) % 2000);
    } else if (flow->ip_protocol != 47) {
        flow->icmp_type = (uint8_t)(bits >> 16);
        flow->icmp_code = (uint8_t)(bits >> 24);
    }
    flow->vlan_id = (uint16_t)(random_next(state) & 4095);
    uint64_t most = bits & 1024 ? UINT32_MAX : 100;
    flow->fwd_packets = 1 + random_next(state) % most;
    flow->fwd_octets = random_next(state) % (most << 8);
    if (bits & 2048) {
        flow->rev_packets = 1 + random_next(state) % most;
        flow->rev_octets = random_next(state) % (most << 8);
        flow->rev_tcp_flags = (uint16_t)(random_next(state) & 0x1ff);
    }
    flow->start_time_ns = 1700000000000000000 + random_next(state) % 1000000000000000000;
    flow->end_time_ns = flow->start_time_ns + random_next(state) % 300000000000;
    flow->fwd_tcp_flags = (uint16_t)(random_next(state) & 0x1ff);
    flow->interface_index = (uint16_t)random_next(state);
    flow->second_interface_index = bits & 4096 ? (uint16_t)random_next(state) : 0;
    flow->dscp = (uint8_t)(random_next(state) & 63);
    flow->end_reason = (uint8_t)(1 + random_next(state) % 5);
    flow->tunnel_type = (uint8_t)(random_next(state) % 10);
    flow->tunnel_id = flow->tunnel_type ? (uint32_t)random_next(state) & 0xffffff : 0;
}

#endif
