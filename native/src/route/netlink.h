/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's routing tables over rtnetlink: dumped when asked, with word of changes meanwhile. */
#ifndef JARVIS_ROUTE_NETLINK_H
#define JARVIS_ROUTE_NETLINK_H

#include "jarvis_capture.h"
#include "route/kernel_routes.h"

struct route_feed {
    int notices;       /* socket of the multicast groups */
    int requests;      /* socket of dumps */
    uint32_t sequence; /* of the last request */
};

/* Opens a feed of the calling thread's network namespace and joins its groups, so that no change after this goes unheard.
 * CAPTURE_ERR_IO. */
int route_feed_open(struct route_feed *feed, struct capture_error_info *error);
void route_feed_close(struct route_feed *feed);

/* Whether something may have changed since the last call; takes all notices that there are and waits for none. */
bool route_feed_changed(struct route_feed *feed);

/* Dumps and builds *routes (zero-initialised). Waits for the kernel's answer alone. *consistent: the kernel changed nothing
 * meanwhile; else another dump is due. CAPTURE_ERR_IO, _NO_MEMORY; *routes is empty then. */
int route_feed_dump(struct route_feed *feed, struct kernel_routes *routes, bool *consistent, struct capture_error_info *error);

#endif
