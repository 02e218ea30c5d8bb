/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's net_pcap and net_null: totals against the file backend, what is refused and how, nothing left behind. */
#include "dpdk_capture.h"

#include <fcntl.h>
#include <rte_malloc.h>
#include <rte_mempool.h>

#define DATA "../../tests/data/"

/* rte_eal_init copies its arguments each time it is called, and forgets the copy of a start that failed. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:librte_eal.so";
}

static const char *const same_in_both[] = {DATA "connection.pcap", DATA "fragments.pcap", DATA "tagged.pcap",
                                           DATA "labelled.pcap", DATA "pauses.pcap"};

static struct capture_flow flows_of(capture_t *capture, uint32_t *count) {
    struct capture_flow_query query = {.limit = 100, .sort_by = CAPTURE_SORT_START};
    static struct capture_flow flows[100];
    int found = capture_flow_get_all(capture, &query, flows, NULL, NULL);
    CHECK(found >= 0);
    *count = (uint32_t)found;
    struct capture_flow sum = {0};
    for (int i = 0; i < found; i++) { /* sums: the order of flows that start together is free */
        sum.flow_id += flows[i].flow_id;
        sum.fwd_packets += flows[i].fwd_packets;
        sum.rev_packets += flows[i].rev_packets;
        sum.fwd_octets += flows[i].fwd_octets;
        sum.rev_octets += flows[i].rev_octets;
        sum.start_time_ns += flows[i].start_time_ns / 1000;
        sum.end_time_ns += flows[i].end_time_ns / 1000;
        sum.fwd_tcp_flags += flows[i].fwd_tcp_flags;
        sum.vlan_id += flows[i].vlan_id;
    }
    return sum;
}

static void a_file_gives_the_flows_and_times_that_the_file_backend_gives(void) {
    for (size_t i = 0; i < sizeof same_in_both / sizeof *same_in_both; i++) {
        char device[200];
        snprintf(device, sizeof device, "net_pcap0,rx_pcap=%s", same_in_both[i]);
        struct capture_config file = {.struct_size = sizeof file, .files = &same_in_both[i], .file_count = 1};
        struct capture_config dpdk = dpdk_config(device);
        capture_t *expected = begin(&file), *capture = begin(&dpdk);
        struct capture_stats want, stats;
        while (capture_poll(expected, 1000) > 0)
            continue;
        capture_get_stats(expected, &want);
        run_until(capture, want.received);
        uint32_t count;
        struct capture_flow sum = flows_of(capture, &count);
        stats = finish(capture);
        CHECK(want.received > 0);
        CHECK_EQUAL(want.received, stats.received);
        CHECK_EQUAL(want.received_octets, stats.received_octets);
        CHECK_EQUAL(want.metered, stats.metered);
        CHECK_EQUAL(want.metered_octets, stats.metered_octets);
        CHECK_EQUAL(want.non_ip, stats.non_ip);
        CHECK_EQUAL(want.malformed, stats.malformed);
        CHECK_EQUAL(want.flows_total, stats.flows_total);
        CHECK(count > 0 && sum.fwd_packets + sum.rev_packets > 0);
        CHECK_EQUAL(stats.metered, sum.fwd_packets + sum.rev_packets);
        CHECK_EQUAL(stats.metered_octets, sum.fwd_octets + sum.rev_octets);
        capture_destroy(expected);
        capture_destroy(capture);
    }
}

static void timestamps_are_those_of_the_file(void) {
    struct capture_config config = dpdk_config("dpdk:net_pcap1,rx_pcap=" DATA "connection.pcap");
    const char *const path = DATA "connection.pcap";
    struct capture_config file = {.struct_size = sizeof file, .files = &path, .file_count = 1, .packet_ring_mb = 1};
    config.packet_ring_mb = 1;
    config.backend = NULL; /* "dpdk:" says it */
    struct capture_packet_batch batch;
    uint64_t times[2][64], frames[2] = {0};
    for (int i = 0; i < 2; i++) {
        capture_t *capture = begin(i ? &config : &file);
        for (int turn = 0; turn < 50 && frames[i] < 64; turn++) {
            int count = capture_packets_next(capture, 10, &batch);
            for (int j = 0; j < count && frames[i] < 64; j++)
                times[i][frames[i]++] = batch.packets[j].timestamp_ns;
            capture_packets_release(capture);
        }
        capture_destroy(capture);
    }
    CHECK(frames[0] > 1);
    CHECK_EQUAL(frames[0], frames[1]);
    for (uint64_t j = 0; j < frames[0]; j++)
        CHECK_EQUAL(times[0][j] / 1000, times[1][j] / 1000);
}

static uint64_t dpdk_bytes(void) {
    struct rte_malloc_socket_stats stats;
    CHECK_EQUAL(0, rte_malloc_get_socket_stats(0, &stats));
    return stats.heap_allocsz_bytes;
}

