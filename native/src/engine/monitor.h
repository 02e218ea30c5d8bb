/* SPDX-License-Identifier: Apache-2.0 */
/* Looks at a running capture four times a second and raises events: loss, steps and synchronisation of the clock. A capture with
 * workers has a thread for it, "capture-mon"; one without is looked at by the thread that moves it. */
#ifndef JARVIS_MONITOR_H
#define JARVIS_MONITOR_H

#include <pthread.h>
#include <stdatomic.h>

#include "clock/clock_source.h"
#include "engine/loss_watch.h"

struct capture;

struct monitor {
    pthread_mutex_t look_lock; /* one look at a time; guards what follows up to the clock */
    struct loss_watch loss;
    struct clock_source clock; /* has a lock of its own */
    _Atomic uint64_t next_ns;  /* monotonic clock: when the next look is due; 0: nothing runs */
    pthread_t thread;
    bool thread_started;
    pthread_mutex_t wake_lock; /* of `stopping` */
    pthread_cond_t wake;
    bool stopping;
};

void monitor_init(struct capture *capture);
void monitor_destroy(struct capture *capture);

/* Before the backends open: the clock source, which may be refused. monitor_cancel takes it back. */
int monitor_prepare(struct capture *capture, struct capture_error_info *error);
void monitor_cancel(struct capture *capture);

/* Once the capture runs. */
int monitor_start(struct capture *capture, struct capture_error_info *error);

/* Once everything is counted: a last look, which tells what was lost since the one before. */
void monitor_stop(struct capture *capture);

/* By whoever moves a capture without workers, between two turns: looks when it is time. */
void monitor_poll(struct capture *capture, uint64_t mono_ns);

/* Looks now. Returns when it must look again at the latest, monotonic clock, lest a loss be told late. Any thread. */
uint64_t monitor_look(struct capture *capture, bool last);

#endif
