/* SPDX-License-Identifier: Apache-2.0 */
#include "route/kernel_routes.h"

#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { ATTRIBUTES = RTA_NH_ID + 1, RECENT_HOPS = 8, FIRST_CAPACITY = 16, GROUP_DEPTH = 2 };

_Static_assert((int)NHA_GATEWAY < (int)ATTRIBUTES, "attributes of nexthop objects fit where those of routes do");

typedef const struct rtattr *attribute_array[ATTRIBUTES];

static void find_attributes(const void *first, int length, attribute_array out) {
    memset(out, 0, sizeof(attribute_array));
    for (const struct rtattr *at = first; RTA_OK(at, length); at = RTA_NEXT(at, length)) {
        unsigned type = at->rta_type & NLA_TYPE_MASK;
        if (type < ATTRIBUTES)
            out[type] = at;
    }
}

/* 0 where the attribute is missing or too short. */
static uint32_t number_of(const struct rtattr *attribute) {
    uint32_t value = 0;
    if (attribute && RTA_PAYLOAD(attribute) >= sizeof value)
        memcpy(&value, RTA_DATA(attribute), sizeof value);
    return value;
}

static void set_address(struct route_hop *hop, int family, const void *bytes, size_t length) {
    size_t size = family == AF_INET ? 4 : family == AF_INET6 ? 16 : 0;
    static const uint8_t none[16];
    if (size == 0 || length < size || memcmp(bytes, none, size) == 0)
        return;
    memcpy(hop->address, bytes, size);
    hop->version = size == 4 ? 4 : 6;
}

/* Gateway and interface as the attributes say them; RTA_VIA is a gateway of the other family. */
static void read_hop(const attribute_array attributes, int family, struct route_hop *hop) {
    const struct rtattr *gateway = attributes[RTA_GATEWAY], *via = attributes[RTA_VIA];
    if (gateway)
        set_address(hop, family, RTA_DATA(gateway), RTA_PAYLOAD(gateway));
    else if (via && RTA_PAYLOAD(via) > sizeof(struct rtvia)) {
        const struct rtvia *other = RTA_DATA(via);
        set_address(hop, other->rtvia_family, other->rtvia_addr, RTA_PAYLOAD(via) - sizeof *other);
    }
    if (attributes[RTA_OIF])
        hop->interface = number_of(attributes[RTA_OIF]);
}

/* Of several next hops the first that is alive; of dead ones the first. */
static void read_multipath(const struct rtattr *multipath, int family, struct route_hop *hop) {
    int left = (int)RTA_PAYLOAD(multipath);
    bool found = false;
    for (const struct rtnexthop *at = RTA_DATA(multipath); left >= (int)sizeof *at && RTNH_OK(at, left);) {
        bool alive = !(at->rtnh_flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN));
        if (alive || !found) {
            attribute_array attributes;
            find_attributes(RTNH_DATA(at), at->rtnh_len - (int)sizeof *at, attributes);
            *hop = (struct route_hop){.interface = (uint32_t)at->rtnh_ifindex};
            read_hop(attributes, family, hop);
            found = true;
        }
        if (alive)
            return;
        left -= (int)NLMSG_ALIGN(at->rtnh_len);
        at = RTNH_NEXT(at);
    }
}

static bool grow(void **array, uint32_t count, uint32_t *capacity, size_t size) {
    if (count < *capacity)
        return true;
    uint32_t wanted = *capacity ? *capacity * 2 : FIRST_CAPACITY;
    void *grown = wanted > INT32_MAX ? NULL : reallocarray(*array, wanted, size);
    if (!grown)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

/* The hop's value in tables, 0: no memory. Full tables lead to few neighbours, so that most hops are among the last new ones. */
static uint32_t value_of(struct kernel_routes *routes, const struct route_hop *hop) {
    for (uint32_t back = 1; back <= RECENT_HOPS && back <= routes->hop_count; back++)
        if (memcmp(&routes->hops[routes->hop_count - back], hop, sizeof *hop) == 0)
            return routes->hop_count - back + 1;
    if (!grow((void **)&routes->hops, routes->hop_count, &routes->hop_capacity, sizeof *routes->hops))
        return 0;
    routes->hops[routes->hop_count++] = *hop;
    return routes->hop_count;
}

static bool take_nexthop(struct kernel_routes *routes, const struct nlmsghdr *message) {
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof(struct nhmsg)))
        return true;
    const struct nhmsg *header = NLMSG_DATA(message);
    attribute_array attributes;
    find_attributes((const uint8_t *)header + NLMSG_ALIGN(sizeof *header), (int)NLMSG_PAYLOAD(message, sizeof *header),
                    attributes);
    struct route_nexthop nexthop = {.id = number_of(attributes[NHA_ID]), .hop.interface = number_of(attributes[NHA_OIF])};
    const struct rtattr *group = attributes[NHA_GROUP], *gateway = attributes[NHA_GATEWAY];
    if (group && RTA_PAYLOAD(group) >= sizeof(struct nexthop_grp))
        nexthop.member = ((const struct nexthop_grp *)RTA_DATA(group))->id;
    if (gateway)
        set_address(&nexthop.hop, header->nh_family, RTA_DATA(gateway), RTA_PAYLOAD(gateway));
    if (!grow((void **)&routes->nexthops, routes->nexthop_count, &routes->nexthop_capacity, sizeof nexthop))
        return false;
    routes->nexthops[routes->nexthop_count++] = nexthop;
    return true;
}

