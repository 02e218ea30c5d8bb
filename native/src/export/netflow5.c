/* SPDX-License-Identifier: Apache-2.0 */
/* NetFlow v5 (Cisco, NetFlow Export Datagram Format): messages of at most 30 records of IPv4, one a direction that has packets.
 *
 * What the format cannot hold
 *   counters    beyond 2^32 - 1 the direction becomes several records with the same times, whose sums are exact
 *   times       First and Last are milliseconds of 32 bits since base_ns, which starts as system_init_ns and moves only when a
 *               record lies outside of the 49.7 days behind it; a message has one base. A flow that is longer than that loses
 *               the beginning of its time, nothing else
 *   ICMP        type * 256 + code in place of the destination port, as collectors expect
 *   AS numbers  beyond 16 bits are AS_TRANS, 23456 (RFC 6793)
 *   IPv6        is not said at all; the exporter counts it */
#include "export/netflow5.h"

#include <stdlib.h>

#include "error.h"
#include "export/icmp_reply.h"

enum {
    HEADER = 24,
    RECORD = 48,
    RECORDS = 30,
    COUNT_AT = 2,
    NS_PER_MS = 1000000,
    SAMPLING_MAX = 0x3fff,     /* the interval's 14 bits */
    SAMPLED_PERIODIC = 0x4000, /* the mode's 2 bits: every N-th */
    SAMPLED_RANDOM = 0x8000,
    AS_TRANS = 23456
};

/* How far before a record its new base lies, ms: half of what 32 bits hold, for records on both sides of it. */
#define BASE_BEFORE UINT64_C(0x80000000)

struct netflow5 {
    uint64_t base_ms;
    uint16_t engine;
    uint16_t sampling;
    capture_routes_t *routes; /* or NULL; the exporter keeps it alive */
};

/* One direction of a flow. */
struct way {
    const uint8_t *source, *destination;
    uint16_t source_port, destination_port;
    uint64_t packets, octets;
    uint8_t tcp_flags;
    uint64_t records; /* that its counters take */
};

static int create(const struct capture_export_config *config, void **encoder, struct capture_error_info *error) {
    if (config->biflow)
        return capture_fail(error, CAPTURE_ERR_INVALID, "biflow",
                            "biflow is on and protocol is netflow5: only ipfix has records of both directions");
    if (config->sampling_interval > SAMPLING_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_interval",
                            "sampling_interval is %u: accepted with netflow5 are 0 to %d, more its header cannot say",
                            config->sampling_interval, SAMPLING_MAX);
    struct netflow5 *made = calloc(1, sizeof(*made));
    if (made == NULL)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "no memory for an encoder");
    uint32_t mode = config->sampling == CAPTURE_SAMPLING_NONE         ? 0
                    : config->sampling == CAPTURE_SAMPLING_SYSTEMATIC ? SAMPLED_PERIODIC
                                                                      : SAMPLED_RANDOM;
    *made = (struct netflow5){.base_ms = config->system_init_ns / NS_PER_MS,
                              .engine = (uint16_t)config->observation_domain_id,
                              .sampling = (uint16_t)(mode == 0 ? 0 : mode | config->sampling_interval),
                              .routes = config->routes};
    *encoder = made;
    return CAPTURE_OK;
}

static void destroy(void *encoder) {
    free(encoder);
}

static void begin(void *encoder, struct export_message *message) {
    const struct netflow5 *v5 = encoder;
    memset(message->bytes, 0, HEADER);
    export_put16(message->bytes, 5);
    export_put16(message->bytes + 20, v5->engine);
    export_put16(message->bytes + 22, v5->sampling);
    message->length = HEADER;
}

static void finish(void *encoder, struct export_message *message) {
    (void)encoder;
    export_put16(message->bytes + COUNT_AT, (uint16_t)message->count);
}

static uint64_t parts_of(uint64_t packets, uint64_t octets) {
    uint64_t most = packets > octets ? packets : octets;
    return most / UINT32_MAX + (most % UINT32_MAX != 0);
}

/* Share number `part` of a counter that `parts` records make up; they differ by one at most. */
static uint32_t share_of(uint64_t total, uint64_t parts, uint64_t part) {
    return (uint32_t)(total / parts + (part < total % parts));
}

static struct way forward_of(const struct capture_flow *flow) {
    bool icmp = flow->ip_protocol == IP_PROTOCOL_ICMP;
    return (struct way){.source = flow->src_addr,
                        .destination = flow->dst_addr,
                        .source_port = flow->src_port,
                        .destination_port = icmp ? (uint16_t)(flow->icmp_type << 8 | flow->icmp_code) : flow->dst_port,
                        .packets = flow->fwd_packets,
                        .octets = flow->fwd_octets,
                        .tcp_flags = (uint8_t)flow->fwd_tcp_flags,
                        .records = parts_of(flow->fwd_packets, flow->fwd_octets)};
}

