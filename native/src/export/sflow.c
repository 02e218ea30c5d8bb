/* SPDX-License-Identifier: Apache-2.0 */
/* sFlow version 5 (sflow.org, sflow_version_5.txt, July 2004): datagrams of flow samples, each with the raw header of one sampled
 * frame, and of counters samples with the generic interface counters. XDR (RFC 4506): 4-byte units, big-endian.
 *
 *   sample_datagram_v5   version, agent address, sub-agent id, sequence, uptime, samples; address, sequence and uptime are given
 *                        when the datagram leaves (stamp.c)
 *   flow_sample          format 1, or expanded 3; with one sampled_header, flow_data format 1
 *   counters_sample      format 2, or expanded 4; with one if_counters, counter_data format 1
 *
 * An agent must not mix compact and expanded formats, and needs the expanded ones from ifIndex 2^24 on, which Linux hands out
 * only after as many interfaces: from the first such index on everything is expanded. Sequence numbers are those of a data
 * source: the flow samples' come with the samples, the counters samples' are kept here. */
#include <stdlib.h>

#include "engine/capture.h"
#include "error.h"
#include "export/exporter.h"
#include "export/sflow.h"

enum {
    VERSION = 5,
    ADDRESS_IPV4 = 1,
    ADDRESS_IPV6 = 2,
    FLOW_SAMPLE = 1,
    COUNTERS_SAMPLE = 2,
    FLOW_SAMPLE_EXPANDED = 3,
    COUNTERS_SAMPLE_EXPANDED = 4,
    SAMPLED_HEADER = 1,
    IF_COUNTERS = 1,
    HEADER_BEHIND_ADDRESS = 16, /* sub-agent id, sequence, uptime, number of samples */
    RECORD_HEAD = 8,            /* format and length, of samples and of what is in them */
    FLOW_SAMPLE_BYTES = 32,
    FLOW_SAMPLE_EXPANDED_BYTES = 44,
    COUNTERS_SAMPLE_BYTES = 12,
    COUNTERS_SAMPLE_EXPANDED_BYTES = 16,
    SAMPLED_HEADER_BYTES = 16, /* before the header's own bytes */
    IF_COUNTERS_BYTES = 88,
    COMPACT_INDEX_MOST = 0xffffff,
    COUNTED_MOST = 256, /* interfaces whose counters samples' sequence is remembered */
};

/* The counters samples of one interface. */
struct counted_interface {
    uint32_t index; /* 0: a free place */
    uint32_t sequence;
    uint64_t in_octets, out_octets; /* as last told: counters that went back began anew */
};

struct sflow_encoder {
    uint32_t sub_agent_id;
    uint32_t address_length;
    bool expanded;
    bool pending_expanded; /* of the samples in the datagram that is not full */
    uint32_t next_place;   /* in `counted`, replaced when all are taken */
    struct counted_interface counted[COUNTED_MOST];
};

static int sflow_create(const struct capture_export_config *config, void **out, struct capture_error_info *error) {
    uint32_t length = config->agent_address_length;
    if (length != 0 && length != 4 && length != 16)
        return capture_fail(error, CAPTURE_ERR_INVALID, "agent_address_length",
                            "agent_address_length is %u: accepted are 4 (IPv4), 16 (IPv6), or 0 for 4", length);
    if (config->share_count > 1)
        return capture_fail(error, CAPTURE_ERR_INVALID, "share_count",
                            "share_count is %u: accepted is 1 with sFlow, whose samples belong to no flow", config->share_count);
    struct sflow_encoder *encoder = calloc(1, sizeof(*encoder));
    if (!encoder)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for an encoder could not be allocated",
                            sizeof(*encoder));
    encoder->sub_agent_id = config->observation_domain_id;
    encoder->address_length = length ? length : 4;
    *out = encoder;
    return CAPTURE_OK;
}

static uint32_t datagram_header(const struct sflow_encoder *encoder) {
    return 8 + encoder->address_length + HEADER_BEHIND_ADDRESS;
}

static void sflow_begin(void *context, struct export_message *message) {
    const struct sflow_encoder *encoder = context;
    uint8_t *at = message->bytes;
    memset(at, 0, datagram_header(encoder));
    at = export_put32(at, VERSION);
    at = export_put32(at, encoder->address_length == 4 ? ADDRESS_IPV4 : ADDRESS_IPV6);
    export_put32(at + encoder->address_length, encoder->sub_agent_id);
    message->length = datagram_header(encoder);
}

static void sflow_finish(void *context, struct export_message *message) {
    const struct sflow_encoder *encoder = context;
    export_put32(message->bytes + datagram_header(encoder) - 4, message->count);
}

const struct export_encoder_ops export_sflow_ops = {
    .protocol = CAPTURE_EXPORT_SFLOW_V5,
    .name = "sFlow",
    .create = sflow_create,
    .destroy = free,
    .begin = sflow_begin,
    .finish = sflow_finish,
};

