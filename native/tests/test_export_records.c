/* SPDX-License-Identifier: Apache-2.0 */
/* Records of NetFlow v9 and IPFIX: bytes counted out by hand, and every value of random flows against a model of its own. */
#include "export_config.h"
#include "export_decoder.h"
#include "export_flows.h"
#include "export_model.h"

enum { FLOWS = 400, MESSAGES = 512 };

static uint8_t out[1 << 20];
static struct capture_export_message messages[MESSAGES];
static struct capture_flow flows[FLOWS];
static struct capture_flow_statistics statistics[FLOWS];

static struct capture_flow a_flow(void) {
    return (struct capture_flow){.flow_id = 0x0102030405060708,
                                 .src_addr = {10, 0, 0, 1},
                                 .dst_addr = {192, 168, 1, 2},
                                 .src_port = 40000,
                                 .dst_port = 443,
                                 .ip_version = 4,
                                 .ip_protocol = 6,
                                 .vlan_id = 7,
                                 .fwd_packets = 3,
                                 .fwd_octets = 180,
                                 .rev_packets = 2,
                                 .rev_octets = 65536,
                                 .start_time_ns = 1700000000123456789, /* 0x18bcfe5687b ms */
                                 .end_time_ns = 1700000001123456789,
                                 .fwd_tcp_flags = 0x11b,
                                 .rev_tcp_flags = 0x12,
                                 .interface_index = 3,
                                 .dscp = 46,
                                 .end_reason = 3};
}

static void check_bytes(const char *expected, size_t length, uint32_t from) {
    CHECK(messages[0].length >= from + length);
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)expected[i] != out[from + i]) {
            fprintf(stderr, "byte %zu is %02x, expected %02x\n", from + i, out[from + i], (uint8_t)expected[i]);
            exit(1);
        }
}

static int write_one(struct capture_export_config config, const struct capture_flow *flow) {
    capture_exporter_t *exporter = exporter_of(config);
    uint32_t taken;
    int count = capture_exporter_write(exporter, flow, NULL, 1, &taken, out, sizeof(out), messages, MESSAGES, true);
    CHECK_EQUAL(1, taken);
    capture_exporter_destroy(exporter);
    return count;
}

static void a_minimal_ipfix_message_is_what_rfc_7011_says(void) {
    struct capture_flow flow = a_flow();
    CHECK_EQUAL(
        1, write_one((struct capture_export_config){.protocol = 3, .profile = 1, .observation_domain_id = 0x01020304}, &flow));
    static const char expected[] =
        "\x00\x0a\x00\x6e"                                 /* version 10, 110 bytes */
        "\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04" /* export time and sequence when it leaves; domain */
        "\x48\xa0\x00\x5e" /* set 0x4000 | IPFIX 0x800 | minimal 0x80 | ms 0x20; 94 bytes: 4 + 2 * 45 */
        "\x0a\x00\x00\x01\xc0\xa8\x01\x02\x9c\x40\x01\xbb\x06"
        "\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\xb4"
        "\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x01\x8b\xcf\xe5\x6c\x63"
        "\xc0\xa8\x01\x02\x0a\x00\x00\x01\x01\xbb\x9c\x40\x06"
        "\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00\x00"
        "\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x01\x8b\xcf\xe5\x6c\x63";
    CHECK_EQUAL(sizeof(expected) - 1, messages[0].length);
    check_bytes(expected, sizeof(expected) - 1, 0);
    CHECK_EQUAL(2, messages[0].records);
    CHECK_EQUAL(2, messages[0].flows);
    CHECK_EQUAL(5, messages[0].packets);
    CHECK_EQUAL(65716, messages[0].octets);
    CHECK_EQUAL(flow.end_time_ns, messages[0].newest_ns);
    CHECK_EQUAL(0, messages[0].base_ns);
}

static void a_biflow_has_the_reverse_values_before_the_forward_ones(void) {
    struct capture_flow flow = a_flow();
    CHECK_EQUAL(1, write_one((struct capture_export_config){.protocol = 3, .profile = 1, .biflow = true}, &flow));
    static const char expected[] = "\x4a\xa0\x00\x42" /* and the biflow bit 0x200; 4 + 62 */
                                   "\x0a\x00\x00\x01\xc0\xa8\x01\x02\x9c\x40\x01\xbb\x06"
                                   "\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03"
                                   "\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\xb4"
                                   "\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x01\x8b\xcf\xe5\x6c\x63"
                                   "\x01"; /* initiator */
    CHECK_EQUAL(16 + sizeof(expected) - 1, messages[0].length);
    check_bytes(expected, sizeof(expected) - 1, 16);
    CHECK_EQUAL(1, messages[0].flows);
    CHECK_EQUAL(5, messages[0].packets);
}

