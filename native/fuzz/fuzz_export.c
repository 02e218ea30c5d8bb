/* SPDX-License-Identifier: Apache-2.0 */
/* Exporters of NetFlow v9 and IPFIX with arbitrary configurations on arbitrary flows: every message is sound to a collector that
 * knows templates only, within its limit, and what the messages count is what went in. */
#include <stdlib.h>

#include "export_decoder.h"
#include "jarvis_capture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MESSAGES = 64, FLOWS_MAX = 256, OUT = 65535 };

static uint8_t out[OUT];
static struct capture_export_message messages[MESSAGES];
static struct decoder decoder;
static uint64_t packets, octets, records;

struct input {
    const uint8_t *at;
    size_t left;
};

/* What is left of the input, then zeros. */
static void take(struct input *input, void *into, size_t length) {
    size_t there = length < input->left ? length : input->left;
    memset(into, 0, length);
    memcpy(into, input->at, there);
    input->at += there;
    input->left -= there;
}

static void check_messages(int count, uint32_t most, bool flows) {
    if (count < 0)
        abort();
    for (int i = 0; i < count; i++) {
        if (messages[i].length > most || !decoder_message(&decoder, out + messages[i].offset, messages[i].length) ||
            decoder.records != messages[i].records || (flows && messages[i].flows != messages[i].records))
            abort();
        packets += messages[i].packets;
        octets += messages[i].octets;
        records += messages[i].flows;
    }
}

static struct capture_export_config make_config(struct input *input) {
    uint8_t bits[8];
    take(input, bits, sizeof(bits));
    struct capture_export_config config = {
        .struct_size = sizeof(config),
        .protocol = bits[0] & 1 ? CAPTURE_EXPORT_IPFIX : CAPTURE_EXPORT_NETFLOW_V9,
        .profile = bits[0] >> 1 & 3,
        .time_unit = bits[0] >> 3 & 3,
        .biflow = bits[0] & 1 && bits[0] & 32,
        .observation_domain_id = bits[1],
        .message_max = 512u + bits[2] * (bits[3] & 1 ? 1 : 254),
        .statistics = bits[4] & 15,
        .sampling = bits[5] % 3,
        .system_init_ns = (uint64_t)bits[6] << 56,
        .share = bits[7] & 1,
        .share_count = 2,
    };
    config.sampling_interval = config.sampling ? 1u + bits[6] : 0;
    return config;
}

static void export_options(capture_exporter_t *exporter, struct input *input, uint32_t most) {
    struct capture_export_statistics statistics;
    struct capture_export_interface interfaces[2];
    take(input, &statistics, sizeof(statistics));
    take(input, interfaces, sizeof(interfaces));
    check_messages(capture_exporter_options(exporter, &statistics, interfaces, 2, out, OUT, messages, MESSAGES), most, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    struct capture_export_config config = make_config(&input);
    struct capture_error_info error;
    capture_exporter_t *exporter;
    if (capture_exporter_create(&config, &exporter, &error) != CAPTURE_OK)
        abort();
    memset(&decoder, 0, sizeof(decoder));
    packets = octets = records = 0;
    check_messages(capture_exporter_templates(exporter, out, OUT, messages, MESSAGES), config.message_max, false);
    if (config.statistics & 1)
        export_options(exporter, &input, config.message_max);
    uint64_t packets_in = 0, octets_in = 0, flows_in = 0;
    for (int i = 0; i < FLOWS_MAX && input.left; i++) {
        struct capture_flow flow;
        struct capture_flow_statistics statistics;
        uint32_t taken = 0;
        take(&input, &flow, sizeof(flow));
        take(&input, &statistics, sizeof(statistics));
        flow.fwd_packets |= 1; /* a record has packets of its forward direction */
        flow.rev_octets = flow.rev_packets ? flow.rev_octets : 0;
        check_messages(capture_exporter_write(exporter, &flow, config.statistics ? &statistics : NULL, 1, &taken, out,
                                              config.message_max, messages, 1, false),
                       config.message_max, true);
        if (!taken)
            abort();
        bool mine = flow.flow_id % 2 == config.share;
        packets_in += mine ? flow.fwd_packets + flow.rev_packets : 0;
        octets_in += mine ? flow.fwd_octets + flow.rev_octets : 0;
        flows_in += mine;
    }
    for (int i = 0; i < 2; i++) {
        uint32_t taken;
        check_messages(capture_exporter_write(exporter, NULL, NULL, 0, &taken, out, OUT, messages, MESSAGES, true),
                       config.message_max, true);
    }
    struct capture_export_totals totals;
    capture_exporter_get_totals(exporter, &totals);
    if (packets != packets_in || octets != octets_in || totals.flows_read != flows_in || totals.records != records ||
        totals.packets != packets || totals.octets != octets)
        abort();
    capture_exporter_destroy(exporter);
    return 0;
}
