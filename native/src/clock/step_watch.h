/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps of a clock, told from its being slewed.
 *
 * What is watched is the clock's distance from CLOCK_BOOTTIME. The kernel slews both alike, so that for the system's clock it
 * moves only when the clock is set (and by a leap second); suspending the machine does not move it, as it would the distance from
 * CLOCK_MONOTONIC. A card's clock may run apart from the system's: so much of a move is allowed as the time since the last look
 * explains.
 */
#ifndef JARVIS_CLOCK_STEP_WATCH_H
#define JARVIS_CLOCK_STEP_WATCH_H

#include <stdbool.h>
#include <stdint.h>

enum { CLOCK_STEP_NS = 100000000, CLOCK_DRIFT_PPM = 1000 };

struct step_watch {
    bool known;
    int64_t distance_ns;
    uint64_t error_ns; /* of the distance */
    uint64_t since_ns; /* boot time when it was measured */
};

/* A new measurement, at boot time `now_ns`. True: more than CLOCK_STEP_NS within a second are a step, *step_ns says how far. The
 * first measurement is none. */
bool step_watch_look(struct step_watch *watch, int64_t distance_ns, uint64_t error_ns, uint64_t now_ns, int64_t *step_ns);

#endif
