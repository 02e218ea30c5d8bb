/* SPDX-License-Identifier: Apache-2.0 */
#include "clock/phc.h"

#include <errno.h>
#include <linux/ptp_clock.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

enum { SAMPLES = 9 }; /* in one call; a busy machine disturbs some of them */

static int64_t nanoseconds(const struct ptp_clock_time *time) {
    return time->sec * 1000000000 + time->nsec;
}

/* Keeps the sample with the shortest bracket. One that the system's clock was set in the middle of has none. */
static void take_sample(const struct ptp_clock_time *before, const struct ptp_clock_time *card,
                        const struct ptp_clock_time *after, struct phc_reading *best) {
    int64_t from = nanoseconds(before), bracket = nanoseconds(after) - from;
    uint64_t bound = (uint64_t)(bracket + 1) / 2;
    if (bracket < 0 || bound >= best->error_bound_ns)
        return;
    best->error_bound_ns = bound;
    best->offset_ns = nanoseconds(card) - (from + bracket / 2);
}

static int read_precise(const struct phc *phc, struct phc_reading *out) {
    struct ptp_sys_offset_precise both = {0};
    if (phc->system->ioctl(phc->file, PTP_SYS_OFFSET_PRECISE, &both) != 0)
        return errno;
    *out = (struct phc_reading){.offset_ns = nanoseconds(&both.device) - nanoseconds(&both.sys_realtime)};
    return 0;
}

static int read_extended(const struct phc *phc, struct phc_reading *out) {
    struct ptp_sys_offset_extended samples = {.n_samples = SAMPLES};
    if (phc->system->ioctl(phc->file, PTP_SYS_OFFSET_EXTENDED, &samples) != 0)
        return errno;
    for (unsigned i = 0; i < SAMPLES; i++)
        take_sample(&samples.ts[i][0], &samples.ts[i][1], &samples.ts[i][2], out);
    return 0;
}

static int read_plain(const struct phc *phc, struct phc_reading *out) {
    struct ptp_sys_offset samples = {.n_samples = SAMPLES};
    if (phc->system->ioctl(phc->file, PTP_SYS_OFFSET, &samples) != 0)
        return errno;
    for (unsigned i = 0; i < SAMPLES; i++)
        take_sample(&samples.ts[2 * i], &samples.ts[2 * i + 1], &samples.ts[2 * i + 2], out);
    return 0;
}

static bool driver_lacks_it(int reason) {
    return reason == EOPNOTSUPP || reason == ENOTTY || reason == EINVAL || reason == ENOSYS;
}

int phc_read(struct phc *phc, struct phc_reading *out) {
    static int (*const methods[PHC_METHODS])(const struct phc *, struct phc_reading *) = {read_precise, read_extended,
                                                                                          read_plain};
    for (;;) {
        *out = (struct phc_reading){.error_bound_ns = UINT64_MAX};
        int reason = methods[phc->method](phc, out);
        if (driver_lacks_it(reason) && phc->method + 1 < PHC_METHODS)
            phc->method++;
        else
            return reason ? reason : out->error_bound_ns == UINT64_MAX ? EAGAIN : 0;
    }
}

int phc_index_of(const struct clock_system *system, const char *interface) {
    struct ethtool_ts_info info;
    return system->timestamping(interface, &info) == 0 && info.phc_index >= 0 ? info.phc_index : -1;
}

int phc_open(struct phc *phc, const struct clock_system *system, int index, struct capture_error_info *error) {
    char path[24];
    struct phc_reading first;
    snprintf(path, sizeof path, "/dev/ptp%d", index);
    *phc = (struct phc){.system = system, .index = index, .file = system->open(path)};
    if (phc->file < 0) {
        bool refused = errno == EACCES || errno == EPERM;
        return capture_fail(error, refused ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_BACKEND, "timestamp_source",
                            "the PTP clock %s cannot be opened: %s%s", path, strerror(errno),
                            refused ? " (the capture needs read permission on it)" : "");
    }
    int reason = phc_read(phc, &first);
    if (reason == 0)
        return CAPTURE_OK;
    phc_close(phc);
    return capture_fail(error, CAPTURE_ERR_BACKEND, "timestamp_source",
                        "the PTP clock %s cannot be compared with the system's clock (PTP_SYS_OFFSET): %s", path,
                        strerror(reason));
}

void phc_close(struct phc *phc) {
    if (phc->file >= 0)
        phc->system->close(phc->file);
    phc->file = -1;
}
