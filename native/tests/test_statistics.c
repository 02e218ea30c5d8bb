/* SPDX-License-Identifier: Apache-2.0 */
/* Payload sizes and intervals from packets through the flow table, their deviations against a plain two-pass one, what the arrays
 * take, and the public calls that hand statistics out. TCP's are in test_tcp_statistics.c,
 * those of headers in test_header_statistics.c. */
#include <math.h>

#include "check.h"
#include "flow/flow_statistics.h"
#include "kept_flows.h"
#include "trace_file.h"

enum { ALL = STATISTICS_ALL, ICMP = 1, TCP = 6, UDP = 17, GRE = 47, ICMPV6 = 58, SCTP = 132, VALUES_MAX = 300 };

#define CHECK_NEAR(expected, actual)                                                                                             \
    do {                                                                                                                         \
        double near_expected = (expected), near_actual = (actual);                                                               \
        if (fabs(near_expected - near_actual) > 1e-9 * fabs(near_expected) + 1e-9) {                                             \
            fprintf(stderr, "%s:%d: %s is %.17g, expected %.17g\n", __FILE__, __LINE__, #actual, near_actual, near_expected);    \
            exit(1);                                                                                                             \
        }                                                                                                                        \
    } while (0)

static void begin(uint32_t statistics, uint64_t active_s) {
    begin_table((struct flow_table_config){.max_flows = 4096, .active_timeout_ns = active_s * SECOND, .statistics = statistics});
}

static void add_packet(struct packet packet) {
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
}

/* `wire` bytes after the IP header, none of them captured. */
static void add(uint8_t from, uint64_t ts_ns, uint8_t protocol, uint32_t wire) {
    struct packet packet = packet_of(1, from, ts_ns);
    packet.key.protocol = protocol;
    packet.payload_wire = wire;
    add_packet(packet);
}

static const struct capture_flow_statistics *finish(void) {
    while (!flow_table_flush(&table, 3))
        continue;
    CHECK(ended_count > 0);
    return &kept[ended_count - 1];
}

static void check_spread(const struct capture_spread *spread, const uint64_t *values, uint32_t count) {
    struct capture_spread expected = {0};
    long double sum = 0, squares = 0;
    for (uint32_t i = 0; i < count; i++) {
        expected.min = i && expected.min < values[i] ? expected.min : values[i];
        expected.max = expected.max > values[i] ? expected.max : values[i];
        sum += (long double)values[i];
    }
    long double mean = count ? sum / count : 0;
    for (uint32_t i = 0; i < count; i++)
        squares += ((long double)values[i] - mean) * ((long double)values[i] - mean);
    CHECK_EQUAL(expected.min, spread->min);
    CHECK_EQUAL(expected.max, spread->max);
    CHECK_NEAR((double)mean, spread->mean);
    CHECK_NEAR(count ? (double)sqrtl(squares / count) : 0, spread->stddev);
}

static void payload_sizes_are_those_behind_the_transport_header(void) {
    static const struct {
        uint8_t protocol;
        uint32_t wire, payload;
    } cases[] = {{UDP, 108, 100}, {SCTP, 112, 100}, {ICMP, 64, 56},
                 {GRE, 100, 100}, {UDP, 5, 0},      {TCP, 120, 100} /* the length of a header that was not captured: 20 */,
                 {ICMPV6, 64, 64} /* in IPv4 it is none */};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin(CAPTURE_STATISTICS_SIZES, 0);
        add(0, SECOND, cases[i].protocol, cases[i].wire);
        const struct capture_flow_statistics *statistics = finish();
        CHECK_EQUAL(cases[i].payload, statistics->fwd_payload.min);
        CHECK_EQUAL(cases[i].payload, statistics->fwd_payload.max);
        CHECK_NEAR(cases[i].payload, statistics->fwd_payload.mean);
        CHECK_NEAR(0, statistics->fwd_payload.stddev);
    }
}

