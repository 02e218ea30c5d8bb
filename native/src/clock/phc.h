/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PTP hardware clock (PHC) of a network card: finding it, and measuring it against the system's clock.
 *
 * The kernel reads both in turn, the card between two looks at CLOCK_REALTIME; the reading with the shortest bracket counts, and
 * half of it is the error. Asked are, in this order, what the driver has: PTP_SYS_OFFSET_PRECISE (the hardware latches both at
 * one instant), _EXTENDED (the bracket is around the register's read alone), PTP_SYS_OFFSET (around the driver's whole call).
 */
#ifndef JARVIS_CLOCK_PHC_H
#define JARVIS_CLOCK_PHC_H

#include <stdint.h>

#include "clock/clock_system.h"
#include "jarvis_capture.h"

enum phc_method { PHC_PRECISE = 0, PHC_EXTENDED = 1, PHC_PLAIN = 2, PHC_METHODS = 3 };

/* One thread at a time. */
struct phc {
    const struct clock_system *system;
    int file;
    int index;              /* of /dev/ptpN */
    enum phc_method method; /* the best that the driver has, as far as it was tried */
};

struct phc_reading {
    int64_t offset_ns;       /* the card's clock, in its own time scale, minus CLOCK_REALTIME */
    uint64_t error_bound_ns; /* half the bracket; 0 with _PRECISE */
};

/* The number of an interface's PHC; -1: it has none, or the interface cannot be asked. Any thread. */
int phc_index_of(const struct clock_system *system, const char *interface);

/* Opens /dev/ptpN and tries it. CAPTURE_OK; else nothing is open, and the error names timestamp_source. */
int phc_open(struct phc *phc, const struct clock_system *system, int index, struct capture_error_info *error);

/* 0, or a positive errno: ENODEV when the card is gone, EAGAIN when no reading of this call was usable. */
int phc_read(struct phc *phc, struct phc_reading *out);

void phc_close(struct phc *phc);

#endif
