/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "file": capture files read in place through mmap, one after another as one trace, in file order.
 *
 * The size is taken when a file is opened; what is appended later is not read. A file that is cut short while it is mapped would
 * raise SIGBUS on the first touch of a page that is gone: the pages of each window are asked for in advance (MADV_POPULATE_READ
 * fails where a touch would kill) and the size is looked at again with each window. A file cut inside the window in that moment
 * cannot be caught without a signal handler, which a library must not install: do not truncate files that are being read
 * (renaming or unlinking them is safe).
 */
#include "backend.h"
#include "config.h"
#include "error.h"
#include "file_share.h"
#include "trace.h"

#include <stdio.h>
#include <stdlib.h>

enum { WINDOW = 4 << 20 };

struct file_state {
    char **paths;
    uint32_t count, next; /* `next`: the file after the one that is open */
    uint32_t snaplen;
    struct trace trace;
    struct file_share *share; /* NULL: the queue reads by itself */
    uint32_t queue;           /* its number in the share */
};

static bool probe(const char *interface, char *reason, size_t size) {
    if (interface)
        snprintf(reason, size, "reads files, not interfaces");
    else
        snprintf(reason, size, "chosen when files are given");
    return interface == NULL;
}

static void close_state(void *opaque) {
    struct file_state *state = opaque;
    if (state->share)
        file_share_leave(state->share);
    if (state->trace.base)
        trace_close(&state->trace);
    /* the share borrows the first queue's paths */
    for (uint32_t i = 0; state->paths && i < state->count; i++)
        free(state->paths[i]);
    free(state->paths);
    free(state);
}

static bool copy_paths(struct file_state *state, const struct capture_config *config) {
    state->paths = calloc(config->file_count, sizeof *state->paths);
    if (!state->paths)
        return false;
    state->count = config->file_count;
    for (uint32_t i = 0; i < config->file_count; i++)
        if (!(state->paths[i] = strdup(config->files[i])))
            return false;
    return true;
}

/* Looks at every file header now, so that a bad third file does not surface an hour into the first. */
static int check_files(struct file_state *state, struct capture_error_info *error) {
    for (uint32_t i = 0; i < state->count; i++) {
        struct trace trace;
        int code = trace_open(&trace, state->paths[i], state->snaplen, error);
        if (code != CAPTURE_OK)
            return code;
        trace_close(&trace);
    }
    return CAPTURE_OK;
}

static int open_state(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out,
                      struct capture_error_info *error) {
    (void)queue;
    (void)queues; /* each reads everything */
    struct file_state *state = calloc(1, sizeof *state);
    if (!state || !copy_paths(state, config)) {
        if (state)
            close_state(state);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "files", "no memory for the paths of %u files", config->file_count);
    }
    state->snaplen = capture_config_snaplen(config);
    int code = check_files(state, error);
    if (code != CAPTURE_OK) {
        close_state(state);
        return code;
    }
    *out = state;
    return CAPTURE_OK;
}

static int read_batch(void *opaque, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    (void)timeout_ms; /* a file is always ready */
    struct file_state *state = opaque;
    struct trace *trace = &state->trace;
    batch->count = 0;
    for (;;) {
        if (!trace->base) {
            if (state->next == state->count)
                return BACKEND_END;
            int code = trace_open(trace, state->paths[state->next++], state->snaplen, error);
            if (code != CAPTURE_OK)
                return code;
        }
        if (trace->offset >= trace->window_end && trace->offset < trace->size) {
            trace_drop_before(trace, trace->offset & ~(uint64_t)(WINDOW - 1));
            int code = trace_advance(trace, WINDOW, error);
            if (code != CAPTURE_OK)
                return code;
        }
        int count = trace->fill(trace, batch, error);
        if (count != 0)
            return count;
        trace_close(trace); /* its last frames were released before this call */
    }
}

static void release(void *opaque) {
    struct file_state *state = opaque;
    if (state->share)
        file_share_release(state->share, state->queue);
    /* else the mapping stays until the next read finds the end of the file */
}

/* All files are to be ones whose records say all of a frame. */
static bool can_be_shared(const struct file_state *state) {
    for (uint32_t i = 0; i < state->count; i++) {
        struct trace trace;
        struct capture_error_info error;
        if (trace_open(&trace, state->paths[i], state->snaplen, &error) != CAPTURE_OK)
            return false;
        bool whole = trace.refill != NULL;
        trace_close(&trace);
        if (!whole)
            return false;
    }
    return true;
}

static int unite(void *const *states, uint32_t count, shard_assign *assign, const void *context,
                 struct capture_error_info *error) {
    struct file_state *first = states[0];
    if (!can_be_shared(first))
        return BACKEND_END;
    struct file_share *share =
        file_share_create((const char *const *)first->paths, first->count, first->snaplen, count, assign, context);
    if (!share)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "workers", "no memory to share files out to %u workers", count);
    for (uint32_t i = 0; i < count; i++) {
        struct file_state *state = states[i];
        state->share = share;
        state->queue = i;
    }
    return CAPTURE_OK;
}

static int read_share(void *opaque, struct frame_batch *batch, struct shard_batch *out, int timeout_ms,
                      struct capture_error_info *error) {
    struct file_state *state = opaque;
    (void)timeout_ms; /* an own frame is never far */
    return file_share_read(state->share, state->queue, batch, out, error);
}

static void stats(void *opaque, struct backend_stats *out) {
    (void)opaque;
    *out = (struct backend_stats){0};
}

const struct capture_backend_ops file_backend = {
    .name = "file",
    .description = "pcap and pcapng files, read in place",
    .live = false,
    .many_queues = true,
    .whole_input = true,
    .probe = probe,
    .open = open_state,
    .read = read_batch,
    .unite = unite,
    .read_share = read_share,
    .release = release,
    .stats = stats,
    .close = close_state,
};