static void a_default_netflow_9_message_is_padded_to_4_bytes(void) {
    struct capture_flow flow = a_flow();
    flow.rev_packets = 0;
    CHECK_EQUAL(1, write_one((struct capture_export_config){.protocol = 2, .observation_domain_id = 9}, &flow));
    static const char expected[] = "\x00\x09\x00\x01" /* version, one record */
                                   "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09"
                                   "\x41\x20\x00\x4c" /* 0x4000 | default 0x100 | ms 0x20; 4 + 69 + 3 of padding */
                                   "\x0a\x00\x00\x01\xc0\xa8\x01\x02\x9c\x40\x01\xbb\x06"
                                   "\x04\x00\x07" /* IP version, VLAN */
                                   "\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\xb4"
                                   "\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x01\x8b\xcf\xe5\x6c\x63"
                                   "\x1b\x00\x00\x00\x03\x00\x00\x00\x00" /* flags in 8 bits, interfaces */
                                   "\xb8\x00\x00\x03"                     /* type of service, ICMP, end reason */
                                   "\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00";
    CHECK_EQUAL(sizeof(expected) - 1, messages[0].length);
    check_bytes(expected, sizeof(expected) - 1, 0);
    CHECK_EQUAL(1, messages[0].records);
}

struct walk {
    bool netflow9, biflow;
    uint32_t flow;
    bool reverse; /* the record to come is of the reverse direction */
    uint64_t records, packets, octets;
};

static void check_value(const struct walk *walk, const struct decoded_field *field, const struct decoded_value *value) {
    const struct capture_flow *flow = &flows[walk->flow];
    const struct capture_flow_statistics *kept = &statistics[walk->flow];
    bool reverse = walk->reverse || field->enterprise == REVERSE;
    const uint8_t *address = model_address(flow, kept, reverse, field->number);
    uint64_t number = decoded_number(value->at, value->length), expected;
    if (address) {
        CHECK(memcmp(address, value->at, value->length) == 0);
    } else if (field->number >= 154 && field->number <= 157) {
        uint64_t time = field->number & 1 ? flow->end_time_ns : flow->start_time_ns;
        bool micro = field->number < 156;
        CHECK(!micro || (number & 0x7ff) == 0);
        uint64_t back = model_from_ntp(number, time);
        CHECK_EQUAL(micro ? time / 1000 : time, micro ? back / 1000 : back);
    } else {
        CHECK(model_number(flow, kept, walk->reverse, walk->netflow9, field->enterprise, field->number, &expected));
        if (expected != number)
            fprintf(stderr, "element %u/%u\n", field->enterprise, field->number);
        CHECK_EQUAL(expected, number);
    }
}

static void check_record(void *context, const struct decoded_template *template, const struct decoded_value *values) {
    struct walk *walk = context;
    const struct capture_flow *flow = &flows[walk->flow];
    CHECK(walk->flow < FLOWS);
    CHECK_EQUAL(flow->ip_version == 6, (template->id >> 10) & 1);
    for (uint32_t i = 0; i < template->fields; i++)
        check_value(walk, &template->field[i], &values[i]);
    walk->records++;
    walk->packets += walk->biflow ? flow->fwd_packets + flow->rev_packets : walk->reverse ? flow->rev_packets : flow->fwd_packets;
    walk->octets += walk->biflow ? flow->fwd_octets + flow->rev_octets : walk->reverse ? flow->rev_octets : flow->fwd_octets;
    bool another = !walk->biflow && !walk->reverse && flow->rev_packets;
    walk->flow += !another;
    walk->reverse = another;
}

static void decode_all(struct decoder *decoder, int count, uint64_t *packets, uint64_t *octets) {
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        CHECK(decoder_message(decoder, out + messages[i].offset, messages[i].length));
        CHECK_EQUAL(messages[i].records, decoder->records);
        *packets += messages[i].packets;
        *octets += messages[i].octets;
    }
}

static void check_configuration(struct capture_export_config config, uint64_t seed) {
    for (uint32_t i = 0; i < FLOWS; i++) {
        random_flow(&seed, &flows[i]);
        random_statistics(&seed, &statistics[i]);
    }
    capture_exporter_t *exporter = exporter_of(config);
    struct decoder decoder = {0};
    struct walk walk = {.netflow9 = config.protocol == 2, .biflow = config.biflow};
    uint64_t packets = 0, octets = 0;
    decode_all(&decoder, capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES), &packets, &octets);
    decoder.record = check_record;
    decoder.context = &walk;
    uint32_t taken;
    decode_all(&decoder,
               capture_exporter_write(exporter, flows, statistics, FLOWS, &taken, out, sizeof(out), messages, MESSAGES, true),
               &packets, &octets);
    CHECK_EQUAL(FLOWS, taken);
    CHECK_EQUAL(FLOWS, walk.flow);
    CHECK_EQUAL(walk.packets, packets);
    CHECK_EQUAL(walk.octets, octets);
    struct capture_export_totals totals;
    capture_exporter_get_totals(exporter, &totals);
    CHECK_EQUAL(FLOWS, totals.flows_read);
    CHECK_EQUAL(walk.records, totals.records);
    CHECK_EQUAL(packets, totals.packets);
    CHECK_EQUAL(octets, totals.octets);
    capture_exporter_destroy(exporter);
}

