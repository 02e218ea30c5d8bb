/* SPDX-License-Identifier: Apache-2.0 */
/* The packet ring: order, bytes, fullness, and two threads at once (run it under the thread sanitizer). */
#include "check.h"
#include "packet_ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

static struct packet_ring *make(uint32_t size_mb) {
    struct packet_ring *ring;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, packet_ring_create(size_mb, &ring, &error));
    return ring;
}

static bool push(struct packet_ring *ring, uint64_t id, uint32_t length) {
    static uint8_t data[1 << 18];
    for (uint32_t i = 0; i < length; i++)
        data[i] = (uint8_t)(id + i);
    struct frame frame = {.data = data,
                          .ts_ns = id * 1000,
                          .caplen = length,
                          .wirelen = length + 4,
                          .link_type = 1,
                          .interface_index = 3,
                          .vlan_tci = 9,
                          .flags = id % 2 ? FRAME_VLAN : 0};
    return packet_ring_push(ring, &frame, id);
}

static void check_packet(const struct capture_packet_batch *batch, uint32_t number, uint64_t id, uint32_t length) {
    const struct capture_packet *packet = &batch->packets[number];
    CHECK_EQUAL(id, packet->packet_id);
    CHECK_EQUAL(id * 1000, packet->timestamp_ns);
    CHECK_EQUAL(length, packet->captured_length);
    CHECK_EQUAL(length + 4, packet->wire_length);
    CHECK_EQUAL(id % 2 ? 9 : 0, packet->vlan_tci);
    CHECK(packet->offset + length <= batch->size);
    for (uint32_t i = 0; i < length; i++)
        CHECK(batch->base[packet->offset + i] == (uint8_t)(id + i));
}

static uint32_t length_of(uint64_t id) {
    return (uint32_t)(id * 7919 % 3001); /* 0 is among them */
}

static void frames_come_out_as_they_went_in_over_many_turns_of_the_ring(void) {
    struct packet_ring *ring = make(1);
    struct capture_packet_batch batch;
    uint64_t pushed = 0, taken = 0;
    while (taken < 20000) { /* 30 MB through 1 MiB: frames lie across the end again and again */
        for (int i = 0; i < 37 && push(ring, pushed + 1, length_of(pushed + 1)); i++)
            pushed++;
        packet_ring_next(ring, &batch);
        for (uint32_t i = 0; i < batch.count; i++, taken++)
            check_packet(&batch, i, taken + 1, length_of(taken + 1));
        packet_ring_release(ring);
    }
    CHECK(packet_ring_usage(ring) < 0.1);
    packet_ring_destroy(ring);
}

static void a_full_ring_refuses_and_what_it_holds_stays_whole(void) {
    struct packet_ring *ring = make(1);
    struct capture_packet_batch batch;
    uint64_t pushed = 0, taken = 0;
    while (push(ring, pushed + 1, 1000))
        pushed++;
    CHECK_EQUAL((1 << 20) / 1000, pushed);
    CHECK(packet_ring_usage(ring) > 0.99);
    packet_ring_next(ring, &batch);
    CHECK(!push(ring, pushed + 1, 1000)); /* handed out is not free */
    for (; taken < batch.count; taken++)
        check_packet(&batch, (uint32_t)taken, taken + 1, 1000);
    CHECK_EQUAL(pushed, taken);
    packet_ring_release(ring);
    CHECK(push(ring, pushed + 1, 1000));
    CHECK(packet_ring_usage(ring) < 0.01);
    packet_ring_destroy(ring);
}

static void small_frames_fill_the_descriptors_and_all_come_out(void) {
    struct packet_ring *ring = make(1);
    struct capture_packet_batch batch;
    uint64_t taken = 0, pushed = 0;
    for (int turn = 0; turn < 3; turn++) {
        while (push(ring, pushed + 1, 0))
            pushed++;
        CHECK(packet_ring_usage(ring) > 0.99);
        do {
            packet_ring_next(ring, &batch);
            for (uint32_t i = 0; i < batch.count; i++, taken++)
                check_packet(&batch, i, taken + 1, 0);
            packet_ring_release(ring);
        } while (batch.count);
        CHECK_EQUAL(pushed, taken);
        CHECK(packet_ring_usage(ring) == 0);
    }
    packet_ring_destroy(ring);
}

static void an_empty_ring_gives_nothing_and_release_without_next_is_harmless(void) {
    struct packet_ring *ring = make(4);
    struct capture_packet_batch batch;
    packet_ring_release(ring);
    packet_ring_next(ring, &batch);
    CHECK_EQUAL(0, batch.count);
    CHECK(batch.base != NULL);
    CHECK_EQUAL(8 << 20, batch.size);
    packet_ring_release(ring);
    packet_ring_release(ring);
    CHECK(push(ring, 1, 60));
    packet_ring_destroy(ring);
    packet_ring_destroy(NULL);
}

static void sizes_are_rounded_up_to_a_power_of_two_and_bad_ones_refused(void) {
    struct packet_ring *ring = make(3);
    struct capture_packet_batch batch;
    packet_ring_next(ring, &batch);
    CHECK_EQUAL(8 << 20, batch.size);
    packet_ring_destroy(ring);
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, packet_ring_create(0, &ring, &error));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, packet_ring_create(8193, &ring, &error));
    CHECK_TEXT("packet_ring_mb", error.field);
}

enum { THREADED_FRAMES = 100000 };
static _Atomic bool finished;

static void *produce(void *opaque) {
    for (uint64_t id = 1; id <= THREADED_FRAMES;)
        if (push(opaque, id, (uint32_t)(id % 200)))
            id++;
        else
            sched_yield();
    return NULL;
}

static void *watch(void *opaque) {
    while (!atomic_load(&finished)) {
        double usage = packet_ring_usage(opaque);
        CHECK(usage >= 0 && usage <= 1);
        sched_yield();
    }
    return NULL;
}

static void a_producer_a_consumer_and_a_watcher_work_at_the_same_time(void) {
    struct packet_ring *ring = make(1);
    pthread_t producer, watcher;
    CHECK_EQUAL(0, pthread_create(&producer, NULL, produce, ring));
    CHECK_EQUAL(0, pthread_create(&watcher, NULL, watch, ring));
    uint64_t taken = 0;
    while (taken < THREADED_FRAMES) {
        struct capture_packet_batch batch;
        packet_ring_next(ring, &batch);
        for (uint32_t i = 0; i < batch.count; i++, taken++)
            check_packet(&batch, i, taken + 1, (uint32_t)((taken + 1) % 200));
        packet_ring_release(ring);
        if (batch.count == 0)
            sched_yield();
    }
    pthread_join(producer, NULL);
    atomic_store(&finished, true);
    pthread_join(watcher, NULL);
    packet_ring_destroy(ring);
}

int main(void) {
    RUN(frames_come_out_as_they_went_in_over_many_turns_of_the_ring);
    RUN(a_full_ring_refuses_and_what_it_holds_stays_whole);
    RUN(small_frames_fill_the_descriptors_and_all_come_out);
    RUN(an_empty_ring_gives_nothing_and_release_without_next_is_harmless);
    RUN(sizes_are_rounded_up_to_a_power_of_two_and_bad_ones_refused);
    RUN(a_producer_a_consumer_and_a_watcher_work_at_the_same_time);
    return 0;
}
