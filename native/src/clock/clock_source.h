/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock behind a capture's timestamps: judged at the start, looked at while the capture runs.
 *
 *   kernel    CLOCK_REALTIME as the kernel stamps with it
 *   ntp       the same, refused while adjtimex(2) says that it is not synchronised
 *   ptp       the same carried over to the interface's PTP hardware clock: applied_ns is added to each frame's time
 *   hardware  the card's own; where it has a PTP hardware clock, its distance from the system's is reported, and nothing added
 *
 * Time scales. Timestamps count from the Unix epoch, in UTC. A PTP hardware clock that ptp4l keeps runs on TAI, 37 s ahead since
 * 2017. When the kernel knows TAI - UTC (adjtimex; set by chronyd, ntpd, phc2sys), the scale of the clock is taken to be the one
 * of the two that it is nearer to at the start, and with TAI the difference is taken off. When the kernel does not know it, the
 * clock is taken as it is; `detail` says which.
 *
 * Init, start, stop and destroy are the caller's to order; look, info and applied_ns are for any thread.
 */
#ifndef JARVIS_CLOCK_SOURCE_H
#define JARVIS_CLOCK_SOURCE_H

#include <pthread.h>
#include <stdatomic.h>

#include "clock/phc.h"
#include "clock/step_watch.h"
#include "jarvis_capture.h"

struct clock_source {
    const struct clock_system *system;
    _Atomic int64_t applied_ns; /* what is added to each frame's time */
    _Atomic uint64_t steps;

    pthread_mutex_t lock;
    struct capture_clock_info info; /* but for steps */
    bool watching;                  /* from start to stop of a live capture */
    struct step_watch system_watch, phc_watch;
    struct phc phc;       /* file -1: none */
    int64_t tai_ns;       /* TAI - UTC as last known, where the PHC is taken from the one to the other; else 0 */
    uint64_t looked_ns;   /* boot time of the last look */
    uint64_t measured_ns; /* boot time of the PHC's last reading */
};

/* What a look found; all 0: nothing to tell. */
struct clock_news {
    int64_t system_step_ns;
    int64_t phc_step_ns;
    bool sync_changed; /* ntp: adjtimex says otherwise than before; ptp: the PHC can no longer be read, or again */
    bool in_sync;      /* the new state */
};

/* Before any other. Fills in what is known without asking anyone. */
void clock_source_init(struct clock_source *clock, const struct clock_system *system, const struct capture_config *config,
                       bool live);
void clock_source_destroy(struct clock_source *clock);

/* Takes the first measurements, or says why the source is not to be had: CAPTURE_ERR_INVALID, _BACKEND or _PERMISSION with field
 * timestamp_source. `backend`: the one that will stamp the frames. After an error or a stop it may be called again. */
int clock_source_start(struct clock_source *clock, const struct capture_config *config, const char *backend,
                       struct capture_error_info *error);
void clock_source_stop(struct clock_source *clock);

/* May frames of this further interface be stamped by the clock in force? For an interface that is added while capturing. */
int clock_source_admit(struct clock_source *clock, const char *interface, struct capture_error_info *error);

/* A few times a second: the system's clock each time, the PHC once a second and after a step. */
void clock_source_look(struct clock_source *clock, struct clock_news *news);

void clock_source_info(struct clock_source *clock, struct capture_clock_info *out);

/* It is being watched, but the last look is more than a second ago. */
bool clock_source_is_stale(struct clock_source *clock);

#endif
