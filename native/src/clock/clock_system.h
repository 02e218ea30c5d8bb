/* SPDX-License-Identifier: Apache-2.0 */
/* The operating system's clocks as the core asks for them: one table of functions, so that a test can put a clock of its own in
 * their place. */
#ifndef JARVIS_CLOCK_SYSTEM_H
#define JARVIS_CLOCK_SYSTEM_H

#include <linux/ethtool.h>
#include <sys/timex.h>
#include <time.h>

/* Each answers as the system call does: -1 with errno set when it fails. Any thread. */
struct clock_system {
    int (*gettime)(clockid_t clock, struct timespec *out);
    int (*adjtimex)(struct timex *timex);                                    /* is only asked to read: modes 0 */
    int (*timestamping)(const char *interface, struct ethtool_ts_info *out); /* ETHTOOL_GET_TS_INFO */
    int (*open)(const char *path);                                           /* for reading, close-on-exec */
    int (*ioctl)(int file, unsigned long request, void *argument);
    int (*close)(int file);
};

extern const struct clock_system clock_system_linux;

#endif
