/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How workers share one input out: by shard. Each reads the whole trace, in the same batches as the others, and keeps its own
 * shard's frames; or the backend lets them read it together and asks here whose a frame is (backend/file_share.h).
 *
 * The shard is a symmetric function of the two IP addresses of the flow that the frame will be metered in, and of nothing else:
 * both directions and all fragments of a datagram meet in one worker, and every frame is some worker's, whatever it holds. Frames
 * without a flow (not IP, malformed, a damaged record) are shard 0's, but for some malformed IP packets, which are the shard's of
 * the addresses that they show.
 */
#ifndef JARVIS_SHARD_H
#define JARVIS_SHARD_H

#include <stdbool.h>

#include "decode/packet.h"
#include "frame.h"

struct shard {
    uint32_t number, count; /* which, of how many: 1..64 */
    bool inner;             /* flows are those of the innermost IP header (CAPTURE_TUNNEL_INNER) */
};

/* The shard of the frame, below `count`. Reads no more than the decoder. */
uint32_t shard_of_frame(const struct frame *frame, uint32_t count, bool inner);

/* The shard of the flow with these addresses, either way round. */
uint32_t shard_of_key(const struct flow_key *key, uint32_t count);

/* The shard of each frame of the batch. `shard` is a struct shard: a shard_assign, for the backend. */
void shard_of_batch(const void *shard, const struct frame_batch *batch, uint8_t *shards);

/* Leaves the shard's frames in the batch, in their order, and notes what was there. */
void shard_keep(const struct shard *shard, struct frame_batch *batch, struct shard_batch *out);

#endif
