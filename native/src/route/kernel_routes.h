/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's main routing tables as messages say them: rtnetlink bytes in, next hops and tables out. It asks nobody. */
#ifndef JARVIS_KERNEL_ROUTES_H
#define JARVIS_KERNEL_ROUTES_H

#include <linux/netlink.h>
#include <stdbool.h>
#include <stdint.h>

#include "route/route_table.h"

/* Where a route leads. */
struct route_hop {
    uint8_t address[16]; /* network order, IPv4 in the first 4 bytes; all 0: on link */
    uint32_t version;    /* of the address: 4, 6, or 0: on link */
    uint32_t interface;  /* index, 0 = unknown */
};                       /* without padding: hops are compared as bytes */

/* A nexthop object (ip nexthop): routes may say its id in place of a gateway. */
struct route_nexthop {
    uint32_t id;
    uint32_t member; /* of a group: the first one's id; else 0 */
    struct route_hop hop;
};

/* Zero-initialise; while it is filled, the lists; when built, the tables. */
struct kernel_routes {
    struct route_list lists[2]; /* IPv4, IPv6 */
    struct route_table *tables[2];
    struct route_hop *hops; /* value v of a table is hops[v - 1] */
    uint32_t hop_count, hop_capacity;
    struct route_nexthop *nexthops;
    uint32_t nexthop_count, nexthop_capacity;
};

/* Takes over one message of a dump: RTM_NEWNEXTHOP, and after those RTM_NEWROUTE; others are passed over, and so are routes of
 * other tables, of a type of service or source of their own. Routes that lead nowhere (unreachable, blackhole, prohibit, throw)
 * hide the shorter prefixes that hold them. False: no memory. */
bool kernel_routes_take(struct kernel_routes *routes, const struct nlmsghdr *message);

/* Builds the tables and frees the lists. False: no memory. */
bool kernel_routes_build(struct kernel_routes *routes);

/* Frees all that it holds. */
void kernel_routes_clear(struct kernel_routes *routes);

/* Whether a notification may mean that the main tables have changed. IPv4 routes go without a word when their interface goes down
 * or an address is taken away, so those messages count too. */
bool kernel_routes_concerns(const struct nlmsghdr *message);

#endif
