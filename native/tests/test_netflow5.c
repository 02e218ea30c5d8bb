/* SPDX-License-Identifier: Apache-2.0 */
/* NetFlow v5 messages against bytes made by hand, and its properties over random flows. */
#include "check.h"
#include "export/netflow5.h"

#define SECOND      UINT64_C(1000000000)
#define MILLISECOND UINT64_C(1000000)

enum { HEADER = 24, RECORD = 48, MOST = 30 };

static const uint64_t boot = 1700000000 * SECOND;

static const struct export_encoder_ops *const ops = &export_netflow5_ops;
static uint8_t bytes[65535];

static struct capture_export_config config_of(void) {
    return (struct capture_export_config){.protocol = CAPTURE_EXPORT_NETFLOW_V5, .message_max = 1500, .system_init_ns = boot};
}

static void *encoder_of(const struct capture_export_config *config) {
    void *encoder = NULL;
    CHECK_EQUAL(CAPTURE_OK, ops->create(config, &encoder, NULL));
    return encoder;
}

static struct export_message begin(void *encoder, uint32_t limit) {
    struct export_message message = {.bytes = bytes, .limit = limit};
    memset(bytes, 0xee, sizeof(bytes)); /* whatever is not written shows */
    ops->begin(encoder, &message);
    return message;
}

static uint32_t be16(const uint8_t *at) {
    return (uint32_t)(at[0] << 8 | at[1]);
}

static uint32_t be32(const uint8_t *at) {
    return be16(at) << 16 | be16(at + 2);
}

static struct capture_flow sample(void) {
    return (struct capture_flow){.src_addr = {10, 0, 0, 1},
                                 .dst_addr = {192, 168, 255, 254},
                                 .src_port = 4000,
                                 .dst_port = 443,
                                 .ip_version = 4,
                                 .ip_protocol = 6,
                                 .fwd_packets = 3,
                                 .fwd_octets = 180,
                                 .rev_packets = 2,
                                 .rev_octets = 99999,
                                 .start_time_ns = boot + 1500 * MILLISECOND,
                                 .end_time_ns = boot + 2501 * MILLISECOND + 999999,
                                 .fwd_tcp_flags = 0x01c2, /* the ninth bit is not v5's */
                                 .rev_tcp_flags = 0x12,
                                 .interface_index = 7,
                                 .dscp = 46};
}

static void a_flow_of_both_directions_is_two_records(void) {
    static const uint8_t golden[] = {0,   5,    0,    2,    0,   0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
                                     0,   0,    0,    0,    0,   0x12, 0x34, 0,    0, /* stamped later: uptime, time, sequence */
                                     10,  0,    0,    1,    192, 168,  255,  254,  0,    0,    0,    0,    0,    7,    0,
                                     0,   0,    0,    0,    3,   0,    0,    0,    180, /* addresses .. octets */
                                     0,   0,    0x05, 0xdc, 0,   0,    0x09, 0xc5, 0x0f, 0xa0, 0x01, 0xbb, 0,    0xc2, 6,
                                     184, 0,    0,    0,    0,   0,    0,    0,    0,    192,  168,  255,  254,  10,   0,
                                     0,   1,    0,    0,    0,   0,    0,    7,    0,    0,    0,    0,    0,    2,    0,
                                     1,   0x86, 0x9f, 0,    0,   0x05, 0xdc, 0,    0,    0x09, 0xc5, 0x01, 0xbb, 0x0f, 0xa0,
                                     0,   0x12, 6,    184,  0,   0,    0,    0,    0,    0,    0,    0};
    struct capture_export_config config = config_of();
    config.observation_domain_id = 0xabcd1234;
    void *encoder = encoder_of(&config);
    struct export_message message = begin(encoder, 1500);
    struct capture_flow flow = sample();
    uint64_t part = 0;
    CHECK_EQUAL(EXPORT_PUT_DONE, ops->put_flow(encoder, &message, &flow, NULL, &part));
    ops->finish(encoder, &message);
    CHECK_EQUAL(sizeof(golden), message.length);
    CHECK(memcmp(bytes, golden, sizeof(golden)) == 0);
    CHECK_EQUAL(2, message.facts.records);
    CHECK_EQUAL(2, message.facts.flows);
    CHECK_EQUAL(5, message.facts.packets);
    CHECK_EQUAL(100179, message.facts.octets);
    CHECK_EQUAL(flow.end_time_ns, message.facts.newest_ns);
    CHECK_EQUAL(boot, message.facts.base_ns);
    ops->destroy(encoder);
}

