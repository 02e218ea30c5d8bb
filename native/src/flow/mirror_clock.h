/* SPDX-License-Identifier: Apache-2.0 */
/* The clocks of the mirrors whose ERSPAN III headers a worker sees, each set by its first packet against the capture's clock.
 * Bounded: sets of four, the one unused longest makes room. Single-threaded; never allocates after init. */
#ifndef JARVIS_MIRROR_CLOCK_H
#define JARVIS_MIRROR_CLOCK_H

#include "decode/decode.h"
#include "flow/flow_hash.h"

enum { MIRROR_WAYS = 4, MIRROR_SETS = 64 };

/* The two clocks may part by this much, or by a quarter of the stamp's wrap if that is less, before the mirror's is set anew. */
#define MIRROR_DRIFT_MOST_NS 1000000000u

struct mirror_entry;

struct mirror_clock {
    struct mirror_entry *entries; /* NULL: off */
    struct hash_seed seed;
};

/* False: no memory. */
bool mirror_clock_init(struct mirror_clock *clock, uint64_t hash_seed);
void mirror_clock_destroy(struct mirror_clock *clock);
uint64_t mirror_clock_bytes(const struct mirror_clock *clock);

/* The time in ns since the Unix epoch at which the mirror copied what `outer` carries: outer->ts_ns for its first packet and
 * whenever its clock is set anew, at most MIRROR_DRIFT_MOST_NS from it for every other, whatever the stamp says. */
uint64_t mirror_clock_time(struct mirror_clock *clock, const struct packet *outer, const struct mirror_stamp *stamp);

#endif
