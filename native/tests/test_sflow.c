/* SPDX-License-Identifier: Apache-2.0 */
/* sFlow datagrams, read back by the layout of sflow_version_5.txt word by word: nothing but the samples, all of them, once. */
#include "engine/capture.h"
#include "trace_file.h"

enum { FLOWS = 100, PACKETS = 20000, BLOCK = 262144, MESSAGES = 4096, COMPACT_MOST = 0xffffff };

static uint8_t block[BLOCK];
static struct capture_export_message messages[MESSAGES];

static capture_exporter_t *exporter_with(struct capture_export_config config) {
    struct capture_error_info error = {0};
    capture_exporter_t *exporter;
    config.struct_size = sizeof(config);
    config.protocol = CAPTURE_EXPORT_SFLOW_V5;
    int code = capture_exporter_create(&config, &exporter, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return exporter;
}

static capture_sampler_t *sampler_of(capture_t *capture, struct capture_sampler_config config) {
    struct capture_error_info error = {0};
    capture_sampler_t *sampler;
    config.struct_size = sizeof(config);
    CHECK_EQUAL(CAPTURE_OK, capture_sampler_open(capture, &config, &sampler, &error));
    return sampler;
}

/* A place in a message; reading beyond its end fails the test. */
struct xdr {
    const uint8_t *at, *end;
};

static uint32_t word(struct xdr *xdr) {
    CHECK(xdr->end - xdr->at >= 4);
    uint32_t value = (uint32_t)xdr->at[0] << 24 | xdr->at[1] << 16 | xdr->at[2] << 8 | xdr->at[3];
    xdr->at += 4;
    return value;
}

static uint64_t hyper(struct xdr *xdr) {
    uint64_t high = word(xdr);
    return high << 32 | word(xdr);
}

static struct xdr opaque(struct xdr *xdr) {
    uint32_t length = word(xdr), padded = (length + 3) & ~3u;
    CHECK((uint64_t)(xdr->end - xdr->at) >= padded);
    struct xdr inside = {xdr->at, xdr->at + length};
    xdr->at += padded;
    return inside;
}

/* Sums over everything that was read back. */
struct seen {
    uint32_t datagrams, flow_samples, counters_samples, expanded, sequence, pool, drops, rate, source, input;
    uint64_t frame_octets, header_octets, in_octets;
    uint32_t counters_sequence;
    bool many_sources; /* pools are those of several */
};

static void read_flow_sample(struct xdr sample, bool expanded, struct seen *seen) {
    seen->sequence = word(&sample);
    seen->source = expanded ? (uint32_t)hyper(&sample) : word(&sample);
    seen->rate = word(&sample);
    CHECK(word(&sample) > seen->pool || seen->many_sources);
    struct xdr again = {sample.at - 4, sample.end};
    seen->pool = word(&again);
    seen->drops = word(&sample);
    seen->input = expanded ? (uint32_t)hyper(&sample) : word(&sample);
    CHECK_EQUAL(0, expanded ? hyper(&sample) : word(&sample));
    CHECK_EQUAL(1, word(&sample));
    CHECK_EQUAL(1, word(&sample)); /* sampled_header */
    struct xdr header = opaque(&sample);
    CHECK(sample.at == sample.end);
    CHECK_EQUAL(SFLOW_IPV4, word(&header));
    seen->frame_octets += word(&header);
    CHECK_EQUAL(0, word(&header));
    struct xdr bytes = opaque(&header);
    CHECK(header.at == header.end);
    CHECK_EQUAL(0x45, bytes.at[0]);
    seen->header_octets += (uint64_t)(bytes.end - bytes.at);
    seen->flow_samples++;
}

static void read_counters_sample(struct xdr sample, bool expanded, struct seen *seen) {
    seen->counters_sequence = word(&sample);
    uint32_t source = expanded ? (uint32_t)hyper(&sample) : word(&sample);
    CHECK_EQUAL(1, word(&sample));
    CHECK_EQUAL(1, word(&sample)); /* if_counters */
    struct xdr counters = opaque(&sample);
    CHECK(sample.at == sample.end);
    CHECK_EQUAL(source, word(&counters));
    CHECK_EQUAL(6, word(&counters));
    CHECK_EQUAL(10000000000, hyper(&counters));
    CHECK_EQUAL(1, word(&counters));
    CHECK_EQUAL(3, word(&counters));
    seen->in_octets += hyper(&counters);
    for (uint32_t i = 1; i <= 6; i++)
        CHECK_EQUAL(i, word(&counters));
    CHECK_EQUAL(1ull << 40, hyper(&counters));
    for (uint32_t i = 7; i <= 11; i++)
        CHECK_EQUAL(i, word(&counters));
    CHECK_EQUAL(2, word(&counters));
    CHECK(counters.at == counters.end);
    seen->counters_samples++;
}

static void read_datagram(const struct capture_export_message *message, uint32_t address_length, struct seen *seen) {
    struct xdr xdr = {block + message->offset, block + message->offset + message->length};
    CHECK_EQUAL(5, word(&xdr));
    CHECK_EQUAL(address_length == 4 ? 1 : 2, word(&xdr));
    for (uint32_t i = 0; i < address_length; i += 4)
        CHECK_EQUAL(0, word(&xdr));
    CHECK_EQUAL(77, word(&xdr)); /* sub-agent id */
    CHECK_EQUAL(0, word(&xdr));
    CHECK_EQUAL(0, word(&xdr));
    uint32_t samples = word(&xdr);
    CHECK_EQUAL(message->records, samples);
    uint32_t expanded_before = seen->expanded;
    for (uint32_t i = 0; i < samples; i++) {
        uint32_t format = word(&xdr);
        struct xdr sample = opaque(&xdr);
        CHECK(format >= 1 && format <= 4);
        seen->expanded += format > 2;
        if (format % 2)
            read_flow_sample(sample, format > 2, seen);
        else
            read_counters_sample(sample, format > 2, seen);
    }
    CHECK(xdr.at == xdr.end);
    CHECK(seen->expanded == expanded_before || seen->expanded - expanded_before == samples); /* one form a datagram */
    seen->datagrams++;
}

static void every_frame_at_rate_1_is_one_flow_sample(void) {
    static const uint32_t sizes[] = {512, 0, 9000, 65535};
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (int each = 0; each < 4; each++) {
        uint32_t address_length = each % 2 ? 16 : 4;
        capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
        capture_sampler_t *sampler = sampler_of(
            capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 256, .header_length = 64, .lossless = true});
        capture_exporter_t *exporter = exporter_with((struct capture_export_config){
            .observation_domain_id = 77, .message_max = sizes[each], .agent_address_length = address_length});
        struct seen seen = {0};
        struct capture_batch_info info;
        uint64_t octets = 0, flows = 0;
        start(capture);
        do {
            capture_poll(capture, 0);
            int count = capture_exporter_read_samples(exporter, sampler, block, 65535 + each * 40000u, messages, 1 + each * 50u,
                                                      true, &info);
            CHECK(count >= 0 && info.lost == 0);
            for (int i = 0; i < count; i++) {
                CHECK(messages[i].length <= (sizes[each] ? sizes[each] : 1400));
                CHECK_EQUAL(messages[i].records, messages[i].flows);
                read_datagram(&messages[i], address_length, &seen);
                octets += messages[i].octets;
                flows += messages[i].flows;
            }
        } while (!info.end);
        struct capture_export_totals totals;
        capture_exporter_get_totals(exporter, &totals);
        uint64_t payload = PACKETS / FLOWS * (99 * 100 / 2);
        CHECK_EQUAL(PACKETS, seen.flow_samples);
        CHECK_EQUAL(PACKETS, seen.sequence);
        CHECK_EQUAL(PACKETS, seen.pool);
        CHECK_EQUAL(0, seen.drops + seen.expanded + seen.source);
        CHECK_EQUAL(1, seen.rate);
        CHECK_EQUAL(28 * PACKETS + payload, seen.frame_octets);
        CHECK_EQUAL(seen.frame_octets, octets);
        CHECK_EQUAL(seen.frame_octets, totals.octets);
        CHECK_EQUAL(PACKETS, flows);
        CHECK_EQUAL(PACKETS, totals.records);
        CHECK_EQUAL(PACKETS, totals.flows_read);
        CHECK_EQUAL(seen.datagrams, totals.messages);
        CHECK_EQUAL(0, totals.unexportable_flows);
        capture_exporter_destroy(exporter);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

/* A capture of link type 147 (for private use), and one datagram that says nothing of it. */
static void frames_of_a_link_layer_without_a_number_are_counted_as_unexportable(void) {
    struct trace_file trace = trace_new(147);
    struct bytes frame = {0};
    add_zeros(&frame, 100);
    for (uint32_t i = 0; i < 10; i++)
        trace_packet(&trace, SECOND, &frame);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1});
    capture_exporter_t *exporter = exporter_with((struct capture_export_config){0});
    struct capture_batch_info info;
    struct capture_export_totals totals;
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    CHECK_EQUAL(0, capture_exporter_read_samples(exporter, sampler, block, BLOCK, messages, MESSAGES, true, &info));
    capture_exporter_get_totals(exporter, &totals);
    CHECK(info.end);
    CHECK_EQUAL(10, totals.unexportable_flows);
    CHECK_EQUAL(1000, totals.unexportable_octets);
    CHECK_EQUAL(0, totals.records + totals.messages);
    capture_exporter_destroy(exporter);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void samples_go_by_sflow_alone_and_flows_by_the_others(void) {
    struct trace_file trace = trace_of_flows(FLOWS, 100);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    capture_exporter_t *exporter = exporter_with((struct capture_export_config){0});
    struct capture_batch_info info;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_exporter_read(exporter, reader, block, BLOCK, messages, MESSAGES, true, &info));
    CHECK_EQUAL(CAPTURE_ERR_SPACE,
                capture_exporter_read_samples(exporter, sampler, block, 1000, messages, MESSAGES, true, &info));
    CHECK_EQUAL(0, capture_exporter_templates(exporter, block, BLOCK, messages, MESSAGES));
    capture_exporter_destroy(exporter);
    struct capture_export_config ipfix = {.struct_size = sizeof(ipfix), .protocol = CAPTURE_EXPORT_IPFIX};
    CHECK_EQUAL(CAPTURE_OK, capture_exporter_create(&ipfix, &exporter, NULL));
    CHECK_EQUAL(CAPTURE_ERR_INVALID,
                capture_exporter_read_samples(exporter, sampler, block, BLOCK, messages, MESSAGES, true, &info));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_exporter_counters(exporter, NULL, 0, block, BLOCK, messages, MESSAGES));
    capture_exporter_destroy(exporter);
    capture_destroy(capture);
    trace_forget(&trace);
}

