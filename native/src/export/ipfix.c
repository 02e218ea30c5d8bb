/* SPDX-License-Identifier: Apache-2.0 */
/* NetFlow v9 and IPFIX: messages, sets and records of flows.
 *
 *     flow ── share of a direction (uniflow), or both (RFC 5103) ──► layout of its IP version ──► set of its template
 *
 * IPv4 and IPv6 records stand in sets of their own, both in one message; a record is never split. */
#include "export/ipfix.h"

#include <stdlib.h>

#include "error.h"
#include "export/sets.h"

enum { PART_FORWARD = 0, PART_REVERSE = 1, PARTS = 2 };

static int ipfix_create(const struct capture_export_config *config, void **out, struct capture_error_info *error) {
    struct ipfix_encoder *encoder = calloc(1, sizeof(*encoder));
    if (!encoder)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for an encoder could not be allocated",
                            sizeof(*encoder));
    encoder->config = *config;
    encoder->netflow9 = config->protocol == CAPTURE_EXPORT_NETFLOW_V9;
    layout_build(&encoder->layouts[0], config, 4);
    layout_build(&encoder->layouts[1], config, 6);
    *out = encoder;
    return CAPTURE_OK;
}

/* Version 9: version, count, sysUptime, seconds, sequence, source id; IPFIX: version, length, export time, sequence, domain. */
static void ipfix_begin(void *context, struct export_message *message) {
    const struct ipfix_encoder *encoder = context;
    message->length = encoder->netflow9 ? NETFLOW9_HEADER : IPFIX_HEADER;
    memset(message->bytes, 0, message->length);
    export_put16(message->bytes, encoder->netflow9 ? 9 : 10);
    export_put32(message->bytes + message->length - 4, encoder->config.observation_domain_id);
}

static void ipfix_finish(void *context, struct export_message *message) {
    const struct ipfix_encoder *encoder = context;
    set_close(message, encoder->netflow9);
    export_put16(message->bytes + 2, (uint16_t)(encoder->netflow9 ? message->count : message->length));
}

static void find_route(capture_routes_t *routes, const uint8_t *address, uint8_t ip_version, struct capture_route *out) {
    memset(out, 0, sizeof(*out));
    if (capture_routes_lookup(routes, address, ip_version, out) != CAPTURE_OK) {
        memset(out, 0, sizeof(*out));
        return;
    }
    if (!out->has_prefix)
        out->prefix_length = 0;
    if (out->next_hop_version != ip_version) /* an IPv4 route by way of an IPv6 neighbour: its element has no room */
        memset(out->next_hop, 0, sizeof(out->next_hop));
}

static void count_record(struct export_message *message, uint64_t packets, uint64_t octets, uint64_t end_ns) {
    struct capture_export_message *facts = &message->facts;
    facts->records++;
    facts->flows++;
    facts->packets += packets;
    facts->octets += octets;
    if (facts->newest_ns < end_ns)
        facts->newest_ns = end_ns;
}

/* Uniflow: a record of each direction that has packets, the forward one first. */
static enum export_put put_uniflow(const struct ipfix_encoder *encoder, struct export_message *message,
                                   const struct layout *layout, const void *const bases[BASES], uint64_t *part) {
    const struct capture_flow *flow = bases[BASE_FLOW];
    for (; *part < PARTS; ++*part) {
        bool reverse = *part == PART_REVERSE;
        if (!(reverse ? flow->rev_packets : flow->fwd_packets))
            continue;
        uint8_t *at = set_record(message, layout->template_id, layout->length, encoder->netflow9);
        if (!at)
            return EXPORT_PUT_FULL;
        layout_write(layout, reverse ? layout->reverse : layout->forward, bases, at);
        count_record(message, reverse ? flow->rev_packets : flow->fwd_packets, reverse ? flow->rev_octets : flow->fwd_octets,
                     flow->end_time_ns);
    }
    return EXPORT_PUT_DONE;
}

static enum export_put put_biflow(struct export_message *message, const struct layout *layout, const void *const bases[BASES]) {
    const struct capture_flow *flow = bases[BASE_FLOW];
    uint8_t *at = set_record(message, layout->template_id, layout->length, false);
    if (!at)
        return EXPORT_PUT_FULL;
    layout_write(layout, layout->forward, bases, at);
    count_record(message, flow->fwd_packets + flow->rev_packets, flow->fwd_octets + flow->rev_octets, flow->end_time_ns);
    return EXPORT_PUT_DONE;
}

static enum export_put ipfix_put_flow(void *context, struct export_message *message, const struct capture_flow *flow,
                                      const struct capture_flow_statistics *statistics, uint64_t *part) {
    static const struct capture_flow_statistics no_statistics;
    const struct ipfix_encoder *encoder = context;
    const struct layout *layout = &encoder->layouts[flow->ip_version == 6];
    struct capture_route source, destination;
    const void *const bases[BASES] = {flow, statistics ? statistics : &no_statistics, &source, &destination};
    if (layout->needs_routes) {
        find_route(encoder->config.routes, flow->src_addr, flow->ip_version, &source);
        find_route(encoder->config.routes, flow->dst_addr, flow->ip_version, &destination);
    }
    return encoder->config.biflow ? put_biflow(message, layout, bases) : put_uniflow(encoder, message, layout, bases, part);
}

uint8_t *ipfix_writer_record(struct ipfix_writer *writer, uint16_t set_id, uint32_t length) {
    struct export_message *message = writer->message;
    bool netflow9 = writer->encoder->netflow9;
    if (!message->length)
        ipfix_begin(writer->encoder, message);
    uint8_t *at = set_record(message, set_id, length, netflow9);
    if (at || ipfix_writer_end(writer) != CAPTURE_OK)
        return at;
    ipfix_begin(writer->encoder, message);
    return set_record(message, set_id, length, netflow9);
}

int ipfix_writer_end(struct ipfix_writer *writer) {
    struct export_message *message = writer->message;
    if (!message->count)
        return CAPTURE_OK;
    ipfix_finish(writer->encoder, message);
    if (!export_block_has_room(writer->block, message->length))
        return CAPTURE_ERR_SPACE;
    export_block_add(writer->block, message);
    return CAPTURE_OK;
}

const struct export_encoder_ops export_netflow9_ops = {
    .protocol = CAPTURE_EXPORT_NETFLOW_V9,
    .name = "NetFlow v9",
    .create = ipfix_create,
    .destroy = free,
    .begin = ipfix_begin,
    .finish = ipfix_finish,
    .put_flow = ipfix_put_flow,
    .put_templates = ipfix_put_templates,
    .put_options = ipfix_put_options,
};

const struct export_encoder_ops export_ipfix_ops = {
    .protocol = CAPTURE_EXPORT_IPFIX,
    .name = "IPFIX",
    .create = ipfix_create,
    .destroy = free,
    .begin = ipfix_begin,
    .finish = ipfix_finish,
    .put_flow = ipfix_put_flow,
    .put_templates = ipfix_put_templates,
    .put_options = ipfix_put_options,
};
