/* SPDX-License-Identifier: Apache-2.0 */
/* live_cases.h with an MTU that XDP takes, and the module's backend added to the core. */
#ifndef JARVIS_XDP_LINK_H
#define JARVIS_XDP_LINK_H

#include "live_cases.h"
#include "module.h"

static const struct capture_backend_ops *xdp;

/* First in main: 0, or SKIPPED with the reason printed. */
static inline int prepare_xdp_link(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    run("ip link set jarvis0 mtu 1500 && ip link set jarvis1 mtu 1500");
    xdp = jarvis_capture_module()->ops;
    char reason[160];
    if (!xdp->probe(NULL, reason, sizeof reason)) {
        printf("skipped: %s\n", reason);
        return SKIPPED;
    }
    CHECK_EQUAL(CAPTURE_OK, capture_add_module(jarvis_capture_module(), NULL));
    return 0;
}

#endif
