/* SPDX-License-Identifier: Apache-2.0 */
/* Options of NetFlow v9 and IPFIX: what the exporter says of itself, as templates and records from one table.
 *
 * IPFIX: RFC 7011, 3.4.2.2 and 4; sampling RFC 5476 and RFC 7014. NetFlow v9: RFC 3954, 6.1, where scopes are numbers of their
 * own (1 system, 2 interface, 5 template). Strings have a fixed length and are filled up with zeros in both: RFC 7011 has strings
 * of variable length too, but not every collector has. Element numbers: IANA, as in elements.c. */
#include <stdlib.h>
#include <unistd.h>

#include "export/ipfix.h"
#include "export/sets.h"

enum { SET_OPTIONS_NETFLOW9 = 1, SET_OPTIONS_IPFIX = 3, OPTIONS_HEADER = 6 };
enum { SCOPE_SYSTEM = 1, SCOPE_INTERFACE = 2, SCOPE_TEMPLATE = 5 };
enum { INGRESS_INTERFACE = 10 }; /* IANA */
enum { NAME_BYTES = 32, DESCRIPTION_BYTES = 64 };
enum { FIELDS_MAX = 12, RECORD_MAX = 128 };

/* Raised when the content of any options template changes, modulo 8. */
enum { OPTIONS_REVISION = 0 };

enum option_kind {
    OPTION_METERING,
    OPTION_EXPORTING,
    OPTION_SAMPLING,
    OPTION_FLOW_SAMPLING,
    OPTION_FLOW_KEYS,
    OPTION_INTERFACE,
    OPTION_SAMPLING_RATE,
    OPTION_SAMPLING_INTERVAL,
    OPTION_KINDS
};

struct option_field {
    uint16_t number;
    uint16_t length;
};

struct option {
    uint8_t scopes;                         /* the first fields */
    struct option_field fields[FIELDS_MAX]; /* number 0 ends them */
};

static const struct option ipfix_options[OPTION_KINDS] = {
    /* 4.1 and 4.2: observationDomainId, meteringProcessId; systemInitTimeMilliseconds, exported messages, flow records, octets;
     * packetTotalCount, droppedPacketTotalCount, ignoredPacketTotalCount, ignoredOctetTotalCount */
    [OPTION_METERING] = {2, {{149, 4}, {143, 4}, {160, 8}, {41, 8}, {42, 8}, {40, 8}, {86, 8}, {135, 8}, {164, 8}, {165, 8}}},
    /* 4.3: exportingProcessId; notSentFlowTotalCount, ...Packet..., ...Octet...; the first and the last time,
       observationTimeMilliseconds */
    [OPTION_EXPORTING] = {1, {{144, 4}, {166, 8}, {167, 8}, {168, 8}, {323, 8}, {323, 8}}},
    /* selectorId; selectorAlgorithm, samplingPacketInterval, samplingPacketSpace (RFC 5477, 8.2) */
    [OPTION_SAMPLING] = {1, {{302, 8}, {304, 2}, {305, 4}, {306, 4}}},
    /* selectorId; flowSelectorAlgorithm (RFC 7014), hashOutputRangeMin, -Max, hashSelectedRangeMin, -Max (RFC 5477, 8.3) */
    [OPTION_FLOW_SAMPLING] = {1, {{302, 8}, {390, 2}, {329, 8}, {330, 8}, {331, 8}, {332, 8}}},
    /* observationDomainId; samplingInterval: deprecated, and what most collectors multiply by. Not with samplingAlgorithm: nfdump
     * 1.7.1 knows the one alone. */
    [OPTION_SAMPLING_INTERVAL] = {1, {{149, 4}, {34, 4}}},
    /* 4.4: templateId; flowKeyIndicator */
    [OPTION_FLOW_KEYS] = {1, {{145, 2}, {173, 8}}},
    /* ingressInterface; interfaceName, interfaceDescription */
    [OPTION_INTERFACE] = {1, {{10, 4}, {82, NAME_BYTES}, {83, DESCRIPTION_BYTES}}},
};

static const struct option netflow9_options[OPTION_KINDS] = {
    [OPTION_METERING] = {1, {{SCOPE_SYSTEM, 4}, {160, 8}, {41, 8}, {42, 8}, {40, 8}, {86, 8}, {135, 8}, {164, 8}, {165, 8}}},
    [OPTION_EXPORTING] = {1, {{SCOPE_SYSTEM, 4}, {166, 8}, {167, 8}, {168, 8}, {323, 8}, {323, 8}}},
    /* samplingInterval, samplingAlgorithm: of the whole system, so that records need no sampler id; and again without the
     * algorithm, as nfdump 1.7.1 wants it, while later ones want both */
    [OPTION_SAMPLING_RATE] = {1, {{SCOPE_SYSTEM, 4}, {34, 4}, {35, 1}}},
    [OPTION_SAMPLING_INTERVAL] = {1, {{SCOPE_SYSTEM, 4}, {34, 4}}},
    [OPTION_FLOW_KEYS] = {1, {{SCOPE_TEMPLATE, 2}, {173, 8}}},
    [OPTION_INTERFACE] = {1, {{SCOPE_INTERFACE, 4}, {82, NAME_BYTES}, {83, DESCRIPTION_BYTES}}},
};