static void the_tcp_header_length_is_the_captured_one(void) {
    uint8_t header[20] = {[12] = 0x80}; /* 32 bytes */
    struct packet packet = packet_of(1, 0, SECOND);
    packet.key.protocol = TCP;
    packet.payload = header;
    packet.payload_left = sizeof(header);
    packet.payload_wire = 132;
    begin(CAPTURE_STATISTICS_SIZES, 0);
    add_packet(packet);
    header[12] = 0x40; /* less than a header can be: nothing is known to be behind it */
    add_packet(packet);
    CHECK_EQUAL(100, finish()->fwd_payload.max);
    CHECK_EQUAL(0, kept[0].fwd_payload.min);
}

static void a_later_fragment_is_all_payload(void) {
    struct packet packet = packet_of(1, 0, SECOND);
    packet.key.protocol = UDP;
    packet.fragment = PACKET_FRAGMENT_LATER;
    packet.payload_wire = 100;
    begin(CAPTURE_STATISTICS_SIZES, 0);
    add_packet(packet);
    CHECK_EQUAL(100, finish()->fwd_payload.max);
}

static void intervals_are_between_packets_of_one_direction(void) {
    begin(CAPTURE_STATISTICS_INTERVALS, 0);
    add(1, SECOND, UDP, 8);
    add(0, SECOND + 5, UDP, 8);
    add(1, SECOND + 10, UDP, 8);
    add(1, SECOND + 40, UDP, 8);
    add(0, SECOND + 50, UDP, 8);
    const struct capture_flow_statistics *statistics = finish();
    check_spread(&statistics->fwd_interval, (uint64_t[]){10, 30}, 2);
    check_spread(&statistics->rev_interval, (uint64_t[]){45}, 1);
    CHECK_EQUAL(0, statistics->fwd_payload.max);
}

static void one_packet_has_no_interval(void) {
    begin(CAPTURE_STATISTICS_INTERVALS, 0);
    add(0, SECOND, UDP, 8);
    const struct capture_flow_statistics *statistics = finish();
    check_spread(&statistics->fwd_interval, NULL, 0);
    check_spread(&statistics->rev_interval, NULL, 0);
}

static void a_step_backwards_is_an_interval_of_0(void) {
    begin(CAPTURE_STATISTICS_INTERVALS, 0);
    add(0, 10ull * SECOND, UDP, 8);
    add(0, 4ull * SECOND, UDP, 8);
    add(0, 6ull * SECOND, UDP, 8);
    check_spread(&finish()->fwd_interval, (uint64_t[]){0, 2ull * SECOND}, 2);
}

static void absurd_times_make_no_absurd_deviation(void) {
    begin(CAPTURE_STATISTICS_INTERVALS, 0);
    for (int i = 0; i < 8; i++)
        add(0, i % 2 ? UINT64_MAX : 0, UDP, 8);
    const struct capture_flow_statistics *statistics = finish();
    CHECK_EQUAL(0, statistics->fwd_interval.min);
    CHECK(statistics->fwd_interval.max == UINT64_MAX);
    CHECK(statistics->fwd_interval.mean >= 0 && statistics->fwd_interval.mean <= 0x1p64);
    CHECK(statistics->fwd_interval.stddev >= 0 && isfinite(statistics->fwd_interval.stddev));
}

