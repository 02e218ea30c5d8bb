/* SPDX-License-Identifier: Apache-2.0 */
/* Which packets are metered (RFC 5475): every one, every N-th (systematic count-based, 5.1), or those whose flow's hash falls
 * into the first N-th of its range (hash-based, 6.2). Single-threaded, one sampler a worker. */
#ifndef JARVIS_SAMPLING_H
#define JARVIS_SAMPLING_H

#include "decode/packet.h"
#include "jarvis_capture.h"

enum { SAMPLING_INTERVAL_MOST = 1000000 };

struct sampler {
    uint32_t mode;     /* enum capture_sampling */
    uint32_t interval; /* N; 1 with CAPTURE_SAMPLING_NONE */
    uint32_t residue;  /* which of the N parts is taken, 0..N-1: 0 but in tests, which put all of them together again */
    uint32_t position; /* systematic: packets since the last period began, 0..N-1 */
};

void sampler_init(struct sampler *sampler, uint32_t mode, uint32_t interval);

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
    bool takes = sampler->position == sampler->residue;
    sampler->position = sampler->position + 1 < sampler->interval ? sampler->position + 1 : 0;
    return takes;
}

#endif
