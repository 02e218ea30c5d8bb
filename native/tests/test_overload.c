/* SPDX-License-Identifier: Apache-2.0 */
/*
 * More frames than a capture can take: every frame is still accounted for.
 *
 * The workers are held up on purpose, so that the ring must overflow however fast the machine is, while another thread takes
 * snapshots without a pause. The frames are of every kind that has a counter of its own.
 */
#include "balance.h"
#include "engine/capture.h"

#include <pthread.h>
#include <semaphore.h>

#include "live_link.h"

enum { FRAME_BYTES = 9000, FLOOD_MOST = 200000, LOST_AT_LEAST = 1000, GUARD_S = 60 };

/* ---- workers that wait */

static sem_t go_on;
static atomic_uint held;

/* Called by a worker that looks through its flows for a query. */
static bool wait_there(void *unused, const struct capture_flow *flow, const struct flow_table *table, uint32_t number) {
    (void)unused;
    (void)flow;
    (void)table;
    (void)number;
    atomic_fetch_add(&held, 1);
    while (sem_wait(&go_on) != 0)
        continue;
    return false;
}

static void hold_workers(capture_t *capture) {
    atomic_store(&held, 0);
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        struct flow_scan *scan = &capture->workers[i].scan;
        pthread_mutex_lock(&scan->lock);
        scan->visit = wait_there;
        scan->at = 0;
        atomic_store(&scan->posted, true);
        pthread_mutex_unlock(&scan->lock);
    }
    while (atomic_load(&held) < capture->worker_count)
        usleep(1000);
}

static void let_workers_go(const capture_t *capture) {
    for (uint32_t i = 0; i < capture->worker_count; i++)
        sem_post(&go_on);
}

/* ---- frames */

static counter_t sent;

static void send_one(int sender, const uint8_t *frame, size_t length) {
    ssize_t result;
    do {
        atomic_fetch_add(&sent, 1); /* what the link itself refuses was offered to it, and counts as dropped there */
        result = send(sender, frame, length, 0);
    } while (result < 0 && errno == ENOBUFS);
    CHECK_EQUAL(length, result);
}

/* Frame number `i`: mostly UDP of many flows; some are not IP, some malformed, some left out by the filter. */
static void send_mixed(int sender, uint32_t i) {
    static uint8_t frame[FRAME_BYTES];
    size_t length = i % 5 ? FRAME_BYTES : 100;
    make_frame(frame, length, (uint16_t)(1000 + i % 64), i % 11 == 0 ? 7777 : 5000, -1);
    if (i % 7 == 0)
        frame[12] = 0x88, frame[13] = 0xb5; /* IEEE Std 802 local experimental Ethertype 1 */
    else if (i % 13 == 0)
        frame[14] = 0x44, frame[23] = 6; /* TCP in a header of 16 bytes, which is too short for one */
    send_one(sender, frame, length);
}

/* ---- the watch: a thread that takes one snapshot after the other */

static atomic_bool over;

static void check_not_less(const struct capture_stats *before, const struct capture_stats *after) {
    CHECK(after->received >= before->received);
    CHECK(after->received_octets >= before->received_octets);
    CHECK(after->metered >= before->metered);
    CHECK(after->metered_octets >= before->metered_octets);
    CHECK(after->filtered >= before->filtered);
    CHECK(after->unsampled >= before->unsampled);
    CHECK(after->non_ip >= before->non_ip);
    CHECK(after->malformed >= before->malformed);
    CHECK(after->paused >= before->paused);
    CHECK(after->dropped_nic >= before->dropped_nic);
    CHECK(after->dropped_kernel >= before->dropped_kernel);
    CHECK(after->dropped_user >= before->dropped_user);
    CHECK(after->packet_ring_dropped >= before->packet_ring_dropped);
    CHECK(after->flows_total >= before->flows_total);
}

static void *take_snapshots(void *capture) {
    struct capture_stats before = {0};
    uint64_t snapshots = 0;
    for (; !atomic_load(&over) || snapshots < 3; snapshots++) {
        struct capture_stats stats = stats_of(capture);
        CHECK(stats.received <= counter_get(&sent));
        check_not_less(&before, &stats);
        before = stats;
    }
    return (void *)(uintptr_t)snapshots;
}

/* ---- the test */