static void a_direction_without_packets_has_no_record(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct export_message message = begin(encoder, 1500);
    struct capture_flow flow = sample();
    flow.rev_packets = flow.rev_octets = 0;
    uint64_t part = 0;
    CHECK_EQUAL(EXPORT_PUT_DONE, ops->put_flow(encoder, &message, &flow, NULL, &part));
    CHECK_EQUAL(1, message.count);
    ops->destroy(encoder);
}

static void icmp_is_told_in_the_destination_port(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct {
        uint8_t type, code, reply;
    } cases[] = {{8, 0, 0}, {0, 0, 8}, {13, 0, 14}, {14, 0, 13}, {17, 0, 18}, {18, 0, 17}, {3, 1, 3}, {11, 0, 11}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct export_message message = begin(encoder, 1500);
        struct capture_flow flow = sample();
        flow.src_port = flow.dst_port = 0;
        flow.ip_protocol = 1;
        flow.icmp_type = cases[i].type;
        flow.icmp_code = cases[i].code;
        uint64_t part = 0;
        CHECK_EQUAL(EXPORT_PUT_DONE, ops->put_flow(encoder, &message, &flow, NULL, &part));
        CHECK_EQUAL(cases[i].type * 256 + cases[i].code, be16(bytes + HEADER + 34));
        CHECK_EQUAL(cases[i].reply * 256 + cases[i].code, be16(bytes + HEADER + RECORD + 34));
        CHECK_EQUAL(0, be16(bytes + HEADER + 32));
    }
    ops->destroy(encoder);
}

static void ipv6_is_unexportable_and_leaves_no_trace(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct export_message message = begin(encoder, 1500);
    struct capture_flow flow = sample();
    flow.ip_version = 6;
    uint64_t part = 0;
    CHECK_EQUAL(EXPORT_PUT_UNEXPORTABLE, ops->put_flow(encoder, &message, &flow, NULL, &part));
    CHECK_EQUAL(HEADER, message.length);
    CHECK_EQUAL(0, message.facts.records);
    ops->destroy(encoder);
}

static void a_message_has_thirty_records_at_most_and_no_more_than_its_limit(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct {
        uint32_t limit, records;
    } cases[] = {{65535, 30}, {1464, 30}, {1463, 29}, {1400, 28}, {512, 10}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct export_message message = begin(encoder, cases[i].limit);
        struct capture_flow flow = sample();
        uint64_t part = 0;
        while (ops->put_flow(encoder, &message, &flow, NULL, &part) == EXPORT_PUT_DONE)
            part = 0;
        ops->finish(encoder, &message);
        CHECK_EQUAL(cases[i].records, message.count);
        CHECK_EQUAL(cases[i].records, be16(bytes + 2));
        CHECK_EQUAL(HEADER + cases[i].records * RECORD, message.length);
        CHECK_EQUAL(cases[i].records % 2, part); /* with an odd room the second direction waits */
    }
    ops->destroy(encoder);
}

static void the_header_says_how_packets_were_sampled(void) {
    struct {
        uint32_t sampling, interval, expected;
    } cases[] = {
        {CAPTURE_SAMPLING_NONE, 0, 0}, {CAPTURE_SAMPLING_SYSTEMATIC, 100, 0x4064}, {CAPTURE_SAMPLING_FLOW_HASH, 16383, 0xbfff}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct capture_export_config config = config_of();
        config.sampling = cases[i].sampling;
        config.sampling_interval = cases[i].interval;
        void *encoder = encoder_of(&config);
        begin(encoder, 1500);
        CHECK_EQUAL(cases[i].expected, be16(bytes + 22));
        ops->destroy(encoder);
    }
}

static void what_v5_cannot_say_is_refused_when_it_is_made(void) {
    struct capture_error_info error = {0};
    struct capture_export_config config = config_of();
    void *encoder = NULL;
    config.sampling = CAPTURE_SAMPLING_SYSTEMATIC;
    config.sampling_interval = 16384;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, ops->create(&config, &encoder, &error));
    CHECK_TEXT("sampling_interval", error.field);
    config = config_of();
    config.biflow = true;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, ops->create(&config, &encoder, &error));
    CHECK_TEXT("biflow", error.field);
    CHECK(encoder == NULL);
}

/* Gives a flow out, however many messages it takes, and adds up what its records say. */
struct sums {
    uint64_t packets, octets, records, messages, least;
};

