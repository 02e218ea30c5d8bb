/* SPDX-License-Identifier: Apache-2.0 */
/* One record: step by step from a flow, its statistics and its routes to bytes. */
#include "export/icmp_reply.h"
#include "export/layout.h"
#include "export/message.h"

enum { IP_PROTOCOL_TCP = 6, TCP_SYN = 0x02, TCP_ACK = 0x10 };
enum { NS_PER_MS = 1000000, NS_PER_SECOND = 1000000000, US_PER_SECOND = 1000000 };
static const uint64_t NTP_UNIX_EPOCH = 2208988800; /* seconds from 1900 to 1970 */

/* biflowDirection (RFC 5103, 6.3): the source is the initiator when the flow's first packet was a SYN without ACK, else
 * arbitrary. */
enum { DIRECTION_ARBITRARY = 0, DIRECTION_INITIATOR = 1 };

/* RFC 6759, 4.1: which registry an application's number is of. */
enum { APPLICATION_IANA_L3 = 1, APPLICATION_IANA_L4 = 3, WELL_KNOWN_PORTS = 1024 };

enum { SEGMENT_VXLAN = 1 }; /* IANA's description of layer2SegmentId */

static inline uint16_t load16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint32_t load32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint64_t load64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline double load_double(const uint8_t *at) {
    double value;
    memcpy(&value, at, sizeof(value));
    return value;
}

/* Seconds modulo 2^32 (era 1 begins in 2036). The fraction is rounded up, so that both who cuts and who rounds finds the time
 * that went in. */
static inline uint64_t ntp_micro(uint64_t ns) {
    uint64_t seconds = ns / NS_PER_SECOND + NTP_UNIX_EPOCH, us = ns % NS_PER_SECOND / 1000;
    uint64_t fraction = ((us << 21) + US_PER_SECOND - 1) / US_PER_SECOND << 11;
    return seconds << 32 | fraction;
}

static inline uint64_t ntp_nano(uint64_t ns) {
    uint64_t seconds = ns / NS_PER_SECOND + NTP_UNIX_EPOCH, rest = ns % NS_PER_SECOND;
    return seconds << 32 | ((rest << 32) + NS_PER_SECOND - 1) / NS_PER_SECOND;
}

static bool is_icmp(const struct capture_flow *flow) {
    return flow->ip_protocol == IP_PROTOCOL_ICMP || flow->ip_protocol == IP_PROTOCOL_ICMPV6;
}

static uint16_t icmp(const struct capture_flow *flow, bool reply) {
    if (!is_icmp(flow))
        return 0;
    uint8_t type = reply ? icmp_reply_type(flow->ip_protocol, flow->icmp_type) : flow->icmp_type;
    return (uint16_t)(type << 8 | flow->icmp_code);
}

/* Flags are unions over the packets: with a SYN of both sides, the forward direction, whose packet came first, sent the first
 * one. A SYN-ACK whose SYN was not seen is one side's alone. */
static uint8_t direction(const struct capture_flow *flow) {
    bool syn = flow->ip_protocol == IP_PROTOCOL_TCP && flow->fwd_tcp_flags & TCP_SYN;
    bool first = flow->rev_tcp_flags & TCP_SYN || !(flow->fwd_tcp_flags & TCP_ACK);
    return syn && first ? DIRECTION_INITIATOR : DIRECTION_ARBITRARY;
}

/* The responder's port when it is a well-known one, of the responder being the destination if that is not clear; else the
 * protocol. */
static uint32_t application(const struct capture_flow *flow) {
    uint16_t port = flow->dst_port;
    if (direction(flow) == DIRECTION_ARBITRARY && !(port > 0 && port < WELL_KNOWN_PORTS))
        port = flow->src_port;
    if (port > 0 && port < WELL_KNOWN_PORTS)
        return (uint32_t)APPLICATION_IANA_L4 << 24 | port;
    return (uint32_t)APPLICATION_IANA_L3 << 24 | flow->ip_protocol;
}

static uint64_t segment(const struct capture_flow *flow) {
    return flow->tunnel_type == CAPTURE_TUNNEL_TYPE_VXLAN ? (uint64_t)SEGMENT_VXLAN << 56 | flow->tunnel_id : 0;
}

