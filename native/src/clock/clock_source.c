/* SPDX-License-Identifier: Apache-2.0 */
#include "clock/clock_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock/ntp.h"
#include "error.h"

enum { SECOND_NS = 1000000000, READ_TRIES = 5, BRACKET_NS = 20000 };

static uint64_t read_ns(const struct clock_source *clock, clockid_t id) {
    struct timespec now = {0};
    clock->system->gettime(id, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* CLOCK_REALTIME's distance from CLOCK_BOOTTIME, by the shortest of a few brackets. */
struct distance {
    int64_t ns;
    uint64_t error_ns;
    uint64_t boot_ns;
};

static struct distance measure_system(const struct clock_source *clock) {
    struct distance best = {.error_ns = UINT64_MAX};
    for (int tries = 0; tries < READ_TRIES && best.error_ns > BRACKET_NS; tries++) {
        uint64_t before = read_ns(clock, CLOCK_BOOTTIME), wall = read_ns(clock, CLOCK_REALTIME);
        uint64_t after = read_ns(clock, CLOCK_BOOTTIME), half = (after - before) / 2;
        if (half < best.error_ns)
            best = (struct distance){.ns = (int64_t)(wall - before - half), .error_ns = half, .boot_ns = after};
    }
    return best;
}

void clock_source_init(struct clock_source *clock, const struct clock_system *system, const struct capture_config *config,
                       bool live) {
    *clock = (struct clock_source){.system = system, .phc.file = -1};
    pthread_mutex_init(&clock->lock, NULL);
    uint32_t source = config->timestamp_source;
    clock->info.source = live && source == CAPTURE_TIMESTAMP_DEFAULT ? CAPTURE_TIMESTAMP_KERNEL : source;
    clock->info.error_bound_ns = clock->info.source == CAPTURE_TIMESTAMP_KERNEL ? 0 : UINT64_MAX;
    if (!live)
        snprintf(clock->info.detail, sizeof clock->info.detail, "the times that the files hold");
}

void clock_source_destroy(struct clock_source *clock) {
    clock_source_stop(clock);
    pthread_mutex_destroy(&clock->lock);
}

/* ---- NTP */

/* True when the state of synchronisation is another than before. Under the lock. */
static bool look_at_ntp(struct clock_source *clock) {
    struct ntp_reading reading = {.error_bound_ns = UINT64_MAX};
    bool before = clock->info.synchronised;
    (void)ntp_read(clock->system, &reading); /* refused in the middle: as good as not synchronised */
    clock->info.synchronised = reading.synchronised;
    clock->info.offset_ns = reading.offset_ns;
    clock->info.error_bound_ns = reading.error_bound_ns;
    return before != reading.synchronised;
}

static int start_ntp(struct clock_source *clock, struct capture_error_info *error) {
    struct ntp_reading reading;
    if (!ntp_read(clock->system, &reading))
        return capture_fail(
            error, CAPTURE_ERR_BACKEND, "timestamp_source",
            "timestamp_source is 4 (ntp): adjtimex(2) is not allowed here, accepted are 0 (default) and 1 (kernel)");
    if (!reading.synchronised)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 4 (ntp): the system clock is not synchronised (adjtimex: STA_UNSYNC or "
                            "TIME_ERROR, maximum error %.3f s); start chronyd or systemd-timesyncd, or accepted are 0 (default) "
                            "and 1 (kernel)",
                            (double)reading.error_bound_ns / 1e9);
    snprintf(clock->info.detail, sizeof clock->info.detail, "the system's clock, disciplined by NTP");
    (void)look_at_ntp(clock);
    return CAPTURE_OK;
}

/* ---- PHC */

static int64_t tai_offset(const struct clock_source *clock) {
    struct ntp_reading reading;
    return ntp_read(clock->system, &reading) ? reading.tai_offset_ns : 0;
}

/* How the PHC stands to the system's clock, in UTC for source ptp. A drift since the last reading counts as error: it goes on
 * until the next. Under the lock. */
static void take_reading(struct clock_source *clock, const struct phc_reading *reading, bool stepped) {
    struct capture_clock_info *info = &clock->info;
    int64_t tai = clock->tai_ns ? tai_offset(clock) : 0;
    clock->tai_ns = tai ? tai : clock->tai_ns; /* a daemon that starts anew may make the kernel forget it */
    int64_t offset = reading->offset_ns - clock->tai_ns;
    uint64_t drift = clock->measured_ns && info->error_bound_ns != UINT64_MAX && !stepped
                         ? (uint64_t)llabs((long long)(offset - info->offset_ns))
                         : 0;
    info->offset_ns = offset;
    info->error_bound_ns = reading->error_bound_ns + drift;
    if (info->source == CAPTURE_TIMESTAMP_PTP)
        atomic_store(&clock->applied_ns, offset);
}

/* Reads the PHC and watches it for steps of its own. Under the lock. */
static void look_at_phc(struct clock_source *clock, const struct distance *system, bool system_stepped, struct clock_news *news) {
    struct phc_reading reading;
    bool readable = phc_read(&clock->phc, &reading) == 0;
    bool before = clock->info.error_bound_ns != UINT64_MAX;
    if (readable) {
        bool stepped = step_watch_look(&clock->phc_watch, system->ns + reading.offset_ns,
                                       system->error_ns + reading.error_bound_ns, system->boot_ns, &news->phc_step_ns);
        take_reading(clock, &reading, stepped || system_stepped);
        clock->measured_ns = system->boot_ns;
    } else {
        clock->info.error_bound_ns = UINT64_MAX; /* the last offset stays in force */
    }
    news->sync_changed = clock->info.source == CAPTURE_TIMESTAMP_PTP && readable != before;
    news->in_sync = readable;
}

/* Which of UTC and TAI is the clock nearer to? The card's own stamps (source hardware) are handed on as they are, and so is their
 * distance. */
static void judge_scale(struct clock_source *clock, int64_t offset_ns) {
    int64_t tai = tai_offset(clock);
    bool on_tai = tai && llabs((long long)(offset_ns - tai)) < llabs((long long)offset_ns);
    bool converted = clock->info.source == CAPTURE_TIMESTAMP_PTP;
    clock->tai_ns = on_tai && converted ? tai : 0;
    snprintf(clock->info.detail, sizeof clock->info.detail, "/dev/ptp%d, %s%s", clock->phc.index,
             on_tai ? "in TAI"
             : tai  ? "in UTC"
                    : "as it is: the kernel does not know TAI - UTC",
             on_tai && converted ? ", taken to UTC" : "");
}

static int refuse_ptp(const char *interface, const char *why, struct capture_error_info *error) {
    return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                        "timestamp_source is 3 (ptp): interface %.100s %s, accepted are 0 (default), 1 (kernel) and 4 (ntp)",
                        interface, why);
}

/* All interfaces of a capture have one clock, else its times could not be compared. */
static int find_phc(const struct clock_source *clock, const struct capture_config *config, int *index,
                    struct capture_error_info *error) {
    const char *single[] = {config->interface};
    const char *const *names = config->interface_count ? config->interfaces : single;
    uint32_t count = config->interface_count ? config->interface_count : 1;
    for (uint32_t i = 0; i < count; i++) {
        int found = phc_index_of(clock->system, names[i]);
        if (found < 0)
            return refuse_ptp(names[i], "has no PTP hardware clock", error);
        if (i > 0 && found != *index)
            return refuse_ptp(names[i], "has another PTP hardware clock than the first", error);
        *index = found;
    }
    return CAPTURE_OK;
}

static int start_ptp(struct clock_source *clock, const struct capture_config *config, struct capture_error_info *error) {
    int index = -1;
    int code = find_phc(clock, config, &index, error);
    if (code == CAPTURE_OK)
        code = phc_open(&clock->phc, clock->system, index, error);
    return code;
}

/* The card's own time is had with or without its clock being comparable; why it is not is told in the detail. Where a backend or
 * its library makes the card's time into the system's, there is nothing to compare. */
static void start_hardware(struct clock_source *clock, const struct capture_config *config, const char *backend) {
    struct capture_error_info reason = {0};
    int index = -1;
    if (strcmp(backend, "afpacket") != 0)
        snprintf(clock->info.detail, sizeof clock->info.detail, "the card's clock, as backend %s hands it on", backend);
    else if (find_phc(clock, config, &index, &reason) != CAPTURE_OK)
        snprintf(clock->info.detail, sizeof clock->info.detail, "%s",
                 config->interface_count > 1 ? "the cards' clocks" : "the card's clock, which is no PTP hardware clock");
    else if (phc_open(&clock->phc, clock->system, index, &reason) != CAPTURE_OK)
        snprintf(clock->info.detail, sizeof clock->info.detail, "/dev/ptp%d, which cannot be read", index);
}

int clock_source_admit(struct clock_source *clock, const char *interface, struct capture_error_info *error) {
    if (clock->info.source != CAPTURE_TIMESTAMP_PTP)
        return CAPTURE_OK;
    int found = phc_index_of(clock->system, interface);
    if (found < 0)
        return refuse_ptp(interface, "has no PTP hardware clock", error);
    return found == clock->phc.index ? CAPTURE_OK : refuse_ptp(interface, "has another PTP hardware clock than the first", error);
}

/* ---- both */

static int first_look(struct clock_source *clock, struct capture_error_info *error) {
    struct clock_news nothing = {0};
    struct phc_reading reading;
    struct distance system = measure_system(clock);
    (void)step_watch_look(&clock->system_watch, system.ns, system.error_ns, system.boot_ns, &nothing.system_step_ns);
    if (clock->phc.file >= 0 && phc_read(&clock->phc, &reading) == 0) {
        judge_scale(clock, reading.offset_ns);
        look_at_phc(clock, &system, false, &nothing);
    }
    if (clock->info.source == CAPTURE_TIMESTAMP_PTP && !clock->measured_ns) {
        phc_close(&clock->phc);
        return capture_fail(error, CAPTURE_ERR_BACKEND, "timestamp_source",
                            "timestamp_source is 3 (ptp): the PTP clock /dev/ptp%d cannot be read any more", clock->phc.index);
    }
    clock->looked_ns = system.boot_ns;
    clock->watching = true;
    return CAPTURE_OK;
}

int clock_source_start(struct clock_source *clock, const struct capture_config *config, const char *backend,
                       struct capture_error_info *error) {
    int code = CAPTURE_OK;
    uint32_t source = clock->info.source;
    if (source == CAPTURE_TIMESTAMP_DEFAULT)
        return code; /* of files: there is no clock to look at */
    pthread_mutex_lock(&clock->lock);
    if (source == CAPTURE_TIMESTAMP_NTP)
        code = start_ntp(clock, error);
    else if (source == CAPTURE_TIMESTAMP_PTP)
        code = start_ptp(clock, config, error);
    else if (source == CAPTURE_TIMESTAMP_HARDWARE)
        start_hardware(clock, config, backend);
    else
        snprintf(clock->info.detail, sizeof clock->info.detail, "%s",
                 strcmp(backend, "dpdk") == 0 ? "the driver's, else the system's clock at hand-over" : "the system's clock");
    if (code == CAPTURE_OK)
        code = first_look(clock, error);
    pthread_mutex_unlock(&clock->lock);
    return code;
}

void clock_source_stop(struct clock_source *clock) {
    pthread_mutex_lock(&clock->lock);
    phc_close(&clock->phc);
    clock->watching = false;
    clock->looked_ns = clock->measured_ns = 0;
    clock->system_watch.known = clock->phc_watch.known = false;
    pthread_mutex_unlock(&clock->lock);
}

void clock_source_look(struct clock_source *clock, struct clock_news *news) {
    *news = (struct clock_news){0};
    pthread_mutex_lock(&clock->lock);
    if (clock->watching) {
        struct distance system = measure_system(clock);
        bool stepped = step_watch_look(&clock->system_watch, system.ns, system.error_ns, system.boot_ns, &news->system_step_ns);
        if (clock->info.source == CAPTURE_TIMESTAMP_NTP) {
            news->sync_changed = look_at_ntp(clock);
            news->in_sync = clock->info.synchronised;
        }
        if (clock->phc.file >= 0 && (stepped || system.boot_ns - clock->measured_ns >= SECOND_NS))
            look_at_phc(clock, &system, stepped, news);
        atomic_fetch_add(&clock->steps, (uint64_t)stepped + (news->phc_step_ns != 0));
        clock->looked_ns = system.boot_ns;
    }
    pthread_mutex_unlock(&clock->lock);
}

void clock_source_info(struct clock_source *clock, struct capture_clock_info *out) {
    pthread_mutex_lock(&clock->lock);
    *out = clock->info;
    pthread_mutex_unlock(&clock->lock);
    out->steps = atomic_load(&clock->steps);
}

bool clock_source_is_stale(struct clock_source *clock) {
    pthread_mutex_lock(&clock->lock);
    bool stale = clock->watching && read_ns(clock, CLOCK_BOOTTIME) - clock->looked_ns > SECOND_NS;
    pthread_mutex_unlock(&clock->lock);
    return stale;
}
