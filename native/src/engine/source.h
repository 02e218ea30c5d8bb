/* SPDX-License-Identifier: Apache-2.0 */
/* Where a capture's frames come from: a source for each interface (or one for all files), with a backend's queue for each worker.
 * Every worker reads its queue of every source in turn.
 *
 * Who touches what
 *   control mutex   held by whoever adds, removes or re-opens a source. A worker only tries it.
 *   stats mutex     guards, besides, what others look at: the list of sources, the queues' `backend` and `closed`, `error`.
 *   A queue's read side, `pools`, `leaving_*` and `stale_*` belong to the owner of its worker while `backend` is set.
 */
#ifndef JARVIS_SOURCE_H
#define JARVIS_SOURCE_H

#include <stdatomic.h>

#include "backend/backend.h"
#include "jarvis_capture.h"

struct capture;
struct worker;
struct source;

typedef _Atomic uint64_t counter_t;

enum { SAMPLERS_MAX = 4 };

/* What a sampler might have taken from a queue, and has. */
struct sample_pool {
    uint64_t sampler; /* which one: another's counts are void */
    uint64_t frames;
    uint64_t taken;
};

/* One worker's queue of one source. */
struct source_queue {
    struct source *source;
    void *backend;               /* NULL: closed */
    struct backend_stats closed; /* what backends said when they were closed, summed */
    counter_t read;              /* frames taken */
    uint64_t leaving_since_ns;   /* 0: it stays; else monotonic: when it was quiesced or gave its last frame after that */
    uint64_t leaving_enough;     /* `read` at which a backend that cannot be quiesced is drained */
    uint64_t spell;              /* of the capture's authority when it was opened or last marked */
    uint64_t stale_end;          /* `read` up to which frames may have been received while no lease was in force */
    uint64_t stale_since_ns;     /* 0: stale_end is exact; else monotonic: when a frame of such was last read */
    struct sample_pool pools[SAMPLERS_MAX]; /* while samplers are open */
};

struct source {
    struct capture_config config; /* the capture's, with this source's interface; its address unites the queues for a backend */
    const struct capture_backend_ops *ops;
    uint32_t index;         /* ifindex, 0: none of the kernel's */
    uint16_t number;        /* part of the flows' keys unless interfaces are merged; 0: the first source of the capture */
    _Atomic uint32_t state; /* enum capture_interface_state */
    atomic_bool removed;    /* every worker shall drain its queue and close it */
    atomic_uint open_queues;
    char error[128];
    uint64_t look_mono_ns; /* the first worker's: when to look after it next, and how many frames had come at the last look */
    uint64_t read_at_look;
    struct source_queue queues[]; /* one for each worker */
};

/* One source for the files, or one for each interface: chooses the backends; opens none. */
int sources_init(struct capture *capture, struct capture_error_info *error);

/* Opens what is not open yet; on failure nothing of a live capture is. */
int sources_open(struct capture *capture, struct capture_error_info *error);

/* Closes what is open, keeping the last counters. Nobody reads any more. */
void sources_close(struct capture *capture);
void sources_free(struct capture *capture);

/* Takes up a worker's queues; then fills the worker's batch from one of them, which becomes worker->queue, as
 * capture_backend_ops.read. An interface that is down or gone is nothing to return while there are others or it may come back:
 * BACKEND_END, with the error noted, when nothing is left. The caller is the worker's owner. */
int sources_read(struct worker *worker, uint32_t wait_ms, struct capture_error_info *error);

/* Between two batches, of a capture bound to an authority: where a lease came into force when none was, marks what waits in the
 * worker's queues; and notices queues that have been read out since. The caller is the worker's owner. */
void sources_follow_lease(struct worker *worker);

/* Whether the batch in work, which was read from worker->queue, holds frames that are so marked. */
bool sources_are_stale(struct worker *worker);

/* Lets nothing new in and makes sources_read close each queue once it is drained; without grace closes it at once. The caller is
 * the worker's owner. */
void sources_leave(struct worker *worker, bool gracefully);

/* Notices interfaces that went down, came up or are gone, and opens those that came back. The first worker's owner, between
 * two batches, at most every SOURCES_LOOK_NS. */
void sources_look_after(struct worker *worker, uint64_t mono_ns);

#define SOURCES_LOOK_NS   100000000u
#define SOURCE_LOOK_UP_NS 1000000000u /* between two looks at one that is up but silent, or gone */

/* Opens the queues of one source that are closed; on failure none. The caller holds the control mutex, or nobody else runs. */
int source_open(struct capture *capture, struct source *source, struct capture_error_info *error);

/* Closes a queue, keeping its last counters; what it holds yet is counted as dropped by us. Its worker's owner. */
void source_close_queue(struct capture *capture, struct source_queue *queue);

/* A source's state was seen; `why` when it is down or gone (NULL: the input is at its end). What is news raises an event, and the
 * last source that goes by an error fails the capture. Any thread that may not be holding the stats mutex. */
void source_note_state(struct capture *capture, struct source *source, enum capture_interface_state state,
                       const struct capture_error_info *why);

/* Adds the backends' counters to a snapshot. The caller holds the stats mutex. */
void sources_add_stats(struct capture *capture, struct capture_stats *out);

#endif
