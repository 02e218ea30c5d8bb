/* SPDX-License-Identifier: Apache-2.0 */
/* Frames as mbufs, put into a ring as a card would leave them. */
#ifndef JARVIS_FRAMES_OF_RING_H
#define JARVIS_FRAMES_OF_RING_H

#include "live_link.h"

#include <rte_mbuf.h>
#include <rte_ring.h>

/* A UDP frame of `length` bytes (payload byte i is i * 7) in segments of `segment` bytes (0: one); tci >= 0: its tag was
 * stripped. */
static inline void put_frame(struct rte_ring *ring, struct rte_mempool *pool, uint32_t length, uint16_t from, uint16_t to,
                             int tci, uint32_t segment) {
    static uint8_t bytes[65536];
    make_frame(bytes, length, from, to, -1);
    for (uint32_t i = 42; i < length; i++)
        bytes[i] = (uint8_t)(i * 7);
    struct rte_mbuf *first = NULL;
    for (uint32_t at = 0, take; at < length; at += take) {
        struct rte_mbuf *mbuf = rte_pktmbuf_alloc(pool);
        CHECK(mbuf != NULL);
        take = segment && length - at > segment ? segment : length - at;
        memcpy(rte_pktmbuf_append(mbuf, (uint16_t)take), bytes + at, take);
        if (first)
            CHECK_EQUAL(0, rte_pktmbuf_chain(first, mbuf));
        else
            first = mbuf;
    }
    if (tci >= 0) {
        first->vlan_tci = (uint16_t)tci;
        first->ol_flags |= RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED;
    }
    CHECK_EQUAL(0, rte_ring_enqueue(ring, first));
}

#endif
