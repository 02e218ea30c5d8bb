/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files read by several queues together: each is mapped once and each of its records walked over once, by whichever queue runs
 * short, and noted for the queue whose it is. A queue makes frames of its own records only.
 *
 * What is passed on is a ring of slots; a slot holds a stretch of the trace, for each queue the places of its own records, in
 * order. One queue at a time (the holder of `turn`) fills slots; each reads every slot, without locks. So none can be further
 * ahead than the ring is long of one that does not read, and each sees the time of all records, its own or not.
 *
 * A slot ends when a queue has a batch of it. A batch of the input in which time steps back has a slot to itself, so that each
 * queue's clock goes as it would if it read everything.
 *
 * A record's header is read again when its frame is made: only files whose records say all of a frame can be shared
 * (trace_refill).
 */
#ifndef JARVIS_FILE_SHARE_H
#define JARVIS_FILE_SHARE_H

#include "backend.h"

struct file_share;

/* For `queues` queues; the paths are borrowed until the last has left. NULL: no memory. */
struct file_share *file_share_create(const char *const *paths, uint32_t count, uint32_t snaplen, uint32_t queues,
                                     shard_assign *assign, const void *context);

/* As read_share of a backend; 0: the queue has to wait for one that lags behind, and has waited a moment. */
int file_share_read(struct file_share *share, uint32_t queue, struct frame_batch *batch, struct shard_batch *out,
                    struct capture_error_info *error);

/* Gives the frames of the queue's last read back. */
void file_share_release(struct file_share *share, uint32_t queue);

/* One queue reads no more; the last one's leaving frees everything. One thread at a time. */
void file_share_leave(struct file_share *share);

#endif
