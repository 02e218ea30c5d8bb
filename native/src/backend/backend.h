/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a capture backend: one file and one ops table; a row in registry.c, or a module of its own (module.h). */
#ifndef JARVIS_BACKEND_H
#define JARVIS_BACKEND_H

#include "frame.h"
#include "jarvis_capture.h"

/* Cumulative since open; the backend accumulates what the kernel resets on read. */
struct backend_stats {
    uint64_t dropped_nic;
    uint64_t dropped_kernel;
    uint64_t in_flight; /* frames waiting in the kernel ring, as well as it can be known; else 0 */
    double ring_usage;  /* 0..1 */
};

enum {
    BACKEND_END = -1000,  /* read(): the input is at its end */
    BACKEND_DOWN = -1001, /* read(): nothing came, for the interface is down; frames may come again, so go on reading */
};

/* Says whose each frame of a batch is: fills shards[0..batch->count) with numbers of queues. */
typedef void shard_assign(const void *context, const struct frame_batch *batch, uint8_t *shards);

struct capture_backend_ops {
    const char *name;        /* at most 15 bytes */
    const char *description; /* at most 95 bytes */
    bool live;
    bool many_queues; /* takes a worker a queue; else workers is 0 or 1 */
    bool busy_polls;  /* knows busy_poll_us; else it must be 0 */
    bool tells_waiting; /* stats() knows in_flight */
    bool whole_input; /* each queue hands out all frames, in the same batches: the workers share them out (engine/shard.h), unless
                         united */
    bool device_names; /* `interface` is the library's name for a device, which the kernel need not know */
    int rank;          /* "auto" takes the usable live backend of the highest rank; 0: only when asked for by name, or by a
                        * device's name that is no interface's and that `automatic` says is its own */

    /* Is it usable for `interface` (NULL: in general)? Fills reason either way. Any thread. */
    bool (*probe)(const char *interface, char *reason, size_t size);

    /* May "auto" take it for `interface`, for which it is usable? Fills reason when not. NULL: it may. Any thread. */
    bool (*automatic)(const char *interface, char *reason, size_t size);

    /* What this backend refuses in a configuration that is valid by itself and names it or got it by "auto": CAPTURE_OK or an
     * error that names the field. NULL: nothing. Any thread. */
    int (*check)(const struct capture_config *config, struct capture_error_info *error);

    /* Opens queue `queue` of `queues`. Config is already range-checked. State is freed by close. */
    int (*open)(const struct capture_config *config, uint32_t queue, uint32_t queues, void **state,
                struct capture_error_info *error);

    /* Fills the batch (count set); waits at most timeout_ms (0: never) for the first frame. Returns the count, 0 at a timeout,
     * BACKEND_END, BACKEND_DOWN (details in *error) or a negative error (likewise). Frames stay valid until the next release.
     * Neither the interface's state nor anything else of the kernel's need be looked at with a timeout of 0.
     * With a FRAME_DAMAGED frame in the batch, *error says what is damaged and where, though the return value is a count. */
    int (*read)(void *state, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error);

    /* Of a whole_input backend, before the first read: from here on the queues read the input together, each record once, with
     * read_share in place of read; `assign` is called by any of their threads, one at a time. CAPTURE_OK; BACKEND_END: this input
     * cannot be, so each goes on reading it whole; or a negative error. NULL: no input can be. */
    int (*unite)(void *const *states, uint32_t count, shard_assign *assign, const void *context,
                 struct capture_error_info *error);

    /* As read, but for the frames that are the queue's own, possibly none: returns how many of the input they were taken from,
     * which is share->span. Where time goes on from frame to frame the span may be longer than a batch. */
    int (*read_share)(void *state, struct frame_batch *batch, struct shard_batch *share, int timeout_ms,
                      struct capture_error_info *error);

    /* A descriptor that poll(2) says is readable once read() has frames, for waiting on several interfaces at once; -1: none.
     * NULL: never one. The thread that reads. */
    int (*wait_fd)(void *state);

    /* Gives the frames of the last read back. */
    void (*release)(void *state);

    /* Any thread while open. */
    void (*stats)(void *state, struct backend_stats *out);

    /* Lets no new frame in; read() goes on handing out what the ring holds. For a graceful stop: quiesce, then read until it
     * returns 0 with a timeout of at least 100 ms. NULL: the input ends by itself. The thread that reads. */
    void (*quiesce)(void *state);

    /* How it captures, in a few words (mode, queues, memory), NUL-terminated. NULL: there is nothing to say. Any thread while
     * open. */
    void (*describe)(void *state, char *text, size_t size);

    void (*close)(void *state);
};

extern const struct capture_backend_ops file_backend, pcap_backend, pfring_backend, afpacket_backend;

/* The backend for a configuration (already validated), "auto" resolved; NULL with *error (not NULL) filled.
 * Any thread. */
const struct capture_backend_ops *backend_select(const struct capture_config *config, struct capture_error_info *error);

#endif
