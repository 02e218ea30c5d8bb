/* SPDX-License-Identifier: Apache-2.0 */
/* A reader's records for those in the core that make something else of them than this file's neighbour does. */
#ifndef JARVIS_READER_H
#define JARVIS_READER_H

#include "jarvis_capture.h"

/* Where matching records go; statistics is NULL where the capture keeps none. False: no room, the record is not taken. */
typedef bool (*record_sink)(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics);

/* Reads from the first shard, in turn, that has anything until the sink is full or nothing is ready, and fills the info but for
 * `bytes`. CAPTURE_OK, or CAPTURE_ERR_LEASE and nothing was read. Never waits; one thread at a time uses a reader. */
int reader_read(struct capture_flow_reader *reader, record_sink sink, void *context, struct capture_batch_info *info);

#endif
