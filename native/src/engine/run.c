/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a capture: start, poll, stop; its asynchronous errors and its deadline. */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/capture.h"
#include "error.h"

enum { WAKE_SLICE_MS = 10, BLOCKED_WAITS = 10 };

static int start_thread(struct worker *worker, struct capture_error_info *error) {
    struct capture *capture = worker->capture;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (capture->config.worker_cpus) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(capture->config.worker_cpus[worker->number], &cpus);
        pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
    }
    /* Signals are the program's business: none is handled on a capture thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&worker->thread, &attributes, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (failure)
        return capture_fail(error, CAPTURE_ERR_IO, capture->config.worker_cpus ? "worker_cpus" : "workers",
                            "capture thread %u could not be started: %s", worker->number, strerror(failure));
    worker->thread_started = true;
    char name[16];
    snprintf(name, sizeof(name), "capture-%u", worker->number);
    pthread_setname_np(worker->thread, name);
    return CAPTURE_OK;
}

/* Workers of one input read it together where the backend can. */
static int unite_workers(struct capture *capture, struct capture_error_info *error) {
    const struct source *source = capture->sources[0];
    const struct worker *first = &capture->workers[0];
    void *states[WORKERS_MAX];
    if (first->shard.count <= 1 || !source->ops->unite)
        return CAPTURE_OK;
    for (uint32_t i = 0; i < capture->worker_count; i++)
        states[i] = source->queues[i].backend;
    int result = source->ops->unite(states, capture->worker_count, shard_of_batch, &first->shard, error);
    for (uint32_t i = 0; i < capture->worker_count; i++)
        capture->workers[i].united = result == CAPTURE_OK;
    return result == BACKEND_END ? CAPTURE_OK : result;
}

int capture_set_authority(capture_t *capture, capture_authority_t *authority, const uint8_t *request, uint64_t length,
                          struct capture_error_info *error) {
    if (capture->state != CAPTURE_CREATED || capture->authority)
        return capture_fail(error, CAPTURE_ERR_STATE, "authority", "a capture is bound to an authority once, before its start");
    if (length > PAYLOAD_BYTES_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "request", "request has %" PRIu64 " bytes: at most %d are accepted",
                            length, PAYLOAD_BYTES_MAX);
    capture->request = malloc(length ? length : 1);
    if (!capture->request)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "request", "%" PRIu64 " bytes could not be allocated", length);
    if (length)
        memcpy(capture->request, request, length);
    capture->request_length = length;
    capture->authority = authority_hold(authority);
    return CAPTURE_OK;
}

static int take_right_to_start(struct capture *capture, struct capture_error_info *error) {
    struct wire_bytes request = {capture->request, capture->request_length};
    if (!capture->authority)
        return CAPTURE_OK;
    return authority_take_start(capture->authority, request, &capture->config, error);
}

int capture_start(capture_t *capture, struct capture_error_info *error) {
    if (capture->state != CAPTURE_CREATED)
        return capture_fail(error, CAPTURE_ERR_STATE, "", "the capture was started before");
    int result = take_right_to_start(capture, error);
    if (result != CAPTURE_OK)
        return result;
    result = monitor_prepare(capture, error);
    if (result == CAPTURE_OK)
        result = sources_open(capture, error);
    if (result == CAPTURE_OK)
        result = unite_workers(capture, error);
    if (result != CAPTURE_OK) {
        monitor_cancel(capture);
        return result;
    }
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    for (uint32_t i = 0; i < capture->worker_count; i++)
        capture->workers[i].rate_mono_ns = now;
    capture->workers[0].look_mono_ns = capture->live ? now + SOURCES_LOOK_NS : UINT64_MAX;
    capture->state = CAPTURE_RUNNING;
    counter_set(&capture->start_mono_ns, now);
    for (uint32_t i = 0; capture->threaded && i < capture->worker_count && result == CAPTURE_OK; i++)
        result = start_thread(&capture->workers[i], error);
    if (result == CAPTURE_OK)
        result = monitor_start(capture, error);
    if (result != CAPTURE_OK)
        capture_stop(capture, false);
    return result;
}