static struct capture_interface_counters counters_of(uint32_t index, uint64_t in_octets) {
    return (struct capture_interface_counters){.index = index,
                                               .type = 6,
                                               .speed = 10000000000,
                                               .direction = 1,
                                               .status = 3,
                                               .in_octets = in_octets,
                                               .in_unicast = 1,
                                               .in_multicast = 2,
                                               .in_broadcast = 3,
                                               .in_discards = 4,
                                               .in_errors = 5,
                                               .in_unknown_protocols = 6,
                                               .out_octets = 1ull << 40,
                                               .out_unicast = 7,
                                               .out_multicast = 8,
                                               .out_broadcast = 9,
                                               .out_discards = 10,
                                               .out_errors = 11,
                                               .promiscuous = 2};
}

static struct seen counters_seen(capture_exporter_t *exporter, const struct capture_interface_counters *counters,
                                 uint32_t count) {
    struct seen seen = {0};
    int datagrams = capture_exporter_counters(exporter, counters, count, block, BLOCK, messages, MESSAGES);
    CHECK(datagrams >= 0);
    for (int i = 0; i < datagrams; i++) {
        CHECK(messages[i].length <= 1400);
        CHECK_EQUAL(0, messages[i].flows + messages[i].packets);
        read_datagram(&messages[i], 4, &seen);
    }
    CHECK_EQUAL(count, seen.counters_samples);
    return seen;
}

