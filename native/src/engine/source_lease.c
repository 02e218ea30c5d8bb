/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What waits in a ring when a lease comes into force after a time without one: it may have been received in that time (a worker
 * that was stopped or starved leaves the ring to fill), and kernel timestamps do not tell, for they are of a clock that can be
 * set. So all of it counts as paused: as many frames as the backend says are waiting, or, where it does not tell, as many as the
 * ring can hold or until it was seen empty.
 */
#include "config.h"
#include "engine/capture.h"

enum { FRAME_BYTES_MIN = 60, EMPTY_NS = 100000000, WAITING_MIN = 1 << 20 };

/* More than any ring holds that was asked to have the configured size. */
static uint64_t most_waiting(const struct capture *capture) {
    uint64_t frames = ((uint64_t)capture_config_buffer_mb(&capture->config) << 20) / FRAME_BYTES_MIN;
    return frames > WAITING_MIN ? frames : WAITING_MIN;
}

static void mark(const struct capture *capture, struct source_queue *queue, uint64_t spell) {
    const struct capture_backend_ops *ops = queue->source->ops;
    struct backend_stats held;
    queue->spell = spell;
    queue->stale_since_ns = 0;
    if (ops->tells_waiting) {
        ops->stats(queue->backend, &held);
        queue->stale_end = counter_get(&queue->read) + held.in_flight;
    } else {
        queue->stale_end = counter_get(&queue->read) + most_waiting(capture);
        queue->stale_since_ns = clock_ns(CLOCK_MONOTONIC);
    }
}

void sources_follow_lease(struct worker *worker) {
    const struct capture *capture = worker->capture;
    uint64_t spell = authority_spells(capture->authority);
    for (uint32_t i = 0; capture->live && i < worker->queue_count; i++) {
        struct source_queue *queue = worker->queues[i];
        if (queue->spell != spell)
            mark(capture, queue, spell);
        else if (queue->stale_since_ns && clock_ns(CLOCK_MONOTONIC) - queue->stale_since_ns >= EMPTY_NS)
            queue->stale_end = queue->stale_since_ns = 0;
    }
}

bool sources_are_stale(struct worker *worker) {
    struct source_queue *queue = worker->queue;
    if (counter_get(&queue->read) - worker->frames.count >= queue->stale_end)
        return false;
    if (queue->stale_since_ns)
        queue->stale_since_ns = clock_ns(CLOCK_MONOTONIC);
    return true;
}
