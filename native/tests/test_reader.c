/* SPDX-License-Identifier: Apache-2.0 */
/* Readers of the record logs: nothing twice, nothing lost unsaid. */
#include <pthread.h>

#include "stream_message.h"
#include "trace_file.h"

enum { FLOWS = 5000, PACKETS = 15000, SMALL_LOG = 1024 };

static uint8_t buffer[1 << 20];

static struct capture_batch_info read_some(capture_flow_reader_t *reader, uint32_t max_records) {
    struct capture_batch_info info;
    int count = capture_reader_read_batch(reader, buffer, sizeof(buffer), max_records, &info);
    CHECK_EQUAL(info.records, count);
    CHECK_EQUAL(info.records > 0, info.bytes > 0);
    return info;
}

static void a_lossless_reader_gets_every_record_through_a_small_log(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture =
            capture_of(&trace, (struct capture_options){.log_records = SMALL_LOG, .workers = workers, .active_s = 7});
        capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
        struct capture_batch_info info = {0};
        uint64_t records = 0, next = 0;
        int more;
        start(capture);
        do {
            more = capture_poll(capture, 50);
            do {
                info = read_some(reader, 100);
                CHECK_EQUAL(0, info.lost);
                CHECK_EQUAL(next, info.first_sequence);
                next = info.next_sequence;
                records += info.records;
            } while (info.more);
        } while (more > 0);
        CHECK(info.end);
        struct capture_stats stats = stats_of(capture);
        CHECK(stats.flows_ended[CAPTURE_FLOW_END_ACTIVE] > 0);
        CHECK_EQUAL(stats.flows_total, records);
        CHECK_EQUAL(stats.log_records_written, next);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void a_lossless_reader_reads_on_after_an_early_stop(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.log_records = SMALL_LOG});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
    start(capture);
    for (int i = 0; i < 70; i++)
        capture_poll(capture, 0);
    capture_stop(capture, true);
    uint64_t flows = stats_of(capture).flows_total, records = 0;
    CHECK(flows > 2 * SMALL_LOG);
    struct capture_batch_info info;
    do {
        info = read_some(reader, 1000);
        records += info.records;
        CHECK_EQUAL(0, info.lost);
    } while (!info.end);
    CHECK_EQUAL(flows, records);
    CHECK_EQUAL(0, stats_of(capture).flows_active);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_reader_that_was_lapped_is_told_exactly_what_it_lost(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.log_records = SMALL_LOG});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    struct capture_batch_info info = read_some(reader, 10);
    CHECK_EQUAL(FLOWS - SMALL_LOG, info.lost);
    CHECK_EQUAL(0, info.first_lost_sequence);
    CHECK_EQUAL(FLOWS - SMALL_LOG - 1, info.last_lost_sequence);
    CHECK_EQUAL(FLOWS - SMALL_LOG, info.first_sequence);
    CHECK_EQUAL(10, info.records);
    CHECK(info.more);
    CHECK(!info.end);
    info = read_some(reader, 100000);
    CHECK_EQUAL(0, info.lost);
    CHECK_EQUAL(SMALL_LOG - 10, info.records);
    CHECK(info.end);
    info = read_some(reader, 1);
    CHECK_EQUAL(0, info.records);
    CHECK(info.end);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_token_resumes_without_repeating_or_skipping(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){0}),
              *other = capture_of(&trace, (struct capture_options){0});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    read_some(reader, 1234);
    uint32_t length;
    uint8_t token[16];
    const uint8_t *found = token_of(buffer, &length);
    CHECK_EQUAL(sizeof(token), length);
    memcpy(token, found, sizeof(token));
    capture_reader_close(reader);

    struct capture_reader_config config = {
        .struct_size = sizeof(config), .start = CAPTURE_READER_TOKEN, .token = token, .token_length = sizeof(token)};
    reader = reader_of(capture, config);
    struct capture_batch_info info = read_some(reader, 1);
    CHECK_EQUAL(1234, info.first_sequence);
    CHECK_EQUAL(1235, info.next_sequence);
    capture_reader_close(reader);

    struct capture_error_info error;
    CHECK_EQUAL(CAPTURE_ERR_TOKEN, capture_reader_open(other, &config, &reader, &error));
    CHECK(strstr(error.message, "another capture"));
    config.token_length = 15;
    CHECK_EQUAL(CAPTURE_ERR_TOKEN, capture_reader_open(capture, &config, &reader, &error));
    config.token_length = 16;
    token[8] = 1; /* a position that was never given out */
    CHECK_EQUAL(CAPTURE_ERR_TOKEN, capture_reader_open(capture, &config, &reader, &error));
    capture_destroy(capture);
    capture_destroy(other);
    trace_forget(&trace);
}