static void a_capture_gives_back_every_byte_and_its_device(void) {
    struct capture_config config = dpdk_config("net_pcap0,rx_pcap=" DATA "connection.pcap,infinite_rx=1");
    uint64_t before = 0;
    for (int turn = 0; turn < 5; turn++) {
        capture_t *capture = begin(&config);
        run_until(capture, 10000);
        struct capture_stats stats = finish(capture);
        CHECK(stats.received >= 10000);
        CHECK_EQUAL(0, stats.dropped_nic + stats.dropped_user);
        capture_destroy(capture);
        if (turn > 0)
            CHECK_EQUAL(before, dpdk_bytes());
        before = dpdk_bytes();
    }
}

static void an_ungraceful_stop_in_full_flight_adds_up(void) {
    struct capture_config config = dpdk_config("net_pcap0,rx_pcap=" DATA "connection.pcap,infinite_rx=1");
    config.workers = 1;
    uint64_t before = dpdk_bytes();
    capture_t *capture = begin(&config);
    run_until(capture, 10000);
    struct capture_stats stats;
    for (int i = 0; i < 20; i++) { /* while it runs, too */
        CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
        check_balance(&stats);
    }
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, false));
    CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
    check_balance(&stats);
    capture_destroy(capture);
    CHECK_EQUAL(before, dpdk_bytes());
}

static void two_workers_read_two_queues(void) {
    struct capture_config config = dpdk_config("net_pcap0,rx_pcap=" DATA "connection.pcap,rx_pcap=" DATA "connection.pcap");
    const char *const path = DATA "connection.pcap";
    struct capture_config file = {.struct_size = sizeof file, .files = &path, .file_count = 1};
    struct capture_stats one, both;
    capture_t *capture = begin(&file);
    while (capture_poll(capture, 1000) > 0)
        continue;
    capture_get_stats(capture, &one);
    capture_destroy(capture);
    config.workers = 2;
    capture = begin(&config);
    run_until(capture, 2 * one.received);
    both = finish(capture);
    CHECK_EQUAL(2 * one.metered, both.metered);
    CHECK_EQUAL(2 * one.flows_total, both.flows_total);
    capture_destroy(capture);
    config.workers = 3;
    check_refused(&config, CAPTURE_ERR_INVALID, "workers",
                  "workers is 3: device net_pcap0 has 2 receive queues, accepted are 0 to 2");
}

static void a_source_of_empty_frames_is_counted_to_the_last(void) {
    struct capture_config config = dpdk_config("net_null0,size=60");
    capture_t *capture = begin(&config);
    run_until(capture, 100000);
    char text[200];
    CHECK_EQUAL(CAPTURE_OK, capture_describe_backend(capture, text, sizeof text));
    printf("#   %s\n", text);
    CHECK(strstr(text, "driver net_null, 1 queue,") && strstr(text, "without huge pages, timestamps by the system's clock"));
    struct capture_stats stats = finish(capture);
    CHECK(stats.received >= 100000);
    CHECK_EQUAL(stats.received, stats.non_ip + stats.malformed);
    CHECK_EQUAL(stats.received * 60, stats.received_octets);
    capture_destroy(capture);
}

static void one_capture_has_a_device_at_a_time(void) {
    struct capture_config config = dpdk_config("net_null0");
    capture_t *capture = begin(&config);
    check_refused(&config, CAPTURE_ERR_STATE, "interface", "device net_null0 is being captured from by another capture");
    struct capture_config other = dpdk_config("net_null1,size=60");
    other.dpdk_eal_arg_count = 0; /* the EAL as it is */
    capture_t *second = begin(&other);
    run_until(second, 1000);
    finish(second);
    capture_destroy(second);
    run_until(capture, 1000);
    finish(capture);
    capture_destroy(capture);
}

static void a_device_that_dpdk_had_before_is_kept_and_its_memory_does_not_grow(void) {
    struct capture_config config = dpdk_config("net_null7"), greedy = config;
    greedy.buffer_size_mb = 8192;
    uint64_t after_first = 0;
    for (int turn = 0; turn < 5; turn++) {
        capture_t *capture = begin(&config);
        run_until(capture, 1000);
        finish(capture);
        capture_destroy(capture);
        if (turn > 0)
            CHECK_EQUAL(after_first, dpdk_bytes());
        after_first = dpdk_bytes();
        check_refused(&greedy, CAPTURE_ERR_NO_MEMORY, "buffer_size_mb", "buffer_size_mb is 8192");
    }
    config.interface = "net_null7,size=60";
    check_refused(&config, CAPTURE_ERR_INVALID, "interface", "DPDK has the device net_null7 already");
}

