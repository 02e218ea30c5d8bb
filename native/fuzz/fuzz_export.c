/* SPDX-License-Identifier: Apache-2.0 */
/* Exporters of NetFlow v5, v9 and IPFIX with arbitrary settings and flows, into memory of arbitrary size: every message is sound
 * to the last byte by a decoder of its own, within its limit, and together they count what the flows do. */
#include <stdlib.h>
#include <string.h>

#include "export_decoder.h"
#include "jarvis_capture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FLOWS = 32, MESSAGES = 64, ROOM = 256 << 10, V5_HEADER = 24, V5_RECORD = 48 };

static struct decoder decoder;
static uint8_t room[ROOM];
static struct capture_export_message messages[MESSAGES];

/* What is left of the input; 0 when nothing is. */
struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t take(struct input *input, uint32_t bytes) {
    uint64_t value = 0;
    for (; bytes && input->left; bytes--, input->left--)
        value = value << 8 | *input->at++;
    return value;
}

static void take_bytes(struct input *input, void *out, size_t bytes) {
    size_t given = bytes < input->left ? bytes : input->left;
    memcpy(out, input->at, given);
    memset((uint8_t *)out + given, 0, bytes - given);
    input->at += given;
    input->left -= given;
}

static struct capture_export_config config_from(struct input *input) {
    uint32_t form = (uint32_t)take(input, 4);
    struct capture_export_config config = {
        .struct_size = sizeof(config),
        .protocol = 1 + form % 3,
        .profile = form >> 2 & 3,
        .time_unit = form >> 4 & 3,
        .statistics = form >> 6 & 15,
        .sampling = (form >> 10 & 3) % 3,
        .share_count = 1 + (form >> 12 & 3),
        .message_max = form >> 14 & 1 ? 0 : CAPTURE_EXPORT_MESSAGE_MIN + (uint32_t)take(input, 2) % 2000,
        .system_init_ns = take(input, 8),
        .observation_domain_id = (uint32_t)take(input, 4),
    };
    config.biflow = config.protocol == CAPTURE_EXPORT_IPFIX && form >> 15 & 1;
    config.sampling_interval = config.sampling ? 1 + (uint32_t)take(input, 2) % 0x3fff : 0;
    config.share = (form >> 16 & 3) % config.share_count;
    return config;
}

/* As a capture makes them: the forward direction has packets, the end is not before the start, a record of v5 takes few parts. */
static void flow_from(struct input *input, struct capture_flow *flow, struct capture_flow_statistics *statistics) {
    take_bytes(input, flow, sizeof(*flow));
    flow->ip_version = flow->ip_version & 1 ? 4 : 6;
    flow->fwd_packets = 1 + flow->fwd_packets % (UINT64_C(1) << 36);
    flow->fwd_octets %= UINT64_C(1) << 36;
    flow->rev_packets %= UINT64_C(1) << 36;
    flow->rev_octets = flow->rev_packets ? flow->rev_octets % (UINT64_C(1) << 36) : 0;
    flow->end_time_ns = flow->end_time_ns < flow->start_time_ns ? flow->start_time_ns : flow->end_time_ns;
    memset(statistics, 0, sizeof(*statistics));
    statistics->fwd_payload = (struct capture_spread){.max = flow->fwd_octets, .mean = (double)flow->fwd_octets};
    statistics->rev_interval = (struct capture_spread){.max = flow->end_time_ns, .mean = (double)flow->end_time_ns};
    take_bytes(input, &statistics->fwd_headers, sizeof(statistics->fwd_headers));
    statistics->syn_to_synack_ns = flow->start_time_ns;
}

static void check_message(const struct capture_export_config *config, const struct capture_export_message *message) {
    const uint8_t *at = room + message->offset;
    uint32_t most = config->message_max ? config->message_max : CAPTURE_EXPORT_MESSAGE_DEFAULT;
    if (message->length > most || message->offset + (uint64_t)message->length > ROOM)
        abort();
    if (config->protocol != CAPTURE_EXPORT_NETFLOW_V5) {
        if (!decoder_message(&decoder, at, message->length) || decoder.records != message->records)
            abort();
        return;
    }
    uint64_t count = decoded_number(at + 2, 2), packets = 0;
    if (decoded_number(at, 2) != 5 || count < 1 || count > 30 || message->length != V5_HEADER + count * V5_RECORD ||
        message->records != count)
        abort();
    for (const uint8_t *record = at + V5_HEADER; record < at + message->length; record += V5_RECORD)
        packets += decoded_number(record + 16, 4);
    if (packets != message->packets)
        abort();
}

