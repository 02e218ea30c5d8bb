/* SPDX-License-Identifier: Apache-2.0 */
#include "file_share.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "error.h"
#include "trace.h"

enum {
    SLOTS = 256, /* power of two */
    SHORT = 128, /* fewer waiting: time to read on. So far ahead that the records have left the cache of who walked over them */
    TURN = 64,   /* slots filled in one turn */
    WINDOW = 1 << 20,
    DROP = 4 << 20, /* pages are let go of in such pieces: each makes the other processors forget them */
    SPINS = 500,
    NAP_US = 50,
    DAMAGED = 1 << 15, /* in an entry, beside the number, of which there are at most 64 queues times a batch */
};

/* One file of the trace. */
struct shared_file {
    struct trace trace; /* the reading queue's */
    struct trace view;  /* the same as it was opened: for the others */
    bool used;          /* there is a slot of it */
    atomic_uint users;  /* queues that may yet read of it */
    struct capture_error_info damage;
};

/* A queue's part of one slot. */
struct part {
    struct shared_file *file;
    uint64_t newest_ns; /* of all records; 0: none has a time */
    uint32_t span, count;
    uint64_t entries[FRAME_BATCH]; /* offset of the frame's bytes << TRACE_OFFSET_SHIFT | number in the slot */
};

struct cursor {
    _Alignas(64) _Atomic uint64_t done; /* slots whose frames were released */
    uint64_t at;                        /* the next to read; the queue's */
    struct shared_file *file;           /* the last slot's */
};

struct file_share {
    const char *const *paths;
    uint32_t path_count, snaplen, queues, members;
    shard_assign *assign;
    const void *context;
    struct cursor *cursors;
    struct part *parts; /* SLOTS times one a queue */
    _Alignas(64) _Atomic uint64_t filled;
    _Atomic bool ended;
    int end_code; /* why it ended; set before `ended` */
    struct capture_error_info end_error;

    _Alignas(64) atomic_bool taken; /* somebody has the turn, to whom belongs what follows */

    _Alignas(64) struct shared_file *files;
    struct shared_file *file; /* the one that is read; NULL: none is open */
    uint32_t next;            /* path to open next */
    uint64_t starts[SLOTS];   /* where in its file each slot begins, or a little before; UINT64_MAX: nothing is in it yet */
    uint64_t latest_ns;       /* newest time so far */
    struct frame_batch batch;
};

struct file_share *file_share_create(const char *const *paths, uint32_t count, uint32_t snaplen, uint32_t queues,
                                     shard_assign *assign, const void *context) {
    struct file_share *share = aligned_alloc(64, (sizeof(*share) + 63) & ~(size_t)63);
    if (!share)
        return NULL;
    memset(share, 0, sizeof(*share));
    share->paths = paths;
    share->path_count = count;
    share->snaplen = snaplen;
    share->queues = share->members = queues;
    share->assign = assign;
    share->context = context;
    share->files = calloc(count, sizeof(*share->files));
    share->cursors = aligned_alloc(64, queues * sizeof(*share->cursors));
    share->parts = aligned_alloc(64, (size_t)SLOTS * queues * sizeof(*share->parts));
    if (!share->files || !share->cursors || !share->parts) {
        share->members = 1;
        file_share_leave(share);
        return NULL;
    }
    memset(share->cursors, 0, queues * sizeof(*share->cursors));
    return share;
}

void file_share_leave(struct file_share *share) {
    if (--share->members > 0)
        return;
    for (uint32_t i = 0; share->files && i < share->next; i++)
        if (share->files[i].trace.base)
            trace_close(&share->files[i].trace);
    free(share->files);
    free(share->cursors);
    free(share->parts);
    free(share);
}

static inline struct part *slot(struct file_share *share, uint64_t number) {
    return &share->parts[(number & (SLOTS - 1)) * share->queues];
}

/* Slots that every queue has released. */
static uint64_t slowest(struct file_share *share) {
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < share->queues; i++) {
        uint64_t done = atomic_load_explicit(&share->cursors[i].done, memory_order_acquire);
        least = done < least ? done : least;
    }
    return least;
}

/* ---- the turn: walking on */

static int open_next(struct file_share *share, struct capture_error_info *error) {
    struct shared_file *file = &share->files[share->next];
    const char *path = share->paths[share->next++];
    int code = trace_open(&file->trace, path, share->snaplen, error);
    if (code != CAPTURE_OK)
        return code;
    if (!file->trace.refill) { /* it could be shared when the capture was started */
        trace_close(&file->trace);
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s was replaced after the start by another kind of file", path);
    }
    file->view = file->trace;
    atomic_store_explicit(&file->users, share->queues, memory_order_relaxed);
    share->file = file;
    return CAPTURE_OK;
}

/* Its frames stay mapped until the last queue is through with them; the descriptor goes now. */
static void finish_file(struct file_share *share) {
    struct shared_file *file = share->file;
    if (file->used) {
        close(file->trace.file);
        file->trace.file = -1;
    } else {
        trace_close(&file->trace);
    }
    share->file = NULL;
}

