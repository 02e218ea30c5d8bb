/* SPDX-License-Identifier: Apache-2.0 */
#include "clock/step_watch.h"

enum { REFERENCE_NS = 1000000000 };

bool step_watch_look(struct step_watch *watch, int64_t distance_ns, uint64_t error_ns, uint64_t now_ns, int64_t *step_ns) {
    uint64_t passed = now_ns - watch->since_ns;
    int64_t moved = (int64_t)((uint64_t)distance_ns - (uint64_t)watch->distance_ns);
    uint64_t far = moved < 0 ? 0 - (uint64_t)moved : (uint64_t)moved;
    uint64_t allowed = CLOCK_STEP_NS + error_ns + watch->error_ns + passed / 1000000 * CLOCK_DRIFT_PPM;
    bool stepped = watch->known && far > allowed;
    if (stepped)
        *step_ns = moved;
    /* The reference stays for a second, so that a step made in several small ones is one too. */
    if (stepped || !watch->known || passed >= REFERENCE_NS)
        *watch = (struct step_watch){.known = true, .distance_ns = distance_ns, .error_ns = error_ns, .since_ns = now_ns};
    return stepped;
}
