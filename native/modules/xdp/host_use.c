/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host does with an interface, asked over rtnetlink: addresses, default routes, devices above it; and what frames come
 * over it. Asked anew each time: an address may be given to it at any moment.
 */
#include "xdp.h"

#include "error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct look {
    const char *name;
    int index;
    char *reason;
    size_t size;
    bool used;
};

typedef void (*look_at)(struct look *look, const struct nlmsghdr *message);

static const struct rtattr *attribute_of(const struct rtattr *at, size_t length, unsigned short type) {
    for (; RTA_OK(at, length); at = RTA_NEXT(at, length))
        if ((at->rta_type & NLA_TYPE_MASK) == type)
            return at;
    return NULL;
}

static int number_of(const struct rtattr *attribute) {
    int number = 0;
    if (attribute && RTA_PAYLOAD(attribute) >= sizeof number)
        memcpy(&number, RTA_DATA(attribute), sizeof number);
    return number;
}

static void look_at_address(struct look *look, const struct nlmsghdr *message) {
    const struct ifaddrmsg *address = NLMSG_DATA(message);
    if (message->nlmsg_type != RTM_NEWADDR || (int)address->ifa_index != look->index)
        return;
    const struct rtattr *value = attribute_of(IFA_RTA(address), IFA_PAYLOAD(message), IFA_LOCAL);
    if (!value)
        value = attribute_of(IFA_RTA(address), IFA_PAYLOAD(message), IFA_ADDRESS);
    char text[INET6_ADDRSTRLEN] = "of an unknown kind";
    if (value && (address->ifa_family == AF_INET || address->ifa_family == AF_INET6))
        inet_ntop(address->ifa_family, RTA_DATA(value), text, sizeof text);
    snprintf(look->reason, look->size, "interface %s carries the address %s", look->name, text);
    look->used = true;
}

/* Does a route with several next hops leave by the interface? */
static bool hops_leave(const struct rtattr *hops, int index) {
    size_t length = RTA_PAYLOAD(hops);
    for (const struct rtnexthop *hop = RTA_DATA(hops); length >= sizeof *hop && RTNH_OK(hop, (int)length);
         length -= RTNH_ALIGN(hop->rtnh_len), hop = RTNH_NEXT(hop))
        if (hop->rtnh_ifindex == index)
            return true;
    return false;
}

static void look_at_route(struct look *look, const struct nlmsghdr *message) {
    const struct rtmsg *route = NLMSG_DATA(message);
    if (message->nlmsg_type != RTM_NEWROUTE || route->rtm_dst_len != 0 || route->rtm_type != RTN_UNICAST)
        return;
    const struct rtattr *hops = attribute_of(RTM_RTA(route), RTM_PAYLOAD(message), RTA_MULTIPATH);
    if (number_of(attribute_of(RTM_RTA(route), RTM_PAYLOAD(message), RTA_OIF)) != look->index &&
        !(hops && hops_leave(hops, look->index)))
        return;
    snprintf(look->reason, look->size, "a default route leaves by interface %s", look->name);
    look->used = true;
}

static bool is_veth(const struct rtattr *info) {
    const struct rtattr *kind = info ? attribute_of(RTA_DATA(info), RTA_PAYLOAD(info), IFLA_INFO_KIND) : NULL;
    return kind && RTA_PAYLOAD(kind) >= 4 && memcmp(RTA_DATA(kind), "veth", 4) == 0;
}

/* A bridge or bond that the interface is a port of; a VLAN or the like that is made on it. The other end of a veth pair names it
 * too, in the same attribute, and is none of these. */
static void look_at_link(struct look *look, const struct nlmsghdr *message) {
    const struct ifinfomsg *link = NLMSG_DATA(message);
    if (message->nlmsg_type != RTM_NEWLINK)
        return;
    const struct rtattr *attributes = IFLA_RTA(link);
    size_t length = IFLA_PAYLOAD(message);
    const struct rtattr *name = attribute_of(attributes, length, IFLA_IFNAME);
    if (link->ifi_index == look->index && number_of(attribute_of(attributes, length, IFLA_MASTER)) != 0)
        snprintf(look->reason, look->size, "interface %s is a port of another (a bridge or bond)", look->name);
    else if (number_of(attribute_of(attributes, length, IFLA_LINK)) == look->index && link->ifi_index != look->index &&
             !attribute_of(attributes, length, IFLA_LINK_NETNSID) && !is_veth(attribute_of(attributes, length, IFLA_LINKINFO)))
        snprintf(look->reason, look->size, "interface %s carries the device %.15s", look->name,
                 name ? (const char *)RTA_DATA(name) : "?");
    else
        return;
    look->used = true;
}