/* Stamps and checks them; returns the packets that they count. */
static uint64_t packets_in(const struct capture_export_config *config, struct capture_export_session *session, int count,
                           uint64_t now_ns) {
    uint64_t packets = 0;
    if (count < 0 || capture_export_stamp(session, now_ns, room, messages, (uint32_t)count) != CAPTURE_OK)
        abort();
    for (int i = 0; i < count; i++) {
        check_message(config, &messages[i]);
        packets += messages[i].packets;
    }
    return packets;
}

static void put_templates_and_options(const struct capture_export_config *config, capture_exporter_t *exporter,
                                      struct capture_export_session *session, struct input *input) {
    static struct capture_export_interface interfaces[3];
    struct capture_export_statistics statistics;
    take_bytes(input, &statistics, sizeof(statistics));
    take_bytes(input, interfaces[0].name, sizeof(interfaces[0].name));
    memset(interfaces[1].name, 'n', sizeof(interfaces[1].name));
    memset(interfaces[1].description, 'd', sizeof(interfaces[1].description));
    uint64_t packets = packets_in(config, session, capture_exporter_templates(exporter, room, ROOM, messages, MESSAGES), 1);
    packets += packets_in(config, session,
                          capture_exporter_options(exporter, &statistics, interfaces, 3, room, ROOM, messages, MESSAGES), 2);
    if (packets)
        abort();
}

/* Writes the flows, in pieces with as little memory as is said each time. Returns the packets in the messages. */
static uint64_t write_flows(const struct capture_export_config *config, capture_exporter_t *exporter,
                            struct capture_export_session *session, const struct capture_flow *flows,
                            const struct capture_flow_statistics *statistics, uint32_t count, uint64_t choices) {
    uint64_t packets = 0;
    uint32_t done = 0;
    for (int written = 1; done < count || written; choices = choices << 3 | choices >> 61) {
        uint32_t taken, piece = 1 + (uint32_t)(choices & 7), slots = 1 + (uint32_t)(choices >> 3 & 3);
        piece = piece < count - done ? piece : count - done;
        written = capture_exporter_write(exporter, flows + done, statistics + done, piece, &taken, room,
                                         CAPTURE_EXPORT_MESSAGE_MAX, messages, slots, done + piece == count);
        if (written > (int)slots || taken > piece || (!written && !taken && piece))
            abort();
        packets += packets_in(config, session, written, choices);
        done += taken;
    }
    return packets;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct capture_flow flows[FLOWS];
    static struct capture_flow_statistics statistics[FLOWS];
    struct input input = {data, size};
    struct capture_export_config config = config_from(&input);
    struct capture_export_session session = {
        .struct_size = sizeof(session), .protocol = config.protocol, .system_init_ns = config.system_init_ns};
    uint64_t choices = take(&input, 8), wanted = 0;
    uint32_t count = 0;
    session.trace_time = choices & 1;
    capture_exporter_t *exporter;
    if (capture_exporter_create(&config, &exporter, NULL) != CAPTURE_OK)
        abort();
    memset(&decoder, 0, sizeof(decoder));
    put_templates_and_options(&config, exporter, &session, &input);
    for (; count < FLOWS && input.left; count++) {
        struct capture_flow *flow = &flows[count];
        flow_from(&input, flow, &statistics[count]);
        bool exportable = config.protocol != CAPTURE_EXPORT_NETFLOW_V5 || flow->ip_version == 4;
        if (flow->flow_id % config.share_count == config.share && exportable)
            wanted += flow->fwd_packets + flow->rev_packets;
    }
    struct capture_export_totals totals;
    uint64_t packets = write_flows(&config, exporter, &session, flows, statistics, count, choices);
    if (packets != wanted || capture_exporter_get_totals(exporter, &totals) != CAPTURE_OK || totals.packets != wanted)
        abort();
    capture_exporter_destroy(exporter);
    return 0;
}
