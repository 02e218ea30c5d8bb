/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of the interfaces of a capture that runs: down and up, gone and back.
 *
 * A backend says so when its read fails. Where it does not, or is not asked because other interfaces keep the worker busy, the
 * first worker looks: once a second at each that was silent since the last look, more often at one that is down. One that is back
 * under its name is opened by that worker, between two batches; the others' rings hold what comes meanwhile. */
#include <stdio.h>

#include "backend/interface.h"
#include "engine/capture.h"

static const char *const words[] = {
    [CAPTURE_INTERFACE_UP] = "is up again", [CAPTURE_INTERFACE_DOWN] = "went down", [CAPTURE_INTERFACE_GONE] = "is gone"};

/* The caller holds the stats mutex. */
static bool any_left(const struct capture *capture) {
    bool left = false;
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++)
        left = left || (capture->sources[i] && capture->sources[i]->state != CAPTURE_INTERFACE_GONE);
    return left;
}

void source_note_state(struct capture *capture, struct source *source, enum capture_interface_state state,
                       const struct capture_error_info *why) {
    pthread_mutex_lock(&capture->stats_mutex);
    bool news = source->state != state && source->state != CAPTURE_INTERFACE_GONE;
    if (news) {
        source->state = state;
        snprintf(source->error, sizeof(source->error), "%.127s", why ? why->message : "");
    }
    bool over = state == CAPTURE_INTERFACE_GONE && !any_left(capture);
    pthread_mutex_unlock(&capture->stats_mutex);
    if (!news)
        return;
    struct capture_event event = {.type = CAPTURE_EVENT_INTERFACE, .value = state};
    const char *name = source->config.interface;
    snprintf(event.interface, sizeof(event.interface), "%s", name);
    if (why && why->message[0])
        event_log_raise(&capture->events, &event, "%.250s", why->message);
    else
        event_log_raise(&capture->events, &event, "interface %.200s %s", name,
                        state == CAPTURE_INTERFACE_GONE ? "is at its end" : words[state]);
    if (over && why) {
        capture_note_error(capture, why);
        atomic_store(&capture->failed, true);
    }
    if (state == CAPTURE_INTERFACE_GONE)
        atomic_fetch_add(&capture->sources_version, 1);
}

static uint64_t frames_read(const struct capture *capture, const struct source *source) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < capture->worker_count; i++)
        sum += counter_get(&source->queues[i].read);
    return sum;
}

static void look_at_present(struct capture *capture, struct source *source) {
    struct capture_error_info why = {0};
    const char *name = source->config.interface;
    enum capture_interface_state state = interface_state((int)source->index);
    if (state == CAPTURE_INTERFACE_DOWN)
        interface_went_down(name, &why);
    else if (state == CAPTURE_INTERFACE_GONE)
        interface_is_gone(name, &why);
    why.code = why.message[0] ? CAPTURE_ERR_IO : CAPTURE_OK;
    source_note_state(capture, source, state, &why);
}

/* Opens an interface that is back with the backend that suits it now: what it is and who uses it may have changed. */
static int reopen(struct capture *capture, struct source *source, struct capture_error_info *error) {
    const struct capture_backend_ops *ops = backend_select(&source->config, error);
    if (!ops)
        return error->code;
    int result = clock_source_admit(&capture->monitor.clock, source->config.interface, error);
    if (result != CAPTURE_OK)
        return result;
    pthread_mutex_lock(&capture->stats_mutex);
    source->ops = ops;
    pthread_mutex_unlock(&capture->stats_mutex);
    return source_open(capture, source, error);
}

/* Is there an interface of that name again, and may it be captured from? While it cannot, the next look tries again. */
static void look_for_gone(struct capture *capture, struct source *source) {
    int hardware;
    struct capture_error_info error = {0};
    const char *name = source->config.interface;
    if (atomic_load(&source->open_queues) > 0 || atomic_load(&capture->failed) ||
        interface_look(name, &hardware, &error) != CAPTURE_OK)
        return;
    if (reopen(capture, source, &error) == CAPTURE_OK) {
        struct capture_event event = {.type = CAPTURE_EVENT_INTERFACE, .value = CAPTURE_INTERFACE_UP};
        snprintf(event.interface, sizeof(event.interface), "%s", name);
        event_log_raise(&capture->events, &event, "interface %.200s is back", name);
        return;
    }
    pthread_mutex_lock(&capture->stats_mutex);
    snprintf(source->error, sizeof(source->error), "%.127s", error.message);
    pthread_mutex_unlock(&capture->stats_mutex);
}

static void look_at(struct capture *capture, struct source *source, uint64_t mono_ns) {
    if (source->index == 0 || atomic_load(&source->removed) || mono_ns < source->look_mono_ns)
        return;
    uint32_t state = source->state;
    uint64_t read = frames_read(capture, source);
    bool silent = read == source->read_at_look;
    source->read_at_look = read;
    source->look_mono_ns = mono_ns + (state == CAPTURE_INTERFACE_DOWN ? SOURCES_LOOK_NS : SOURCE_LOOK_UP_NS);
    if (state == CAPTURE_INTERFACE_GONE)
        look_for_gone(capture, source);
    else if (state == CAPTURE_INTERFACE_DOWN || silent)
        look_at_present(capture, source);
}

void sources_look_after(struct worker *worker, uint64_t mono_ns) {
    struct capture *capture = worker->capture;
    worker->look_mono_ns = mono_ns + SOURCES_LOOK_NS;
    if (pthread_mutex_trylock(&capture->control_mutex) != 0)
        return; /* interfaces are being added or removed: next time */
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++)
        if (capture->sources[i])
            look_at(capture, capture->sources[i], mono_ns);
    pthread_mutex_unlock(&capture->control_mutex);
}
