/* SPDX-License-Identifier: Apache-2.0 */
/* What happened to a capture, for whoever asks (capture_next_event): a short ring, written rarely, never by the packet path. */
#ifndef JARVIS_EVENTS_H
#define JARVIS_EVENTS_H

#include <pthread.h>

#include "jarvis_capture.h"

enum { EVENTS_KEPT = 256 };

struct event_log {
    pthread_mutex_t lock;
    uint64_t raised; /* events so far: the newest one's sequence number */
    struct capture_event kept[EVENTS_KEPT];
};

void event_log_init(struct event_log *log);
void event_log_destroy(struct event_log *log);

/* Adds one: type, value, delta and interface are the caller's, the rest is filled in. Any thread. */
__attribute__((format(printf, 3, 4))) void event_log_raise(struct event_log *log, const struct capture_event *event,
                                                           const char *format, ...);

#endif
