/* SPDX-License-Identifier: Apache-2.0 */
/* One writer, many readers: a log under load, and a threaded capture with readers, queries and snapshots at once. Meant for TSan.
 */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

#include "flow/record_log.h"
#include "trace_file.h"

enum { LOG_RECORDS = 64, WRITTEN = 200000, FLOWS = 3000, PACKETS = 90000 };

static struct record_log log_under_test;
static atomic_bool written;

struct whole_record {
    struct capture_flow flow;
    struct capture_flow_statistics statistics;
};

/* A record whose words all follow from its number: a torn one shows. */
static struct whole_record record_of(uint64_t sequence) {
    enum { WORDS = sizeof(struct whole_record) / sizeof(uint64_t) };
    struct whole_record record;
    uint64_t words[WORDS];
    for (uint64_t i = 0; i < WORDS; i++)
        words[i] = sequence * 61 + i;
    memcpy(&record, words, sizeof(record));
    return record;
}

static void *write_log(void *unused) {
    for (uint64_t sequence = 0; sequence < WRITTEN; sequence++) {
        struct whole_record record = record_of(sequence);
        record_log_write(&log_under_test, &record.flow, &record.statistics);
    }
    atomic_store(&written, true);
    return unused;
}

static void *read_log(void *unused) {
    uint64_t at = 0, read = 0, lost_total = 0;
    struct capture_flow flows[16];
    struct capture_flow_statistics statistics[16];
    bool kept = record_log_has_statistics(&log_under_test);
    for (;;) {
        bool last = atomic_load(&written);
        uint64_t lost;
        uint32_t count = record_log_read(&log_under_test, at, flows, statistics, 16, &lost);
        for (uint32_t i = 0; i < count; i++) {
            struct whole_record expected = record_of(at + i);
            CHECK(memcmp(&expected.flow, &flows[i], sizeof(flows[i])) == 0);
            CHECK(!kept || memcmp(&expected.statistics, &statistics[i], sizeof(statistics[i])) == 0);
        }
        at += count + lost;
        read += count;
        lost_total += lost;
        if (last && count == 0 && lost == 0)
            break;
    }
    CHECK_EQUAL(WRITTEN, at);
    CHECK_EQUAL(WRITTEN, read + lost_total);
    return unused;
}