static capture_t *begin(uint32_t workers) {
    struct capture_config config = config_for("jarvis0");
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config), .max_flows = 4096};
    struct capture_error_info error = {0};
    capture_t *capture;
    config.backend = "afpacket";
    config.buffer_size_mb = 64; /* the least */
    config.workers = workers;
    config.packet_ring_mb = 1; /* nobody takes what is in it */
    config.filter = "not udp port 7777";
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_flow_enable(capture, &flow_config, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

static void wait_for_received(capture_t *capture, uint64_t frames) {
    uint64_t until = now_ns(CLOCK_MONOTONIC) + GUARD_S * 1000000000ull;
    while (stats_of(capture).received < frames && now_ns(CLOCK_MONOTONIC) < until)
        usleep(1000);
    CHECK_EQUAL(frames, stats_of(capture).received);
}

/* Every worker has a flow, so that it can be held up. */
static void give_each_worker_a_flow(capture_t *capture, int sender) {
    uint32_t frame = 0;
    for (uint32_t i = 0; i < capture->worker_count;) {
        for (uint32_t until = frame + 64; frame < until; frame++)
            send_mixed(sender, frame);
        wait_for_received(capture, counter_get(&sent));
        while (stats_of(capture).in_flight)
            usleep(1000);
        while (i < capture->worker_count && counter_get(&capture->workers[i].counters.flows_total))
            i++;
    }
}

/* With the workers held up: until the ring has overflowed, and one more second's worth of events after. */
static void flood(capture_t *capture, int sender) {
    uint32_t frames = 0;
    while (stats_of(capture).dropped_kernel < LOST_AT_LEAST) {
        CHECK(frames < FLOOD_MOST);
        for (uint32_t until = frames + 256; frames < until; frames++)
            send_mixed(sender, frames);
    }
}

static uint64_t told_lost(capture_t *capture, const char *words) {
    struct capture_event event = {.sequence = 0};
    uint64_t told = 0, last_ns = 0;
    bool found = false;
    while (capture_next_event(capture, event.sequence, &event)) {
        CHECK_EQUAL(CAPTURE_EVENT_LOSS, event.type);
        CHECK(event.value > 0);
        CHECK(event.time_unix_ns >= last_ns);
        found = found || strstr(event.message, words) != NULL;
        told += event.value;
        last_ns = event.time_unix_ns;
    }
    CHECK(found);
    return told;
}

static void *stop_and_discard(void *capture) {
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, false));
    return NULL;
}

/* The capture is flooded while nobody takes its frames, then goes on, then stops. */
static void every_frame_is_accounted_for(uint32_t workers, bool gracefully) {
    atomic_store(&sent, 0);
    atomic_store(&over, false);
    CHECK_EQUAL(0, sem_init(&go_on, 0, 0));
    capture_t *capture = begin(workers);
    int sender = sender_on("jarvis1");
    pthread_t watcher, stopper;
    void *snapshots;
    CHECK_EQUAL(0, pthread_create(&watcher, NULL, take_snapshots, capture));
    give_each_worker_a_flow(capture, sender);
    hold_workers(capture);
    flood(capture, sender);
    wait_for_received(capture, counter_get(&sent));
    CHECK(stats_of(capture).in_flight > 0);
    uint64_t until = now_ns(CLOCK_MONOTONIC) + GUARD_S * 1000000000ull;
    struct capture_event event;
    while (!capture_next_event(capture, 0, &event)) { /* told while the workers still stand still */
        CHECK(now_ns(CLOCK_MONOTONIC) < until);
        usleep(1000);
    }
    if (gracefully) {
        let_workers_go(capture);
        for (uint32_t i = 0; i < 5000; i++)
            send_mixed(sender, i);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    } else {
        CHECK_EQUAL(0, pthread_create(&stopper, NULL, stop_and_discard, capture));
        while (!atomic_load(&capture->stop_requested))
            usleep(1000);
        let_workers_go(capture);
        CHECK_EQUAL(0, pthread_join(stopper, NULL));
    }
    atomic_store(&over, true);
    CHECK_EQUAL(0, pthread_join(watcher, &snapshots));
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(counter_get(&sent), stats.received);
    CHECK_EQUAL(0, stats.in_flight);
    CHECK(stats.dropped_kernel >= LOST_AT_LEAST);
    CHECK(stats.metered > 0 && stats.filtered > 0 && stats.non_ip > 0 && stats.malformed > 0);
    CHECK(gracefully ? stats.dropped_user == 0 && stats.packet_ring_dropped > 0 : stats.dropped_user > 0);
    CHECK_EQUAL(stats.dropped_nic + stats.dropped_kernel + stats.dropped_user + stats.packet_ring_dropped +
                    stats.flows_ended[CAPTURE_FLOW_END_RESOURCES],
                told_lost(capture, "frames in the kernel's ring"));
    printf("ok - every_frame_is_accounted_for(%u workers, %s): sent %" PRIu64 ", lost %" PRIu64 ", discarded %" PRIu64
           ", snapshots %" PRIuPTR "\n",
           workers, gracefully ? "graceful" : "discarding", stats.received, stats.dropped_kernel, stats.dropped_user,
           (uintptr_t)snapshots);
    close(sender);
    capture_destroy(capture);
    sem_destroy(&go_on);
}

/* Between the end of the input and the closing of the ring, which is when a snapshot may come. */
static void what_the_ring_held_is_discarded_without_being_counted_twice(void) {
    atomic_store(&sent, 0);
    capture_t *capture = begin(0);
    struct worker *worker = &capture->workers[0];
    int sender = sender_on("jarvis1");
    for (uint32_t i = 0; i < 1000; i++)
        send_mixed(sender, i);
    wait_for_received(capture, 1000);
    pthread_mutex_lock(&worker->owner);
    worker_end_input(worker, false);
    pthread_mutex_unlock(&worker->owner);
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(1000, stats.received);
    CHECK_EQUAL(1000, stats.dropped_user);
    CHECK_EQUAL(0, stats.in_flight);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, false));
    stats = stats_of(capture);
    CHECK_EQUAL(1000, stats.received);
    CHECK_EQUAL(1000, told_lost(capture, "1000 frames in the core"));
    close(sender);
    capture_destroy(capture);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    RUN(what_the_ring_held_is_discarded_without_being_counted_twice);
    for (uint32_t workers = 1; workers <= 2; workers++) {
        every_frame_is_accounted_for(workers, true);
        every_frame_is_accounted_for(workers, false);
    }
    return 0;
}