static void note_index(struct sflow_encoder *encoder, uint32_t index) {
    encoder->expanded = encoder->expanded || index > COMPACT_INDEX_MOST;
}

/* sflow_data_source or interface: 32 bits, or type (format) and value apart. Type and format 0 are an ifIndex. */
static uint8_t *put_index(const struct sflow_encoder *encoder, uint8_t *at, uint32_t index) {
    if (encoder->expanded)
        at = export_put32(at, 0);
    return export_put32(at, index);
}

/* ---- flow samples */

static uint32_t padded(uint32_t length) {
    return (length + 3) & ~3u;
}

static uint32_t flow_sample_bytes(const struct sflow_encoder *encoder, const struct frame_sample *frame) {
    uint32_t sample = encoder->expanded ? FLOW_SAMPLE_EXPANDED_BYTES : FLOW_SAMPLE_BYTES;
    return RECORD_HEAD + sample + RECORD_HEAD + SAMPLED_HEADER_BYTES + padded(frame->header_length);
}

static uint8_t *put_sampled_header(uint8_t *at, const struct frame_sample *frame) {
    at = export_put32(at, SAMPLED_HEADER);
    at = export_put32(at, SAMPLED_HEADER_BYTES + padded(frame->header_length));
    at = export_put32(at, frame->protocol);
    at = export_put32(at, frame->frame_length);
    at = export_put32(at, frame->stripped);
    at = export_put32(at, frame->header_length);
    memcpy(at, frame->header, frame->header_length);
    memset(at + frame->header_length, 0, padded(frame->header_length) - frame->header_length);
    return at + padded(frame->header_length);
}

/* Appends a flow sample, for which there is room. */
static void put_flow_sample(const struct sflow_encoder *encoder, struct export_message *message, uint32_t sampling_rate,
                            const struct read_sample *sample) {
    const struct frame_sample *frame = sample->frame;
    uint8_t *at = message->bytes + message->length;
    at = export_put32(at, encoder->expanded ? FLOW_SAMPLE_EXPANDED : FLOW_SAMPLE);
    at = export_put32(at, flow_sample_bytes(encoder, frame) - RECORD_HEAD);
    at = export_put32(at, sample->sequence);
    at = put_index(encoder, at, frame->source_index);
    at = export_put32(at, sampling_rate);
    at = export_put32(at, (uint32_t)sample->pool);
    at = export_put32(at, (uint32_t)sample->drops);
    at = put_index(encoder, at, frame->input_index);
    at = put_index(encoder, at, 0); /* where it leaves by is not known to a capture */
    at = export_put32(at, 1);
    at = put_sampled_header(at, frame);
    message->length = (uint32_t)(at - message->bytes);
    message->count++;
    message->facts.records++;
    message->facts.flows++;
    message->facts.packets++;
    message->facts.octets += frame->frame_length;
    if (frame->ts_ns > message->facts.newest_ns)
        message->facts.newest_ns = frame->ts_ns;
}

struct sample_target {
    struct capture_exporter *exporter;
    struct export_block *block;
    uint32_t sampling_rate;
};

static bool take_sample(void *context, const struct read_sample *sample) {
    struct sample_target *target = context;
    struct capture_exporter *exporter = target->exporter;
    struct sflow_encoder *encoder = exporter->encoder;
    if (sample->frame->protocol == SFLOW_NO_PROTOCOL) {
        exporter->totals.flows_read++;
        exporter->totals.unexportable_flows++;
        exporter->totals.unexportable_packets++;
        exporter->totals.unexportable_octets += sample->frame->frame_length;
        return true;
    }
    note_index(encoder, sample->frame->source_index);
    note_index(encoder, sample->frame->input_index);
    if (encoder->pending_expanded != encoder->expanded && !exporter_give_pending(exporter, target->block))
        return false;
    encoder->pending_expanded = encoder->expanded;
    exporter_begin_pending(exporter);
    if (export_message_left(&exporter->pending) < flow_sample_bytes(encoder, sample->frame)) {
        if (!exporter_give_pending(exporter, target->block))
            return false;
        exporter_begin_pending(exporter);
    }
    put_flow_sample(encoder, &exporter->pending, target->sampling_rate, sample);
    exporter->totals.flows_read++;
    return true;
}

int capture_exporter_read_samples(capture_exporter_t *exporter, capture_sampler_t *sampler, uint8_t *out, uint64_t capacity,
                                  struct capture_export_message *messages, uint32_t max_messages, bool flush,
                                  struct capture_batch_info *info) {
    struct export_block block = {.out = out, .capacity = capacity, .messages = messages, .max_messages = max_messages};
    struct sample_target target = {.exporter = exporter, .block = &block, .sampling_rate = sampler->sampling_rate};
    if (exporter->ops != &export_sflow_ops)
        return CAPTURE_ERR_INVALID;
    if (capacity < CAPTURE_EXPORT_MESSAGE_MAX || max_messages == 0)
        return CAPTURE_ERR_SPACE;
    if (!capture_may_give(sampler->capture))
        return CAPTURE_ERR_LEASE;
    sampler_read(sampler, take_sample, &target, info);
    if (flush && !info->more && !exporter_give_pending(exporter, &block)) {
        info->more = true;
        info->end = false;
    }
    info->bytes = block.length;
    return (int)block.count;
}