static struct sums put_all(void *encoder, const struct capture_flow *flow, uint32_t limit) {
    struct sums sums = {.least = UINT64_MAX};
    uint64_t part = 0;
    for (enum export_put put = EXPORT_PUT_FULL; put == EXPORT_PUT_FULL; sums.messages++) {
        struct export_message message = begin(encoder, limit);
        put = ops->put_flow(encoder, &message, flow, NULL, &part);
        CHECK(put != EXPORT_PUT_UNEXPORTABLE && message.count > 0);
        for (uint32_t i = 0; i < message.count; i++) {
            const uint8_t *record = bytes + HEADER + i * RECORD;
            sums.packets += be32(record + 16);
            sums.octets += be32(record + 20);
            if (be32(record + 16) < sums.least)
                sums.least = be32(record + 16);
        }
        sums.records += message.count;
        CHECK_EQUAL(message.facts.records, message.count);
    }
    return sums;
}

static void counters_beyond_32_bits_are_split_and_their_sums_exact(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct {
        uint64_t packets, octets, records;
    } cases[] = {{1, UINT32_MAX, 1},
                 {2, UINT64_C(1) << 32, 2},
                 {100, UINT64_C(2) * UINT32_MAX, 2},
                 {100, UINT64_C(2) * UINT32_MAX + 1, 3},
                 {UINT64_C(1) << 33, UINT64_C(1) << 40, 257},
                 {UINT64_C(5) * UINT32_MAX + 3, 7, 6}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct capture_flow flow = sample();
        flow.fwd_packets = cases[i].packets;
        flow.fwd_octets = cases[i].octets;
        flow.rev_packets = flow.rev_octets = 0;
        struct sums sums = put_all(encoder, &flow, 1400);
        CHECK_EQUAL(cases[i].packets, sums.packets);
        CHECK_EQUAL(cases[i].octets, sums.octets);
        CHECK_EQUAL(cases[i].records, sums.records);
        CHECK_EQUAL((cases[i].records + 27) / 28, sums.messages);
        CHECK(sums.least > 0);
    }
    ops->destroy(encoder);
}

static uint64_t random_state = 42;

static uint64_t next_random(void) { /* xorshift64 */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void any_counters_add_up(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    for (int i = 0; i < 2000; i++) {
        struct capture_flow flow = sample();
        flow.fwd_octets = next_random() >> (27 + next_random() % 37);
        flow.rev_octets = next_random() >> (27 + next_random() % 37);
        flow.fwd_packets = flow.fwd_octets / (20 + next_random() % 1481) + 1;
        flow.rev_packets = flow.rev_octets / (20 + next_random() % 1481) + 1;
        struct sums sums = put_all(encoder, &flow, 512 + (uint32_t)(next_random() % 1000));
        CHECK_EQUAL(flow.fwd_packets + flow.rev_packets, sums.packets);
        CHECK_EQUAL(flow.fwd_octets + flow.rev_octets, sums.octets);
        CHECK(sums.least > 0);
    }
    ops->destroy(encoder);
}

/* What a collector reckons: base + First, base + Last. */
static void check_times(const struct export_message *message, const struct capture_flow *flow) {
    const uint8_t *record = bytes + message->length - RECORD;
    uint64_t base_ms = message->facts.base_ns / MILLISECOND;
    CHECK_EQUAL(flow->start_time_ns / MILLISECOND, base_ms + be32(record + 24));
    CHECK_EQUAL(flow->end_time_ns / MILLISECOND, base_ms + be32(record + 28));
}

static enum export_put put_at(void *encoder, struct export_message *message, uint64_t start_ns, uint64_t end_ns,
                              struct capture_flow *flow) {
    *flow = sample();
    flow->start_time_ns = start_ns;
    flow->end_time_ns = end_ns;
    uint64_t part = 0;
    return ops->put_flow(encoder, message, flow, NULL, &part);
}

static void the_base_stays_until_a_record_does_not_fit_it(void) {
    const uint64_t span = UINT32_MAX * MILLISECOND;
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct export_message message = begin(encoder, 1500);
    struct capture_flow flow;
    CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, boot, boot + span, &flow));
    check_times(&message, &flow);
    CHECK_EQUAL(EXPORT_PUT_FULL, put_at(encoder, &message, boot, boot + span + MILLISECOND, &flow)); /* wants another base */
    CHECK_EQUAL(EXPORT_PUT_FULL, put_at(encoder, &message, boot - MILLISECOND, boot, &flow));
    CHECK_EQUAL(boot, message.facts.base_ns);
    message = begin(encoder, 1500);
    CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, boot - SECOND, boot, &flow));
    check_times(&message, &flow);
    uint64_t base = message.facts.base_ns;
    CHECK(base < boot - SECOND);
    message = begin(encoder, 1500);
    CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, boot, boot + 20 * 86400 * SECOND, &flow));
    CHECK_EQUAL(base, message.facts.base_ns);
    ops->destroy(encoder);
}