static void what_dpdk_refuses_is_said_in_its_words(void) {
    struct capture_config config = dpdk_config("net_pcap0,rx_pcap=/no/such/file.pcap");
    check_refused(&config, CAPTURE_ERR_NO_INTERFACE, "interface", "/no/such/file.pcap");
    config = dpdk_config("net_nosuchdriver0");
    check_refused(&config, CAPTURE_ERR_NO_INTERFACE, "interface", "net_nosuchdriver0");
    config = dpdk_config("net_null0,nonsense=1");
    check_refused(&config, CAPTURE_ERR_NO_INTERFACE, "interface", "net_null0,nonsense=1");
    config = dpdk_config("0000:ff:1f.7");
    check_refused(&config, CAPTURE_ERR_NO_INTERFACE, "interface", "0000:ff:1f.7");
    config = dpdk_config("dpdk:nothing");
    check_refused(&config, CAPTURE_ERR_NO_INTERFACE, "interface",
                  "DPDK has no device \"dpdk:nothing\": accepted are a PCI address");
    config = dpdk_config("eth0");
    check_refused(&config, CAPTURE_ERR_BACKEND, "backend", "not a DPDK device");
    config = dpdk_config("net_pcap0,rx_pcap=" DATA "connection.pcap,infinite_rx=1");
    config.interface = "dpdk:";
    check_refused(&config, CAPTURE_ERR_BACKEND, "backend", "not a DPDK device");
}

static void a_clock_that_is_not_there_is_refused(void) {
    struct capture_config config = dpdk_config("net_null0");
    config.timestamp_source = CAPTURE_TIMESTAMP_KERNEL;
    check_refused(&config, CAPTURE_ERR_INVALID, "timestamp_source",
                  "is 1 (kernel): with backend dpdk no frame passes the kernel");
    config.timestamp_source = CAPTURE_TIMESTAMP_PTP;
    check_refused(&config, CAPTURE_ERR_INVALID, "timestamp_source", "is 3 (ptp): with backend dpdk no frame passes the kernel");
    config.timestamp_source = CAPTURE_TIMESTAMP_NTP;
    check_refused(&config, CAPTURE_ERR_INVALID, "timestamp_source", "is 4 (ntp): with backend dpdk no frame passes the kernel");
    config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
    check_refused(&config, CAPTURE_ERR_INVALID, "timestamp_source", "net_null0 (driver net_null) has no hardware timestamps");
}

static void other_arguments_for_the_same_process_are_refused(void) {
    static const char *const other[] = {"--no-huge", "-m", "600"};
    struct capture_config config = dpdk_config("net_null0");
    config.dpdk_eal_args = other;
    config.dpdk_eal_arg_count = 3;
    check_refused(&config, CAPTURE_ERR_STATE, "dpdk_eal_args", "accepted are the same or none");
    config.dpdk_eal_arg_count = 1;
    config.dpdk_eal_args = (const char *const[]){"--help"};
    check_refused(&config, CAPTURE_ERR_INVALID, "dpdk_eal_args", "--help");
    config.dpdk_eal_args = NULL;
    check_refused(&config, CAPTURE_ERR_INVALID, "dpdk_eal_args", "missing");
}

static void memory_that_is_not_there_is_an_error_that_names_the_field(void) {
    struct capture_config config = dpdk_config("net_null0");
    config.buffer_size_mb = 8192;
    uint64_t before = dpdk_bytes();
    check_refused(&config, CAPTURE_ERR_NO_MEMORY, "buffer_size_mb", "buffer_size_mb is 8192: DPDK has no memory");
    CHECK_EQUAL(before, dpdk_bytes());
}

/* The first start of the EAL in this program, with values that it refuses: it prints its usage. */
static void a_start_that_fails_says_why_and_prints_nothing(void) {
    char name[] = "/tmp/jarvis-dpdk-XXXXXX";
    int file = mkstemp(name), out, err;
    CHECK(file >= 0);
    unlink(name);
    fflush(stdout);
    out = dup(1), err = dup(2);
    dup2(file, 1), dup2(file, 2);
    struct capture_config config = dpdk_config("net_null0");
    config.dpdk_eal_args = (const char *const[]){"-l", "nonsense"};
    config.dpdk_eal_arg_count = 2;
    struct capture_error_info error = refusal(&config);
    fflush(stdout);
    dup2(out, 1), dup2(err, 2);
    close(out), close(err);
    printf("#   %s\n", error.message);
    CHECK_EQUAL(CAPTURE_ERR_BACKEND, error.code);
    CHECK_TEXT("dpdk_eal_args", error.field);
    CHECK(strstr(error.message, "DPDK does not start: ") && strstr(error.message, "; DPDK says: "));
    CHECK_EQUAL(0, lseek(file, 0, SEEK_END));
    close(file);
}

int main(void) {
    add_module();
    RUN(a_start_that_fails_says_why_and_prints_nothing);
    RUN(a_file_gives_the_flows_and_times_that_the_file_backend_gives);
    RUN(timestamps_are_those_of_the_file);
    RUN(a_capture_gives_back_every_byte_and_its_device);
    RUN(an_ungraceful_stop_in_full_flight_adds_up);
    RUN(two_workers_read_two_queues);
    RUN(a_source_of_empty_frames_is_counted_to_the_last);
    RUN(one_capture_has_a_device_at_a_time);
    RUN(a_device_that_dpdk_had_before_is_kept_and_its_memory_does_not_grow);
    RUN(what_dpdk_refuses_is_said_in_its_words);
    RUN(a_clock_that_is_not_there_is_refused);
    RUN(other_arguments_for_the_same_process_are_refused);
    RUN(memory_that_is_not_there_is_an_error_that_names_the_field);
    return 0;
}
