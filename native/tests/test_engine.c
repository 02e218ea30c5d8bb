/* SPDX-License-Identifier: Apache-2.0 */
/* Whole captures of files: life cycle, counters, deadline, queries, packet delivery. Readers: test_reader.c; threads:
 * test_threads.c. */
#include "trace_file.h"

enum { FLOWS = 500, PACKETS = 5000 };

static void run(capture_t *capture) {
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
}

static uint64_t octets_of_trace(void) {
    uint64_t octets = 0;
    for (uint32_t i = 0; i < PACKETS; i++)
        octets += 28 + i % FLOWS % 100;
    return octets;
}

static void a_file_is_metered_to_its_totals_inline_and_by_a_thread(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers});
        CHECK_EQUAL(0, stats_of(capture).received);
        run(capture);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(PACKETS, stats.received);
        CHECK_EQUAL(PACKETS, stats.metered);
        CHECK_EQUAL(octets_of_trace(), stats.metered_octets);
        CHECK_EQUAL(octets_of_trace(), stats.received_octets);
        CHECK_EQUAL(0, stats.in_flight);
        CHECK_EQUAL(FLOWS, stats.flows_total);
        CHECK_EQUAL(FLOWS, stats.flows_ended[CAPTURE_FLOW_END_FORCED]);
        CHECK_EQUAL(FLOWS, stats.log_records_written);
        CHECK_EQUAL(0, stats.flows_active);
        CHECK(stats.flow_table_bytes > 65536 * 128);
        CHECK(stats.elapsed_ns > 0);
        CHECK_EQUAL(0, capture_poll(capture, 0));
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void frames_that_are_not_metered_are_counted_by_cause(void) {
    struct trace_file trace = trace_new(1);
    struct bytes ip = {0}, arp = {0}, cut = {0}, other = {0};
    add_ethernet(&ip, 0x0800);
    add_ipv4(&ip, 1, 2, 17, 8, 0, 0);
    add_udp(&ip, 1, 53, 0);
    add_ethernet(&other, 0x0800);
    add_ipv4(&other, 1, 2, 17, 8, 0, 0);
    add_udp(&other, 1, 54, 0);
    add_ethernet(&arp, 0x0806);
    add_zeros(&arp, 28);
    add_ethernet(&cut, 0x0800);
    add_zeros(&cut, 10);
    for (int i = 0; i < 4; i++)
        trace_packet(&trace, SECOND, &ip);
    for (int i = 0; i < 3; i++)
        trace_packet(&trace, SECOND, &arp);
    trace_packet(&trace, SECOND, &cut);
    trace_packet(&trace, SECOND, &other);
    capture_t *capture = capture_of(&trace, (struct capture_options){.filter = "not udp port 54"});
    run(capture);
    capture_stop(capture, true);
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(9, stats.received);
    CHECK_EQUAL(4, stats.metered);
    CHECK_EQUAL(1, stats.filtered);
    CHECK_EQUAL(3, stats.non_ip);
    CHECK_EQUAL(1, stats.malformed);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void after_the_deadline_frames_are_paused_until_a_later_one_is_set(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    capture_set_deadline(capture, 1);
    start(capture);
    CHECK_EQUAL(1, capture_poll(capture, 0));
    struct capture_stats stats = stats_of(capture);
    CHECK(stats.paused > 0 && stats.paused < PACKETS);
    CHECK_EQUAL(0, stats.metered);
    CHECK_EQUAL(0, stats.flows_total);
    capture_set_deadline(capture, UINT64_MAX);
    while (capture_poll(capture, 100) > 0)
        continue;
    CHECK_EQUAL(stats.paused, stats_of(capture).paused);
    CHECK_EQUAL(PACKETS - stats.paused, stats_of(capture).metered);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void calls_in_the_wrong_state_are_refused(void) {
    struct trace_file trace = trace_of_flows(1, 1);
    struct capture_error_info error;
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config)};
    struct capture_reader_config reader_config = {.struct_size = sizeof(reader_config)};
    struct capture_flow_query query = {.limit = 1};
    struct capture_flow flow;
    struct capture_packet_batch packets;
    capture_flow_reader_t *reader;
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_poll(capture, 0));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_stop(capture, true));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_reader_open(capture, &reader_config, &reader, &error));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_flow_get_all(capture, &query, &flow, NULL, &error));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_flow_lookup(capture, 1, &flow, NULL, 1));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_packets_next(capture, 0, &packets));
    start(capture);
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_start(capture, &error));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_flow_enable(capture, &flow_config, &error));
    CHECK(strstr(error.message, "before the capture is started"));
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    capture_destroy(capture);
    capture_destroy(NULL);
    trace_forget(&trace);
}