/* Workers that share an input find the same fault in it. */
static void keep_error(struct capture *capture, const struct capture_error_info *error) {
    for (uint32_t i = 0; i < capture->error_count; i++)
        if (capture->errors[i].code == error->code && strcmp(capture->errors[i].message, error->message) == 0)
            return;
    if (capture->error_count < ERRORS_MAX)
        capture->errors[capture->error_count++] = *error;
}

void capture_note_error(struct capture *capture, const struct capture_error_info *error) {
    pthread_mutex_lock(&capture->error_mutex);
    capture->last_error = *error;
    keep_error(capture, error);
    atomic_fetch_add(&capture->errors_noted, 1);
    pthread_mutex_unlock(&capture->error_mutex);
}

int capture_get_error(capture_t *capture, struct capture_error_info *error) {
    pthread_mutex_lock(&capture->error_mutex);
    *error = capture->last_error;
    pthread_mutex_unlock(&capture->error_mutex);
    return CAPTURE_OK;
}

int capture_get_errors(capture_t *capture, struct capture_error_info *errors, uint32_t capacity) {
    pthread_mutex_lock(&capture->error_mutex);
    uint32_t count = capture->error_count;
    memcpy(errors, capture->errors, (count < capacity ? count : capacity) * sizeof(*errors));
    pthread_mutex_unlock(&capture->error_mutex);
    return (int)count;
}

int capture_set_deadline(capture_t *capture, uint64_t boottime_ns) {
    if (capture->authority)
        return CAPTURE_ERR_STATE;
    counter_set(&capture->deadline_boottime_ns, boottime_ns);
    return CAPTURE_OK;
}

void capture_note_progress(struct capture *capture) {
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        if (atomic_load(&capture->workers[i].state) != WORKER_DONE)
            return;
    }
    atomic_store(&capture->finished, true);
}

/* What capture_poll returns at the end. */
static int end_result(struct capture *capture) {
    if (!atomic_load(&capture->failed))
        return 0;
    struct capture_error_info error;
    capture_get_error(capture, &error);
    return error.code < 0 ? error.code : CAPTURE_ERR_IO;
}

/* A poll that begins where the last one was held up: whoever drains the log or the ring is another thread, which is given a
 * moment, so that a loop of polls does not spin. */
static enum worker_turn turn_after_waiting(struct worker *worker, uint64_t until_mono_ns) {
    enum worker_turn turn = TURN_BLOCKED;
    for (int wait = 0; turn == TURN_BLOCKED && wait < BLOCKED_WAITS && clock_ns(CLOCK_MONOTONIC) < until_mono_ns; wait++) {
        pthread_mutex_unlock(&worker->owner);
        worker_wait_for_room();
        pthread_mutex_lock(&worker->owner);
        turn = worker_turn(worker, 0);
    }
    return turn;
}

static int poll_inline(struct capture *capture, uint32_t timeout_ms) {
    struct worker *worker = &capture->workers[0];
    uint64_t now = clock_ns(CLOCK_MONOTONIC), until = now + timeout_ms * 1000000ull;
    unsigned errors = atomic_load(&capture->errors_noted);
    pthread_mutex_lock(&worker->owner);
    enum worker_turn turn;
    bool first = true;
    do {
        uint64_t left_ms = (until - now) / 1000000;
        turn = worker_turn(worker, left_ms < TURN_WAIT_MS ? (uint32_t)left_ms : TURN_WAIT_MS);
        if (first && turn == TURN_BLOCKED)
            turn = turn_after_waiting(worker, until);
        first = false;
        now = clock_ns(CLOCK_MONOTONIC);
        monitor_poll(capture, now);
    } while (now < until && turn != TURN_DONE && turn != TURN_BLOCKED && atomic_load(&capture->errors_noted) == errors);
    pthread_mutex_unlock(&worker->owner);
    return turn == TURN_DONE ? end_result(capture) : 1;
}