/* A dump gives nexthop objects by rising ids. */
static const struct route_nexthop *find_nexthop(const struct kernel_routes *routes, uint32_t id) {
    uint32_t low = 0, high = routes->nexthop_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (routes->nexthops[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < routes->nexthop_count && routes->nexthops[low].id == id ? &routes->nexthops[low] : NULL;
}

static void read_nexthop(const struct kernel_routes *routes, uint32_t id, struct route_hop *hop) {
    const struct route_nexthop *found = find_nexthop(routes, id);
    for (int depth = 0; found && found->member && depth < GROUP_DEPTH; depth++)
        found = find_nexthop(routes, found->member);
    if (found)
        *hop = found->hop;
}

/* RTA_TABLE where the number does not fit the header's field. */
static uint32_t table_of(const struct rtmsg *route, const struct rtattr *table) {
    return table ? number_of(table) : route->rtm_table;
}

static bool take_route(struct kernel_routes *routes, const struct nlmsghdr *message) {
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof(struct rtmsg)))
        return true;
    const struct rtmsg *route = NLMSG_DATA(message);
    attribute_array attributes;
    find_attributes(RTM_RTA(route), (int)RTM_PAYLOAD(message), attributes);
    bool is_ipv6 = route->rtm_family == AF_INET6;
    uint8_t bits = is_ipv6 ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS, address[16] = {0};
    if ((!is_ipv6 && route->rtm_family != AF_INET) || table_of(route, attributes[RTA_TABLE]) != RT_TABLE_MAIN ||
        route->rtm_flags & (RTM_F_CLONED | RTNH_F_DEAD) || route->rtm_tos != 0 || route->rtm_src_len != 0 ||
        route->rtm_dst_len > bits)
        return true;
    const struct rtattr *destination = attributes[RTA_DST];
    if (destination) {
        size_t length = RTA_PAYLOAD(destination) < bits / 8u ? RTA_PAYLOAD(destination) : bits / 8u;
        memcpy(address, RTA_DATA(destination), length);
    }
    uint32_t value = 0; /* the route leads nowhere */
    if (route->rtm_type == RTN_UNICAST) {
        struct route_hop hop = {0};
        read_hop(attributes, route->rtm_family, &hop);
        if (attributes[RTA_MULTIPATH])
            read_multipath(attributes[RTA_MULTIPATH], route->rtm_family, &hop);
        else if (attributes[RTA_NH_ID] && hop.version == 0 && hop.interface == 0)
            read_nexthop(routes, number_of(attributes[RTA_NH_ID]), &hop);
        value = value_of(routes, &hop);
        if (value == 0)
            return false;
    }
    return route_list_add(&routes->lists[is_ipv6], address, bits, route->rtm_dst_len, number_of(attributes[RTA_PRIORITY]), value);
}

bool kernel_routes_take(struct kernel_routes *routes, const struct nlmsghdr *message) {
    switch (message->nlmsg_type) {
    case RTM_NEWNEXTHOP:
        return take_nexthop(routes, message);
    case RTM_NEWROUTE:
        return take_route(routes, message);
    default:
        return true;
    }
}

bool kernel_routes_build(struct kernel_routes *routes) {
    for (int family = 0; family < 2; family++) {
        routes->tables[family] = route_table_build(&routes->lists[family], family ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS);
        route_list_clear(&routes->lists[family]);
        if (!routes->tables[family])
            return false;
    }
    free(routes->nexthops);
    routes->nexthops = NULL;
    routes->nexthop_count = routes->nexthop_capacity = 0;
    return true;
}

void kernel_routes_clear(struct kernel_routes *routes) {
    for (int family = 0; family < 2; family++) {
        route_list_clear(&routes->lists[family]);
        route_table_free(routes->tables[family]);
    }
    free(routes->hops);
    free(routes->nexthops);
    *routes = (struct kernel_routes){0};
}

bool kernel_routes_concerns(const struct nlmsghdr *message) {
    switch (message->nlmsg_type) {
    case RTM_NEWROUTE:
    case RTM_DELROUTE: {
        if (message->nlmsg_len < NLMSG_LENGTH(sizeof(struct rtmsg)))
            return true;
        const struct rtmsg *route = NLMSG_DATA(message);
        attribute_array attributes;
        find_attributes(RTM_RTA(route), (int)RTM_PAYLOAD(message), attributes);
        return table_of(route, attributes[RTA_TABLE]) == RT_TABLE_MAIN && !(route->rtm_flags & RTM_F_CLONED);
    }
    case RTM_NEWLINK:
    case RTM_DELLINK:
    case RTM_NEWADDR:
    case RTM_DELADDR:
    case RTM_NEWNEXTHOP:
    case RTM_DELNEXTHOP:
        return true;
    default:
        return false;
    }
}
