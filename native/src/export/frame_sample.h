/* SPDX-License-Identifier: Apache-2.0 */
/* A sampled frame: what sFlow's sampled_header says of it (sFlow version 5, flow_data format 1), and its place in the sampling.
 *
 * The header begins with the first protocol that sFlow has a number for: what is before it (radiotap, PPI, the pseudo-headers of
 * Linux's cooked and BSD's loopback captures, PPPoE) is left out and counted in `stripped`, as is the Ethernet FCS, which no
 * capture keeps. A VLAN tag that the kernel took off is put back. */
#ifndef JARVIS_FRAME_SAMPLE_H
#define JARVIS_FRAME_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>

#include "frame.h"

/* enum header_protocol of sFlow version 5; 802.11: sFlow 802.11 Structures. */
enum sflow_protocol {
    SFLOW_NO_PROTOCOL = 0, /* sFlow has no number for this link layer */
    SFLOW_ETHERNET = 1,
    SFLOW_PPP = 7,
    SFLOW_IPV4 = 11,
    SFLOW_IPV6 = 12,
    SFLOW_MPLS = 13,
    SFLOW_IEEE80211 = 15,
};

enum { SAMPLE_HEADER_LEAST = 64, SAMPLE_HEADER_MOST = 256, SAMPLE_HEADER_DEFAULT = 128 };

struct frame_sample {
    uint64_t ts_ns;
    uint64_t pool;          /* frames of its source in its worker that could have been taken, itself included */
    uint64_t taken;         /* of those the ones that were, itself included */
    uint32_t frame_length;  /* bytes the frame had on the wire, those in `stripped` too */
    uint32_t stripped;      /* bytes before the header and behind the frame that are not in it */
    uint32_t source_index;  /* ifIndex of the data source, 0: a file */
    uint32_t input_index;   /* of the interface it came in by: the same, of a file the interface that that names */
    uint16_t source_number; /* which of the capture's sources */
    uint16_t protocol;      /* enum sflow_protocol */
    uint16_t header_length; /* bytes of `header` */
    uint16_t reserved;
    uint8_t header[SAMPLE_HEADER_MOST];
};

enum { FRAME_SAMPLE_HEAD = offsetof(struct frame_sample, header) };

/* Fills in frame_length, stripped, protocol and at most `most` bytes of header. */
void frame_sample_take(struct frame_sample *sample, const struct frame *frame, uint32_t most);

#endif
