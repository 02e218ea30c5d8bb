/* SPDX-License-Identifier: Apache-2.0 */
/* The exporter that all protocols share: configuration, share, the message that is not full yet, blocks, totals.
 *
 *     reader or array ──► flows of this share ──put_flow──► pending message ──full, or flushed──► block
 *
 * A flow is taken only while one more message has room in the block, so nothing that was taken waits but what the pending message
 * holds, and (when one flow fills several messages) the flow itself, copied. */
#include "export/exporter.h"

#include <stdlib.h>

#include "engine/reader.h"
#include "error.h"
#include "export/ipfix.h"
#include "export/netflow5.h"
#include "export/sflow.h"
#include "route/routes.h"

/* To add a protocol: a file with its functions, and a row here. */
static const struct export_encoder_ops *const encoders[] = {
    &export_netflow5_ops,
    &export_netflow9_ops,
    &export_ipfix_ops,
    &export_sflow_ops,
};

enum {
    STATISTICS_KNOWN =
        CAPTURE_STATISTICS_TCP | CAPTURE_STATISTICS_SIZES | CAPTURE_STATISTICS_INTERVALS | CAPTURE_STATISTICS_HEADERS
};
enum { SAMPLING_INTERVAL_MAX = 1000000 };

static const struct export_encoder_ops *find_encoder(uint32_t protocol) {
    for (size_t i = 0; i < sizeof(encoders) / sizeof(encoders[0]); i++)
        if (encoders[i]->protocol == protocol)
            return encoders[i];
    return NULL;
}

static int check_form(const struct capture_export_config *config, struct capture_error_info *error) {
    if (!find_encoder(config->protocol))
        return capture_fail(error, CAPTURE_ERR_INVALID, "protocol",
                            "protocol is %u: accepted are 1 (NetFlow v5), 2 (NetFlow v9), 3 (IPFIX) and 4 (sFlow v5)",
                            config->protocol);
    if (config->profile > CAPTURE_EXPORT_FULL)
        return capture_fail(error, CAPTURE_ERR_INVALID, "profile",
                            "profile is %u: accepted are 0 and 2 (default), 1 (minimal) and 3 (full)", config->profile);
    if (config->time_unit > CAPTURE_EXPORT_NANOSECONDS)
        return capture_fail(error, CAPTURE_ERR_INVALID, "time_unit",
                            "time_unit is %u: accepted are 0 and 1 (milliseconds), 2 (microseconds) and 3 (nanoseconds)",
                            config->time_unit);
    if (config->biflow && config->protocol != CAPTURE_EXPORT_IPFIX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "biflow",
                            "biflow is set with %s: accepted with IPFIX only, whose RFC 5103 has records of both directions",
                            find_encoder(config->protocol)->name);
    if (config->message_max &&
        (config->message_max < CAPTURE_EXPORT_MESSAGE_MIN || config->message_max > CAPTURE_EXPORT_MESSAGE_MAX))
        return capture_fail(error, CAPTURE_ERR_INVALID, "message_max", "message_max is %u: accepted are 0 (%d) and %d to %d",
                            config->message_max, CAPTURE_EXPORT_MESSAGE_DEFAULT, CAPTURE_EXPORT_MESSAGE_MIN,
                            CAPTURE_EXPORT_MESSAGE_MAX);
    return CAPTURE_OK;
}

static int check_content(const struct capture_export_config *config, struct capture_error_info *error) {
    bool sflow = config->protocol == CAPTURE_EXPORT_SFLOW_V5;
    if (config->statistics & ~(uint32_t)STATISTICS_KNOWN)
        return capture_fail(error, CAPTURE_ERR_INVALID, "statistics", "statistics is %u: accepted is any sum of 1, 2, 4 and 8",
                            config->statistics);
    if (config->sampling > CAPTURE_SAMPLING_FLOW_HASH)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling",
                            "sampling is %u: accepted are 0 (none), 1 (systematic) and 2 (flow hash)", config->sampling);
    if (config->sampling && (config->sampling_interval == 0 || config->sampling_interval > SAMPLING_INTERVAL_MAX))
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_interval", "sampling_interval is %u: accepted are 1 to %d",
                            config->sampling_interval, SAMPLING_INTERVAL_MAX);
    if (!sflow && !config->sampling && config->sampling_interval)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_interval",
                            "sampling_interval is %u without sampling: accepted is 0", config->sampling_interval);
    if (config->share >= (config->share_count ? config->share_count : 1))
        return capture_fail(error, CAPTURE_ERR_INVALID, "share", "share is %u of share_count %u: accepted are 0 to %u",
                            config->share, config->share_count, config->share_count ? config->share_count - 1 : 0);
    return CAPTURE_OK;
}