static void every_value_of_every_profile_is_the_models(void) {
    uint64_t seed = 1;
    for (uint32_t protocol = 2; protocol <= 3; protocol++)
        for (uint32_t profile = 1; profile <= 3; profile++)
            for (uint32_t unit = 1; unit <= 3; unit++)
                for (uint32_t kinds = 0; kinds < (profile == 3 ? 16u : 1u); kinds++)
                    for (uint32_t biflow = 0; biflow <= protocol - 2; biflow++)
                        check_configuration((struct capture_export_config){.protocol = protocol,
                                                                           .profile = profile,
                                                                           .time_unit = unit,
                                                                           .statistics = kinds,
                                                                           .biflow = biflow},
                                            seed++);
}

static void biflow_direction_is_the_initiators_only_when_its_syn_was_seen(void) {
    static const struct {
        uint16_t fwd, rev;
        uint8_t protocol, direction;
    } cases[] = {{0x02, 0x00, 6, 1}, {0x1b, 0x12, 6, 1}, {0x12, 0x10, 6, 0},
                 {0x10, 0x12, 6, 0}, {0x10, 0x10, 6, 0}, {0x02, 0x02, 17, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct capture_flow flow = a_flow();
        flow.fwd_tcp_flags = cases[i].fwd;
        flow.rev_tcp_flags = cases[i].rev;
        flow.ip_protocol = cases[i].protocol;
        CHECK_EQUAL(1, write_one((struct capture_export_config){.protocol = 3, .profile = 1, .biflow = true}, &flow));
        CHECK_EQUAL(cases[i].direction, out[messages[0].length - 1]);
    }
}

static void times_of_2036_and_later_wrap_into_ntps_next_era(void) {
    struct capture_flow flow = a_flow();
    flow.rev_packets = 0;
    flow.start_time_ns = 2085978495999999999; /* the last nanosecond of era 0 */
    flow.end_time_ns = 2085978496000000000;
    CHECK_EQUAL(1, write_one((struct capture_export_config){.protocol = 3, .profile = 1, .time_unit = 3}, &flow));
    check_bytes("\xff\xff\xff\xff\xff\xff\xff\xfc\x00\x00\x00\x00\x00\x00\x00\x00", 16, messages[0].length - 16);
    CHECK_EQUAL(1, write_one((struct capture_export_config){.protocol = 3, .profile = 1, .time_unit = 2}, &flow));
    check_bytes("\xff\xff\xff\xff\xff\xff\xf0\x00\x00\x00\x00\x00\x00\x00\x00\x00", 16, messages[0].length - 16);
}

static void the_largest_values_stay_what_they_are_or_are_capped(void) {
    struct capture_flow flow;
    struct capture_flow_statistics kept;
    memset(&flow, 0xff, sizeof(flow));
    memset(&kept, 0xff, sizeof(kept));
    flow.ip_version = 6;
    kept.fwd_payload = kept.rev_payload = (struct capture_spread){UINT64_MAX, UINT64_MAX, 1e300, 0};
    kept.fwd_interval = kept.rev_interval = (struct capture_spread){UINT64_MAX, UINT64_MAX, 1e19, 0};
    capture_exporter_t *exporter =
        exporter_of((struct capture_export_config){.protocol = 3, .profile = 3, .statistics = 15, .biflow = true});
    uint32_t taken;
    CHECK_EQUAL(1, capture_exporter_write(exporter, &flow, &kept, 1, &taken, out, sizeof(out), messages, MESSAGES, true));
    CHECK_EQUAL(messages[0].length, decoded_number(out + 2, 2));
    capture_exporter_destroy(exporter);
}

int main(void) {
    RUN(a_minimal_ipfix_message_is_what_rfc_7011_says);
    RUN(a_biflow_has_the_reverse_values_before_the_forward_ones);
    RUN(a_default_netflow_9_message_is_padded_to_4_bytes);
    RUN(every_value_of_every_profile_is_the_models);
    RUN(biflow_direction_is_the_initiators_only_when_its_syn_was_seen);
    RUN(times_of_2036_and_later_wrap_into_ntps_next_era);
    RUN(the_largest_values_stay_what_they_are_or_are_capped);
    return 0;
}
