/* SPDX-License-Identifier: Apache-2.0 */
/* Hand-made TCP segments through a flow table with statistics, and the records that leave it. */
#ifndef JARVIS_TCP_SEGMENTS_H
#define JARVIS_TCP_SEGMENTS_H

#include "check.h"
#include "flow/flow_expiry.h"
#include "frames.h"
#include "kept_flows.h"

enum { IDLE_S = 30, WINDOW = 65535, CLIENT = 0, SERVER = 1, NO_SCALE = -1 };

#define AT(seconds) ((uint64_t)((seconds)*1e9) + 1700000000ull * SECOND)

struct segment_spec {
    double at;
    uint32_t sequence, ack;
    uint32_t payload;
    uint32_t window; /* 0 here is WINDOW; ZERO announces 0 */
    uint16_t flags;
    int scale; /* of a SYN: shift + 1; 0: no option */
    uint8_t from;
    uint8_t captured; /* bytes of the header; 0: all */
};
enum { ZERO = 0x10000, PSH_ACK = 0x18, FIN_ACK = 0x11, SYN_ACK = 0x12, RST_ACK = 0x14 };

static inline void begin_with(uint32_t statistics, uint64_t active_s, uint32_t max_flows) {
    begin_table((struct flow_table_config){.max_flows = max_flows,
                                           .idle_timeout_ns = (uint64_t)IDLE_S * SECOND,
                                           .active_timeout_ns = active_s * SECOND,
                                           .statistics = statistics});
}

static inline void begin(void) {
    begin_with(CAPTURE_STATISTICS_TCP, 0, 4096);
}

static inline void expire_at(double seconds) {
    flow_table_set_time(&table, AT(seconds), 0);
    while (flow_table_expire(&table, 10))
        continue;
}

static inline void add_flow_segment(uint32_t flow, struct segment_spec spec) {
    struct bytes header = {0};
    uint32_t length = spec.scale ? 24 : 20;
    add_be32(&header, 0); /* the ports are in the key already */
    add_be32(&header, spec.sequence);
    add_be32(&header, spec.ack);
    add_be16(&header, length / 4 << 12 | spec.flags);
    add_be16(&header, spec.window == ZERO ? 0 : spec.window ? spec.window : WINDOW);
    add_be32(&header, 0);
    if (spec.scale)
        add_be32(&header, 1u << 24 | 3 << 16 | 3 << 8 | (uint32_t)(spec.scale - 1));
    struct packet packet = packet_of(flow, spec.from, AT(spec.at));
    packet.key.protocol = 6;
    packet.tcp_flags = spec.flags;
    packet.payload = header.data;
    packet.payload_left = spec.captured ? spec.captured : length;
    packet.payload_wire = length + spec.payload;
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    flow_table_set_time(&table, packet.ts_ns, 1);
}

static inline void add(struct segment_spec spec) {
    add_flow_segment(1, spec);
}

static inline void client_sends(uint32_t sequence, uint32_t payload) {
    add((struct segment_spec){.sequence = sequence, .ack = 1, .payload = payload, .flags = PSH_ACK});
}

static inline struct capture_flow_statistics finish(void) {
    while (!flow_table_flush(&table, 3))
        continue;
    CHECK(ended_count > 0);
    return kept[ended_count - 1];
}

static inline void handshake(double at, int client_scale, int server_scale) {
    add((struct segment_spec){.at = at, .sequence = 99, .flags = TCP_SYN, .scale = client_scale + 1});
    add((struct segment_spec){
        .at = at + 0.25, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK, .scale = server_scale + 1});
    add((struct segment_spec){.at = at + 0.375, .sequence = 100, .ack = 500, .flags = TCP_ACK});
}

static inline uint8_t state_now(void) {
    return table.records[0].state;
}

#endif