static int check_config(const struct capture_export_config *config, struct capture_error_info *error) {
    if (config->struct_size != sizeof(*config))
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size",
                            "struct_size is %u: accepted is %zu, the size this library was built with", config->struct_size,
                            sizeof(*config));
    int code = check_form(config, error);
    return code == CAPTURE_OK ? check_content(config, error) : code;
}

static void fill_defaults(struct capture_export_config *config) {
    config->profile = config->profile ? config->profile : CAPTURE_EXPORT_DEFAULT;
    config->time_unit = config->time_unit ? config->time_unit : CAPTURE_EXPORT_MILLISECONDS;
    config->message_max = config->message_max ? config->message_max : CAPTURE_EXPORT_MESSAGE_DEFAULT;
    config->share_count = config->share_count ? config->share_count : 1;
}

static bool message_init(struct export_message *message, uint32_t limit) {
    message->bytes = malloc(limit);
    message->limit = limit;
    export_message_clear(message);
    return message->bytes != NULL;
}

int capture_exporter_create(const struct capture_export_config *config, capture_exporter_t **out,
                            struct capture_error_info *error) {
    *out = NULL;
    int code = check_config(config, error);
    if (code != CAPTURE_OK)
        return code;
    struct capture_exporter *exporter = calloc(1, sizeof(*exporter));
    if (!exporter)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for an exporter could not be allocated",
                            sizeof(*exporter));
    exporter->config = *config;
    fill_defaults(&exporter->config);
    exporter->ops = find_encoder(config->protocol);
    if (config->routes)
        capture_routes_retain(config->routes);
    uint32_t limit = exporter->config.message_max;
    if (!message_init(&exporter->pending, limit) || !message_init(&exporter->scratch, limit))
        code = capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%u bytes for messages could not be allocated", 2 * limit);
    else
        code = exporter->ops->create(&exporter->config, &exporter->encoder, error);
    if (code != CAPTURE_OK) {
        capture_exporter_destroy(exporter);
        return code;
    }
    *out = exporter;
    return CAPTURE_OK;
}

void capture_exporter_destroy(capture_exporter_t *exporter) {
    if (!exporter)
        return;
    if (exporter->encoder)
        exporter->ops->destroy(exporter->encoder);
    if (exporter->config.routes)
        capture_routes_release(exporter->config.routes);
    free(exporter->pending.bytes);
    free(exporter->scratch.bytes);
    free(exporter);
}

void exporter_begin_pending(struct capture_exporter *exporter) {
    if (!exporter->pending.length)
        exporter->ops->begin(exporter->encoder, &exporter->pending);
}

bool exporter_give_pending(struct capture_exporter *exporter, struct export_block *block) {
    struct export_message *pending = &exporter->pending;
    if (!pending->facts.records)
        return true;
    if (!export_block_has_room(block, pending->limit))
        return false;
    exporter->ops->finish(exporter->encoder, pending);
    exporter->totals.records += pending->facts.flows;
    exporter->totals.packets += pending->facts.packets;
    exporter->totals.octets += pending->facts.octets;
    exporter->totals.messages++;
    export_block_add(block, pending);
    return true;
}

static void count_unexportable(struct capture_exporter *exporter, const struct capture_flow *flow) {
    exporter->totals.unexportable_flows++;
    exporter->totals.unexportable_packets += flow->fwd_packets + flow->rev_packets;
    exporter->totals.unexportable_octets += flow->fwd_octets + flow->rev_octets;
}

/* Puts what is left of a flow into as many messages as it takes. False: the block is full before that. */
static bool put_flow(struct capture_exporter *exporter, struct export_block *block, const struct capture_flow *flow,
                     const struct capture_flow_statistics *statistics, uint64_t *part) {
    for (;;) {
        exporter_begin_pending(exporter);
        switch (exporter->ops->put_flow(exporter->encoder, &exporter->pending, flow, statistics, part)) {
        case EXPORT_PUT_DONE:
            return true;
        case EXPORT_PUT_UNEXPORTABLE:
            count_unexportable(exporter, flow);
            return true;
        case EXPORT_PUT_FULL:
            if (!exporter_give_pending(exporter, block))
                return false;
        }
    }
}

static void carry(struct capture_exporter *exporter, const struct capture_flow *flow,
                  const struct capture_flow_statistics *statistics, uint64_t part) {
    exporter->carrying = true;
    exporter->carried_part = part;
    exporter->carried = *flow;
    exporter->carried_has_statistics = statistics != NULL;
    if (statistics)
        exporter->carried_statistics = *statistics;
}

/* What the call before had no room for. False: there is none now either. */
static bool put_carried(struct capture_exporter *exporter, struct export_block *block) {
    if (exporter->carrying &&
        put_flow(exporter, block, &exporter->carried, exporter->carried_has_statistics ? &exporter->carried_statistics : NULL,
                 &exporter->carried_part))
        exporter->carrying = false;
    return !exporter->carrying;
}

