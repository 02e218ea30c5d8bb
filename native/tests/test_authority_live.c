/* SPDX-License-Identifier: Apache-2.0 */
/* The dead-man's switch on a link: captures bound to an authority whose clock the test holds. Inline captures read when they are
 * polled, so what is sent between two polls waits in the ring, as it does for a process that was stopped. */
#include <pthread.h>

#include "balance.h"
#include "export_config.h"
#include "live_link.h"
#include "signer.h"

enum { SENT = 100, SETTLE_US = 50000, RING_MS = 300 };

static const char *request_id(unsigned number) {
    static char text[64];
    snprintf(text, sizeof(text), "01234567-89ab-cdef-0123-%012x", number);
    return text;
}

static capture_t *bound_capture(capture_authority_t *authority, const char *backend, uint32_t workers,
                                const struct message *request) {
    struct capture_config config = config_for("jarvis0");
    struct capture_flow_config flows = {.struct_size = sizeof(flows), .max_flows = 8192, .idle_timeout_ns = SECONDS};
    struct capture_error_info error = {0};
    capture_t *capture;
    config.backend = backend;
    config.workers = workers;
    config.packet_ring_mb = 64;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flows, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_set_authority(capture, authority, request->bytes, request->length, &error));
    return capture;
}

static capture_t *started_capture(capture_authority_t *authority, const char *backend, uint32_t workers) {
    static unsigned number;
    static struct message request;
    struct capture_error_info error = {0};
    struct capture_lease lease;
    CHECK_EQUAL(CAPTURE_OK, capture_authority_get_lease(authority, &lease));
    write_start(&request, "jarvis0", "");
    order_start(authority, lease.sequence, request_id(number++), &request);
    capture_t *capture = bound_capture(authority, backend, workers, &request);
    int code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

static void send_many(int sender, int count, uint16_t port) {
    for (int i = 0; i < count; i++)
        send_frame(sender, 100, port, 9, -1);
    usleep(SETTLE_US); /* a veth pair hands frames over in a soft interrupt */
}

/* Until so many frames were read, and for a while after that, in which a backend that cannot tell sees its ring empty. */
static void take(capture_t *capture, uint64_t frames) {
    do
        CHECK(capture_poll(capture, 50) >= 0);
    while (stats_of(capture).metered + stats_of(capture).paused < frames);
    for (int ms = 0; ms < RING_MS; ms += 50)
        CHECK(capture_poll(capture, 50) >= 0);
}

static void check_counts(capture_t *capture, uint64_t metered, uint64_t paused) {
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(metered, stats.metered);
    CHECK_EQUAL(paused, stats.paused);
    CHECK_EQUAL(0, stats.in_flight);
}

static void what_waits_in_the_ring_when_a_lease_comes_after_a_gap_is_paused(const char *backend) {
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 10 * SECONDS);
    capture_t *capture = started_capture(authority, backend, 0);
    int sender = sender_on("jarvis1");
    send_many(sender, SENT, 1000);
    take(capture, SENT);
    check_counts(capture, SENT, 0);

    boottime += 10 * SECONDS; /* stopped beyond the end ... */
    send_many(sender, SENT, 1001);
    lease_for(authority, 2, 10 * SECONDS); /* ... and leased again before the ring was looked at */
    take(capture, 2 * SENT);
    check_counts(capture, SENT, SENT);

    send_many(sender, SENT, 1002);
    take(capture, 3 * SENT);
    check_counts(capture, 2 * SENT, SENT);
    close(sender);
    capture_destroy(capture);
    capture_authority_release(authority);
    printf("ok - what_waits_in_the_ring_when_a_lease_comes_after_a_gap_is_paused(%s)\n", backend);
}

static void what_waits_in_the_ring_when_a_lease_is_renewed_in_time_is_metered(void) {
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 10 * SECONDS);
    capture_t *capture = started_capture(authority, "afpacket", 0);
    int sender = sender_on("jarvis1");
    send_many(sender, SENT, 1000);
    boottime += 9 * SECONDS;
    lease_for(authority, 2, 10 * SECONDS);
    boottime += 2 * SECONDS;
    take(capture, SENT);
    check_counts(capture, SENT, 0);
    close(sender);
    capture_destroy(capture);
    capture_authority_release(authority);
}

