/* SPDX-License-Identifier: Apache-2.0 */
/* Which packets are taken (RFC 5475): for metering every one, every N-th (systematic count-based, 5.1), or those whose flow's
 * hash falls into the first N-th of its range (hash-based, 6.2); as sFlow samples those at random distances of mean N (sFlow
 * version 5, "Sampling of Switched Flows"). Single-threaded, one sampler a worker and purpose. */
#ifndef JARVIS_SAMPLING_H
#define JARVIS_SAMPLING_H

#include "decode/packet.h"
#include "jarvis_capture.h"

enum {
    SAMPLING_INTERVAL_MOST = 1000000,
    SAMPLING_RATE_MOST = 16777215, /* of random distances */
    SAMPLING_RANDOM = 0x100,       /* a mode beside those of enum capture_sampling */
};

struct sampler {
    uint32_t mode;     /* enum capture_sampling, or SAMPLING_RANDOM */
    uint32_t interval; /* N; 1 with CAPTURE_SAMPLING_NONE */
    uint32_t
        residue;     /* which of the N parts of the hash is taken, 0..N-1: 0 but in tests, which put all of them together again */
    uint32_t left;   /* by count: packets up to the next one that is taken, itself included */
    uint64_t random; /* state of the random distances */
};

void sampler_init(struct sampler *sampler, uint32_t mode, uint32_t interval);

/* Takes packets at random distances, each of 1..2N-1 as likely as the next: N on average, and with N = 1 every packet. */
void sampler_init_random(struct sampler *sampler, uint32_t interval, uint64_t seed);

/* Packets from one that was taken to the next, by count. */
uint32_t sampler_distance(struct sampler *sampler);

/* Of the next `count` packets, how many come before the one that is taken next; `count`: none of them is. Passes over those and
 * over it. By count only; the cost does not depend on `count`. */
static inline uint32_t sampler_next(struct sampler *sampler, uint32_t count) {
    if (sampler->left > count) {
        sampler->left -= count;
        return count;
    }
    uint32_t before = sampler->left - 1;
    sampler->left = sampler_distance(sampler);
    return before;
}

/* 32 bits out of the addresses, ports and protocol of a canonical key: the same on every host and in every release, see
 * docs/flow-semantics.md. VLAN and tunnel have no part in it. It has no seed, so whoever sends can choose flows that are left
 * out. */
uint32_t sampling_hash(const struct flow_key *key);

/* Which of N equal parts of the hash's range the key falls into, 0..N-1: the parts of a larger N are cut out of those of a
 * smaller one, so that a flow taken 1 in 1,000 is also taken 1 in 100. */
static inline uint32_t sampling_part(const struct flow_key *key, uint32_t interval) {
    return (uint32_t)((uint64_t)sampling_hash(key) * interval >> 32);
}

/* Is this packet metered? Once for each, in their order; the key is canonical, its ports completed by the fragment cache. */
static inline bool sampler_takes(struct sampler *sampler, const struct flow_key *key) {
    if (sampler->mode == CAPTURE_SAMPLING_FLOW_HASH)
        return sampling_part(key, sampler->interval) == sampler->residue;
    return sampler_next(sampler, 1) == 0;
}

#endif