static void times_of_any_trace_are_found_again(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    for (int i = 0; i < 2000; i++) {
        uint64_t start = next_random() >> (next_random() % 20);
        uint64_t end = start + next_random() % (UINT32_MAX * MILLISECOND);
        if (end < start)
            continue;
        struct export_message message = begin(encoder, 1500);
        struct capture_flow flow;
        CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, start, end, &flow));
        check_times(&message, &flow);
    }
    ops->destroy(encoder);
}

static void a_flow_longer_than_32_bits_of_milliseconds_keeps_its_end(void) {
    struct capture_export_config config = config_of();
    void *encoder = encoder_of(&config);
    struct export_message message = begin(encoder, 1500);
    struct capture_flow flow;
    CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, SECOND, boot, &flow));
    const uint8_t *record = bytes + message.length - RECORD;
    CHECK_EQUAL(boot / MILLISECOND, message.facts.base_ns / MILLISECOND + be32(record + 28));
    CHECK_EQUAL(UINT32_MAX, be32(record + 28) - be32(record + 24));
    CHECK_EQUAL(EXPORT_PUT_DONE, put_at(encoder, &message, boot, boot, &flow)); /* which fits the same base */
    ops->destroy(encoder);
}

/* Through an exporter: IPv6 is counted with its packets and octets, and a flow of many records may need several calls. */
static void an_exporter_counts_what_v5_cannot_say_and_goes_on_where_there_was_no_room(void) {
    struct capture_export_config config = config_of();
    config.struct_size = sizeof(config);
    config.message_max = 512;
    capture_exporter_t *exporter = NULL;
    CHECK_EQUAL(CAPTURE_OK, capture_exporter_create(&config, &exporter, NULL));
    struct capture_flow flows[2] = {sample(), sample()};
    flows[0].ip_version = 6;
    flows[1].fwd_packets = UINT64_C(1) << 33;
    flows[1].fwd_octets = UINT64_C(1) << 43;
    struct capture_export_message messages[64];
    uint32_t taken = 0, done = 0, calls = 0;
    uint64_t packets = 0, octets = 0, records = 0;
    for (int count = 1; count > 0; calls++) {
        count = capture_exporter_write(exporter, flows + done, NULL, 2 - done, &taken, bytes, sizeof(bytes), messages, 64, true);
        done += taken;
        for (int i = 0; i < count; i++) {
            packets += messages[i].packets;
            octets += messages[i].octets;
            records += messages[i].records;
        }
    }
    CHECK_EQUAL(2, done);
    CHECK(calls > 2);
    CHECK_EQUAL(flows[1].fwd_packets + flows[1].rev_packets, packets);
    CHECK_EQUAL(flows[1].fwd_octets + flows[1].rev_octets, octets);
    struct capture_export_totals totals;
    CHECK_EQUAL(CAPTURE_OK, capture_exporter_get_totals(exporter, &totals));
    CHECK_EQUAL(records, totals.records);
    CHECK_EQUAL(packets, totals.packets);
    CHECK_EQUAL(2, totals.flows_read);
    CHECK_EQUAL(1, totals.unexportable_flows);
    CHECK_EQUAL(5, totals.unexportable_packets);
    CHECK_EQUAL(100179, totals.unexportable_octets);
    CHECK_EQUAL(0, capture_exporter_templates(exporter, bytes, sizeof(bytes), messages, 64));
    capture_exporter_destroy(exporter);
}

int main(void) {
    RUN(a_flow_of_both_directions_is_two_records);
    RUN(a_direction_without_packets_has_no_record);
    RUN(icmp_is_told_in_the_destination_port);
    RUN(ipv6_is_unexportable_and_leaves_no_trace);
    RUN(a_message_has_thirty_records_at_most_and_no_more_than_its_limit);
    RUN(the_header_says_how_packets_were_sampled);
    RUN(what_v5_cannot_say_is_refused_when_it_is_made);
    RUN(counters_beyond_32_bits_are_split_and_their_sums_exact);
    RUN(any_counters_add_up);
    RUN(the_base_stays_until_a_record_does_not_fit_it);
    RUN(times_of_any_trace_are_found_again);
    RUN(a_flow_longer_than_32_bits_of_milliseconds_keeps_its_end);
    RUN(an_exporter_counts_what_v5_cannot_say_and_goes_on_where_there_was_no_room);
    return 0;
}
