/* SPDX-License-Identifier: Apache-2.0 */
#include "clock/clock_system.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int get_timestamping(const char *interface, struct ethtool_ts_info *out) {
    struct ifreq request = {.ifr_data = (void *)out};
    *out = (struct ethtool_ts_info){.cmd = ETHTOOL_GET_TS_INFO};
    if (strlen(interface) >= sizeof request.ifr_name) {
        errno = ENODEV;
        return -1;
    }
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return -1;
    int result = ioctl(control, SIOCETHTOOL, &request), reason = errno;
    close(control);
    errno = reason;
    return result;
}

static int open_device(const char *path) {
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int control_device(int file, unsigned long request, void *argument) {
    return ioctl(file, request, argument);
}

const struct clock_system clock_system_linux = {
    .gettime = clock_gettime,
    .adjtimex = adjtimex,
    .timestamping = get_timestamping,
    .open = open_device,
    .ioctl = control_device,
    .close = close,
};
