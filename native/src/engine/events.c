/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/events.h"

#include <stdarg.h>
#include <stdio.h>

#include "engine/capture.h"

void event_log_init(struct event_log *log) {
    pthread_mutex_init(&log->lock, NULL);
}

void event_log_destroy(struct event_log *log) {
    pthread_mutex_destroy(&log->lock);
}

void event_log_raise(struct event_log *log, const struct capture_event *event, const char *format, ...) {
    va_list arguments;
    pthread_mutex_lock(&log->lock);
    struct capture_event *kept = &log->kept[log->raised % EVENTS_KEPT];
    *kept = *event;
    kept->sequence = ++log->raised;
    kept->time_unix_ns = clock_ns(CLOCK_REALTIME);
    va_start(arguments, format);
    vsnprintf(kept->message, sizeof(kept->message), format, arguments);
    va_end(arguments);
    pthread_mutex_unlock(&log->lock);
}

int capture_next_event(capture_t *capture, uint64_t after_sequence, struct capture_event *out) {
    struct event_log *log = &capture->events;
    pthread_mutex_lock(&log->lock);
    uint64_t oldest = log->raised > EVENTS_KEPT ? log->raised - EVENTS_KEPT + 1 : 1;
    uint64_t next = after_sequence + 1 > oldest ? after_sequence + 1 : oldest;
    bool there = after_sequence < log->raised;
    if (there)
        *out = log->kept[(next - 1) % EVENTS_KEPT];
    pthread_mutex_unlock(&log->lock);
    return there;
}