static int next_window(struct file_share *share, struct capture_error_info *error) {
    struct shared_file *file = share->file;
    uint64_t oldest = slowest(share), filled = atomic_load_explicit(&share->filled, memory_order_relaxed);
    uint64_t start = share->starts[oldest & (SLOTS - 1)];
    if (oldest < filled && slot(share, oldest)->file != file)
        start = 0;
    start = start < file->trace.offset ? start : file->trace.offset;
    trace_drop_before(&file->trace, start & ~(uint64_t)(DROP - 1));
    return trace_advance(&file->trace, WINDOW, error);
}

/* Reads the next batch of the trace, as a backend's read. */
static int walk(struct file_share *share, uint64_t *start, struct capture_error_info *error) {
    for (;;) {
        if (!share->file) {
            if (share->next == share->path_count)
                return BACKEND_END;
            int code = open_next(share, error);
            if (code != CAPTURE_OK)
                return code;
        }
        struct trace *trace = &share->file->trace;
        if (trace->offset >= trace->window_end && trace->offset < trace->size) {
            int code = next_window(share, error);
            if (code != CAPTURE_OK)
                return code;
        }
        *start = trace->offset;
        int count = trace->fill(trace, &share->batch, error);
        if (count != 0)
            return count;
        finish_file(share);
    }
}

/* The slot that is being filled. */
struct filling {
    struct part *parts;
    struct shared_file *file;
    uint64_t number, newest_ns;
    uint32_t span;
};

static void begin_slot(struct file_share *share, struct filling *filling) {
    uint64_t number = atomic_load_explicit(&share->filled, memory_order_relaxed);
    *filling = (struct filling){.number = number, .parts = slot(share, number)};
    for (uint32_t i = 0; i < share->queues; i++)
        filling->parts[i].count = 0;
    share->starts[number & (SLOTS - 1)] = UINT64_MAX;
}

/* Hands the slot out, if there is anything in it, and begins the next. */
static void end_slot(struct file_share *share, struct filling *filling) {
    if (filling->span == 0)
        return;
    for (uint32_t i = 0; i < share->queues; i++) {
        struct part *part = &filling->parts[i];
        part->file = filling->file;
        part->newest_ns = filling->newest_ns;
        part->span = filling->span;
    }
    if (filling->newest_ns > share->latest_ns)
        share->latest_ns = filling->newest_ns;
    atomic_store_explicit(&share->filled, filling->number + 1, memory_order_release);
    begin_slot(share, filling);
}

/* Time goes on from frame to frame, and from all before. */
static bool in_order(const struct frame_batch *batch, uint64_t latest_ns) {
    bool back = false;
    for (uint32_t i = 0; i < batch->count; i++) {
        back |= (batch->frames[i].ts_ns < latest_ns) | ((batch->frames[i].flags & FRAME_DAMAGED) != 0);
        latest_ns = batch->frames[i].ts_ns;
    }
    return !back;
}

static inline void note_frame(struct filling *filling, const struct frame *frame, uint32_t queue) {
    struct part *part = &filling->parts[queue];
    uint64_t entry = (uint64_t)(frame->data - filling->file->view.base) << TRACE_OFFSET_SHIFT | filling->span++;
    part->entries[part->count++] = entry;
}

/* Notes a batch in which time goes on; its first record is at `start`. */
static void deal_in_order(struct file_share *share, struct filling *filling, const uint8_t *queues, uint64_t start) {
    const struct frame_batch *batch = &share->batch;
    uint64_t base = (uint64_t)(uintptr_t)share->file->view.base;
    struct part *parts = filling->parts;
    uint32_t span = filling->span;
    for (uint32_t i = 0; i < batch->count; i++) {
        uint64_t offset = (uint64_t)(uintptr_t)batch->frames[i].data - base;
        if (__builtin_expect(span == 0, 0)) {
            filling->file = share->file;
            share->starts[filling->number & (SLOTS - 1)] = start;
        }
        struct part *part = &parts[queues[i]];
        uint32_t at = part->count;
        part->entries[at] = offset << TRACE_OFFSET_SHIFT | span++;
        part->count = at + 1;
        if (__builtin_expect(at == FRAME_BATCH - 1, 0)) {
            filling->span = span;
            filling->newest_ns = batch->frames[i].ts_ns;
            end_slot(share, filling);
            parts = filling->parts;
            span = 0;
        }
    }
    filling->span = span;
    filling->newest_ns = batch->frames[batch->count - 1].ts_ns;
}

/* Notes a batch with a slot to itself. */
static void deal_alone(struct file_share *share, struct filling *filling, const uint8_t *queues, uint64_t start) {
    const struct frame_batch *batch = &share->batch;
    end_slot(share, filling);
    filling->newest_ns = 0;
    filling->file = share->file;
    share->starts[filling->number & (SLOTS - 1)] = start;
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct frame *frame = &batch->frames[i];
        note_frame(filling, frame, queues[i]);
        if (frame->flags & FRAME_DAMAGED)
            filling->parts[queues[i]].entries[filling->parts[queues[i]].count - 1] |= DAMAGED;
        else if (frame->ts_ns > filling->newest_ns)
            filling->newest_ns = frame->ts_ns;
    }
    end_slot(share, filling);
}

