/* SPDX-License-Identifier: Apache-2.0 */
/* Frames copied out for capture_packets_next: single producer, single consumer, no locks, a mirrored mapping so that no frame
 * wraps. */
#ifndef JARVIS_PACKET_RING_H
#define JARVIS_PACKET_RING_H

#include "frame.h"
#include "jarvis_capture.h"

struct packet_ring;

int packet_ring_create(uint32_t size_mb, struct packet_ring **out, struct capture_error_info *error);
void packet_ring_destroy(struct packet_ring *ring);
/* Producer. False: no room, nothing written. */
bool packet_ring_push(struct packet_ring *ring, const struct frame *frame, uint64_t packet_id);
/* Producer. How many of the frames, from the first on, there is room for. */
uint32_t packet_ring_room(struct packet_ring *ring, const struct frame *frames, uint32_t count);
/* Consumer. Fills *out with what is ready (count may be 0); the frames stay until packet_ring_release. */
void packet_ring_next(struct packet_ring *ring, struct capture_packet_batch *out);
void packet_ring_release(struct packet_ring *ring);
/* Share in use, 0..1. Any thread. */
double packet_ring_usage(const struct packet_ring *ring);

#endif
