/* SPDX-License-Identifier: Apache-2.0 */
/* Samplers of a capture: which frames they take, and that pool, drops and sequence add up to the frame. Several threads: TSan. */
#include <pthread.h>
#include <stdatomic.h>

#include "engine/capture.h"
#include "trace_file.h"

enum { FLOWS = 100, PACKETS = 20000 };

/* What a reader was shown. */
struct shown {
    uint64_t samples, pool, drops, octets, at_most; /* at_most 0: no limit */
    uint32_t sequence;
    uint64_t last_ts_ns;
};

/* Checks what holds of every sample of a capture with one data source. */
static bool look(void *context, const struct read_sample *sample) {
    struct shown *shown = context;
    if (shown->at_most && shown->samples == shown->at_most)
        return false;
    CHECK(sample->pool > shown->pool);
    CHECK_EQUAL(shown->sequence + 1, sample->sequence);
    CHECK(sample->drops >= shown->drops);
    CHECK_EQUAL(SFLOW_IPV4, sample->frame->protocol);
    shown->samples++;
    shown->pool = sample->pool;
    shown->drops = sample->drops;
    shown->sequence = sample->sequence;
    shown->octets += sample->frame->frame_length;
    shown->last_ts_ns = sample->frame->ts_ns;
    return true;
}

static capture_sampler_t *sampler_of(capture_t *capture, struct capture_sampler_config config) {
    struct capture_error_info error = {0};
    capture_sampler_t *sampler;
    config.struct_size = sizeof(config);
    int code = capture_sampler_open(capture, &config, &sampler, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return sampler;
}

static void poll_to_the_end(capture_t *capture) {
    while (capture_poll(capture, 100) > 0)
        continue;
}

static void rate_1_samples_every_frame_once_and_in_order(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers, .without_flows = true});
        capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 32768});
        struct shown shown = {0};
        struct capture_batch_info info;
        start(capture);
        poll_to_the_end(capture);
        sampler_read(sampler, look, &shown, &info);
        CHECK_EQUAL(PACKETS, shown.samples);
        CHECK_EQUAL(PACKETS, info.records);
        CHECK_EQUAL(PACKETS, shown.pool);
        CHECK_EQUAL(0, shown.drops);
        CHECK_EQUAL(1700000000ull * SECOND + (PACKETS - 1) * 1000000ull, shown.last_ts_ns);
        CHECK_EQUAL(28 * PACKETS + PACKETS / FLOWS * (99 * 100 / 2), shown.octets);
        CHECK(info.end);
        capture_sampler_close(sampler);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void pool_and_samples_are_those_that_the_seeds_distances_give(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.idle_s = 5});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 50, .seed = 9});
    struct shown shown = {0};
    struct capture_batch_info info;
    start(capture);
    poll_to_the_end(capture);
    sampler_read(sampler, look, &shown, &info);
    struct sampler expected;
    sampler_init_random(&expected, 50, 9);
    uint64_t samples = 0, pool = 0;
    for (uint64_t at = expected.left; at <= PACKETS; at += sampler_distance(&expected)) {
        samples++;
        pool = at;
    }
    CHECK_EQUAL(samples, shown.samples);
    CHECK_EQUAL(pool, shown.pool);
    CHECK_EQUAL(0, info.lost);
    capture_destroy(capture); /* closes the sampler */
    trace_forget(&trace);
}

static void overwritten_samples_are_drops_to_the_last_one(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 256});
    struct shown shown = {0};
    struct capture_batch_info info;
    start(capture);
    poll_to_the_end(capture);
    sampler_read(sampler, look, &shown, &info);
    CHECK_EQUAL(256, info.records);
    CHECK_EQUAL(PACKETS - 256, info.lost);
    CHECK_EQUAL(PACKETS - 256, shown.drops);
    CHECK_EQUAL(PACKETS, shown.pool);
    CHECK_EQUAL(256, shown.sequence);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_lossless_sampler_of_a_file_gets_every_frame_through_a_small_ring(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 2; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers, .without_flows = true});
        capture_sampler_t *sampler =
            sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 256, .lossless = true});
        struct shown shown = {0};
        struct capture_batch_info info;
        start(capture);
        do {
            capture_poll(capture, 10);
            shown.at_most = shown.samples + 100;
            sampler_read(sampler, look, &shown, &info);
            CHECK_EQUAL(0, info.lost);
        } while (!info.end);
        CHECK_EQUAL(PACKETS, shown.samples);
        CHECK_EQUAL(PACKETS, shown.pool);
        CHECK_EQUAL(0, shown.drops);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void frames_that_the_filter_rejects_are_neither_taken_nor_in_the_pool(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t rate = 1; rate <= 10; rate += 9) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.filter = "host 10.0.0.7 or host 10.0.0.8"});
        capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = rate, .seed = 1});
        struct shown shown = {0};
        struct capture_batch_info info;
        start(capture);
        poll_to_the_end(capture);
        sampler_read(sampler, look, &shown, &info);
        uint64_t accepted = 2 * PACKETS / FLOWS;
        CHECK_EQUAL(accepted, stats_of(capture).metered);
        CHECK(shown.pool <= accepted);
        CHECK(shown.octets >= 35 * shown.samples && shown.octets <= 36 * shown.samples);
        if (rate == 1) {
            CHECK_EQUAL(accepted, shown.samples);
            CHECK_EQUAL(accepted, shown.pool);
            CHECK_EQUAL(accepted / 2 * (35 + 36), shown.octets);
        }
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void frames_of_a_paused_capture_are_not_sampled(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 32768});
    struct shown shown = {0};
    struct capture_batch_info info;
    capture_set_deadline(capture, 1);
    start(capture);
    for (int i = 0; i < 10; i++)
        capture_poll(capture, 0);
    uint64_t paused = stats_of(capture).paused;
    CHECK(paused > 0);
    capture_set_deadline(capture, UINT64_MAX);
    poll_to_the_end(capture);
    sampler_read(sampler, look, &shown, &info);
    CHECK_EQUAL(PACKETS - paused, shown.samples);
    CHECK_EQUAL(PACKETS - paused, shown.pool);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void four_samplers_take_each_their_own_and_a_fifth_is_refused(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    capture_sampler_t *samplers[SAMPLERS_MAX], *fifth;
    struct capture_error_info error = {0};
    struct capture_batch_info info;
    struct capture_sampler_config config = {.struct_size = sizeof(config), .sampling_rate = 1};
    for (uint32_t i = 0; i < SAMPLERS_MAX; i++)
        samplers[i] = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1 + i, .samples = 32768, .seed = 3});
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_sampler_open(capture, &config, &fifth, &error));
    CHECK(fifth == NULL);
    start(capture);
    while (stats_of(capture).received < PACKETS / 2)
        capture_poll(capture, 0);
    uint64_t before = stats_of(capture).received - stats_of(capture).in_flight;
    capture_sampler_close(samplers[1]);
    samplers[1] = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 32768});
    poll_to_the_end(capture);
    for (uint32_t i = 0; i < SAMPLERS_MAX; i++) {
        struct shown shown = {0};
        sampler_read(samplers[i], look, &shown, &info);
        uint64_t offered = i == 1 ? PACKETS - before : PACKETS, rate = i == 1 ? 1 : 1 + i;
        CHECK(shown.pool <= offered && shown.pool + 2 * rate > offered);
        if (rate == 1)
            CHECK_EQUAL(offered, shown.samples);
    }
    capture_destroy(capture);
    trace_forget(&trace);
}