static void flow_settings_out_of_range_are_named(void) {
    struct trace_file trace = trace_of_flows(1, 1);
    static const struct {
        struct capture_flow_config config;
        const char *field, *message;
    } cases[] = {
        {{.max_flows = 4095}, "max_flows", "max_flows is 4095: accepted are 0 (1048576) and 4096 to 16777216"},
        {{.max_flows = 16777217}, "max_flows", "max_flows is 16777217: accepted are 0 (1048576) and 4096 to 16777216"},
        {{.idle_timeout_ns = 5},
         "idle_timeout_ns",
         "idle_timeout_ns is 5: accepted are 0 (never) and 1000000000 (1 s) to 86400000000000 (24 h)"},
        {{.active_timeout_ns = 86400000000001},
         "active_timeout_ns",
         "active_timeout_ns is 86400000000001: accepted are 0 (never) and 1000000000 (1 s) to 86400000000000 (24 h)"},
        {{.log_records = 1025},
         "log_records",
         "log_records is 1025: accepted are 0 (65536) and powers of two from 1024 to 16777216"},
        {{.fragment_slots = 128},
         "fragment_slots",
         "fragment_slots is 128: accepted are 0 (8192) and powers of two from 256 to 1048576"},
        {{.tunnel = 3}, "tunnel", "tunnel is 3: accepted are 0 (outer), 1 (inner) and 2 (both)"},
        {{.mirror_timestamps = true},
         "mirror_timestamps",
         "mirror_timestamps is true and tunnel is 0 (outer): accepted with tunnel 1 (inner) and 2 (both)"},
        {{.sampling = 3}, "sampling", "sampling is 3: accepted are 0 (none), 1 (systematic) and 2 (flow-hash)"},
        {{.sampling_interval = 9}, "sampling_interval", "sampling_interval is 9 and sampling is 0 (none): accepted is 0"},
        {{.sampling = 1},
         "sampling_interval",
         "sampling_interval is 0 and sampling is 1 (systematic): accepted are 1 to 1000000"},
        {{.sampling = 2, .sampling_interval = 1000001},
         "sampling_interval",
         "sampling_interval is 1000001 and sampling is 2 (flow-hash): accepted are 1 to 1000000"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
        struct capture_flow_config config = cases[i].config;
        struct capture_error_info error;
        config.struct_size = sizeof(config);
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_flow_enable(capture, &config, &error));
        CHECK_TEXT(cases[i].field, error.field);
        CHECK_TEXT(cases[i].message, error.message);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void a_file_damaged_in_the_middle_is_metered_up_to_there_and_says_so(void) {
    struct trace_file trace = trace_of_flows(10, 100);
    uint32_t torn[4] = {1700000001, 0, 60, 60};
    trace_write(&trace, torn, sizeof(torn));
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    run(capture);
    capture_stop(capture, true);
    struct capture_error_info error;
    capture_get_error(capture, &error);
    CHECK(error.message[0] != 0);
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(100, stats.metered);
    CHECK_EQUAL(1, stats.malformed);
    CHECK_EQUAL(10, stats.log_records_written);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void live_flows_are_listed_sorted_and_limited(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    struct capture_error_info error;
    struct capture_flow flows[FLOWS + 1];
    start(capture);
    CHECK_EQUAL(1, capture_poll(capture, 0)); /* one batch: flows 0..63, one packet each */
    struct capture_flow_query query = {.sort_by = CAPTURE_SORT_OCTETS, .limit = 10};
    CHECK_EQUAL(10, capture_flow_get_all(capture, &query, flows, NULL, &error));
    for (int i = 0; i < 10; i++) {
        CHECK_EQUAL(28 + 63 - i, flows[i].fwd_octets);
        CHECK_EQUAL(CAPTURE_FLOW_END_NONE, flows[i].end_reason);
    }
    query = (struct capture_flow_query){.limit = FLOWS + 1};
    CHECK_EQUAL(64, capture_flow_get_all(capture, &query, flows, NULL, &error));
    query = (struct capture_flow_query){.limit = FLOWS, .filter = "src host 10.0.0.5"};
    CHECK_EQUAL(1, capture_flow_get_all(capture, &query, flows, NULL, &error));
    CHECK_EQUAL(5, flows[0].src_addr[3]);
    struct capture_flow found;
    CHECK_EQUAL(1, capture_flow_lookup(capture, flows[0].flow_id, &found, NULL, 1));
    CHECK(memcmp(&found, &flows[0], sizeof(found)) == 0);
    CHECK_EQUAL(CAPTURE_ERR_NOT_FOUND, capture_flow_lookup(capture, flows[0].flow_id + 1, &found, NULL, 1));
    query = (struct capture_flow_query){.limit = FLOWS, .min_packets = 2};
    CHECK_EQUAL(0, capture_flow_get_all(capture, &query, flows, NULL, &error));
    query = (struct capture_flow_query){.limit = 0};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_flow_get_all(capture, &query, flows, NULL, &error));
    CHECK_TEXT("limit is 0: accepted are 1 to 100000", error.message);
    query = (struct capture_flow_query){.limit = 1, .filter = "nonsense and"};
    CHECK_EQUAL(CAPTURE_ERR_FILTER, capture_flow_get_all(capture, &query, flows, NULL, &error));
    capture_destroy(capture);
    trace_forget(&trace);
}

static void every_frame_is_delivered_with_its_number(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.packet_ring_mb = 8, .workers = workers});
        struct capture_packet_batch batch;
        uint64_t next = 1;
        start(capture);
        while (capture_packets_next(capture, 1000, &batch) > 0) {
            for (uint32_t i = 0; i < batch.count; i++, next++) {
                const struct capture_packet *packet = &batch.packets[i];
                CHECK_EQUAL(next, packet->packet_id);
                CHECK_EQUAL(28 + (next - 1) % FLOWS % 100, packet->captured_length);
                CHECK_EQUAL(0x45, batch.base[packet->offset]);
            }
            CHECK_EQUAL(CAPTURE_ERR_STATE, capture_packets_next(capture, 0, &batch));
            capture_packets_release(capture);
        }
        CHECK_EQUAL(PACKETS + 1, next);
        CHECK_EQUAL(0, stats_of(capture).packet_ring_dropped);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

enum { LARGE_FRAMES = 200, LARGE_FRAME = 60000 };

/* Frames of which the smallest packet ring holds few. */
static struct trace_file trace_of_large_frames(void) {
    static uint8_t frame[LARGE_FRAME];
    struct trace_file trace = trace_new(101);
    struct bytes header = {0};
    add_ipv4(&header, 1, 2, 17, LARGE_FRAME - 20, 1, 0);
    add_udp(&header, 5000, 53, 0);
    memcpy(frame, header.data, header.length);
    for (uint32_t i = 0; i < LARGE_FRAMES; i++) {
        uint32_t record[4] = {1700000000, i, LARGE_FRAME, LARGE_FRAME};
        trace_write(&trace, record, sizeof(record));
        trace_write(&trace, frame, sizeof(frame));
    }
    return trace;
}

static void a_file_waits_for_the_consumer_of_its_packets(void) {
    struct trace_file trace = trace_of_large_frames();
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.packet_ring_mb = 1, .workers = workers});
        struct capture_packet_batch batch;
        uint64_t packets = 0;
        start(capture);
        while (capture_packets_next(capture, 1000, &batch) > 0) {
            usleep(1000);
            for (uint32_t i = 0; i < batch.count; i++)
                CHECK_EQUAL(++packets, batch.packets[i].packet_id);
            capture_packets_release(capture);
        }
        CHECK_EQUAL(LARGE_FRAMES, packets);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(0, stats.packet_ring_dropped);
        CHECK_EQUAL(LARGE_FRAMES, stats.metered);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void a_stop_wakes_a_file_that_waits_for_its_packets_to_be_taken(void) {
    struct trace_file trace = trace_of_large_frames();
    for (uint32_t variant = 0; variant < 4; variant++) {
        uint32_t workers = variant & 1;
        bool graceful = variant & 2;
        capture_t *capture = capture_of(&trace, (struct capture_options){.packet_ring_mb = 1, .workers = workers});
        start(capture);
        CHECK_EQUAL(1, capture_poll(capture, 20));
        CHECK_EQUAL(1, capture_poll(capture, 20));
        usleep(workers * 20000);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(FRAME_BATCH, stats.received);
        CHECK_EQUAL(17, stats.metered); /* 17 frames of 60,000 bytes in 1 MiB */
        capture_stop(capture, graceful);
        stats = stats_of(capture);
        CHECK_EQUAL(0, stats.in_flight);
        CHECK_EQUAL(FRAME_BATCH, stats.received);
        CHECK_EQUAL(graceful ? FRAME_BATCH : 17, stats.metered);
        CHECK_EQUAL(FRAME_BATCH - stats.metered, stats.dropped_user);
        CHECK_EQUAL(stats.metered - 17, stats.packet_ring_dropped);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

/* The worst case of a small table: every packet is a new flow, nearly every one makes another leave. */
static void a_flood_of_one_packet_flows_leaves_each_record_once(void) {
    enum { FLOOD = 150000 };
    struct trace_file trace = trace_of_flows(FLOOD, FLOOD);
    const char *files[] = {trace.path};
    struct capture_config config = {.struct_size = sizeof(config), .files = files, .file_count = 1};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config), .max_flows = 4096};
    static struct capture_flow_columns columns;
    static uint8_t sources[1024 * 16], seen[FLOOD];
    columns.src_addr = sources;
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, NULL));
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
    struct capture_batch_info info = {0};
    start(capture);
    do {
        capture_poll(capture, 100);
        do {
            CHECK(capture_reader_read_columns(reader, &columns, 1024, &info) >= 0);
            for (uint32_t i = 0; i < info.records; i++) {
                const uint8_t *address = sources + 16 * i + 12;
                seen[address[1] << 16 | address[2] << 8 | address[3]]++;
            }
        } while (info.more);
    } while (!info.end);
    for (uint32_t flow = 0; flow < FLOOD; flow++)
        CHECK_EQUAL(1, seen[flow]);
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(FLOOD, stats.flows_total);
    CHECK_EQUAL(4096, stats.flows_ended[CAPTURE_FLOW_END_FORCED]);
    CHECK_EQUAL(FLOOD - 4096, stats.flows_ended[CAPTURE_FLOW_END_RESOURCES]);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void several_files_are_one_trace(void) {
    struct trace_file first = trace_of_flows(10, 100), second = trace_of_flows(10, 50);
    const char *files[] = {first.path, second.path};
    struct capture_config config = {.struct_size = sizeof(config), .files = files, .file_count = 2};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config)};
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, NULL));
    run(capture);
    CHECK_EQUAL(150, stats_of(capture).metered);
    CHECK_EQUAL(10, stats_of(capture).flows_total);
    CHECK_EQUAL(50, stats_of(capture).time_regressions);
    capture_destroy(capture);
    trace_forget(&first);
    trace_forget(&second);
}

int main(void) {
    RUN(a_file_is_metered_to_its_totals_inline_and_by_a_thread);
    RUN(frames_that_are_not_metered_are_counted_by_cause);
    RUN(after_the_deadline_frames_are_paused_until_a_later_one_is_set);
    RUN(calls_in_the_wrong_state_are_refused);
    RUN(flow_settings_out_of_range_are_named);
    RUN(a_file_damaged_in_the_middle_is_metered_up_to_there_and_says_so);
    RUN(live_flows_are_listed_sorted_and_limited);
    RUN(every_frame_is_delivered_with_its_number);
    RUN(a_file_waits_for_the_consumer_of_its_packets);
    RUN(a_stop_wakes_a_file_that_waits_for_its_packets_to_be_taken);
    RUN(a_flood_of_one_packet_flows_leaves_each_record_once);
    RUN(several_files_are_one_trace);
    return 0;
}
