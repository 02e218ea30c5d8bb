/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of one capture: its workers, each with a backend queue, a flow table and a record log of its own, and what they
 * share.
 *
 * Who touches what
 *   owner mutex of a worker   held by whoever moves it: its thread for as long as that lives, capture_poll, or a caller after the
 * stop. Table, fragments, filter and the backend's read side belong to the holder. counters, log, deadline   atomics, any thread.
 *   control and stats mutex   see source.h; the latter also what the last snapshot said.
 */
#ifndef JARVIS_CAPTURE_INTERNAL_H
#define JARVIS_CAPTURE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/events.h"
#include "engine/frame_sampler.h"
#include "engine/monitor.h"
#include "engine/shard.h"
#include "engine/source.h"
#include "filter.h"
#include "flow/flow_table.h"
#include "flow/fragment_cache.h"
#include "flow/mirror_clock.h"
#include "flow/record_log.h"
#include "flow/sampling.h"
#include "jarvis_capture.h"
#include "packet_ring.h"
#include "trust/authority.h"

enum {
    WORKERS_MAX = 64,
    LOSSLESS_READERS_MAX = 8,
    BATCH_PACKETS_MAX = 2 * FRAME_BATCH,       /* one a frame, or with CAPTURE_TUNNEL_BOTH two */
    BATCH_RECORDS_MAX = 2 * BATCH_PACKETS_MAX, /* records one batch of packets can finish, see flow_table_add */
    EXPIRY_BUDGET = 1024,                      /* flows looked at between two batches */
    FLUSH_BUDGET = 4096,                       /* flows ended in one turn at the end of the input */
    QUERY_SLICE = 4096,                        /* records a live-table query looks at between two batches */
    ERRORS_MAX = 64,                           /* kept for capture_get_errors */
    TURN_WAIT_MS = 20,                         /* longest wait for frames: what a query or a stop may have to wait too */
};

/* Written by the worker's owner alone, read by any thread. */
struct worker_counters {
    counter_t read; /* frames taken from the backend; ahead of the sum below by the batch in work */
    counter_t read_octets;
    counter_t metered, metered_octets, filtered, unsampled, non_ip, malformed, paused, dropped_user;
    counter_t tunnelled, tunnelled_octets;
    counter_t truncated, fragments_matched, fragments_unmatched, time_regressions, packet_ring_dropped;
    counter_t flows_total, flows_ended[6]; /* the difference are the live ones */
    counter_t rate_pps, rate_bps;          /* gauges of the last second; rates_known: at least one was taken */
    counter_t rates_known;
    counter_t sampled; /* frames that samplers took */
};

static inline uint64_t counter_get(const counter_t *counter) {
    return atomic_load_explicit(counter, memory_order_acquire);
}

static inline void counter_set(counter_t *counter, uint64_t value) {
    atomic_store_explicit(counter, value, memory_order_release);
}

static inline void counter_add(counter_t *counter, uint64_t value) {
    if (value)
        counter_set(counter, atomic_load_explicit(counter, memory_order_relaxed) + value);
}

/* Shown a live flow, the table's record `number`, by the table's owner. False: seen enough. */
typedef bool scan_visit(void *context, const struct capture_flow *flow, const struct flow_table *table, uint32_t number);

/* A look through a worker's live flows, posted by any thread and served in slices by the worker's owner. */
struct flow_scan {
    atomic_bool posted;
    pthread_mutex_t lock; /* guards what follows; the worker only tries it, and only when something is posted */
    pthread_cond_t done;
    scan_visit *visit; /* NULL: nothing to do */
    void *context;
    uint32_t at;
};

enum worker_state {
    WORKER_RUNNING = 0,
    WORKER_ENDED = 1, /* no more input; flows remain in the table */
    WORKER_DONE = 2,  /* every record is in the log */
};

struct worker {
    struct capture *capture;
    uint32_t number;
    pthread_mutex_t owner;
    pthread_t thread;
    bool thread_started;
    _Atomic int state;    /* enum worker_state */
    counter_t turns;      /* turns begun: who registered as a lossless reader before one is seen by it */
    bool expiring;        /* the last turn left flows that are due */
    uint32_t frames_done; /* of the batch in work: it waits for room in the packet ring (files only) */
    struct source_queue *queues[CAPTURE_INTERFACES_MAX]; /* open ones, as of capture.sources_version when it was sources_seen */
    uint32_t queue_count;
    uint32_t turn_of; /* the last of them that was read */
    uint32_t sources_seen;
    bool ending;                /* every queue is to be drained and closed */
    struct source_queue *queue; /* whose frames the batch holds */
    uint16_t key_interface;     /* of that queue's interface in the keys of its flows */
    struct frame_filter *filter;
    struct packet_ring *ring; /* NULL: no packet delivery */
    struct flow_table table;
    struct fragment_cache fragments;
    struct sampler sampler;
    struct mirror_clock mirrors; /* mirror_timestamps, else off */
    struct record_log log;
    struct flow_scan scan;
    struct shard shard;       /* of an input that the workers share; count 1: it is all this worker's */
    bool united;              /* the backend hands out the shard's frames alone, else all and the worker keeps its own */
    struct shard_batch input; /* of the batch in work */
    uint64_t packet_id;       /* frames of the input before the batch in work */
    uint64_t newest_ns;       /* packet time of the newest frame, and the monotonic clock when it came */
    uint64_t newest_mono_ns;
    uint64_t rate_mono_ns, rate_frames, rate_octets; /* when the rates were last taken, and the counters then */
    uint64_t look_mono_ns;                           /* when sources_look_after is due: the first worker's job */
    uint64_t log_seen;                               /* capture_poll: records already announced */
    uint64_t sampled_seen;                           /* and samples */
    struct worker_counters counters;
    struct frame_batch frames;
    struct packet packets[BATCH_PACKETS_MAX];
};