/* True when a worker has written records that were not announced yet, or holds packets. */
static bool something_ready(struct capture *capture) {
    bool ready = false;
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        struct worker *worker = &capture->workers[i];
        uint64_t head = capture->metering ? record_log_head(&worker->log) : 0;
        uint64_t sampled = counter_get(&worker->counters.sampled);
        ready = ready || head != worker->log_seen || sampled != worker->sampled_seen ||
                (worker->ring && packet_ring_usage(worker->ring) > 0);
        worker->log_seen = head;
        worker->sampled_seen = sampled;
    }
    return ready;
}

/* In slices, so that a wake-up that came between look and wait costs little. */
void capture_wait_wake(struct capture *capture, uint64_t until_mono_ns) {
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    uint64_t wait = until_mono_ns > now ? until_mono_ns - now : 0;
    if (wait > WAKE_SLICE_MS * 1000000ull)
        wait = WAKE_SLICE_MS * 1000000ull;
    uint64_t until = now + wait;
    struct timespec at = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    pthread_mutex_lock(&capture->wake_mutex);
    pthread_cond_timedwait(&capture->wake, &capture->wake_mutex, &at);
    pthread_mutex_unlock(&capture->wake_mutex);
}

static int poll_threads(struct capture *capture, uint32_t timeout_ms) {
    uint64_t until = clock_ns(CLOCK_MONOTONIC) + timeout_ms * 1000000ull;
    int result = 1;
    atomic_fetch_add(&capture->waiters, 1);
    for (;;) {
        bool finished = atomic_load(&capture->finished);
        if (something_ready(capture))
            break;
        if (finished) {
            result = end_result(capture);
            break;
        }
        if (clock_ns(CLOCK_MONOTONIC) >= until)
            break;
        capture_wait_wake(capture, until);
    }
    atomic_fetch_sub(&capture->waiters, 1);
    return result;
}

int capture_poll(capture_t *capture, uint32_t timeout_ms) {
    if (capture->state == CAPTURE_CREATED)
        return CAPTURE_ERR_STATE;
    if (capture->state == CAPTURE_STOPPED)
        return 0;
    return capture->threaded ? poll_threads(capture, timeout_ms) : poll_inline(capture, timeout_ms);
}

void capture_flush_released(struct capture *capture) {
    if (!atomic_load(&capture->released) || atomic_load(&capture->finished))
        return;
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        struct worker *worker = &capture->workers[i];
        pthread_mutex_lock(&worker->owner);
        while (worker_turn(worker, 0) == TURN_MORE)
            continue;
        pthread_mutex_unlock(&worker->owner);
    }
}

int capture_stop(capture_t *capture, bool graceful) {
    if (capture->state == CAPTURE_CREATED)
        return CAPTURE_ERR_STATE;
    if (capture->state == CAPTURE_STOPPED)
        return CAPTURE_OK;
    atomic_store(&capture->stop_gracefully, graceful);
    atomic_store(&capture->stop_requested, true);
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        struct worker *worker = &capture->workers[i];
        if (worker->thread_started)
            pthread_join(worker->thread, NULL);
        worker->thread_started = false;
        pthread_mutex_lock(&worker->owner);
        worker_end_input(worker, graceful);
        pthread_mutex_unlock(&worker->owner);
    }
    pthread_mutex_lock(&capture->control_mutex);
    sources_close(capture);
    capture->state = CAPTURE_STOPPED;
    pthread_mutex_unlock(&capture->control_mutex);
    monitor_stop(capture);
    counter_set(&capture->stop_mono_ns, clock_ns(CLOCK_MONOTONIC));
    atomic_store(&capture->released, true);
    capture_flush_released(capture);
    return CAPTURE_OK;
}
