/* SPDX-License-Identifier: Apache-2.0 */
#include "route/netlink.h"

#include "error.h"

#include <errno.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    DUMP_BYTES = 256 * 1024, /* more than the kernel puts in one message of a dump */
    NOTICE_BYTES = 32 * 1024,
    NOTICES_MAX = 65536, /* taken in one go: a storm of changes must not hold the caller */
    ANSWER_SECONDS = 10
};

static int fail(struct capture_error_info *error, const char *what) {
    return capture_fail(error, CAPTURE_ERR_IO, "kernel", "the kernel's routing tables cannot be read (%s): %s", what,
                        strerror(errno));
}

/* -1 with errno. */
static int open_socket(void) {
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct sockaddr_nl own = {.nl_family = AF_NETLINK};
    if (netlink >= 0 && bind(netlink, (struct sockaddr *)&own, sizeof own) != 0) {
        int reason = errno;
        close(netlink);
        errno = reason;
        return -1;
    }
    return netlink;
}

int route_feed_open(struct route_feed *feed, struct capture_error_info *error) {
    static const int groups[] = {RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE};
    *feed = (struct route_feed){.notices = open_socket(), .requests = open_socket()};
    if (feed->notices < 0 || feed->requests < 0) {
        int code = fail(error, "socket");
        route_feed_close(feed);
        return code;
    }
    /* Dumps of the main table only: kernels before 4.20 give all tables, of which the others are passed over. */
    int strict = 1;
    struct timeval patience = {.tv_sec = ANSWER_SECONDS};
    (void)setsockopt(feed->requests, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &strict, sizeof strict);
    (void)setsockopt(feed->requests, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (setsockopt(feed->notices, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[i], sizeof groups[i]) != 0) {
            int code = fail(error, "NETLINK_ADD_MEMBERSHIP");
            route_feed_close(feed);
            return code;
        }
    int nexthops = RTNLGRP_NEXTHOP; /* Linux 5.3: before it there are none that could change */
    (void)setsockopt(feed->notices, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &nexthops, sizeof nexthops);
    return CAPTURE_OK;
}

void route_feed_close(struct route_feed *feed) {
    if (feed->notices >= 0)
        close(feed->notices);
    if (feed->requests >= 0)
        close(feed->requests);
    feed->notices = feed->requests = -1;
}

/* One datagram of the kernel; 0: of somebody else; -1 with errno. */
static ssize_t receive(int netlink, void *buffer, size_t size, int flags) {
    struct sockaddr_nl sender = {0};
    socklen_t length = sizeof sender;
    ssize_t received;
    do {
        received = recvfrom(netlink, buffer, size, flags | MSG_TRUNC, (struct sockaddr *)&sender, &length);
    } while (received < 0 && errno == EINTR);
    if (received > (ssize_t)size) {
        errno = EMSGSIZE;
        return -1;
    }
    return received > 0 && sender.nl_pid != 0 ? 0 : received;
}

/* NLMSG_OK, whose comparison of signed and unsigned clang minds. */
static bool is_message(const struct nlmsghdr *at, int left) {
    return left >= (int)sizeof *at && at->nlmsg_len >= sizeof *at && at->nlmsg_len <= (uint32_t)left;
}

bool route_feed_changed(struct route_feed *feed) {
    bool changed = false;
    _Alignas(struct nlmsghdr) uint8_t buffer[NOTICE_BYTES];
    for (int notices = 0; notices < NOTICES_MAX; notices++) {
        ssize_t received = receive(feed->notices, buffer, sizeof buffer, MSG_DONTWAIT);
        if (received < 0) {
            if (errno == EAGAIN)
                return changed;
            changed = true; /* ENOBUFS, EMSGSIZE: something was said that is lost */
            if (errno != ENOBUFS && errno != EMSGSIZE)
                return changed;
            continue;
        }
        int left = (int)received;
        for (const struct nlmsghdr *at = (const void *)buffer; !changed && is_message(at, left); at = NLMSG_NEXT(at, left))
            changed = kernel_routes_concerns(at);
    }
    return changed;
}

struct dump {
    struct kernel_routes *routes;
    uint32_t sequence;
    bool interrupted, done;
    int reason; /* errno of the kernel's refusal */
    bool full;  /* no memory */
};

static void take_datagram(struct dump *dump, const uint8_t *bytes, int left) {
    for (const struct nlmsghdr *at = (const void *)bytes; is_message(at, left) && !dump->done && !dump->full;
         at = NLMSG_NEXT(at, left)) {
        if (at->nlmsg_seq != dump->sequence)
            continue;
        dump->interrupted |= (at->nlmsg_flags & NLM_F_DUMP_INTR) != 0;
        bool is_error = at->nlmsg_type == NLMSG_ERROR;
        if ((is_error || at->nlmsg_type == NLMSG_DONE) && NLMSG_PAYLOAD(at, 0) >= sizeof(int)) {
            int result; /* both messages begin with it, an errno made negative */
            memcpy(&result, NLMSG_DATA(at), sizeof result);
            dump->reason = -result;
        }
        dump->done = is_error || at->nlmsg_type == NLMSG_DONE;
        dump->full = !dump->done && !kernel_routes_take(dump->routes, at);
    }
}

/* Asks for all objects of a kind and takes over the answer. */
static int dump_kind(struct route_feed *feed, uint16_t type, uint8_t family, uint8_t *buffer, struct dump *dump,
                     struct capture_error_info *error) {
    struct {
        struct nlmsghdr header;
        union {
            struct rtmsg route;
            struct nhmsg nexthop;
        };
    } request = {.header = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = ++feed->sequence}};
    bool nexthops = type == RTM_GETNEXTHOP;
    request.header.nlmsg_len = NLMSG_LENGTH(nexthops ? sizeof request.nexthop : sizeof request.route);
    if (!nexthops)
        request.route = (struct rtmsg){.rtm_family = family, .rtm_table = RT_TABLE_MAIN};
    *dump = (struct dump){.routes = dump->routes, .sequence = feed->sequence, .interrupted = dump->interrupted};
    if (send(feed->requests, &request, request.header.nlmsg_len, 0) < 0)
        return fail(error, "send");
    while (!dump->done && !dump->full) {
        ssize_t received = receive(feed->requests, buffer, DUMP_BYTES, 0);
        if (received < 0)
            return fail(error, "receive");
        take_datagram(dump, buffer, (int)received);
    }
    if (dump->full)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "kernel", "there is no memory for the kernel's routing tables");
    /* No such table yet, no IPv6, no nexthop objects in this kernel: there is nothing to know. */
    bool absent = dump->reason == ENOENT || dump->reason == EAFNOSUPPORT || dump->reason == EOPNOTSUPP;
    errno = dump->reason;
    return dump->reason == 0 || absent ? CAPTURE_OK : fail(error, "dump");
}

static int dump_all(struct route_feed *feed, struct dump *dump, struct capture_error_info *error) {
    uint8_t *buffer = malloc(DUMP_BYTES);
    if (!buffer)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "kernel", "there is no memory for the kernel's routing tables");
    int code = dump_kind(feed, RTM_GETNEXTHOP, AF_UNSPEC, buffer, dump, error);
    if (code == CAPTURE_OK)
        code = dump_kind(feed, RTM_GETROUTE, AF_INET, buffer, dump, error);
    if (code == CAPTURE_OK)
        code = dump_kind(feed, RTM_GETROUTE, AF_INET6, buffer, dump, error);
    free(buffer);
    if (code == CAPTURE_OK && !kernel_routes_build(dump->routes))
        code = capture_fail(error, CAPTURE_ERR_NO_MEMORY, "kernel", "there is no memory for the kernel's routing tables");
    return code;
}

int route_feed_dump(struct route_feed *feed, struct kernel_routes *routes, bool *consistent, struct capture_error_info *error) {
    struct dump dump = {.routes = routes};
    int code = dump_all(feed, &dump, error);
    if (code != CAPTURE_OK)
        kernel_routes_clear(routes);
    *consistent = !dump.interrupted;
    return code;
}
