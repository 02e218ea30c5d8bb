/* SPDX-License-Identifier: Apache-2.0 */
/* A worker's reading of its queues: in turn while anything comes, waiting on all of them at once when all are quiet. One queue is
 * read with the whole wait, by nothing but the backend's own call. */
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include "engine/capture.h"

enum { DRAIN_NS = 100000000, BLIND_WAIT_MS = 1, MILLISECOND_NS = 1000000, MILLISECOND_US = 1000 };

/* No source is left that delivers or will. */
static bool nothing_left(struct capture *capture) {
    bool left = false;
    pthread_mutex_lock(&capture->stats_mutex);
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++)
        left = left || (capture->sources[i] && capture->sources[i]->state != CAPTURE_INTERFACE_GONE);
    pthread_mutex_unlock(&capture->stats_mutex);
    return !left;
}

static void leave_queue(struct source_queue *queue) {
    const struct capture_backend_ops *ops = queue->source->ops;
    if (queue->leaving_since_ns)
        return;
    if (ops->quiesce)
        ops->quiesce(queue->backend);
    /* Without quiesce the link goes on delivering: what the ring held when we came is what is drained. */
    struct backend_stats held;
    ops->stats(queue->backend, &held);
    queue->leaving_enough = ops->quiesce ? UINT64_MAX : counter_get(&queue->read) + held.in_flight;
    queue->leaving_since_ns = clock_ns(CLOCK_MONOTONIC);
}

/* Puts the worker's list together anew when sources have come, or must go. The list's lock is only tried: next turn will do. */
static void follow_changes(struct worker *worker) {
    struct capture *capture = worker->capture;
    uint32_t version = atomic_load(&capture->sources_version);
    if (version == worker->sources_seen || pthread_mutex_trylock(&capture->stats_mutex) != 0)
        return;
    worker->sources_seen = version;
    worker->queue_count = 0;
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++) {
        struct source *source = capture->sources[i];
        struct source_queue *queue = source ? &source->queues[worker->number] : NULL;
        if (!queue || !queue->backend)
            continue;
        if (worker->ending || atomic_load(&source->removed) || source->state == CAPTURE_INTERFACE_GONE)
            leave_queue(queue);
        worker->queues[worker->queue_count++] = queue;
    }
    pthread_mutex_unlock(&capture->stats_mutex);
}

static void close_queue(struct worker *worker, struct source_queue *queue) {
    uint32_t at = 0;
    while (worker->queues[at] != queue)
        at++;
    for (worker->queue_count--; at < worker->queue_count; at++)
        worker->queues[at] = worker->queues[at + 1];
    source_close_queue(worker->capture, queue);
}

static void close_at_end(struct worker *worker, struct source_queue *queue) {
    struct source *source = queue->source;
    if (atomic_load(&source->open_queues) == 1)
        source_note_state(worker->capture, source, CAPTURE_INTERFACE_GONE, NULL);
    close_queue(worker, queue);
}

/* A queue that gave nothing: quiet, or its interface is down, gone, or drained. */
static void judge_silence(struct worker *worker, struct source_queue *queue, int result, const struct capture_error_info *error) {
    if (queue->leaving_since_ns) {
        if (clock_ns(CLOCK_MONOTONIC) - queue->leaving_since_ns >= DRAIN_NS)
            close_queue(worker, queue);
    } else if (result == BACKEND_END) {
        close_at_end(worker, queue);
    } else if (result < 0) {
        enum capture_interface_state state = result == BACKEND_DOWN ? CAPTURE_INTERFACE_DOWN : CAPTURE_INTERFACE_GONE;
        source_note_state(worker->capture, queue->source, state, error);
    }
}

