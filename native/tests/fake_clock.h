/* SPDX-License-Identifier: Apache-2.0 */
/* A machine's clocks that a test sets, and a network card with a PTP clock: what stands in for the operating system's. */
#ifndef JARVIS_FAKE_CLOCK_H
#define JARVIS_FAKE_CLOCK_H

#include <errno.h>
#include <linux/ptp_clock.h>

#include "check.h"
#include "clock/clock_source.h"

#define FAKE_SECOND INT64_C(1000000000)

enum { FAKE_FILE = 100 };

struct fake_clock {
    int64_t boot_ns, wall_ns; /* the wall clock's time at boot_ns; both go on by `tick_ns` with each look */
    int64_t tick_ns;
    int64_t card_offset_ns;     /* the card's clock minus the wall clock's */
    int64_t bracket_ns;         /* of each sample of the card */
    int64_t best_bracket_ns;    /* of one sample among them */
    int phc_index;              /* of every interface; -1: none */
    bool lacks[3];              /* PTP_SYS_OFFSET_PRECISE, _EXTENDED, PTP_SYS_OFFSET */
    int card_error, open_error; /* errno, 0: none */
    int adjtimex_state;
    struct timex timex;
    int files_open;
    char opened[32];
    unsigned asked[3];
};

static struct fake_clock fake;

static inline void fake_advance(int64_t ns) {
    fake.boot_ns += ns;
    fake.wall_ns += ns;
}

static inline int fake_gettime(clockid_t clock, struct timespec *out) {
    fake_advance(fake.tick_ns);
    int64_t now = clock == CLOCK_REALTIME ? fake.wall_ns : fake.boot_ns;
    *out = (struct timespec){.tv_sec = now / FAKE_SECOND, .tv_nsec = now % FAKE_SECOND};
    return 0;
}

static inline int fake_adjtimex(struct timex *timex) {
    CHECK_EQUAL(0, timex->modes);
    if (fake.adjtimex_state < 0) {
        errno = EPERM;
        return -1;
    }
    *timex = fake.timex;
    return fake.adjtimex_state;
}

static inline int fake_timestamping(const char *interface, struct ethtool_ts_info *out) {
    (void)interface;
    *out = (struct ethtool_ts_info){.phc_index = fake.phc_index};
    return 0;
}

static inline int fake_open(const char *path) {
    snprintf(fake.opened, sizeof(fake.opened), "%s", path);
    errno = fake.open_error;
    if (fake.open_error)
        return -1;
    fake.files_open++;
    return FAKE_FILE;
}

static inline int fake_close(int file) {
    CHECK_EQUAL(FAKE_FILE, file);
    fake.files_open--;
    return 0;
}

static inline struct ptp_clock_time fake_time(int64_t ns) {
    int64_t second = ns / FAKE_SECOND - (ns % FAKE_SECOND < 0);
    return (struct ptp_clock_time){.sec = second, .nsec = (uint32_t)(ns - second * FAKE_SECOND)};
}

/* Sample `i`: the card is read late in a wide bracket, so that only the narrow one gives its true distance. */
static inline void fake_sample(unsigned i, struct ptp_clock_time *before, struct ptp_clock_time *card,
                               struct ptp_clock_time *after) {
    int64_t bracket = i == 3 ? fake.best_bracket_ns : fake.bracket_ns, late = i == 3 ? bracket / 2 : bracket;
    int64_t now = fake.wall_ns;
    *before = fake_time(now);
    *card = fake_time(now + late + fake.card_offset_ns);
    *after = fake_time(now + bracket);
}

static inline int fake_fill(unsigned long request, void *argument) {
    if (request == PTP_SYS_OFFSET_PRECISE) {
        struct ptp_sys_offset_precise *both = argument;
        both->sys_realtime = fake_time(fake.wall_ns);
        both->device = fake_time(fake.wall_ns + fake.card_offset_ns);
        return 0;
    }
    if (request == PTP_SYS_OFFSET_EXTENDED) {
        struct ptp_sys_offset_extended *samples = argument;
        for (unsigned i = 0; i < samples->n_samples; i++)
            fake_sample(i, &samples->ts[i][0], &samples->ts[i][1], &samples->ts[i][2]);
        return 0;
    }
    struct ptp_sys_offset *samples = argument;
    int64_t wall = fake.wall_ns;
    for (unsigned i = 0; i < samples->n_samples; i++) { /* the end of one bracket is the beginning of the next */
        fake_sample(i, &samples->ts[2 * i], &samples->ts[2 * i + 1], &samples->ts[2 * i + 2]);
        fake.wall_ns += i == 3 ? fake.best_bracket_ns : fake.bracket_ns;
    }
    fake.wall_ns = wall;
    return 0;
}

static inline int fake_ioctl(int file, unsigned long request, void *argument) {
    CHECK_EQUAL(FAKE_FILE, file);
    int method = request == PTP_SYS_OFFSET_PRECISE ? 0 : request == PTP_SYS_OFFSET_EXTENDED ? 1 : 2;
    CHECK(method < 2 || request == PTP_SYS_OFFSET);
    fake.asked[method]++;
    errno = fake.card_error ? fake.card_error : fake.lacks[method] ? EOPNOTSUPP : 0;
    return errno ? -1 : fake_fill(request, argument);
}

static const struct clock_system fake_system = {
    .gettime = fake_gettime,
    .adjtimex = fake_adjtimex,
    .timestamping = fake_timestamping,
    .open = fake_open,
    .ioctl = fake_ioctl,
    .close = fake_close,
};

/* A machine that is up for an hour, in November 2023, synchronised, TAI known to it, with a card that has a PTP clock ptp5. */
static inline void fake_reset(void) {
    fake = (struct fake_clock){
        .boot_ns = 3600 * FAKE_SECOND,
        .wall_ns = 1700000000 * FAKE_SECOND,
        .tick_ns = 100,
        .bracket_ns = 5000,
        .best_bracket_ns = 600,
        .phc_index = 5,
        .adjtimex_state = TIME_OK,
        .timex = {.maxerror = 1500, .offset = -250, .tai = 37},
    };
}

#endif
