/* SPDX-License-Identifier: Apache-2.0 */
/* Packet delivery: hands out what lies in the workers' packet rings, one ring at a time. */
#include <string.h>

#include "engine/capture.h"

/* The next ring in turn that holds something. */
static bool take_packets(struct capture *capture, struct capture_packet_batch *out) {
    for (uint32_t tried = 0; tried < capture->worker_count; tried++) {
        capture->packets_worker = (capture->packets_worker + 1) % capture->worker_count;
        packet_ring_next(capture->workers[capture->packets_worker].ring, out);
        if (out->count)
            return true;
        packet_ring_release(capture->workers[capture->packets_worker].ring);
    }
    return false;
}

/* True when something may have come; false when there is nothing to wait for. */
static bool move_forward(struct capture *capture, uint64_t until_mono_ns) {
    struct worker *worker = &capture->workers[0];
    if (capture->state == CAPTURE_STOPPED || atomic_load(&capture->finished))
        return false;
    if (capture->threaded) {
        atomic_fetch_add(&capture->waiters, 1);
        capture_wait_wake(capture, until_mono_ns);
        atomic_fetch_sub(&capture->waiters, 1);
        return true;
    }
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    uint64_t left_ms = until_mono_ns > now ? (until_mono_ns - now) / 1000000 : 0;
    pthread_mutex_lock(&worker->owner);
    enum worker_turn turn = worker_turn(worker, left_ms < TURN_WAIT_MS ? (uint32_t)left_ms : TURN_WAIT_MS);
    pthread_mutex_unlock(&worker->owner);
    monitor_poll(capture, now);
    return turn != TURN_BLOCKED;
}

int capture_packets_next(capture_t *capture, uint32_t timeout_ms, struct capture_packet_batch *out) {
    memset(out, 0, sizeof(*out));
    if (!capture->config.packet_ring_mb || capture->state == CAPTURE_CREATED || capture->packets_out)
        return CAPTURE_ERR_STATE;
    if (!capture_may_give(capture))
        return CAPTURE_ERR_LEASE;
    uint64_t until = clock_ns(CLOCK_MONOTONIC) + timeout_ms * 1000000ull;
    for (;;) {
        if (!capture_may_give(capture)) /* it may have run out in the wait */
            return CAPTURE_ERR_LEASE;
        /* Looked at before the rings: what the last turn put there is still found. */
        bool last = clock_ns(CLOCK_MONOTONIC) >= until || atomic_load(&capture->finished);
        if (take_packets(capture, out)) {
            capture->packets_out = true;
            return (int)out->count;
        }
        if (last && timeout_ms)
            return 0;
        bool moved = move_forward(capture, until);
        if (!moved || timeout_ms == 0) {
            capture->packets_out = take_packets(capture, out);
            return (int)out->count;
        }
    }
}

void capture_packets_release(capture_t *capture) {
    if (!capture->packets_out)
        return;
    packet_ring_release(capture->workers[capture->packets_worker].ring);
    capture->packets_out = false;
}
