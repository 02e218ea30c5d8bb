/* SPDX-License-Identifier: Apache-2.0 */
/* Exporters whatever the protocol: messages and their limits, shares, totals, what waits between calls, refusals, readers. */
#include "export_config.h"
#include "export_decoder.h"
#include "export_flows.h"
#include "trace_file.h"

enum { FLOWS = 2000, MESSAGES = 4096 };

static uint8_t out[1 << 20];
static struct capture_export_message messages[MESSAGES];
static struct capture_flow flows[FLOWS];

static void make_flows(uint64_t seed) {
    for (uint32_t i = 0; i < FLOWS; i++)
        random_flow(&seed, &flows[i]);
}

/* Records of an array of flows, and their packets and octets, counted without the exporter. */
struct sums {
    uint64_t records, packets, octets;
};

static struct sums sums_of(const struct capture_flow *from, uint32_t count, bool biflow) {
    struct sums sums = {0};
    for (uint32_t i = 0; i < count; i++) {
        sums.records += biflow || !from[i].rev_packets ? 1 : 2;
        sums.packets += from[i].fwd_packets + from[i].rev_packets;
        sums.octets += from[i].fwd_octets + (from[i].rev_packets ? from[i].rev_octets : 0);
    }
    return sums;
}

static void add_messages(struct sums *sums, int count) {
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        sums->records += messages[i].flows;
        sums->packets += messages[i].packets;
        sums->octets += messages[i].octets;
        CHECK_EQUAL(messages[i].flows, messages[i].records);
        CHECK(messages[i].newest_ns > 0);
    }
}

static void check_sums(struct sums expected, struct sums found) {
    CHECK_EQUAL(expected.records, found.records);
    CHECK_EQUAL(expected.packets, found.packets);
    CHECK_EQUAL(expected.octets, found.octets);
}

/* All flows, as much a call as goes; every message decoded. Returns how many messages there were. */
static uint64_t export_all(capture_exporter_t *exporter, uint64_t capacity, uint32_t max_messages, uint32_t most,
                           struct sums *sums) {
    static struct decoder decoder;
    memset(&decoder, 0, sizeof(decoder));
    uint64_t total = 0;
    int count = capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES);
    for (int i = 0; i < count; i++)
        CHECK(decoder_message(&decoder, out + messages[i].offset, messages[i].length));
    for (uint32_t at = 0, idle = 0; at < FLOWS || idle < 2;) {
        uint32_t taken;
        count =
            capture_exporter_write(exporter, flows + at, NULL, FLOWS - at, &taken, out, capacity, messages, max_messages, true);
        uint32_t offset = 0;
        for (int i = 0; i < count; i++) {
            CHECK_EQUAL(offset, messages[i].offset); /* one behind the other */
            CHECK(messages[i].length <= most);
            CHECK(decoder_message(&decoder, out + messages[i].offset, messages[i].length));
            CHECK_EQUAL(messages[i].records, decoder.records);
            offset += messages[i].length;
        }
        CHECK(offset <= capacity);
        add_messages(sums, count);
        total += (uint64_t)count;
        at += taken;
        idle = at == FLOWS && count == 0 ? idle + 1 : 0;
    }
    return total;
}

static void messages_of_every_size_hold_whole_records_up_to_their_limit(void) {
    make_flows(1);
    for (uint32_t size = 512; size <= 65535; size += size < 1500 ? 1 : size > 65500 ? 1 : 997) {
        for (uint32_t biflow = 0; biflow < 2; biflow++) {
            struct capture_export_config config = {.protocol = 3, .message_max = size, .biflow = biflow};
            capture_exporter_t *exporter = exporter_of(config);
            struct sums found = {0};
            uint64_t count = export_all(exporter, sizeof(out), MESSAGES, size, &found);
            check_sums(sums_of(flows, FLOWS, biflow), found);
            CHECK_EQUAL(count, totals_of(exporter).messages);
            capture_exporter_destroy(exporter);
        }
    }
}

static void netflow_9s_padding_is_within_the_limit(void) {
    make_flows(2);
    for (uint32_t size = 512; size < 600; size++) {
        capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 2, .message_max = size});
        struct sums found = {0};
        export_all(exporter, sizeof(out), MESSAGES, size, &found);
        check_sums(sums_of(flows, FLOWS, false), found);
        capture_exporter_destroy(exporter);
    }
}