/* Reads one queue; 0 when it gave nothing, whatever the reason. */
static int read_queue(struct worker *worker, struct source_queue *queue, uint32_t wait_ms, int *result) {
    struct capture_error_info error = {0};
    if (__builtin_expect(queue->leaving_since_ns != 0, 0) && counter_get(&queue->read) >= queue->leaving_enough) {
        close_queue(worker, queue);
        return *result = 0;
    }
    *result = queue->source->ops->read(queue->backend, &worker->frames, (int)wait_ms, &error);
    if (*result > 0) {
        worker->queue = queue;
        counter_add(&queue->read, (uint64_t)*result);
        if (__builtin_expect(queue->leaving_since_ns != 0, 0))
            queue->leaving_since_ns = clock_ns(CLOCK_MONOTONIC);
        return *result;
    }
    if (*result < 0 || queue->leaving_since_ns)
        judge_silence(worker, queue, *result, &error);
    return 0;
}

/* Each queue once, the one after the last that gave something first. */
static int read_in_turn(struct worker *worker) {
    int result;
    for (uint32_t tried = 0, count = worker->queue_count; tried < count && worker->queue_count > 0; tried++) {
        worker->turn_of = (worker->turn_of + 1) % worker->queue_count;
        int frames = read_queue(worker, worker->queues[worker->turn_of], 0, &result);
        if (frames > 0)
            return frames;
    }
    return 0;
}

/* Until some queue has frames, at most left_ns. A queue without a descriptor has to be looked at now and then. */
static void wait_for_any(const struct worker *worker, uint64_t left_ns) {
    struct pollfd ready[CAPTURE_INTERFACES_MAX];
    uint32_t count = 0;
    int wait_ms = (int)((left_ns + MILLISECOND_NS - 1) / MILLISECOND_NS);
    for (uint32_t i = 0; i < worker->queue_count; i++) {
        const struct source_queue *queue = worker->queues[i];
        const struct capture_backend_ops *ops = queue->source->ops;
        if (queue->source->state != CAPTURE_INTERFACE_UP) /* its descriptor may be ready for ever, to say so */
            continue;
        int fd = ops->wait_fd ? ops->wait_fd(queue->backend) : -1;
        if (fd >= 0)
            ready[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
        else
            wait_ms = BLIND_WAIT_MS;
    }
    if (count == 0)
        usleep((useconds_t)wait_ms * MILLISECOND_US);
    else if (poll(ready, count, wait_ms) > 0)
        for (uint32_t i = 0; i < count; i++)
            if (ready[i].revents & (POLLERR | POLLHUP | POLLNVAL))
                usleep(BLIND_WAIT_MS * MILLISECOND_US); /* an interface that fails; its state is about to be noticed */
}

static int read_several(struct worker *worker, uint32_t wait_ms) {
    uint64_t until = 0;
    for (;;) {
        int count = read_in_turn(worker);
        if (count > 0 || wait_ms == 0)
            return count;
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        if (until == 0)
            until = now + wait_ms * (uint64_t)MILLISECOND_NS;
        else if (now >= until)
            return 0;
        wait_for_any(worker, until - now);
    }
}

int sources_read(struct worker *worker, uint32_t wait_ms, struct capture_error_info *error) {
    follow_changes(worker);
    if (worker->queue_count > 1)
        return read_several(worker, wait_ms);
    if (worker->queue_count == 0) {
        if (nothing_left(worker->capture))
            return BACKEND_END;
        usleep(wait_ms * MILLISECOND_US);
        return 0;
    }
    if (!worker->capture->live) {
        worker->queue = worker->queues[0];
        const struct capture_backend_ops *ops = worker->queue->source->ops;
        if (worker->united)
            return ops->read_share(worker->queue->backend, &worker->frames, &worker->input, (int)wait_ms, error);
        return ops->read(worker->queue->backend, &worker->frames, (int)wait_ms, error);
    }
    int result, count = read_queue(worker, worker->queues[0], wait_ms, &result);
    if (result < 0)
        usleep(wait_ms * MILLISECOND_US); /* down, or about to go: it may not have waited */
    return count;
}

void sources_leave(struct worker *worker, bool gracefully) {
    worker->ending = gracefully;
    atomic_fetch_add(&worker->capture->sources_version, 1); /* what was added and not taken up yet goes, too */
    while (worker->sources_seen != atomic_load(&worker->capture->sources_version)) {
        follow_changes(worker);
        sched_yield();
    }
    while (!gracefully && worker->queue_count > 0)
        close_queue(worker, worker->queues[0]);
}