static const struct option *option_of(const struct ipfix_encoder *encoder, enum option_kind kind) {
    return encoder->netflow9 ? &netflow9_options[kind] : &ipfix_options[kind];
}

/* Ids 256 up: 0x100 | revision << 5 | IPFIX << 4 | kind. */
static uint16_t options_template_id(const struct ipfix_encoder *encoder, enum option_kind kind) {
    return (uint16_t)(TEMPLATE_ID_OPTIONS | (OPTIONS_REVISION & 7) << 5 | (encoder->netflow9 ? 0 : 1 << 4) | kind);
}

/* Which kinds this exporter has. */
static bool has_option(const struct ipfix_encoder *encoder, enum option_kind kind) {
    uint32_t sampling = encoder->config.sampling;
    switch (kind) {
    case OPTION_SAMPLING:
        return !encoder->netflow9 && sampling == CAPTURE_SAMPLING_SYSTEMATIC;
    case OPTION_FLOW_SAMPLING:
        return !encoder->netflow9 && sampling == CAPTURE_SAMPLING_FLOW_HASH;
    case OPTION_SAMPLING_RATE:
        return encoder->netflow9 && sampling != CAPTURE_SAMPLING_NONE;
    case OPTION_SAMPLING_INTERVAL:
        return sampling != CAPTURE_SAMPLING_NONE;
    default:
        return true;
    }
}

static uint32_t field_count(const struct option *option) {
    uint32_t count = 0;
    while (count < FIELDS_MAX && option->fields[count].number)
        count++;
    return count;
}

int ipfix_put_options_templates(struct ipfix_writer *writer) {
    bool netflow9 = writer->encoder->netflow9;
    for (enum option_kind kind = 0; kind < OPTION_KINDS; kind++) {
        if (!has_option(writer->encoder, kind))
            continue;
        const struct option *option = option_of(writer->encoder, kind);
        uint32_t count = field_count(option);
        set_close(writer->message, netflow9); /* a set each: of several in one, nfdump and pmacct 1.7 read the first only */
        uint8_t *at =
            ipfix_writer_record(writer, netflow9 ? SET_OPTIONS_NETFLOW9 : SET_OPTIONS_IPFIX, OPTIONS_HEADER + 4 * count);
        if (!at)
            return CAPTURE_ERR_SPACE;
        at = export_put16(at, options_template_id(writer->encoder, kind));
        if (netflow9) { /* bytes of the scopes' specifiers, and of the others' */
            at = export_put16(at, (uint16_t)(4 * option->scopes));
            at = export_put16(at, (uint16_t)(4 * (count - option->scopes)));
        } else { /* how many fields, and how many of them are scopes */
            at = export_put16(at, (uint16_t)count);
            at = export_put16(at, option->scopes);
        }
        for (uint32_t i = 0; i < count; i++) {
            at = export_put16(at, option->fields[i].number);
            at = export_put16(at, option->fields[i].length);
        }
        if (netflow9) /* a set each: there are collectors that look for padding behind each template */
            set_close(writer->message, netflow9);
    }
    return CAPTURE_OK;
}

static bool put_option(struct ipfix_writer *writer, enum option_kind kind, const uint8_t *record, const uint8_t *end) {
    uint32_t length = (uint32_t)(end - record);
    uint8_t *at = ipfix_writer_record(writer, options_template_id(writer->encoder, kind), length);
    if (!at)
        return false;
    memcpy(at, record, length);
    writer->message->facts.records++;
    return true;
}

/* observationDomainId and, in IPFIX, the process; version 9: the system, whose scope has no value. */
static uint8_t *put_metering_scope(const struct ipfix_encoder *encoder, uint8_t *at) {
    at = export_put32(at, encoder->config.observation_domain_id);
    return encoder->netflow9 ? at : export_put32(at, (uint32_t)getpid());
}

static bool put_statistics(struct ipfix_writer *writer, const struct capture_export_statistics *statistics) {
    const struct ipfix_encoder *encoder = writer->encoder;
    uint8_t record[RECORD_MAX];
    uint8_t *at = put_metering_scope(encoder, record);
    at = export_put64(at, encoder->config.system_init_ns / 1000000);
    at = export_put64(at, statistics->exported_messages);
    at = export_put64(at, statistics->exported_flows);
    at = export_put64(at, statistics->exported_octets);
    at = export_put64(at, statistics->observed_packets);
    at = export_put64(at, statistics->dropped_packets);
    at = export_put64(at, statistics->ignored_packets);
    at = export_put64(at, statistics->ignored_octets);
    if (!put_option(writer, OPTION_METERING, record, at))
        return false;
    at = export_put32(record, encoder->netflow9 ? encoder->config.observation_domain_id : (uint32_t)getpid());
    at = export_put64(at, statistics->not_sent_flows);
    at = export_put64(at, statistics->not_sent_packets);
    at = export_put64(at, statistics->not_sent_octets);
    at = export_put64(at, statistics->first_not_sent_ns / 1000000);
    at = export_put64(at, statistics->last_not_sent_ns / 1000000);
    return put_option(writer, OPTION_EXPORTING, record, at);
}