/* Room for one message a call: what does not fit waits, in the exporter or with the caller, and comes in order. */
static void a_block_of_one_message_loses_and_repeats_nothing(void) {
    make_flows(3);
    for (uint32_t profile = 1; profile <= 3; profile++) {
        struct capture_export_config config = {.protocol = 2, .message_max = 512, .profile = profile};
        capture_exporter_t *exporter = exporter_of(config);
        struct sums narrow = {0}, few = {0};
        export_all(exporter, 512, MESSAGES, 512, &narrow);
        check_sums(sums_of(flows, FLOWS, false), narrow);
        capture_exporter_destroy(exporter);
        exporter = exporter_of(config);
        export_all(exporter, sizeof(out), 1, 512, &few);
        check_sums(narrow, few);
        struct capture_export_totals totals = totals_of(exporter);
        CHECK_EQUAL(FLOWS, totals.flows_read);
        check_sums(narrow, (struct sums){totals.records, totals.packets, totals.octets});
        CHECK_EQUAL(0, totals.unexportable_flows);
        capture_exporter_destroy(exporter);
    }
}

/* NetFlow v5 splits a counter of 40 bits over hundreds of records, more than one message has. */
static void a_flow_of_many_messages_goes_on_where_the_block_was_full(void) {
    make_flows(7);
    for (uint32_t i = 0; i < FLOWS; i++) {
        flows[i] = flows[0];
        flows[i].ip_version = 4;
        flows[i].fwd_packets = 1000 + i;
        flows[i].fwd_octets = i % 100 ? 5 : (1ull << 40) + i;
        flows[i].rev_packets = flows[i].rev_octets = 0;
    }
    struct sums found = {0};
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 1});
    for (uint32_t at = 0, taken, idle = 0; at < FLOWS || idle < 2; at += taken) {
        int count = capture_exporter_write(exporter, flows + at, NULL, FLOWS - at, &taken, out, 1500, messages, MESSAGES, true);
        CHECK(count <= 1);
        add_messages(&found, count);
        idle = count ? 0 : idle + 1;
        if (taken) /* what was taken is the exporter's own */
            flows[at + taken - 1].fwd_octets = 77;
    }
    struct capture_export_totals totals = totals_of(exporter);
    CHECK_EQUAL(FLOWS, totals.flows_read);
    CHECK_EQUAL(FLOWS * 1000ull + FLOWS * (FLOWS - 1) / 2, found.packets);
    uint64_t octets = 0;
    for (uint32_t i = 0; i < FLOWS; i++)
        octets += i % 100 ? 5 : (1ull << 40) + i;
    CHECK_EQUAL(octets, found.octets);
    CHECK(found.records > FLOWS + FLOWS / 100 * 255);
    check_sums(found, (struct sums){totals.records, totals.packets, totals.octets});
    capture_exporter_destroy(exporter);
}

static void what_does_not_fill_a_message_waits_until_it_is_flushed(void) {
    make_flows(4);
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 3});
    uint32_t taken;
    struct sums found = {0};
    CHECK_EQUAL(0, capture_exporter_write(exporter, flows, NULL, 3, &taken, out, sizeof(out), messages, MESSAGES, false));
    CHECK_EQUAL(3, taken);
    CHECK_EQUAL(0, totals_of(exporter).records);
    CHECK_EQUAL(1, capture_exporter_write(exporter, flows + 3, NULL, 1, &taken, out, sizeof(out), messages, MESSAGES, true));
    add_messages(&found, 1);
    check_sums(sums_of(flows, 4, false), found);
    CHECK_EQUAL(0, capture_exporter_write(exporter, NULL, NULL, 0, &taken, out, sizeof(out), messages, MESSAGES, true));
    /* Templates in between do not touch it. */
    CHECK_EQUAL(0, capture_exporter_write(exporter, flows, NULL, 2, &taken, out, sizeof(out), messages, MESSAGES, false));
    CHECK_EQUAL(1, capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES));
    CHECK_EQUAL(1, capture_exporter_write(exporter, NULL, NULL, 0, &taken, out, sizeof(out), messages, MESSAGES, true));
    found = (struct sums){0};
    add_messages(&found, 1);
    check_sums(sums_of(flows, 2, false), found);
    capture_exporter_destroy(exporter);
}