/* Notes the batch's frames, the first of whose records is at `start`, for their queues. */
static void deal(struct file_share *share, struct filling *filling, uint64_t start) {
    uint64_t latest_ns = filling->newest_ns > share->latest_ns ? filling->newest_ns : share->latest_ns;
    uint8_t queues[FRAME_BATCH];
    share->assign(share->context, &share->batch, queues);
    if (filling->file != share->file)
        end_slot(share, filling);
    if (in_order(&share->batch, latest_ns))
        deal_in_order(share, filling, queues, start);
    else
        deal_alone(share, filling, queues, start);
    share->file->used = true;
}

/* Fills some slots, while there is room for what a batch may need: the one in work, and two more. */
static void take_turn(struct file_share *share) {
    uint64_t first = atomic_load_explicit(&share->filled, memory_order_relaxed), start = 0;
    struct filling filling;
    begin_slot(share, &filling);
    while (filling.number - first < TURN && filling.number + 3 - slowest(share) < SLOTS) {
        struct capture_error_info error = {0};
        int count = walk(share, &start, &error);
        if (count < 0) {
            end_slot(share, &filling);
            share->end_code = count;
            share->end_error = error;
            atomic_store_explicit(&share->ended, true, memory_order_release);
            return;
        }
        if (error.code)
            share->file->damage = error;
        deal(share, &filling, start);
    }
    end_slot(share, &filling);
}

/* ---- reading the slots */

/* The last queue to leave a file unmaps it. */
static void go_on_to(struct cursor *cursor, struct shared_file *file) {
    if (cursor->file && atomic_fetch_sub_explicit(&cursor->file->users, 1, memory_order_acq_rel) == 1)
        trace_close(&cursor->file->trace);
    cursor->file = file;
}

static void ask_for_records(const struct part *part) {
    const uint8_t *base = part->file->view.base;
    for (uint32_t i = 0; i < part->count; i++) {
        const uint8_t *data = base + (part->entries[i] >> TRACE_OFFSET_SHIFT);
        prefetch_line(data - 16);
        prefetch_line(data + 48);
    }
}

static int read_slot(struct file_share *share, uint32_t queue, struct cursor *cursor, uint64_t filled, struct frame_batch *batch,
                     struct shard_batch *out, struct capture_error_info *error) {
    const struct part *part = &slot(share, cursor->at)[queue];
    struct shared_file *file = part->file;
    uint32_t count = part->count, damaged;
    if (file != cursor->file)
        go_on_to(cursor, file);
    for (uint32_t i = 0; i < count; i++)
        out->places[i] = part->entries[i] & (DAMAGED - 1);
    out->span = part->span;
    out->newest_ns = part->newest_ns;
    batch->count = count;
    damaged = count && part->entries[count - 1] & DAMAGED; /* what is damaged ends the file */
    file->view.refill(&file->view, part->entries, count - damaged, batch->frames);
    if (__builtin_expect(damaged, 0)) {
        batch->frames[count - 1] = (struct frame){.data = file->view.base, .flags = FRAME_DAMAGED};
        *error = file->damage;
    }
    cursor->at++;
    if (cursor->at < filled)
        ask_for_records(&slot(share, cursor->at)[queue]);
    return (int)out->span;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks first: who has the turn would lose the cache line by an attempt. */
static inline bool try_turn(struct file_share *share) {
    return !atomic_load_explicit(&share->taken, memory_order_relaxed) &&
           !atomic_exchange_explicit(&share->taken, true, memory_order_acquire);
}

int file_share_read(struct file_share *share, uint32_t queue, struct frame_batch *batch, struct shard_batch *out,
                    struct capture_error_info *error) {
    struct cursor *cursor = &share->cursors[queue];
    batch->count = 0;
    for (int spin = 0; spin < SPINS; spin++) {
        bool ended = atomic_load_explicit(&share->ended, memory_order_acquire);
        uint64_t filled = atomic_load_explicit(&share->filled, memory_order_acquire);
        if (!ended && filled - cursor->at < SHORT && try_turn(share)) {
            if (!atomic_load_explicit(&share->ended, memory_order_relaxed))
                take_turn(share);
            atomic_store_explicit(&share->taken, false, memory_order_release);
            filled = atomic_load_explicit(&share->filled, memory_order_acquire);
        }
        if (cursor->at < filled)
            return read_slot(share, queue, cursor, filled, batch, out, error);
        if (ended) {
            *error = share->end_error;
            return share->end_code;
        }
        relax();
    }
    usleep(NAP_US);
    return 0;
}

void file_share_release(struct file_share *share, uint32_t queue) {
    struct cursor *cursor = &share->cursors[queue];
    atomic_store_explicit(&cursor->done, cursor->at, memory_order_release);
}
