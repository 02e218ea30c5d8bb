/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling of live interfaces, each a data source of its own, in a network namespace of the test's: veth pairs. */
#include "balance.h"
#include "engine/capture.h"
#include "live_link.h"

enum { SENT = 200, FRAME_BYTES = 100, TAG = 0x6064, PATIENCE_MS = 10000, SOURCES = 2 };

static const char *const names[SOURCES] = {"jarvis0", "jarvis2"};
static int senders[SOURCES];

static capture_t *started_capture(const char *backend, uint32_t workers) {
    struct capture_config config = {.struct_size = sizeof config,
                                    .interfaces = names,
                                    .interface_count = SOURCES,
                                    .backend = backend,
                                    .workers = workers,
                                    .filter = "vlan and udp"}; /* what the kernel sends of its own accord is none of ours */
    struct capture_error_info error = {0};
    capture_t *capture = NULL;
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

/* What was read of each source, by its index. */
struct read_back {
    uint64_t samples, pool;
    uint32_t sequence;
};

static struct read_back read_back[SOURCES];

static bool look(void *context, const struct read_sample *sample) {
    const struct frame_sample *frame = sample->frame;
    uint32_t source = frame->source_index == if_nametoindex(names[1]);
    (void)context;
    CHECK_EQUAL(if_nametoindex(names[source]), frame->source_index);
    CHECK_EQUAL(frame->source_index, frame->input_index);
    CHECK_EQUAL(SFLOW_ETHERNET, frame->protocol);
    CHECK_EQUAL(FRAME_BYTES + 4, frame->frame_length);
    CHECK_EQUAL(4, frame->stripped);
    CHECK_EQUAL(FRAME_BYTES, frame->header_length);
    CHECK(memcmp("\x81\x00\x60\x64\x08\x00\x45", frame->header + 12, 7) == 0); /* the kernel took the tag off */
    CHECK_EQUAL(0, sample->drops);
    CHECK_EQUAL(read_back[source].sequence + 1, sample->sequence);
    CHECK(sample->pool > read_back[source].pool);
    read_back[source] =
        (struct read_back){.samples = read_back[source].samples + 1, .pool = sample->pool, .sequence = sample->sequence};
    return true;
}

static void each_interface_is_a_data_source_with_a_sequence_and_a_pool(const char *backend, uint32_t workers) {
    capture_t *capture = started_capture(backend, workers);
    struct capture_sampler_config config = {.struct_size = sizeof config, .sampling_rate = 1};
    struct capture_batch_info info;
    capture_sampler_t *sampler;
    memset(read_back, 0, sizeof read_back);
    CHECK_EQUAL(CAPTURE_OK, capture_sampler_open(capture, &config, &sampler, NULL));
    for (uint32_t source = 0; source < SOURCES; source++)
        for (uint32_t i = 0; i < SENT * (1 + source); i++)
            send_frame(senders[source], FRAME_BYTES, (uint16_t)(1000 + i), 53, TAG);
    uint64_t until = now_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
    while (read_back[0].samples + read_back[1].samples < 3 * SENT && now_ns(CLOCK_MONOTONIC) < until) {
        CHECK_EQUAL(1, capture_poll(capture, 10));
        sampler_read(sampler, look, NULL, &info);
        CHECK_EQUAL(0, info.lost);
    }
    for (uint32_t source = 0; source < SOURCES; source++) {
        CHECK_EQUAL(SENT * (1 + source), read_back[source].samples);
        CHECK_EQUAL(SENT * (1 + source), read_back[source].pool);
    }
    capture_sampler_close(sampler);
    capture_destroy(capture);
}

static void frames_of_several_workers_are_one_sequence(void) {
    each_interface_is_a_data_source_with_a_sequence_and_a_pool("afpacket", 2);
}

static void a_capture_that_is_polled_samples_too(void) {
    each_interface_is_a_data_source_with_a_sequence_and_a_pool("afpacket", 0);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    run("ip link add jarvis2 type veth peer name jarvis3 && ip link set jarvis2 up && ip link set jarvis3 up");
    for (uint32_t source = 0; source < SOURCES; source++) {
        await_running(source ? "jarvis3" : "jarvis1");
        senders[source] = sender_on(source ? "jarvis3" : "jarvis1");
    }
    RUN(frames_of_several_workers_are_one_sequence);
    RUN(a_capture_that_is_polled_samples_too);
    return 0;
}