struct flow_sink {
    struct capture_exporter *exporter;
    struct export_block block;
    uint32_t taken; /* flows of this share */
};

/* False: the flow is not taken. */
static inline bool take_flow(struct flow_sink *sink, const struct capture_flow *flow,
                             const struct capture_flow_statistics *statistics) {
    struct capture_exporter *exporter = sink->exporter;
    if (exporter->config.share_count > 1 && flow->flow_id % exporter->config.share_count != exporter->config.share)
        return true;
    if (!put_carried(exporter, &sink->block) || !export_block_has_room(&sink->block, exporter->config.message_max))
        return false;
    uint64_t part = 0;
    if (!put_flow(exporter, &sink->block, flow, statistics, &part))
        carry(exporter, flow, statistics, part);
    exporter->totals.flows_read++;
    sink->taken++;
    return true;
}

static bool sink_flow(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    return take_flow(context, flow, statistics);
}

static struct export_block make_block(uint8_t *out, uint64_t capacity, struct capture_export_message *messages,
                                      uint32_t max_messages) {
    return (struct export_block){.out = out,
                                 .capacity = capacity > UINT32_MAX ? UINT32_MAX : capacity,
                                 .messages = messages,
                                 .max_messages = max_messages};
}

int capture_exporter_read(capture_exporter_t *exporter, capture_flow_reader_t *reader, uint8_t *out, uint64_t capacity,
                          struct capture_export_message *messages, uint32_t max_messages, bool flush,
                          struct capture_batch_info *info) {
    struct flow_sink sink = {.exporter = exporter, .block = make_block(out, capacity, messages, max_messages)};
    if (!exporter->ops->put_flow)
        return CAPTURE_ERR_INVALID;
    if (!export_block_has_room(&sink.block, exporter->config.message_max))
        return CAPTURE_ERR_SPACE;
    int code = reader_read(reader, sink_flow, &sink, info);
    if (code != CAPTURE_OK)
        return code;
    bool given = put_carried(exporter, &sink.block);
    if (given && flush && !info->more)
        given = exporter_give_pending(exporter, &sink.block);
    info->records = sink.taken;
    info->bytes = sink.block.length;
    if (!given) { /* there is more to be had, if not from the reader */
        info->more = true;
        info->end = false;
    }
    return (int)sink.block.count;
}

int capture_exporter_write(capture_exporter_t *exporter, const struct capture_flow *flows,
                           const struct capture_flow_statistics *statistics, uint32_t count, uint32_t *taken, uint8_t *out,
                           uint64_t capacity, struct capture_export_message *messages, uint32_t max_messages, bool flush) {
    struct flow_sink sink = {.exporter = exporter, .block = make_block(out, capacity, messages, max_messages)};
    *taken = 0;
    if (!exporter->ops->put_flow)
        return CAPTURE_ERR_INVALID;
    if (!export_block_has_room(&sink.block, exporter->config.message_max))
        return CAPTURE_ERR_SPACE;
    while (*taken < count && take_flow(&sink, &flows[*taken], statistics ? &statistics[*taken] : NULL))
        ++*taken;
    if (put_carried(exporter, &sink.block) && flush && *taken == count)
        exporter_give_pending(exporter, &sink.block);
    return (int)sink.block.count;
}

int capture_exporter_templates(capture_exporter_t *exporter, uint8_t *out, uint64_t capacity,
                               struct capture_export_message *messages, uint32_t max_messages) {
    struct export_block block = make_block(out, capacity, messages, max_messages);
    if (!exporter->ops->put_templates)
        return 0;
    int code = exporter->ops->put_templates(exporter->encoder, &exporter->scratch, &block);
    export_message_clear(&exporter->scratch); /* of what had no room */
    return code == CAPTURE_OK ? (int)block.count : code;
}

int capture_exporter_options(capture_exporter_t *exporter, const struct capture_export_statistics *statistics,
                             const struct capture_export_interface *interfaces, uint32_t interface_count, uint8_t *out,
                             uint64_t capacity, struct capture_export_message *messages, uint32_t max_messages) {
    struct export_block block = make_block(out, capacity, messages, max_messages);
    if (!exporter->ops->put_options)
        return 0;
    int code = exporter->ops->put_options(exporter->encoder, statistics, interfaces, interface_count, &exporter->scratch, &block);
    export_message_clear(&exporter->scratch);
    return code == CAPTURE_OK ? (int)block.count : code;
}

int capture_exporter_get_totals(capture_exporter_t *exporter, struct capture_export_totals *out) {
    *out = exporter->totals;
    return CAPTURE_OK;
}