static void check_nothing_is_given(capture_t *capture, capture_flow_reader_t *reader) {
    static uint8_t out[65536];
    static struct capture_flow flows[10];
    struct capture_batch_info info;
    struct capture_packet_batch packets;
    struct capture_flow_columns columns = {0};
    struct capture_flow_query query = {.limit = 10};
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_reader_read_batch(reader, out, sizeof(out), 100, &info));
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_reader_read_text(reader, CAPTURE_TEXT_JSON, (char *)out, sizeof(out), &info));
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_reader_read_columns(reader, &columns, 100, &info));
    capture_exporter_t *exporter = exporter_of((struct capture_export_config){.protocol = CAPTURE_EXPORT_IPFIX});
    struct capture_export_message messages[4];
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_exporter_read(exporter, reader, out, sizeof(out), messages, 4, true, &info));
    CHECK_EQUAL(0, totals_of(exporter).flows_read);
    capture_exporter_destroy(exporter);
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_flow_get_all(capture, &query, flows, NULL, &error));
    CHECK_TEXT("LEASE_EXPIRED", error.field);
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_flow_lookup(capture, 1, flows, NULL, 10));
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_packets_next(capture, 1, &packets));
}

/* Records that end in the pause stay in the log; packets of before it in their ring. */
static void without_a_lease_nothing_is_given_out_and_with_the_next_one_what_there_was(void) {
    static uint8_t out[65536];
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 10 * SECONDS);
    capture_t *capture = started_capture(authority, "afpacket", 1);
    capture_flow_reader_t *reader;
    struct capture_reader_config config = {.struct_size = sizeof(config)};
    struct capture_batch_info info;
    struct capture_packet_batch packets;
    CHECK_EQUAL(CAPTURE_OK, capture_reader_open(capture, &config, &reader, NULL));
    int sender = sender_on("jarvis1");
    send_many(sender, SENT, 1000);
    while (stats_of(capture).metered < SENT)
        usleep(1000);
    boottime += 10 * SECONDS;
    check_nothing_is_given(capture, reader);
    send_many(sender, SENT, 1001);
    while (stats_of(capture).flows_ended[CAPTURE_FLOW_END_IDLE] == 0 || stats_of(capture).paused < SENT)
        usleep(1000);
    check_nothing_is_given(capture, reader);
    check_counts(capture, SENT, SENT);
    lease_for(authority, 2, 10 * SECONDS);
    CHECK_EQUAL(1, capture_reader_read_batch(reader, out, sizeof(out), 100, &info));
    int taken = 0, count;
    while ((count = capture_packets_next(capture, 10, &packets)) > 0) {
        taken += count;
        capture_packets_release(capture);
    }
    CHECK_EQUAL(0, count);
    CHECK_EQUAL(SENT, taken);
    close(sender);
    capture_reader_close(reader);
    boottime += 10 * SECONDS;
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true)); /* stopping needs no lease */
    capture_destroy(capture);
    capture_authority_release(authority);
}

