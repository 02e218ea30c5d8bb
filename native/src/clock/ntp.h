/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel knows of its own clock's discipline: adjtimex(2), kept up to date by chronyd, ntpd, systemd-timesyncd, phc2sys.
 */
#ifndef JARVIS_CLOCK_NTP_H
#define JARVIS_CLOCK_NTP_H

#include <stdbool.h>
#include <stdint.h>

#include "clock/clock_system.h"

struct ntp_reading {
    bool synchronised;       /* neither STA_UNSYNC nor TIME_ERROR */
    int64_t offset_ns;       /* what the kernel still has to make up for, by its own estimate */
    uint64_t error_bound_ns; /* maxerror: RFC 5905's root distance; grows until the daemon sets it anew */
    int64_t tai_offset_ns;   /* TAI - UTC, 0 = nobody told the kernel */
};

/* False with errno set: the call is not allowed here (a seccomp filter). Any thread. */
bool ntp_read(const struct clock_system *system, struct ntp_reading *out);

#endif