static void readers_start_where_they_were_asked_to(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.start = CAPTURE_READER_NEWEST});
    CHECK(read_some(reader, 10).end);
    reader = reader_of(capture, (struct capture_reader_config){.start = CAPTURE_READER_LAST, .last_records = 7});
    struct capture_batch_info info = read_some(reader, 100);
    CHECK_EQUAL(7, info.records);
    CHECK_EQUAL(FLOWS - 7, info.first_sequence);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void records_that_are_not_wanted_are_passed_over(void) {
    struct trace_file trace = trace_of_flows(100, 150); /* flows 0..49 have two packets */
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    CHECK_EQUAL(50, read_some(reader_of(capture, (struct capture_reader_config){.min_packets = 2}), 1000).records);
    CHECK_EQUAL(1, read_some(reader_of(capture, (struct capture_reader_config){.filter = "host 10.0.0.9"}), 1000).records);
    uint64_t since = 1700000000ull * SECOND + 140 * 1000000ull; /* the last 10 packets */
    CHECK_EQUAL(10, read_some(reader_of(capture, (struct capture_reader_config){.since_ns = since}), 1000).records);
    struct capture_batch_info info = read_some(reader_of(capture, (struct capture_reader_config){.min_packets = 3}), 1000);
    CHECK_EQUAL(0, info.records);
    CHECK_EQUAL(100, info.next_sequence);
    CHECK(info.end);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_small_buffer_bounds_a_batch(void) {
    struct trace_file trace = trace_of_flows(FLOWS, FLOWS);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    struct capture_batch_info info;
    uint64_t records = 0;
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_reader_read_batch(reader, buffer, 4095, 10, &info));
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_reader_read_text(reader, CAPTURE_TEXT_CSV, (char *)buffer, 100, &info));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_reader_read_text(reader, 9, (char *)buffer, sizeof(buffer), &info));
    do {
        uint8_t *exact = malloc(4096); /* ASan sees one byte too many */
        CHECK(capture_reader_read_batch(reader, exact, 4096, 100000, &info) > 10);
        CHECK(info.bytes <= 4096);
        records += info.records;
        free(exact);
    } while (info.more);
    CHECK_EQUAL(FLOWS, records);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void text_and_columns_hold_the_same_records(void) {
    struct trace_file trace = trace_of_flows(100, 100);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    struct capture_batch_info info;
    uint64_t octets[200];
    struct capture_flow_columns columns = {.fwd_octets = octets};
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    capture_flow_reader_t *text = reader_of(capture, (struct capture_reader_config){0});
    CHECK_EQUAL(100, capture_reader_read_text(text, CAPTURE_TEXT_JSON, (char *)buffer, sizeof(buffer), &info));
    uint32_t lines = 0;
    for (uint64_t i = 0; i < info.bytes; i++)
        lines += buffer[i] == '\n';
    CHECK_EQUAL(100, lines);
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    CHECK_EQUAL(60, capture_reader_read_columns(reader, &columns, 60, &info));
    CHECK_EQUAL(40, capture_reader_read_columns(reader, &columns, 60, &info));
    CHECK_EQUAL(28 + 99, octets[39]);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void lossless_readers_are_limited_and_give_their_place_back(void) {
    struct trace_file trace = trace_of_flows(10, 10);
    capture_t *capture = capture_of(&trace, (struct capture_options){0});
    struct capture_reader_config config = {.struct_size = sizeof(config), .lossless = true};
    struct capture_error_info error;
    capture_flow_reader_t *readers[9];
    for (int i = 0; i < 8; i++)
        readers[i] = reader_of(capture, config);
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_reader_open(capture, &config, &readers[8], &error));
    CHECK_TEXT("lossless", error.field);
    capture_reader_close(readers[3]);
    readers[3] = reader_of(capture, config);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_batch_that_begins_at_time_0_keeps_its_base(void) {
    for (uint64_t first = 0; first < 2; first++) {
        struct trace_file trace = trace_new(101);
        for (uint64_t i = 0; i < 2; i++) {
            struct bytes frame = {0};
            add_ipv4(&frame, 0x0a000000 + (uint32_t)i, 0xac100001, 17, 8, 1, 0);
            add_udp(&frame, 4000, 53, 0);
            trace_packet(&trace, i ? 1700000000ull * SECOND : first, &frame);
        }
        capture_t *capture = capture_of(&trace, (struct capture_options){0});
        capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
        start(capture);
        while (capture_poll(capture, 100) > 0)
            continue;
        CHECK_EQUAL(2, read_some(reader, 2).records);
        CHECK_EQUAL(first, base_time_of(buffer)); /* what the first record's times are relative to */
        capture_destroy(capture);
        trace_forget(&trace);
    }
}

static void *drain_after_a_while(void *reader) {
    struct capture_batch_info info;
    static uint8_t own[1 << 20];
    usleep(100000);
    do
        CHECK(capture_reader_read_batch(reader, own, sizeof(own), 1000, &info) >= 0);
    while (!info.end);
    return NULL;
}

static void polls_that_wait_for_a_reader_in_another_thread_do_not_spin(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.log_records = SMALL_LOG});
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
    pthread_t thread;
    uint32_t polls = 0;
    start(capture);
    CHECK_EQUAL(0, pthread_create(&thread, NULL, drain_after_a_while, reader));
    while (capture_poll(capture, 1000) > 0)
        polls++;
    pthread_join(thread, NULL);
    CHECK(polls < 1000); /* 100 ms of waiting in steps of about 2 ms, and some for the records */
    capture_destroy(capture);
    trace_forget(&trace);
}