static uint32_t next_random(void) {
    static uint64_t state = 11;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* Also where naive sums cancel: values of a day's length that differ by a few. */
static void deviations_are_those_of_two_passes(void) {
    static const uint64_t bases[] = {0, 1000000, 86400ull * SECOND};
    for (int round = 0; round < 300; round++) {
        uint64_t sizes[VALUES_MAX], intervals[VALUES_MAX], now = 5, base = bases[round % 3];
        uint32_t count = 1 + next_random() % VALUES_MAX, spread = 1 + next_random() % (round % 2 ? 4 : 65000);
        begin(ALL, 0);
        for (uint32_t i = 0; i < count; i++) {
            sizes[i] = next_random() % spread;
            if (i)
                now += intervals[i - 1] = base + next_random() % spread;
            add(round % 2, now, GRE, (uint32_t)sizes[i]);
        }
        const struct capture_flow_statistics *statistics = finish();
        check_spread(&statistics->fwd_payload, sizes, count);
        check_spread(&statistics->fwd_interval, intervals, count - 1);
        check_spread(&statistics->rev_payload, NULL, 0);
    }
}

static void a_restarted_record_counts_its_own_packets_only(void) {
    begin(ALL, 10);
    add(0, SECOND, UDP, 1008);
    add(0, 2ull * SECOND, UDP, 1008);
    add(0, 11ull * SECOND, UDP, 18);
    add(0, 13ull * SECOND, UDP, 18);
    finish();
    CHECK_EQUAL(2, ended_count);
    check_spread(&kept[0].fwd_payload, (uint64_t[]){1000, 1000}, 2);
    check_spread(&kept[0].fwd_interval, (uint64_t[]){SECOND}, 1);
    check_spread(&kept[1].fwd_payload, (uint64_t[]){10, 10}, 2);
    check_spread(&kept[1].fwd_interval, (uint64_t[]){2ull * SECOND}, 1);
}

static void each_statistic_takes_its_array_and_what_is_off_takes_nothing(void) {
    uint64_t plain = 0;
    for (uint32_t kinds = 0; kinds <= ALL; kinds++) {
        begin(kinds, 0);
        uint64_t expected = (kinds & CAPTURE_STATISTICS_TCP ? 4096ull * sizeof(struct tcp_statistics) : 0) +
                            (kinds & CAPTURE_STATISTICS_SIZES ? 4096ull * sizeof(struct size_statistics) : 0) +
                            (kinds & CAPTURE_STATISTICS_INTERVALS ? 4096ull * sizeof(struct interval_statistics) : 0) +
                            (kinds & CAPTURE_STATISTICS_HEADERS ? 4096ull * sizeof(struct header_statistics) : 0);
        plain = kinds ? plain : flow_table_bytes(&table);
        CHECK(plain <= 160 * 4096);
        CHECK_EQUAL(expected, flow_statistics_size(kinds, 4096));
        CHECK_EQUAL(plain + expected, flow_table_bytes(&table));
        CHECK_EQUAL((kinds & CAPTURE_STATISTICS_TCP) != 0, table.statistics.tcp != NULL);
        CHECK_EQUAL((kinds & CAPTURE_STATISTICS_SIZES) != 0, table.statistics.sizes != NULL);
        CHECK_EQUAL((kinds & CAPTURE_STATISTICS_INTERVALS) != 0, table.statistics.intervals != NULL);
        CHECK_EQUAL((kinds & CAPTURE_STATISTICS_HEADERS) != 0, table.statistics.headers != NULL);
    }
    CHECK_EQUAL(160 + 64 + 96 + 48, sizeof(struct tcp_statistics) + sizeof(struct size_statistics) +
                                        sizeof(struct interval_statistics) + sizeof(struct header_statistics));
}

static capture_t *capture_with(const struct trace_file *trace, uint32_t statistics) {
    const char *path = trace->path;
    struct capture_config config = {.struct_size = sizeof(config), .files = &path, .file_count = 1, .backend = "file"};
    struct capture_flow_config flows = {
        .struct_size = sizeof(flows), .max_flows = 4096, .log_records = 1024, .hash_seed = 1, .statistics = statistics};
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flows, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, NULL));
    while (capture_poll(capture, 100) > 0)
        continue;
    return capture;
}