static void counters_go_out_whole_and_their_sequence_starts_anew_with_them(void) {
    capture_exporter_t *exporter = exporter_with((struct capture_export_config){.observation_domain_id = 77});
    struct capture_interface_counters many[100];
    for (uint32_t i = 0; i < 100; i++)
        many[i] = counters_of(1 + i, (uint64_t)i << 32);
    for (uint32_t round = 1; round <= 3; round++) {
        struct seen seen = counters_seen(exporter, many, 100);
        CHECK_EQUAL(round, seen.counters_sequence);
        CHECK_EQUAL((99ull * 100 / 2) << 32, seen.in_octets);
        CHECK_EQUAL(100 / 11 + 1, seen.datagrams);
    }
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_exporter_counters(exporter, many, 100, block, BLOCK, messages, 9));
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_exporter_counters(exporter, many, 100, block, 11000, messages, MESSAGES));
    CHECK_EQUAL(4, counters_seen(exporter, many, 1).counters_sequence);
    many[99].in_octets--; /* the interface was made anew */
    CHECK_EQUAL(1, counters_seen(exporter, &many[99], 1).counters_sequence);
    CHECK_EQUAL(2, counters_seen(exporter, &many[99], 1).counters_sequence);
    capture_exporter_destroy(exporter);
}

