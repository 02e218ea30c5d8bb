/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_record.h"

#include "flow/flow_hash.h"

static_assert(sizeof(struct capture_flow) == 136, "flow_record_export sets every byte of it");

void flow_record_start(struct flow_record *record, const struct packet *packet) {
    *record = (struct flow_record){
        .key = packet->key,
        .last_ns = packet->ts_ns,
        .start_ns = packet->ts_ns,
        .first_packet_id = packet->packet_id,
        .interface_index = packet->interface_index,
        .dscp = packet->dscp,
        .icmp_type = packet->icmp_type,
        .icmp_code = packet->icmp_code,
        .state = CAPTURE_FLOW_STATE_ACTIVE,
        .forward = packet->from,
    };
}

void flow_record_export(const struct flow_record *record, uint8_t end_reason, struct capture_flow *out) {
    int source = record->forward, destination = !source;
    out->flow_id = flow_key_id(&record->key);
    memcpy(out->src_addr, record->key.addr[source], 16);
    memcpy(out->dst_addr, record->key.addr[destination], 16);
    out->src_port = record->key.port[source];
    out->dst_port = record->key.port[destination];
    out->ip_version = record->key.ip_version;
    out->ip_protocol = record->key.protocol;
    out->vlan_id = record->key.vlan_id;
    out->fwd_packets = record->way[source].packets;
    out->fwd_octets = record->way[source].octets;
    out->rev_packets = record->way[destination].packets;
    out->rev_octets = record->way[destination].octets;
    out->start_time_ns = record->start_ns;
    out->end_time_ns = record->last_ns;
    out->first_packet_id = record->first_packet_id;
    out->last_packet_id = record->last_packet_id;
    out->fwd_tcp_flags = record->tcp_flags[source];
    out->rev_tcp_flags = record->tcp_flags[destination];
    out->interface_index = record->interface_index;
    out->icmp_type = record->icmp_type;
    out->icmp_code = record->icmp_code;
    out->dscp = record->dscp;
    out->state = record->state;
    out->end_reason = end_reason;
    out->tunnel_type = record->key.tunnel_type;
    out->tunnel_id = record->key.tunnel_id;
    out->second_interface_index = 0;
    out->reserved = 0;
    out->sampling_interval = 0;
}