/* Frames of the pause are not sampled; samples of before it stay, and are nobody's to read until the next lease. */
static void without_a_lease_no_frame_is_sampled_and_no_sample_given_out(void) {
    static uint8_t out[65536];
    static struct capture_export_message messages[256];
    capture_authority_t *authority = authority_of(NULL);
    struct capture_sampler_config config = {.struct_size = sizeof(config), .sampling_rate = 1};
    struct capture_export_config export = {.struct_size = sizeof(export), .protocol = CAPTURE_EXPORT_SFLOW_V5};
    struct capture_export_totals totals;
    struct capture_batch_info info;
    capture_sampler_t *sampler;
    capture_exporter_t *exporter;
    lease_for(authority, 1, 10 * SECONDS);
    capture_t *capture = started_capture(authority, "afpacket", 1);
    CHECK_EQUAL(CAPTURE_OK, capture_sampler_open(capture, &config, &sampler, NULL)); /* while it runs */
    CHECK_EQUAL(CAPTURE_OK, capture_exporter_create(&export, &exporter, NULL));
    int sender = sender_on("jarvis1");
    send_many(sender, SENT, 1000);
    while (stats_of(capture).metered < SENT)
        usleep(1000);
    boottime += 10 * SECONDS;
    send_many(sender, SENT, 1001);
    while (stats_of(capture).paused < SENT)
        usleep(1000);
    CHECK_EQUAL(CAPTURE_ERR_LEASE,
                capture_exporter_read_samples(exporter, sampler, out, sizeof(out), messages, 256, true, &info));
    lease_for(authority, 2, 10 * SECONDS);
    do
        CHECK(capture_exporter_read_samples(exporter, sampler, out, sizeof(out), messages, 256, true, &info) >= 0);
    while (info.more);
    capture_exporter_get_totals(exporter, &totals);
    CHECK_EQUAL(SENT, totals.records);
    close(sender);
    capture_exporter_destroy(exporter);
    capture_sampler_close(sampler);
    capture_destroy(capture);
    capture_authority_release(authority);
}

static void only_an_admitted_command_starts_a_bound_capture_or_adds_an_interface(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message request;
    struct capture_error_info error = {0};
    lease_for(authority, 1, 10 * SECONDS);
    write_start(&request, "jarvis0", "");
    capture_t *capture = bound_capture(authority, "afpacket", 0, &request);
    CHECK_EQUAL(CAPTURE_ERR_REFUSED, capture_start(capture, &error));
    CHECK_TEXT("CAPTURE_NOT_COMMANDED", error.field);
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_set_authority(capture, authority, NULL, 0, &error));
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_set_deadline(capture, 0));
    order_start(authority, 1, request_id(900), &request);
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, &error));
    CHECK_EQUAL(CAPTURE_ERR_REFUSED, capture_add_interface(capture, "lo", &error));
    CHECK_TEXT("CAPTURE_NOT_COMMANDED", error.field);
    capture_destroy(capture);

    capture = bound_capture(authority, "afpacket", 0, &request);
    order_start(authority, 1, request_id(901), &request);
    boottime += 10 * SECONDS;
    CHECK_EQUAL(CAPTURE_ERR_LEASE, capture_start(capture, &error));
    CHECK_TEXT("LEASE_EXPIRED", error.field);
    capture_authority_release(authority);
    capture_destroy(capture);
}

/* What TSan is for: workers read the lease while it is renewed, runs out and comes back. */
static void leases_come_and_go_under_running_workers(void) {
    enum { ROUNDS = 60 };
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 10 * SECONDS);
    capture_t *capture = started_capture(authority, "afpacket", 2);
    int sender = sender_on("jarvis1");
    for (uint8_t round = 2; round < ROUNDS; round++) {
        for (int i = 0; i < 20; i++)
            send_frame(sender, 100, 1000 + round, 9, -1);
        boottime += round % 2 ? 4 * SECONDS : 11 * SECONDS;
        lease_for(authority, round, 10 * SECONDS);
        stats_of(capture);
    }
    usleep(SETTLE_US);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL((ROUNDS - 2) * 20, stats.metered + stats.paused + stats.dropped_kernel);
    close(sender);
    capture_destroy(capture);
    capture_authority_release(authority);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    await_running("jarvis0");
    what_waits_in_the_ring_when_a_lease_comes_after_a_gap_is_paused("afpacket");
    what_waits_in_the_ring_when_a_lease_comes_after_a_gap_is_paused("pcap");
    RUN(what_waits_in_the_ring_when_a_lease_is_renewed_in_time_is_metered);
    RUN(without_a_lease_nothing_is_given_out_and_with_the_next_one_what_there_was);
    RUN(without_a_lease_no_frame_is_sampled_and_no_sample_given_out);
    RUN(only_an_admitted_command_starts_a_bound_capture_or_adds_an_interface);
    RUN(leases_come_and_go_under_running_workers);
    return 0;
}