static void from_the_first_large_ifindex_on_every_sample_is_expanded(void) {
    capture_exporter_t *exporter = exporter_with((struct capture_export_config){.observation_domain_id = 77});
    struct capture_interface_counters counters = counters_of(COMPACT_MOST, 1);
    CHECK_EQUAL(0, counters_seen(exporter, &counters, 1).expanded);
    counters.index++;
    CHECK_EQUAL(1, counters_seen(exporter, &counters, 1).expanded);
    counters.index = 3;
    CHECK_EQUAL(1, counters_seen(exporter, &counters, 1).expanded);
    struct trace_file trace = trace_of_flows(FLOWS, 50);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1});
    struct capture_batch_info info;
    struct seen seen = {0};
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    int count = capture_exporter_read_samples(exporter, sampler, block, BLOCK, messages, MESSAGES, true, &info);
    for (int i = 0; i < count; i++)
        read_datagram(&messages[i], 4, &seen);
    CHECK_EQUAL(50, seen.expanded);
    CHECK_EQUAL(50, seen.flow_samples);
    capture_exporter_destroy(exporter);
    capture_destroy(capture);
    trace_forget(&trace);
}

/* Reads all samples of a capture of its own of 3 frames. */
static int read_three(capture_exporter_t *exporter, bool flush, struct seen *seen) {
    struct trace_file trace = trace_of_flows(FLOWS, 3);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1});
    struct capture_batch_info info;
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    int count = capture_exporter_read_samples(exporter, sampler, block, BLOCK, messages, MESSAGES, flush, &info);
    for (int i = 0; i < count; i++)
        read_datagram(&messages[i], 4, seen);
    capture_destroy(capture);
    trace_forget(&trace);
    return count;
}

static void a_datagram_that_was_begun_compact_gets_no_expanded_samples(void) {
    capture_exporter_t *exporter = exporter_with((struct capture_export_config){.observation_domain_id = 77});
    struct capture_interface_counters counters = counters_of(COMPACT_MOST + 1, 1);
    struct seen seen = {.many_sources = true};
    CHECK_EQUAL(0, read_three(exporter, false, &seen));
    CHECK_EQUAL(1, counters_seen(exporter, &counters, 1).expanded);
    CHECK_EQUAL(1, read_three(exporter, false, &seen));
    CHECK_EQUAL(3, seen.flow_samples);
    CHECK_EQUAL(0, seen.expanded);
    CHECK_EQUAL(1, read_three(exporter, true, &seen));
    CHECK_EQUAL(9, seen.flow_samples);
    CHECK_EQUAL(6, seen.expanded);
    capture_exporter_destroy(exporter);
}

static void what_sflow_cannot_do_is_refused_by_name(void) {
    static const struct {
        struct capture_export_config config;
        const char *field;
    } refused[] = {
        {{.agent_address_length = 6}, "agent_address_length"},
        {{.share_count = 2}, "share_count"},
        {{.biflow = true}, "biflow"},
    };
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct capture_error_info error = {0};
        struct capture_export_config config = refused[i].config;
        capture_exporter_t *exporter;
        config.struct_size = sizeof(config);
        config.protocol = CAPTURE_EXPORT_SFLOW_V5;
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_exporter_create(&config, &exporter, &error));
        CHECK_TEXT(refused[i].field, error.field);
    }
}

int main(void) {
    RUN(every_frame_at_rate_1_is_one_flow_sample);
    RUN(frames_of_a_link_layer_without_a_number_are_counted_as_unexportable);
    RUN(samples_go_by_sflow_alone_and_flows_by_the_others);
    RUN(counters_go_out_whole_and_their_sequence_starts_anew_with_them);
    RUN(from_the_first_large_ifindex_on_every_sample_is_expanded);
    RUN(a_datagram_that_was_begun_compact_gets_no_expanded_samples);
    RUN(what_sflow_cannot_do_is_refused_by_name);
    return 0;
}