static void shares_are_a_partition_of_the_flows(void) {
    make_flows(5);
    for (uint32_t shares = 1; shares <= 7; shares++) {
        struct sums all = {0};
        uint64_t read = 0;
        for (uint32_t share = 0; share < shares; share++) {
            capture_exporter_t *exporter =
                exporter_of((struct capture_export_config){.protocol = 3, .share = share, .share_count = shares});
            export_all(exporter, sizeof(out), MESSAGES, 1400, &all);
            uint64_t expected = 0;
            for (uint32_t i = 0; i < FLOWS; i++)
                expected += flows[i].flow_id % shares == share;
            CHECK_EQUAL(expected, totals_of(exporter).flows_read);
            read += totals_of(exporter).flows_read;
            capture_exporter_destroy(exporter);
        }
        CHECK_EQUAL(FLOWS, read);
        check_sums(sums_of(flows, FLOWS, false), all);
    }
}

static void both_ip_versions_share_a_message(void) {
    make_flows(6);
    uint32_t taken, mixed = 0;
    static struct decoder decoder;
    memset(&decoder, 0, sizeof(decoder));
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 2});
    CHECK_EQUAL(1, capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES));
    CHECK(decoder_message(&decoder, out, messages[0].length));
    int count = capture_exporter_write(exporter, flows, NULL, FLOWS, &taken, out, sizeof(out), messages, MESSAGES, true);
    for (int i = 0; i < count; i++) {
        CHECK(decoder_message(&decoder, out + messages[i].offset, messages[i].length));
        mixed += decoder.sets > 1;
    }
    CHECK(mixed > 0);
    capture_exporter_destroy(exporter);
}

static void a_configuration_out_of_range_is_refused_by_its_field(void) {
    static const struct {
        struct capture_export_config config;
        const char *field, *told;
    } cases[] = {
        {{.protocol = 0}, "protocol", "protocol is 0: accepted are 1 (NetFlow v5), 2 (NetFlow v9), 3 (IPFIX) and 4 (sFlow v5)"},
        {{.protocol = 5}, "protocol", "protocol is 5"},
        {{.protocol = 3, .profile = 4}, "profile", "profile is 4: accepted are 0 and 2 (default), 1 (minimal) and 3 (full)"},
        {{.protocol = 3, .time_unit = 4}, "time_unit", "time_unit is 4"},
        {{.protocol = 2, .biflow = true}, "biflow", "biflow is set with NetFlow v9"},
        {{.protocol = 3, .message_max = 511}, "message_max", "message_max is 511: accepted are 0 (1400) and 512 to 65535"},
        {{.protocol = 3, .message_max = 65536}, "message_max", "message_max is 65536"},
        {{.protocol = 3, .statistics = 16}, "statistics", "statistics is 16"},
        {{.protocol = 3, .sampling = 3}, "sampling", "sampling is 3"},
        {{.protocol = 3, .sampling = 1}, "sampling_interval", "sampling_interval is 0: accepted are 1 to 1000000"},
        {{.protocol = 3, .sampling_interval = 5}, "sampling_interval", "sampling_interval is 5 without sampling: accepted is 0"},
        {{.protocol = 3, .share = 1}, "share", "share is 1 of share_count 0: accepted are 0 to 0"},
        {{.protocol = 3, .share = 3, .share_count = 3}, "share", "share is 3 of share_count 3: accepted are 0 to 2"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct capture_export_config config = cases[i].config;
        struct capture_error_info error = {0};
        capture_exporter_t *exporter;
        config.struct_size = sizeof(config);
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_exporter_create(&config, &exporter, &error));
        CHECK(exporter == NULL);
        CHECK_TEXT(cases[i].field, error.field);
        CHECK(strncmp(cases[i].told, error.message, strlen(cases[i].told)) == 0);
        config.struct_size = 1;
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_exporter_create(&config, &exporter, &error));
        CHECK_TEXT("struct_size", error.field);
    }
}

