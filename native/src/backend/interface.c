/* SPDX-License-Identifier: Apache-2.0 */
/* Facts about one network interface, by ioctl and rtnetlink. */
#include "interface.h"

#include "backend.h"
#include "error.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUSY_POLL_FRAMES = 64 }; /* taken from the driver at a time: a batch of ours */

bool interface_may_capture(char *reason, size_t size) {
    int probe = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (probe >= 0) {
        close(probe);
        return true;
    }
    if (errno == EPERM || errno == EACCES)
        snprintf(reason, size, "CAP_NET_RAW is missing");
    else
        snprintf(reason, size, "packet sockets cannot be opened: %s", strerror(errno));
    return false;
}

static bool set_option(int socket, int option, uint32_t value) {
    return setsockopt(socket, SOL_SOCKET, option, &value, sizeof value) == 0;
}

int interface_busy_poll(int socket, const char *name, uint32_t busy_poll_us, struct capture_error_info *error) {
    if (busy_poll_us == 0)
        return CAPTURE_OK;
    bool set = set_option(socket, SO_BUSY_POLL, busy_poll_us);
    /* Linux 5.11 has the other two. */
    if (set && ((set_option(socket, SO_PREFER_BUSY_POLL, 1) && set_option(socket, SO_BUSY_POLL_BUDGET, BUSY_POLL_FRAMES)) ||
                errno == ENOPROTOOPT))
        return CAPTURE_OK;
    return capture_fail(error, errno == EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO, "busy_poll_us",
                        "busy_poll_us is %u: the kernel refuses it on interface %s: %s", busy_poll_us, name,
                        errno == EPERM         ? "CAP_NET_ADMIN is missing"
                        : errno == ENOPROTOOPT ? "it was built without CONFIG_NET_RX_BUSY_POLL"
                                               : strerror(errno));
}

int interface_examine(int socket, const char *name, int *index, int *hardware, struct capture_error_info *error) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (strlen(name) >= sizeof request.ifr_name || ioctl(socket, SIOCGIFINDEX, &request) != 0)
        return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface", "interface %s does not exist", name);
    *index = request.ifr_ifindex;
    if (ioctl(socket, SIOCGIFHWADDR, &request) != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "the type of interface %s cannot be read: %s", name,
                            strerror(errno));
    *hardware = request.ifr_hwaddr.sa_family;
    if (ioctl(socket, SIOCGIFFLAGS, &request) != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "the state of interface %s cannot be read: %s", name,
                            strerror(errno));
    if (!(request.ifr_flags & IFF_UP))
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s is down: bring it up first (ip link set %s up)",
                            name, name);
    return CAPTURE_OK;
}

int interface_look(const char *name, int *hardware, struct capture_error_info *error) {
    int examiner = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), index;
    if (examiner < 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s cannot be examined: %s", name, strerror(errno));
    int code = interface_examine(examiner, name, &index, hardware, error);
    close(examiner);
    return code;
}

enum capture_interface_state interface_state(int index) {
    struct ifreq request = {.ifr_ifindex = index};
    int examiner = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool there = examiner >= 0 && ioctl(examiner, SIOCGIFNAME, &request) == 0 && ioctl(examiner, SIOCGIFFLAGS, &request) == 0;
    bool unknown = !there && errno != ENODEV && errno != ENXIO; /* no descriptor left: nothing was seen to have changed */
    if (examiner >= 0)
        close(examiner);
    if (unknown || (there && request.ifr_flags & IFF_UP))
        return CAPTURE_INTERFACE_UP;
    return there ? CAPTURE_INTERFACE_DOWN : CAPTURE_INTERFACE_GONE;
}

int interface_went_down(const char *name, struct capture_error_info *error) {
    capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s went down", name);
    return BACKEND_DOWN;
}

int interface_is_gone(const char *name, struct capture_error_info *error) {
    return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s is gone", name);
}

int interface_failed(const char *name, int index, int reason, struct capture_error_info *error) {
    if (index > 0 && if_nametoindex(name) != (unsigned)index)
        return interface_is_gone(name, error);
    if (reason == ENETDOWN)
        return interface_went_down(name, error);
    return capture_fail(error, CAPTURE_ERR_IO, "interface", "capturing from interface %s failed: %s", name, strerror(reason));
}

int interface_check(int socket, const char *name, int index, struct capture_error_info *error) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(socket, SIOCGIFFLAGS, &request) != 0)
        return interface_failed(name, index, errno, error);
    return request.ifr_flags & IFF_UP ? CAPTURE_OK : interface_failed(name, index, ENETDOWN, error);
}

void interface_shut(int socket) {
    struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {.len = 1, .filter = &nothing};
    (void)setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

/* rx_dropped + rx_missed_errors out of one RTM_NEWLINK answer. False: it holds no statistics. */
static bool parse_link(const struct nlmsghdr *header, size_t received, uint64_t *dropped) {
    if (!NLMSG_OK(header, received) || header->nlmsg_type != RTM_NEWLINK)
        return false;
    const struct ifinfomsg *link = NLMSG_DATA(header);
    size_t length = IFLA_PAYLOAD(header);
    for (const struct rtattr *attribute = IFLA_RTA(link); RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        if (attribute->rta_type != IFLA_STATS64)
            continue;
        struct rtnl_link_stats64 statistics = {0}; /* an older kernel's is shorter */
        size_t size = RTA_PAYLOAD(attribute);
        memcpy(&statistics, RTA_DATA(attribute), size < sizeof statistics ? size : sizeof statistics);
        *dropped = statistics.rx_dropped + statistics.rx_missed_errors;
        return true;
    }
    return false;
}

static bool ask(const struct nic_drops *drops, uint64_t *dropped) {
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST},
                 .link = {.ifi_index = drops->index}};
    union {
        struct nlmsghdr header;
        char bytes[16384];
    } answer;
    if (send(drops->socket, &request, sizeof request, 0) != (ssize_t)sizeof request)
        return false;
    ssize_t received = recv(drops->socket, &answer, sizeof answer, 0);
    return received > 0 && parse_link(&answer.header, (size_t)received, dropped);
}

int nic_drops_open(struct nic_drops *drops, int index, struct capture_error_info *error) {
    *drops = (struct nic_drops){.index = index};
    pthread_mutex_init(&drops->lock, NULL);
    drops->socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (drops->socket < 0 || !ask(drops, &drops->base)) {
        int reason = errno;
        nic_drops_close(drops);
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "the counters of interface number %d cannot be read: %s", index,
                            strerror(reason));
    }
    return CAPTURE_OK;
}

uint64_t nic_drops_read(struct nic_drops *drops) {
    uint64_t now;
    pthread_mutex_lock(&drops->lock);
    if (ask(drops, &now) && now >= drops->base + drops->last) /* a driver that resets its counters must not make ours fall */
        drops->last = now - drops->base;
    uint64_t dropped = drops->last;
    pthread_mutex_unlock(&drops->lock);
    return dropped;
}

void nic_drops_close(struct nic_drops *drops) {
    if (drops->socket >= 0)
        close(drops->socket);
    drops->socket = -1;
    pthread_mutex_destroy(&drops->lock);
}