static struct way reverse_of(const struct capture_flow *flow) {
    bool icmp = flow->ip_protocol == IP_PROTOCOL_ICMP;
    return (struct way){.source = flow->dst_addr,
                        .destination = flow->src_addr,
                        .source_port = flow->dst_port,
                        .destination_port =
                            icmp ? (uint16_t)(icmp_reply_type(IP_PROTOCOL_ICMP, flow->icmp_type) << 8 | flow->icmp_code)
                                 : flow->src_port,
                        .packets = flow->rev_packets,
                        .octets = flow->rev_octets,
                        .tcp_flags = (uint8_t)flow->rev_tcp_flags,
                        .records = parts_of(flow->rev_packets, flow->rev_octets)};
}

/* A flow's times in whole ms since 1970, as far apart as 32 bits can say. */
static void times_of(const struct capture_flow *flow, uint64_t *start_ms, uint64_t *end_ms) {
    *end_ms = flow->end_time_ns / NS_PER_MS;
    *start_ms = flow->start_time_ns / NS_PER_MS;
    if (*start_ms > *end_ms)
        *start_ms = *end_ms;
    if (*end_ms - *start_ms > UINT32_MAX)
        *start_ms = *end_ms - UINT32_MAX;
}

/* Makes a flow's times fit behind the message's base; a message without records takes a new one. False: it has one already. */
static bool fit_times(struct netflow5 *v5, struct export_message *message, const struct capture_flow *flow) {
    uint64_t start_ms, end_ms;
    times_of(flow, &start_ms, &end_ms);
    if (start_ms < v5->base_ms || end_ms - v5->base_ms > UINT32_MAX) {
        if (message->count != 0)
            return false;
        uint64_t before = end_ms > BASE_BEFORE ? end_ms - BASE_BEFORE : 0;
        v5->base_ms = before < start_ms ? before : start_ms;
    }
    message->facts.base_ns = v5->base_ms * NS_PER_MS;
    return true;
}

static uint16_t as16(uint32_t number) {
    return number > UINT16_MAX ? AS_TRANS : (uint16_t)number;
}

/* Where the record's packets were going, and the systems and prefixes of both ends. */
static void put_routes(capture_routes_t *routes, const struct way *way, uint8_t *at) {
    struct capture_route source, destination;
    capture_routes_lookup(routes, way->source, 4, &source);
    capture_routes_lookup(routes, way->destination, 4, &destination);
    if (destination.next_hop_version == 4)
        memcpy(at + 8, destination.next_hop, 4);
    export_put16(at + 40, as16(source.as_number));
    export_put16(at + 42, as16(destination.as_number));
    at[44] = source.has_prefix ? source.prefix_length : 0;
    at[45] = destination.has_prefix ? destination.prefix_length : 0;
}

static void put_record(struct netflow5 *v5, struct export_message *message, const struct capture_flow *flow,
                       const struct way *way, uint64_t part) {
    uint64_t start_ms, end_ms;
    times_of(flow, &start_ms, &end_ms);
    uint32_t packets = share_of(way->packets, way->records, part), octets = share_of(way->octets, way->records, part);
    uint8_t *at = message->bytes + message->length;
    memset(at, 0, RECORD);
    memcpy(at, way->source, 4);
    memcpy(at + 4, way->destination, 4);
    export_put16(at + 12, flow->interface_index);
    export_put16(at + 14, flow->second_interface_index);
    export_put32(at + 16, packets);
    export_put32(at + 20, octets);
    export_put32(at + 24, (uint32_t)(start_ms - v5->base_ms));
    export_put32(at + 28, (uint32_t)(end_ms - v5->base_ms));
    export_put16(at + 32, way->source_port);
    export_put16(at + 34, way->destination_port);
    at[37] = way->tcp_flags;
    at[38] = flow->ip_protocol;
    at[39] = (uint8_t)(flow->dscp << 2);
    if (v5->routes)
        put_routes(v5->routes, way, at);
    message->length += RECORD;
    message->count++;
    message->facts.records++;
    message->facts.flows++;
    message->facts.packets += packets;
    message->facts.octets += octets;
    if (flow->end_time_ns > message->facts.newest_ns)
        message->facts.newest_ns = flow->end_time_ns;
}

static enum export_put put_flow(void *encoder, struct export_message *message, const struct capture_flow *flow,
                                const struct capture_flow_statistics *statistics, uint64_t *part) {
    (void)statistics;
    struct netflow5 *v5 = encoder;
    if (flow->ip_version != 4)
        return EXPORT_PUT_UNEXPORTABLE;
    struct way forward = forward_of(flow), reverse = reverse_of(flow);
    uint64_t records = forward.records + reverse.records;
    if (*part < records && !fit_times(v5, message, flow))
        return EXPORT_PUT_FULL;
    while (*part < records) {
        if (message->count == RECORDS || export_message_left(message) < RECORD)
            return EXPORT_PUT_FULL;
        if (*part < forward.records)
            put_record(v5, message, flow, &forward, *part);
        else
            put_record(v5, message, flow, &reverse, *part - forward.records);
        ++*part;
    }
    return EXPORT_PUT_DONE;
}

const struct export_encoder_ops export_netflow5_ops = {.protocol = CAPTURE_EXPORT_NETFLOW_V5,
                                                       .name = "netflow5",
                                                       .create = create,
                                                       .destroy = destroy,
                                                       .begin = begin,
                                                       .finish = finish,
                                                       .put_flow = put_flow};