/* The worker is in a turn that does not know of the reader yet. */
static void a_lossless_reader_opened_in_the_middle_loses_nothing_from_then_on(void) {
    struct trace_file trace = trace_of_flows(FLOWS, 4 * PACKETS);
    uint32_t caught = 0;
    for (int round = 0; round < 40; round++) {
        capture_t *capture =
            capture_of(&trace, (struct capture_options){.log_records = SMALL_LOG, .workers = 1, .idle_s = 1, .active_s = 1});
        struct capture_batch_info info;
        start(capture);
        while (stats_of(capture).log_records_written < SMALL_LOG * (uint64_t)(1 + round % 8))
            continue;
        capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
        caught += !read_some(reader, 1).end;
        usleep(300);
        do {
            info = read_some(reader, 1000);
            CHECK_EQUAL(0, info.lost);
        } while (!info.end);
        capture_destroy(capture);
    }
    CHECK(caught > 0);
    trace_forget(&trace);
}

int main(void) {
    RUN(a_batch_that_begins_at_time_0_keeps_its_base);
    RUN(polls_that_wait_for_a_reader_in_another_thread_do_not_spin);
    RUN(a_lossless_reader_opened_in_the_middle_loses_nothing_from_then_on);
    RUN(a_lossless_reader_gets_every_record_through_a_small_log);
    RUN(a_lossless_reader_reads_on_after_an_early_stop);
    RUN(a_reader_that_was_lapped_is_told_exactly_what_it_lost);
    RUN(a_token_resumes_without_repeating_or_skipping);
    RUN(readers_start_where_they_were_asked_to);
    RUN(records_that_are_not_wanted_are_passed_over);
    RUN(a_small_buffer_bounds_a_batch);
    RUN(text_and_columns_hold_the_same_records);
    RUN(lossless_readers_are_limited_and_give_their_place_back);
    return 0;
}