/* ---- counters samples */

static struct counted_interface *counted_place(struct sflow_encoder *encoder, uint32_t index) {
    for (uint32_t i = 0; i < COUNTED_MOST && encoder->counted[i].index; i++)
        if (encoder->counted[i].index == index)
            return &encoder->counted[i];
    struct counted_interface *place = &encoder->counted[encoder->next_place++ % COUNTED_MOST];
    *place = (struct counted_interface){.index = index};
    return place;
}

/* The sample's sequence number: it begins anew with the counters. */
static uint32_t next_sequence(struct sflow_encoder *encoder, const struct capture_interface_counters *counters) {
    struct counted_interface *place = counted_place(encoder, counters->index);
    if (counters->in_octets < place->in_octets || counters->out_octets < place->out_octets)
        place->sequence = 0;
    place->in_octets = counters->in_octets;
    place->out_octets = counters->out_octets;
    return ++place->sequence;
}

static uint8_t *put_if_counters(uint8_t *at, const struct capture_interface_counters *counters) {
    at = export_put32(at, IF_COUNTERS);
    at = export_put32(at, IF_COUNTERS_BYTES);
    at = export_put32(at, counters->index);
    at = export_put32(at, counters->type);
    at = export_put64(at, counters->speed);
    at = export_put32(at, counters->direction);
    at = export_put32(at, counters->status);
    at = export_put64(at, counters->in_octets);
    at = export_put32(at, counters->in_unicast);
    at = export_put32(at, counters->in_multicast);
    at = export_put32(at, counters->in_broadcast);
    at = export_put32(at, counters->in_discards);
    at = export_put32(at, counters->in_errors);
    at = export_put32(at, counters->in_unknown_protocols);
    at = export_put64(at, counters->out_octets);
    at = export_put32(at, counters->out_unicast);
    at = export_put32(at, counters->out_multicast);
    at = export_put32(at, counters->out_broadcast);
    at = export_put32(at, counters->out_discards);
    at = export_put32(at, counters->out_errors);
    return export_put32(at, counters->promiscuous);
}

static uint32_t counters_sample_bytes(const struct sflow_encoder *encoder) {
    uint32_t sample = encoder->expanded ? COUNTERS_SAMPLE_EXPANDED_BYTES : COUNTERS_SAMPLE_BYTES;
    return RECORD_HEAD + sample + RECORD_HEAD + IF_COUNTERS_BYTES;
}

/* Appends a counters sample, for which there is room. */
static void put_counters_sample(struct sflow_encoder *encoder, struct export_message *message,
                                const struct capture_interface_counters *counters) {
    uint8_t *at = message->bytes + message->length;
    at = export_put32(at, encoder->expanded ? COUNTERS_SAMPLE_EXPANDED : COUNTERS_SAMPLE);
    at = export_put32(at, counters_sample_bytes(encoder) - RECORD_HEAD);
    at = export_put32(at, next_sequence(encoder, counters));
    at = put_index(encoder, at, counters->index);
    at = export_put32(at, 1);
    at = put_if_counters(at, counters);
    message->length = (uint32_t)(at - message->bytes);
    message->count++;
    message->facts.records++;
}

int capture_exporter_counters(capture_exporter_t *exporter, const struct capture_interface_counters *counters, uint32_t count,
                              uint8_t *out, uint64_t capacity, struct capture_export_message *messages, uint32_t max_messages) {
    struct export_block block = {.out = out, .capacity = capacity, .messages = messages, .max_messages = max_messages};
    struct export_message *message = &exporter->scratch;
    if (exporter->ops != &export_sflow_ops)
        return CAPTURE_ERR_INVALID;
    struct sflow_encoder *encoder = exporter->encoder;
    for (uint32_t i = 0; i < count; i++)
        note_index(encoder, counters[i].index);
    uint32_t each = counters_sample_bytes(encoder), header = datagram_header(encoder);
    uint32_t whole = (message->limit - header) / each, datagrams = (count + whole - 1) / whole;
    if (datagrams > max_messages || (uint64_t)datagrams * header + (uint64_t)count * each > capacity)
        return CAPTURE_ERR_SPACE; /* before any sequence number is given */
    for (uint32_t i = 0; i < count;) {
        export_message_clear(message);
        sflow_begin(encoder, message);
        for (uint32_t n = 0; n < whole && i < count; n++)
            put_counters_sample(encoder, message, &counters[i++]);
        sflow_finish(encoder, message);
        export_block_add(&block, message);
    }
    return (int)block.count;
}
