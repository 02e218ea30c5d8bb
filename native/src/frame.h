/* SPDX-License-Identifier: Apache-2.0 */
/* What a backend hands to the decoder: frames in place, a batch at a time. */
#ifndef JARVIS_FRAME_H
#define JARVIS_FRAME_H

#include <stdint.h>

enum { FRAME_BATCH = 64 }; /* frames decoded, hashed and prefetched together */

enum frame_flags {
    FRAME_VLAN = 1,      /* vlan_tci is a tag that the kernel took off the frame: the outermost one */
    FRAME_TRUNCATED = 2, /* the frame was longer than snaplen */
    FRAME_DAMAGED = 4,   /* the record that carried it was damaged: count as malformed, do not decode */
};

struct frame {
    const uint8_t *data;     /* first byte of the link-layer header; owned by the backend until release */
    uint64_t ts_ns;          /* ns since the Unix epoch */
    uint32_t caplen;         /* bytes readable at data */
    uint32_t wirelen;        /* bytes the frame had on the wire */
    uint16_t link_type;      /* pcap LINKTYPE_* value */
    uint16_t interface_index;
    uint16_t vlan_tci;
    uint16_t flags;          /* enum frame_flags */
};

struct frame_batch {
    uint32_t count;
    struct frame frames[FRAME_BATCH];
};

/* What of the frames of an input that workers share was left to one of them. */
struct shard_batch {
    uint32_t span;                /* frames of the input, others' too */
    uint64_t newest_ns;           /* newest time of them all; 0: no frame with a time */
    uint16_t places[FRAME_BATCH]; /* of each frame that is left: how many of the span's were before it */
};

#endif