/* To the nearest; what no number of 64 bits is (NaN too) becomes the nearest of those, or 0. */
static inline uint64_t rounded(double value) {
    if (!(value > 0))
        return 0;
    return value < 18446744073709549568.0 ? (uint64_t)(value + 0.5) : UINT64_MAX;
}

static uint64_t payload(const uint8_t *spread, uint64_t packets) {
    return rounded(load_double(spread + offsetof(struct capture_spread, mean)) * (double)packets);
}

/* Values that are made of a whole flow. */
static uint8_t *write_derived(uint8_t value, const struct capture_flow *flow, const uint8_t *from, uint8_t *at) {
    switch (value) {
    case VALUE_ICMP:
        return export_put16(at, icmp(flow, false));
    case VALUE_ICMP_REPLY:
        return export_put16(at, icmp(flow, true));
    case VALUE_PORT_OR_ICMP:
        return export_put16(at, is_icmp(flow) ? icmp(flow, false) : flow->dst_port);
    case VALUE_PORT_OR_ICMP_REPLY:
        return export_put16(at, is_icmp(flow) ? icmp(flow, true) : flow->src_port);
    case VALUE_DIRECTION:
        *at = direction(flow);
        return at + 1;
    case VALUE_APPLICATION:
        return export_put32(at, application(flow));
    case VALUE_SEGMENT:
        return export_put64(at, segment(flow));
    case VALUE_PAYLOAD:
        return export_put64(at, payload(from, flow->fwd_packets));
    case VALUE_PAYLOAD_REVERSE:
        return export_put64(at, payload(from, flow->rev_packets));
    default:
        return at;
    }
}

static inline uint8_t *write_time(uint8_t value, uint64_t ns, uint8_t *at) {
    if (value == VALUE_MILLISECONDS)
        return export_put64(at, ns / NS_PER_MS);
    return export_put64(at, value == VALUE_NTP_MICRO ? ntp_micro(ns) : ntp_nano(ns));
}

static inline uint8_t *write_value(uint8_t value, const struct capture_flow *flow, const uint8_t *from, uint8_t *at) {
    switch (value) {
    case VALUE_COPY4:
        memcpy(at, from, 4);
        return at + 4;
    case VALUE_COPY6:
        memcpy(at, from, 6);
        return at + 6;
    case VALUE_COPY16:
        memcpy(at, from, 16);
        return at + 16;
    case VALUE_U8:
        *at = *from;
        return at + 1;
    case VALUE_U16:
        return export_put16(at, load16(from));
    case VALUE_U32:
        return export_put32(at, load32(from));
    case VALUE_U64:
        return export_put64(at, load64(from));
    case VALUE_U16_AS_U8:
        *at = (uint8_t)load16(from);
        return at + 1;
    case VALUE_U16_AS_U32:
        return export_put32(at, load16(from));
    case VALUE_U64_AS_U16:
        return export_put16(at, load64(from) > UINT16_MAX ? UINT16_MAX : (uint16_t)load64(from));
    case VALUE_MILLISECONDS:
    case VALUE_NTP_MICRO:
    case VALUE_NTP_NANO:
        return write_time(value, load64(from), at);
    case VALUE_HALF_MS: {
        uint64_t ns = load64(from), half = ns / (2 * NS_PER_MS) + (ns % (2 * NS_PER_MS) >= NS_PER_MS);
        return export_put32(at, half > UINT32_MAX ? UINT32_MAX : (uint32_t)half);
    }
    case VALUE_MEAN_MS:
        return export_put64(at, rounded(load_double(from) / NS_PER_MS));
    case VALUE_DSCP_AS_TOS:
        *at = (uint8_t)(*from << 2);
        return at + 1;
    default:
        return write_derived(value, flow, from, at);
    }
}

uint8_t *layout_write(const struct layout *layout, const struct element_source *steps, const void *const bases[BASES],
                      uint8_t *at) {
    const struct capture_flow *flow = bases[BASE_FLOW];
    for (uint32_t i = 0; i < layout->field_count; i++) {
        const uint8_t *from = (const uint8_t *)bases[steps[i].base] + steps[i].offset;
        at = write_value(steps[i].value, flow, from, at);
    }
    return at;
}