static void memory_too_small_for_a_message_is_refused(void) {
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 3});
    uint32_t taken = 7;
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_exporter_write(exporter, flows, NULL, 1, &taken, out, 1399, messages, MESSAGES, true));
    CHECK_EQUAL(0, taken);
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_exporter_write(exporter, flows, NULL, 1, &taken, out, 1400, messages, 0, true));
    CHECK_EQUAL(0, totals_of(exporter).flows_read);
    capture_exporter_destroy(exporter);
}

static void a_readers_records_are_all_exported_through_a_small_log(void) {
    struct trace_file trace = trace_of_flows(5000, 15000);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.log_records = 1024, .workers = workers, .active_s = 7});
        capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
        capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 3, .biflow = true});
        struct capture_batch_info info = {0};
        struct sums found = {0};
        uint64_t taken = 0;
        int more;
        start(capture);
        do {
            more = capture_poll(capture, 50);
            do {
                int count = capture_exporter_read(exporter, reader, out, 65535, messages, 8, more == 0, &info);
                add_messages(&found, count);
                taken += info.records;
                CHECK_EQUAL(0, info.lost);
                CHECK(!(info.end && info.more));
            } while (info.more);
        } while (more > 0);
        CHECK(info.end);
        struct capture_stats stats = stats_of(capture);
        struct capture_export_totals totals = totals_of(exporter);
        CHECK_EQUAL(stats.flows_total, taken);
        CHECK_EQUAL(stats.flows_total, totals.flows_read);
        check_sums((struct sums){stats.flows_total, stats.metered, stats.metered_octets}, found);
        check_sums(found, (struct sums){totals.records, totals.packets, totals.octets});
        capture_exporter_destroy(exporter);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

/* 22 biflows of profile minimal fill a message; the 23rd is read and waits when the block has room for one message. */
static void the_end_is_told_only_when_nothing_waits_in_the_exporter(void) {
    struct trace_file trace = trace_of_flows(23, 46);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = 3, .profile = 1, .biflow = true});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0}),
                          *again = reader_of(capture, (struct capture_reader_config){0});
    struct capture_batch_info info;
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    CHECK_EQUAL(1, capture_exporter_read(exporter, reader, out, 1400, messages, 8, true, &info));
    CHECK_EQUAL(22, messages[0].flows);
    CHECK_EQUAL(23, info.records);
    CHECK_EQUAL(messages[0].length, info.bytes);
    CHECK(info.more);
    CHECK(!info.end);
    CHECK_EQUAL(1, capture_exporter_read(exporter, reader, out, 1400, messages, 8, true, &info));
    CHECK_EQUAL(1, messages[0].flows);
    CHECK_EQUAL(0, info.records);
    CHECK(info.end);
    CHECK(!info.more);
    /* Without flush the rest stays, and the reader's end is one all the same. */
    CHECK_EQUAL(1, capture_exporter_read(exporter, again, out, sizeof(out), messages, 8, false, &info));
    CHECK_EQUAL(23, info.records);
    CHECK(info.end);
    CHECK_EQUAL(45, totals_of(exporter).records);
    CHECK_EQUAL(1, capture_exporter_read(exporter, again, out, sizeof(out), messages, 8, true, &info));
    CHECK_EQUAL(46, totals_of(exporter).records);
    capture_exporter_destroy(exporter);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(messages_of_every_size_hold_whole_records_up_to_their_limit);
    RUN(netflow_9s_padding_is_within_the_limit);
    RUN(a_block_of_one_message_loses_and_repeats_nothing);
    RUN(a_flow_of_many_messages_goes_on_where_the_block_was_full);
    RUN(what_does_not_fill_a_message_waits_until_it_is_flushed);
    RUN(shares_are_a_partition_of_the_flows);
    RUN(both_ip_versions_share_a_message);
    RUN(a_configuration_out_of_range_is_refused_by_its_field);
    RUN(memory_too_small_for_a_message_is_refused);
    RUN(the_end_is_told_only_when_nothing_waits_in_the_exporter);
    RUN(a_readers_records_are_all_exported_through_a_small_log);
    return 0;
}