static void lap_readers(bool statistics) {
    pthread_t writer, readers[2];
    CHECK(record_log_init(&log_under_test, LOG_RECORDS, statistics));
    atomic_store(&written, false);
    pthread_create(&writer, NULL, write_log, NULL);
    for (int i = 0; i < 2; i++)
        pthread_create(&readers[i], NULL, read_log, NULL);
    pthread_join(writer, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    record_log_destroy(&log_under_test);
}

static void a_lapped_reader_never_sees_a_torn_record_and_counts_every_lost_one(void) {
    lap_readers(false);
    lap_readers(true);
}

static atomic_bool capture_over;

static void *subscribe(void *argument) {
    capture_flow_reader_t *reader = argument;
    static _Thread_local uint8_t buffer[65536];
    struct capture_batch_info info;
    uint64_t records = 0;
    do {
        CHECK(capture_reader_read_batch(reader, buffer, sizeof(buffer), 500, &info) >= 0);
        records += info.records + info.lost;
    } while (!info.end);
    return (void *)(uintptr_t)records;
}

static void *observe(void *capture) {
    struct capture_flow flows[50];
    struct capture_flow_statistics statistics[50];
    struct capture_flow_query query = {.sort_by = CAPTURE_SORT_PACKETS, .limit = 50};
    uint64_t received = 0;
    uint32_t snapshots = 0;
    while (!atomic_load(&capture_over) || snapshots < 3) {
        struct capture_stats stats = stats_of(capture);
        CHECK(stats.received >= received);
        received = stats.received;
        int count = capture_flow_get_all(capture, &query, flows, statistics, NULL);
        CHECK(count >= 0 && count <= 50);
        for (int i = 0; i < count; i++) /* trace_of_flows: a flow's packets are of one size */
            CHECK_EQUAL(flows[i].fwd_octets / flows[i].fwd_packets - 28, statistics[i].fwd_payload.max);
        for (int i = 1; i < count; i++)
            CHECK(flows[i - 1].fwd_packets + flows[i - 1].rev_packets >= flows[i].fwd_packets + flows[i].rev_packets);
        if (count > 0) {
            int found = capture_flow_lookup(capture, flows[0].flow_id, &flows[1], statistics, 1);
            CHECK(found == 1 || found == CAPTURE_ERR_NOT_FOUND);
        }
        capture_set_deadline(capture, UINT64_MAX - snapshots);
        snapshots++;
    }
    return NULL;
}

static void readers_queries_and_snapshots_run_beside_the_packet_path(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 2; workers++) {
        capture_t *capture = capture_of(
            &trace,
            (struct capture_options){.workers = workers, .log_records = 1024, .idle_s = 4, .active_s = 5, .statistics = 7});
        pthread_t subscribers[2], observer;
        void *records[2];
        atomic_store(&capture_over, false);
        for (int i = 0; i < 2; i++) {
            capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = i == 0});
            pthread_create(&subscribers[i], NULL, subscribe, reader);
        }
        start(capture);
        pthread_create(&observer, NULL, observe, capture);
        while (capture_poll(capture, 10) > 0)
            continue;
        capture_stop(capture, true);
        atomic_store(&capture_over, true);
        for (int i = 0; i < 2; i++)
            pthread_join(subscribers[i], &records[i]);
        pthread_join(observer, NULL);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(PACKETS, stats.metered);
        CHECK_EQUAL(0, stats.in_flight);
        CHECK_EQUAL(stats.flows_total, (uintptr_t)records[0]);
        CHECK_EQUAL(stats.flows_total, (uintptr_t)records[1]);
        CHECK(stats.flows_ended[CAPTURE_FLOW_END_ACTIVE] > 0);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void a_running_capture_can_be_destroyed(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.workers = 1, .log_records = 1024});
    reader_of(capture, (struct capture_reader_config){.lossless = true}); /* never read: the worker is waiting for it */
    start(capture);
    capture_poll(capture, 20);
    capture_destroy(capture);
    trace_forget(&trace);
}

/* The CPUs that the thread of this name may run on, as the kernel lists them; "" when there is no such thread. */
static void allowed_cpus(const char *thread_name, char *out, size_t size) {
    DIR *tasks = opendir("/proc/self/task");
    out[0] = 0;
    CHECK(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char path[300], line[256];
        bool found = false;
        snprintf(path, sizeof(path), "/proc/self/task/%s/status", task->d_name);
        FILE *status = fopen(path, "r");
        while (status && fgets(line, sizeof(line), status)) {
            line[strcspn(line, "\n")] = 0;
            found = found || (strncmp(line, "Name:\t", 6) == 0 && strcmp(line + 6, thread_name) == 0);
            if (found && strncmp(line, "Cpus_allowed_list:\t", 19) == 0)
                snprintf(out, size, "%.60s", line + 19);
        }
        if (status)
            fclose(status);
    }
    closedir(tasks);
}

static void a_worker_runs_on_the_cpu_it_was_given(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    const char *files[] = {trace.path};
    int32_t cpu = 0;
    struct capture_config config = {
        .struct_size = sizeof(config), .files = files, .file_count = 1, .workers = 1, .worker_cpus = &cpu, .worker_cpu_count = 1};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config), .log_records = 1024};
    capture_t *capture;
    char cpus[64] = "";
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, NULL));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, NULL));
    reader_of(capture, (struct capture_reader_config){.lossless = true}); /* never read: the worker stays */
    start(capture);
    for (int tries = 0; tries < 100 && !cpus[0]; tries++) {
        allowed_cpus("capture-0", cpus, sizeof(cpus));
        capture_poll(capture, 10);
    }
    CHECK_TEXT("0", cpus);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(a_lapped_reader_never_sees_a_torn_record_and_counts_every_lost_one);
    RUN(readers_queries_and_snapshots_run_beside_the_packet_path);
    RUN(a_running_capture_can_be_destroyed);
    RUN(a_worker_runs_on_the_cpu_it_was_given);
    return 0;
}