/* A lossless reader's positions, where the workers look before each batch. */
struct lossless_reader {
    atomic_bool active;
    counter_t cursor[WORKERS_MAX];
};

enum capture_state { CAPTURE_CREATED = 0, CAPTURE_RUNNING = 1, CAPTURE_STOPPED = 2 };

struct capture {
    struct capture_config config; /* strings and arrays are copies */
    bool live;
    struct source *sources[CAPTURE_INTERFACES_MAX]; /* NULL: a free place */
    atomic_uint sources_version;                    /* changes: workers shall look at the list again */
    uint16_t source_numbers;                        /* given so far */
    struct backend_stats removed;                   /* counters of sources that are no more */
    struct capture_flow_config flow_config;         /* defaults filled in */
    bool metering;
    bool threaded;
    enum capture_state state;
    uint32_t worker_count; /* at least 1 */
    struct worker *workers;
    uint8_t epoch[8]; /* random: tells this capture's resume tokens from others' */
    counter_t deadline_boottime_ns;
    struct capture_authority *authority; /* NULL: not bound; its lease is the deadline */
    uint8_t *request;                    /* what the start was commanded with */
    size_t request_length;
    atomic_bool stop_requested;
    atomic_bool stop_gracefully;
    atomic_bool released; /* after capture_stop: workers belong to whoever comes */
    atomic_bool finished; /* every worker is done */

    pthread_mutex_t error_mutex;
    struct capture_error_info last_error;
    struct capture_error_info errors[ERRORS_MAX]; /* the first ones, each once */
    uint32_t error_count;
    atomic_uint errors_noted; /* how many there were: an inline poll returns at each, so that its caller can tell when */
    atomic_bool failed;       /* the input ended by an error */

    struct event_log events;
    struct monitor monitor;

    pthread_mutex_t control_mutex; /* taken before the stats mutex */
    pthread_mutex_t stats_mutex;
    counter_t start_mono_ns, stop_mono_ns;
    uint64_t received_said; /* what the last snapshot said, so that the next does not say less */

    pthread_mutex_t wake_mutex; /* capture_poll and capture_packets_next with workers */
    pthread_cond_t wake;
    atomic_uint waiters;

    pthread_mutex_t scan_mutex; /* one query at a time */

    pthread_mutex_t readers_mutex; /* the list, and opening and closing */
    struct capture_flow_reader *readers;
    atomic_uint lossless_count;
    struct lossless_reader lossless[LOSSLESS_READERS_MAX];

    atomic_uint sampler_count; /* open ones: all that a worker looks at while there are none */
    _Atomic(struct capture_sampler *) samplers[SAMPLERS_MAX];
    uint64_t sampler_ids; /* given so far */

    uint32_t packets_worker; /* capture_packets_next: whose ring is out, and whose is next */
    bool packets_out;
};

static inline uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Whether the capture may meter and deliver, and give out what it has. */
static inline bool capture_may_look(const struct capture *capture) {
    if (capture->authority)
        return authority_in_force(capture->authority);
    uint64_t deadline = counter_get(&capture->deadline_boottime_ns);
    return !deadline || clock_ns(CLOCK_BOOTTIME) < deadline;
}

/* Whether records and packets may be given out: to a deadline of the program's own that is the program's affair. */
static inline bool capture_may_give(const struct capture *capture) {
    return !capture->authority || authority_in_force(capture->authority);
}

/* What one turn of a worker came to. */
enum worker_turn {
    TURN_MORE = 1,    /* frames were processed, or flows ended */
    TURN_QUIET = 2,   /* no frame within the wait */
    TURN_BLOCKED = 3, /* a lossless reader must drain the log first, or a consumer the packet ring */
    TURN_DONE = 4,    /* every record is in the log */
};

/* Moves a worker by one batch, waiting at most wait_ms for it. The caller is the owner. */
enum worker_turn worker_turn(struct worker *worker, uint32_t wait_ms);

/* Ends the input: drains or discards what the backend holds. The caller is the owner. */
void worker_end_input(struct worker *worker, bool gracefully);

/* Returns once no turn is running that began before the call. Any thread but the worker's owner. */
void worker_await_turn(struct worker *worker);

/* Waits a moment for a reader or a consumer of packets to make room. The caller is not the owner, or its thread. */
void worker_wait_for_room(void);

/* Runs a worker in its own thread until the end of the input or the stop. */
void *worker_main(void *worker);

/* Answers what is posted, at most one slice. The caller is the owner. */
void worker_serve_scan(struct worker *worker);

/* Sets `finished` once every worker is done. */
void capture_note_progress(struct capture *capture);

/* After the stop: moves the remaining flows into the logs, as far as lossless readers leave room. Any thread. */
void capture_flush_released(struct capture *capture);

/* Keeps an asynchronous error for capture_get_error. */
void capture_note_error(struct capture *capture, const struct capture_error_info *error);

/* Waits for a wake-up by a worker, at most 10 ms and not beyond until_mono_ns. The caller has counted itself in `waiters`. */
void capture_wait_wake(struct capture *capture, uint64_t until_mono_ns);

#endif
