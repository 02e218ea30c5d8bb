/* SPDX-License-Identifier: Apache-2.0 */
/* rtnetlink messages of routes and nexthop objects: arbitrary bytes must be taken over or passed over, and the tables that follow
 * must answer. */
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "route/kernel_routes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Most bytes make a message that is passed over at once: those that choose are set to what is looked at. */
static void steer(struct nlmsghdr *message, uint32_t length) {
    message->nlmsg_type = message->nlmsg_type & 1 ? RTM_NEWROUTE : RTM_NEWNEXTHOP;
    if (length < NLMSG_LENGTH(sizeof(struct rtmsg)))
        return;
    struct rtmsg *route = NLMSG_DATA(message);
    route->rtm_family = route->rtm_family & 1 ? AF_INET : AF_INET6;
    if (route->rtm_table & 1) {
        route->rtm_table = RT_TABLE_MAIN;
        route->rtm_type = RTN_UNICAST;
        route->rtm_tos = route->rtm_src_len = 0;
        route->rtm_flags = 0;
    }
}

/* Messages as a dump has them: each says its length; one that lies ends the input. */
static void take_messages(struct kernel_routes *routes, const uint8_t *data, size_t size) {
    while (size >= sizeof(struct nlmsghdr)) {
        struct nlmsghdr header;
        memcpy(&header, data, sizeof header);
        if (header.nlmsg_len < sizeof header || header.nlmsg_len > size)
            return;
        void *message = malloc(header.nlmsg_len); /* of its own, so that a byte read behind it is seen */
        if (!message)
            return;
        memcpy(message, data, header.nlmsg_len);
        steer(message, header.nlmsg_len);
        kernel_routes_take(routes, message);
        kernel_routes_concerns(message);
        free(message);
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step > size)
            return;
        data += step;
        size -= step;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t addresses[][16] = {{0}, {192, 0, 2, 1}, {0x20, 0x01, 0x0d, 0xb8}, {0xff, 0xff, 0xff, 0xff}};
    struct kernel_routes routes = {0};
    take_messages(&routes, data, size);
    if (kernel_routes_build(&routes))
        for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++)
            for (int family = 0; family < 2; family++) {
                uint8_t length;
                uint32_t value = route_table_lookup(routes.tables[family], addresses[i], &length);
                if (value > routes.hop_count || length > (family ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS))
                    abort();
            }
    kernel_routes_clear(&routes);
    return 0;
}