static void an_unknown_statistic_is_refused(void) {
    struct trace_file trace = trace_of_flows(1, 1);
    const char *path = trace.path;
    struct capture_config config = {.struct_size = sizeof(config), .files = &path, .file_count = 1};
    struct capture_flow_config flows = {.struct_size = sizeof(flows), .statistics = 16};
    struct capture_error_info error;
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_flow_enable(capture, &flows, &error));
    CHECK_TEXT("statistics", error.field);
    CHECK_TEXT("statistics is 16: accepted are 0 (none) and sums of 1 (tcp), 2 (sizes), 4 (intervals) and 8 (headers)",
               error.message);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void the_capture_says_what_its_statistics_take(void) {
    struct trace_file trace = trace_of_flows(3, 9);
    struct capture_stats stats[2];
    for (int on = 0; on < 2; on++) {
        capture_t *capture = capture_with(&trace, on ? CAPTURE_STATISTICS_SIZES : 0);
        CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats[on]));
        capture_destroy(capture);
    }
    CHECK_EQUAL(0, stats[0].statistics_bytes);
    CHECK_EQUAL(4096 * sizeof(struct size_statistics), stats[1].statistics_bytes);
    CHECK_EQUAL(1024 * sizeof(struct capture_flow_statistics) + stats[1].statistics_bytes,
                stats[1].flow_table_bytes - stats[0].flow_table_bytes); /* the log's slots are larger too */
    trace_forget(&trace);
}

/* Flow n of the trace sends 10 packets of 28 + n octets, so its payload says which it is. */
static void queries_hand_out_each_flows_own_statistics(void) {
    enum { FLOWS = 90, LIMIT = 40 };
    struct trace_file trace = trace_of_flows(FLOWS, FLOWS * 10);
    const char *path = trace.path;
    struct capture_config config = {.struct_size = sizeof(config), .files = &path, .file_count = 1, .packet_ring_mb = 1};
    struct capture_flow_config metering = {.struct_size = sizeof(metering), .max_flows = 4096, .statistics = ALL};
    struct capture_packet_batch batch;
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &metering, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, NULL));
    CHECK(capture_packets_next(capture, 1000, &batch) > 0); /* one batch: the flows are in the table now */
    static struct capture_flow flows[LIMIT];
    static struct capture_flow_statistics statistics[LIMIT];
    for (uint32_t sort_by = CAPTURE_SORT_NONE; sort_by <= CAPTURE_SORT_DURATION; sort_by++) {
        for (uint32_t limit = 1; limit <= LIMIT; limit += 13) {
            struct capture_flow_query query = {.sort_by = sort_by, .limit = limit};
            CHECK_EQUAL(limit, capture_flow_get_all(capture, &query, flows, statistics, NULL));
            for (uint32_t i = 0; i < limit; i++) {
                CHECK_EQUAL(flows[i].fwd_octets / flows[i].fwd_packets - 28, statistics[i].fwd_payload.max);
                CHECK(sort_by != CAPTURE_SORT_OCTETS || i == 0 ||
                      flows[i - 1].fwd_octets + flows[i - 1].rev_octets >= flows[i].fwd_octets + flows[i].rev_octets);
            }
        }
    }
    struct capture_flow found;
    struct capture_flow_statistics own;
    CHECK_EQUAL(1, capture_flow_lookup(capture, flows[0].flow_id, &found, &own, 1));
    CHECK(memcmp(&own, &statistics[0], sizeof(own)) == 0);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(payload_sizes_are_those_behind_the_transport_header);
    RUN(the_tcp_header_length_is_the_captured_one);
    RUN(a_later_fragment_is_all_payload);
    RUN(intervals_are_between_packets_of_one_direction);
    RUN(one_packet_has_no_interval);
    RUN(a_step_backwards_is_an_interval_of_0);
    RUN(absurd_times_make_no_absurd_deviation);
    RUN(deviations_are_those_of_two_passes);
    RUN(a_restarted_record_counts_its_own_packets_only);
    RUN(each_statistic_takes_its_array_and_what_is_off_takes_nothing);
    RUN(an_unknown_statistic_is_refused);
    RUN(the_capture_says_what_its_statistics_take);
    RUN(queries_hand_out_each_flows_own_statistics);
    return 0;
}