/* One answer of a dump. 1: there is more; 0: it is at its end; -1: it failed. */
static int take_answer(int socket, struct look *look, look_at at) {
    static const int DONE = 0, MORE = 1, FAILED = -1;
    union {
        struct nlmsghdr header;
        char bytes[32768];
    } answer;
    ssize_t received = recv(socket, &answer, sizeof answer, 0);
    if (received <= 0)
        return FAILED;
    size_t length = (size_t)received;
    for (const struct nlmsghdr *message = &answer.header; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length)) {
        if (message->nlmsg_type == NLMSG_DONE)
            return DONE;
        if (message->nlmsg_type == NLMSG_ERROR)
            return FAILED;
        if (!look->used)
            at(look, message);
    }
    return MORE;
}

static bool dump(struct look *look, unsigned short type, unsigned char family, look_at at) {
    struct {
        struct nlmsghdr header;
        struct ifinfomsg body; /* the longest of the three kinds of body; each begins with the family */
    } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
                 .body = {.ifi_family = family}};
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int result = -1;
    if (netlink >= 0 && send(netlink, &request, request.header.nlmsg_len, 0) == (ssize_t)request.header.nlmsg_len)
        while ((result = take_answer(netlink, look, at)) > 0)
            ;
    if (netlink >= 0)
        close(netlink);
    return result == 0;
}

bool xdp_host_uses(const char *interface, char *reason, size_t size) {
    struct look look = {.name = interface, .index = (int)if_nametoindex(interface), .reason = reason, .size = size};
    bool known = dump(&look, RTM_GETADDR, AF_UNSPEC, look_at_address) && dump(&look, RTM_GETROUTE, AF_INET, look_at_route) &&
                 dump(&look, RTM_GETROUTE, AF_INET6, look_at_route) && dump(&look, RTM_GETLINK, AF_UNSPEC, look_at_link);
    if (!known && !look.used)
        snprintf(reason, size, "what the host uses interface %s for cannot be found out: %s", interface, strerror(errno));
    return look.used || !known;
}

/* An ethtool question; false: the driver does not know it. */
static bool asks(int socket, const char *name, void *question) {
    struct ifreq request = {.ifr_data = question};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    return ioctl(socket, SIOCETHTOOL, &request) == 0;
}

/* Receive queues: what the driver says of its channels; one where it does not know the question. */
static uint32_t queues_of(int socket, const char *name) {
    struct ethtool_channels channels = {.cmd = ETHTOOL_GCHANNELS};
    uint32_t queues = asks(socket, name, &channels) ? channels.combined_count + channels.rx_count : 0;
    return queues ? queues : 1;
}

/* A veth pair claims that it does and takes none off a frame that has one. */
static bool takes_tags_off(int socket, const char *name) {
    struct ethtool_value flags = {.cmd = ETHTOOL_GFLAGS};
    struct ethtool_drvinfo driver = {.cmd = ETHTOOL_GDRVINFO};
    return asks(socket, name, &flags) && (flags.data & ETH_FLAG_RXVLAN) &&
           !(asks(socket, name, &driver) && strcmp(driver.driver, "veth") == 0);
}

int xdp_interface_examine(const char *name, struct xdp_interface *out, struct capture_error_info *error) {
    int examiner = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (examiner < 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s cannot be examined: %s", name, strerror(errno));
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    int code = interface_examine(examiner, name, &out->index, &out->hardware, error);
    if (code == CAPTURE_OK && ioctl(examiner, SIOCGIFMTU, &request) != 0)
        code =
            capture_fail(error, CAPTURE_ERR_IO, "interface", "the MTU of interface %s cannot be read: %s", name, strerror(errno));
    out->mtu = (uint32_t)request.ifr_mtu;
    out->queues = queues_of(examiner, name);
    out->takes_tags_off = takes_tags_off(examiner, name);
    close(examiner);
    return code;
}
