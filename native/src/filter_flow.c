/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BPF expressions on flow records: decided on an Ethernet frame made from the record, in both directions.
 *
 * What a record knows is what can be asked: VLAN id, addresses, protocol, ports, DSCP, ICMP type and code, TCP flags (the union
 * over the flow). Everything else in the made-up frame is zero. As on frames, `tcp` alone does not see behind a VLAN tag: `vlan
 * and tcp`.
 */
#include "error.h"
#include "filter.h"
#include "filter_program.h"
#include "link_type.h"

#include <stdlib.h>
#include <string.h>

enum {
    PROTOCOL_ICMP = 1,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
    PROTOCOL_ICMPV6 = 58,
    PROTOCOL_SCTP = 132,
    FRAME_ROOM = 14 + 4 + 40 + 20,
};

struct flow_filter {
    struct bpf_program program;
};

struct endpoint {
    const uint8_t *address;
    uint16_t port;
};

int flow_filter_compile(const char *expression, struct flow_filter **out, struct capture_error_info *error) {
    *out = NULL;
    if (!expression || expression[0] == '\0')
        return CAPTURE_OK;
    struct flow_filter *filter = calloc(1, sizeof *filter);
    if (!filter)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "filter", "no memory for the filter");
    int code = filter_program_compile(expression, LINK_ETHERNET, FRAME_ROOM, &filter->program, error);
    if (code != CAPTURE_OK) {
        free(filter);
        return code;
    }
    *out = filter;
    return CAPTURE_OK;
}

static uint8_t *put_u16(uint8_t *at, unsigned value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return at + 2;
}

static unsigned transport_length(uint8_t protocol) {
    switch (protocol) {
    case PROTOCOL_TCP:
        return 20;
    case PROTOCOL_UDP:
    case PROTOCOL_ICMP:
    case PROTOCOL_ICMPV6:
        return 8;
    case PROTOCOL_SCTP:
        return 12;
    default:
        return 0;
    }
}

/* `at` is zeroed room. Returns its end. */
static uint8_t *put_transport(uint8_t *at, const struct capture_flow *flow, uint16_t from, uint16_t to, uint16_t tcp_flags) {
    switch (flow->ip_protocol) {
    case PROTOCOL_TCP:
        put_u16(at + 12, 5u << 12 | (tcp_flags & 0xfffu));
        /* fall through */
    case PROTOCOL_UDP:
    case PROTOCOL_SCTP:
        put_u16(put_u16(at, from), to);
        if (flow->ip_protocol == PROTOCOL_UDP)
            put_u16(at + 4, 8);
        break;
    case PROTOCOL_ICMP:
    case PROTOCOL_ICMPV6:
        at[0] = flow->icmp_type;
        at[1] = flow->icmp_code;
        break;
    }
    return at + transport_length(flow->ip_protocol);
}

static uint8_t *put_ip(uint8_t *at, const struct capture_flow *flow, const uint8_t *from, const uint8_t *to) {
    unsigned payload = transport_length(flow->ip_protocol);
    if (flow->ip_version == 4) {
        at[0] = 0x45;
        at[1] = (uint8_t)(flow->dscp << 2);
        put_u16(at + 2, 20 + payload);
        at[8] = 64;
        at[9] = flow->ip_protocol;
        memcpy(at + 12, from, 4);
        memcpy(at + 16, to, 4);
        return at + 20;
    }
    put_u16(at, 6u << 12 | (unsigned)flow->dscp << 6);
    put_u16(at + 4, payload);
    at[6] = flow->ip_protocol;
    at[7] = 64;
    memcpy(at + 8, from, 16);
    memcpy(at + 24, to, 16);
    return at + 40;
}

static bool matches(const struct flow_filter *filter, const struct capture_flow *flow, struct endpoint from, struct endpoint to,
                    uint16_t tcp_flags) {
    uint8_t frame[FRAME_ROOM] = {0};
    uint8_t *at = frame + 12;
    if (flow->vlan_id)
        at = put_u16(put_u16(at, 0x8100), flow->vlan_id);
    at = put_u16(at, flow->ip_version == 4 ? 0x0800 : 0x86dd);
    at = put_ip(at, flow, from.address, to.address);
    at = put_transport(at, flow, from.port, to.port, tcp_flags);
    uint32_t length = (uint32_t)(at - frame);
    return bpf_filter(filter->program.bf_insns, frame, length, length) != 0;
}

bool flow_filter_match(struct flow_filter *filter, const struct capture_flow *flow) {
    if (!filter)
        return true;
    struct endpoint source = {flow->src_addr, flow->src_port}, destination = {flow->dst_addr, flow->dst_port};
    return matches(filter, flow, source, destination, flow->fwd_tcp_flags) ||
           matches(filter, flow, destination, source, flow->rev_tcp_flags);
}

void flow_filter_free(struct flow_filter *filter) {
    if (!filter)
        return;
    pcap_freecode(&filter->program);
    free(filter);
}