static void settings_out_of_bounds_are_refused_by_name(void) {
    struct trace_file trace = trace_of_flows(FLOWS, 100);
    capture_t *capture = capture_of(&trace, (struct capture_options){.without_flows = true});
    const struct {
        struct capture_sampler_config config;
        const char *field;
    } refused[] = {
        {{.sampling_rate = 0}, "sampling_rate"},
        {{.sampling_rate = 1 << 24}, "sampling_rate"},
        {{.sampling_rate = 1, .header_length = 63}, "header_length"},
        {{.sampling_rate = 1, .header_length = 257}, "header_length"},
        {{.sampling_rate = 1, .samples = 128}, "samples"},
        {{.sampling_rate = 1, .samples = 300}, "samples"},
        {{.sampling_rate = 1, .samples = 131072}, "samples"},
    };
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct capture_error_info error = {0};
        struct capture_sampler_config config = refused[i].config;
        capture_sampler_t *sampler;
        config.struct_size = sizeof(config);
        CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_sampler_open(capture, &config, &sampler, &error));
        CHECK_TEXT(refused[i].field, error.field);
    }
    capture_destroy(capture);
    trace_forget(&trace);
}

/* ---- while others run */

static atomic_bool over;

static void *read_until_over(void *argument) {
    capture_sampler_t *sampler = argument;
    struct shown shown = {0};
    struct capture_batch_info info;
    do {
        sampler_read(sampler, look, &shown, &info);
        CHECK_EQUAL(shown.sequence, shown.samples);
    } while (!info.end);
    return (void *)(uintptr_t)(shown.samples + shown.drops);
}

static void *open_and_close(void *capture) {
    struct capture_batch_info info;
    for (uint32_t i = 0; !atomic_load(&over) || i < 3; i++) {
        capture_sampler_t *sampler = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1 + i % 7});
        struct shown shown = {.at_most = 50};
        sampler_read(sampler, look, &shown, &info);
        capture_sampler_close(sampler);
    }
    return NULL;
}

static void samplers_are_read_opened_and_closed_while_workers_run(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 2; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers, .idle_s = 5});
        capture_sampler_t *fast = sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 256});
        capture_sampler_t *sure =
            sampler_of(capture, (struct capture_sampler_config){.sampling_rate = 1, .samples = 256, .lossless = true});
        pthread_t threads[3];
        void *taken[3];
        atomic_store(&over, false);
        pthread_create(&threads[0], NULL, read_until_over, fast);
        pthread_create(&threads[1], NULL, read_until_over, sure);
        pthread_create(&threads[2], NULL, open_and_close, capture);
        start(capture);
        poll_to_the_end(capture);
        capture_stop(capture, true);
        atomic_store(&over, true);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], &taken[i]);
        CHECK_EQUAL(PACKETS, (uintptr_t)taken[0]);
        CHECK_EQUAL(PACKETS, (uintptr_t)taken[1]);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

int main(void) {
    RUN(rate_1_samples_every_frame_once_and_in_order);
    RUN(pool_and_samples_are_those_that_the_seeds_distances_give);
    RUN(overwritten_samples_are_drops_to_the_last_one);
    RUN(a_lossless_sampler_of_a_file_gets_every_frame_through_a_small_ring);
    RUN(frames_that_the_filter_rejects_are_neither_taken_nor_in_the_pool);
    RUN(frames_of_a_paused_capture_are_not_sampled);
    RUN(four_samplers_take_each_their_own_and_a_fifth_is_refused);
    RUN(settings_out_of_bounds_are_refused_by_name);
    RUN(samplers_are_read_opened_and_closed_while_workers_run);
    return 0;
}
