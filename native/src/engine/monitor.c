/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/monitor.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "engine/capture.h"
#include "error.h"

enum { LOOK_NS = 250000000, SECOND_NS = 1000000000 };

void monitor_init(struct capture *capture) {
    struct monitor *monitor = &capture->monitor;
    pthread_condattr_t attributes;
    pthread_mutex_init(&monitor->look_lock, NULL);
    pthread_mutex_init(&monitor->wake_lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&monitor->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    clock_source_init(&monitor->clock, &clock_system_linux, &capture->config, !capture->config.files);
}

void monitor_destroy(struct capture *capture) {
    struct monitor *monitor = &capture->monitor;
    clock_source_destroy(&monitor->clock);
    pthread_mutex_destroy(&monitor->look_lock);
    pthread_mutex_destroy(&monitor->wake_lock);
    pthread_cond_destroy(&monitor->wake);
}

/* The backend that stamps the frames of all interfaces, or "several". */
static const char *stamping_backend(const struct capture *capture) {
    const char *name = capture->sources[0]->ops->name;
    for (int i = 1; i < CAPTURE_INTERFACES_MAX && capture->sources[i]; i++)
        if (strcmp(capture->sources[i]->ops->name, name) != 0)
            return "several";
    return name;
}

int monitor_prepare(struct capture *capture, struct capture_error_info *error) {
    return clock_source_start(&capture->monitor.clock, &capture->config, stamping_backend(capture), error);
}

void monitor_cancel(struct capture *capture) {
    clock_source_stop(&capture->monitor.clock);
}

/* ---- a look */

static void tell_step(struct capture *capture, const char *whose, int64_t step_ns) {
    struct capture_event event = {.type = CAPTURE_EVENT_CLOCK_STEP, .delta = step_ns};
    uint64_t far = step_ns < 0 ? 0 - (uint64_t)step_ns : (uint64_t)step_ns;
    event_log_raise(&capture->events, &event, "%s was set %s by %" PRIu64 ".%03" PRIu64 " s", whose,
                    step_ns < 0 ? "back" : "forward", far / SECOND_NS, far % SECOND_NS / 1000000);
}

static void tell_sync(struct capture *capture, const struct clock_news *news) {
    struct capture_event event = {.type = CAPTURE_EVENT_CLOCK_SYNC, .value = news->in_sync};
    const char *what =
        capture->config.timestamp_source == CAPTURE_TIMESTAMP_NTP
            ? news->in_sync ? "the system's clock is synchronised again" : "the system's clock is no longer synchronised"
        : news->in_sync ? "the PTP clock can be read again"
                        : "the PTP clock can no longer be read: its last known offset stays in force";
    event_log_raise(&capture->events, &event, "%s", what);
}

static void look_for_loss(struct capture *capture, uint64_t mono_ns, bool last) {
    struct capture_stats stats;
    struct loss_report report;
    capture_get_stats(capture, &stats);
    if (!loss_watch_look(&capture->monitor.loss, &stats, mono_ns, last, &report))
        return;
    struct capture_event event = {.type = CAPTURE_EVENT_LOSS, .value = report.lost};
    char text[sizeof(event.message)];
    loss_report_describe(&report, text, sizeof(text));
    event_log_raise(&capture->events, &event, "%s", text);
}

static uint64_t monotonic_ns(const struct monitor *monitor) {
    struct timespec now = {0};
    monitor->clock.system->gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

uint64_t monitor_look(struct capture *capture, bool last) {
    struct monitor *monitor = &capture->monitor;
    struct clock_news news;
    pthread_mutex_lock(&monitor->look_lock);
    clock_source_look(&monitor->clock, &news);
    if (news.system_step_ns)
        tell_step(capture, "the system's clock", news.system_step_ns);
    if (news.phc_step_ns)
        tell_step(capture, "the network card's PTP clock", news.phc_step_ns);
    if (news.sync_changed)
        tell_sync(capture, &news);
    look_for_loss(capture, monotonic_ns(monitor), last);
    uint64_t due = loss_watch_due(&monitor->loss);
    pthread_mutex_unlock(&monitor->look_lock);
    return due;
}

void monitor_poll(struct capture *capture, uint64_t mono_ns) {
    struct monitor *monitor = &capture->monitor;
    uint64_t next = atomic_load_explicit(&monitor->next_ns, memory_order_relaxed);
    if (!next || mono_ns < next)
        return;
    uint64_t due = monitor_look(capture, false);
    /* A look that is late does not make the next one early, lest they come in bursts. */
    uint64_t then = mono_ns - next < LOOK_NS ? next + LOOK_NS : mono_ns + LOOK_NS;
    atomic_compare_exchange_strong(&monitor->next_ns, &next, due < then ? due : then);
}

/* ---- its thread */

static void *watch(void *argument) {
    struct capture *capture = argument;
    struct monitor *monitor = &capture->monitor;
    pthread_mutex_lock(&monitor->wake_lock);
    while (!monitor->stopping) {
        uint64_t next = atomic_load(&monitor->next_ns);
        struct timespec at = {.tv_sec = (time_t)(next / SECOND_NS), .tv_nsec = (long)(next % SECOND_NS)};
        pthread_cond_timedwait(&monitor->wake, &monitor->wake_lock, &at);
        if (monitor->stopping)
            break;
        pthread_mutex_unlock(&monitor->wake_lock);
        monitor_poll(capture, clock_ns(CLOCK_MONOTONIC));
        pthread_mutex_lock(&monitor->wake_lock);
    }
    pthread_mutex_unlock(&monitor->wake_lock);
    return NULL;
}

static int start_thread(struct capture *capture, struct capture_error_info *error) {
    struct monitor *monitor = &capture->monitor;
    sigset_t all, before;
    sigfillset(&all); /* as on the capture threads: signals are the program's business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&monitor->thread, NULL, watch, capture);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure)
        return capture_fail(error, CAPTURE_ERR_IO, "workers", "the thread that watches the capture could not be started: %s",
                            strerror(failure));
    monitor->thread_started = true;
    pthread_setname_np(monitor->thread, "capture-mon");
    return CAPTURE_OK;
}

int monitor_start(struct capture *capture, struct capture_error_info *error) {
    struct monitor *monitor = &capture->monitor;
    loss_watch_init(&monitor->loss, capture->config.loss_threshold, monotonic_ns(monitor));
    monitor->stopping = false;
    atomic_store(&monitor->next_ns, clock_ns(CLOCK_MONOTONIC) + LOOK_NS);
    return capture->threaded ? start_thread(capture, error) : CAPTURE_OK;
}

void monitor_stop(struct capture *capture) {
    struct monitor *monitor = &capture->monitor;
    pthread_mutex_lock(&monitor->wake_lock);
    monitor->stopping = true;
    pthread_cond_signal(&monitor->wake);
    pthread_mutex_unlock(&monitor->wake_lock);
    if (monitor->thread_started)
        pthread_join(monitor->thread, NULL);
    monitor->thread_started = false;
    if (atomic_exchange(&monitor->next_ns, 0))
        monitor_look(capture, true);
    clock_source_stop(&monitor->clock);
}

/* ---- what is known of the clock */

int capture_get_clock(capture_t *capture, struct capture_clock_info *out) {
    struct clock_source *clock = &capture->monitor.clock;
    /* A capture without workers that nobody moves is not looked at either. */
    if (clock_source_is_stale(clock))
        monitor_look(capture, false);
    clock_source_info(clock, out);
    return CAPTURE_OK;
}