enum { SELECTOR_SYSTEMATIC_COUNT = 1, FLOW_SELECTOR_HASH = 6 }; /* IANA: selectorAlgorithm, flowSelectorAlgorithm */
enum { SAMPLING_DETERMINISTIC = 1, SAMPLING_RANDOM = 2 };       /* IANA: samplingAlgorithm */
enum { SELECTOR = 1 };                                          /* the only one */

static bool put_selector(struct ipfix_writer *writer, uint32_t interval) {
    uint8_t record[RECORD_MAX];
    uint8_t *at = export_put64(record, SELECTOR);
    if (has_option(writer->encoder, OPTION_SAMPLING)) { /* one packet is taken, then N - 1 are not */
        at = export_put16(at, SELECTOR_SYSTEMATIC_COUNT);
        at = export_put32(at, 1);
        at = export_put32(at, interval - 1);
        return put_option(writer, OPTION_SAMPLING, record, at);
    }
    at = export_put16(at, FLOW_SELECTOR_HASH); /* taken when hash * N < 2^32, docs/flow-semantics.md */
    at = export_put64(at, 0);
    at = export_put64(at, UINT32_MAX);
    at = export_put64(at, 0);
    at = export_put64(at, UINT32_MAX / interval);
    return put_option(writer, OPTION_FLOW_SAMPLING, record, at);
}

static bool put_sampling(struct ipfix_writer *writer) {
    const struct capture_export_config *config = &writer->encoder->config;
    uint8_t record[RECORD_MAX];
    uint8_t *at = export_put32(record, config->observation_domain_id);
    at = export_put32(at, config->sampling_interval);
    if (!put_option(writer, OPTION_SAMPLING_INTERVAL, record, at))
        return false;
    if (!writer->encoder->netflow9)
        return put_selector(writer, config->sampling_interval);
    *at++ = config->sampling == CAPTURE_SAMPLING_FLOW_HASH ? SAMPLING_RANDOM : SAMPLING_DETERMINISTIC;
    return put_option(writer, OPTION_SAMPLING_RATE, record, at);
}

/* A flow that two interfaces saw is a record each, unless the capture merges them. */
static bool is_key(const struct ipfix_encoder *encoder, const struct layout_field *field) {
    bool interface = !field->enterprise && field->number == INGRESS_INTERFACE;
    return field->flow_key || (interface && !encoder->config.merge_interfaces);
}

/* Bit i: the i-th field is part of the flow key. */
static bool put_flow_keys(struct ipfix_writer *writer, const struct layout *layout) {
    uint64_t keys = 0;
    for (uint32_t i = 0; i < layout->field_count && i < 64; i++)
        keys |= (uint64_t)is_key(writer->encoder, &layout->fields[i]) << i;
    uint8_t record[RECORD_MAX];
    uint8_t *at = export_put16(record, layout->template_id);
    at = export_put64(at, keys);
    return put_option(writer, OPTION_FLOW_KEYS, record, at);
}

/* The most of a text that fits in `most` bytes without cutting a UTF-8 character. */
static uint32_t text_length(const char *text, uint32_t capacity, uint32_t most) {
    uint32_t length = (uint32_t)strnlen(text, capacity);
    if (length <= most)
        return length;
    while (most && ((uint8_t)text[most] & 0xc0) == 0x80)
        most--;
    return most;
}

/* Filled up with zeros. */
static uint8_t *put_text(const char *text, uint32_t capacity, uint32_t most, uint8_t *at) {
    memset(at, 0, most);
    memcpy(at, text, text_length(text, capacity, most));
    return at + most;
}

static bool put_interface(struct ipfix_writer *writer, const struct capture_export_interface *interface) {
    uint8_t record[RECORD_MAX];
    uint8_t *at = export_put32(record, interface->index);
    at = put_text(interface->name, sizeof(interface->name), NAME_BYTES, at);
    at = put_text(interface->description, sizeof(interface->description), DESCRIPTION_BYTES, at);
    return put_option(writer, OPTION_INTERFACE, record, at);
}

int ipfix_put_options(void *context, const struct capture_export_statistics *statistics,
                      const struct capture_export_interface *interfaces, uint32_t interface_count, struct export_message *message,
                      struct export_block *block) {
    struct ipfix_writer writer = {.encoder = context, .message = message, .block = block};
    if (!put_statistics(&writer, statistics))
        return CAPTURE_ERR_SPACE;
    if (writer.encoder->config.sampling != CAPTURE_SAMPLING_NONE && !put_sampling(&writer))
        return CAPTURE_ERR_SPACE;
    for (uint32_t i = 0; i < sizeof(writer.encoder->layouts) / sizeof(writer.encoder->layouts[0]); i++)
        if (!put_flow_keys(&writer, &writer.encoder->layouts[i]))
            return CAPTURE_ERR_SPACE;
    for (uint32_t i = 0; i < interface_count; i++)
        if (!put_interface(&writer, &interfaces[i]))
            return CAPTURE_ERR_SPACE;
    return ipfix_writer_end(&writer);
}
