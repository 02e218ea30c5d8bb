/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "pfring": frames through ntop's PF_RING, whose library is looked for at run time.
 *
 * PF_RING lends a frame only until the next call, so frames are copied into an arena that lives until release. Its rings are not
 * thread-safe: one lock covers receiving (which never waits) and the counters. What a ring holds cannot be told, nor can it be
 * shut, so a graceful stop reads on until the ring was empty once, or for DRAIN_NS.
 *
 * The calls of a module may differ from others' in unit and meaning. Of module pcap: its poll counts seconds and its recv waits
 * whatever it is told, so it is only ever asked for a packet that is there.
 */
#include "backend.h"
#include "config.h"
#include "error.h"
#include "interface.h"
#include "pfring_device.h"
#include "pfring_library.h"

#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const char when_chosen[] = "chosen by name, or for device names with a module, such as zc:eth0";

enum { DRAIN_NS = 100000000, NAP_US = 1000, CLUSTER_IDS = 65535 };

struct pfring_state {
    const struct pfring_library *library;
    void *ring;
    char *name; /* as it was given */
    struct pfring_device device;
    uint32_t snaplen;
    bool hardware_timestamps;
    uint8_t *arena; /* FRAME_BATCH frames of snaplen bytes, paged in as used */
    size_t arena_used;
    struct capture_error_info over; /* code: CAPTURE_OK while it goes on, BACKEND_END or an error */
    uint64_t drain_until_ns;        /* monotonic; 0: no stop yet */
    pthread_mutex_t lock;
    uint64_t last_dropped, dropped;
    uint8_t header[PFRING_HEADER_ROOM];
};

static uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool automatic(const char *interface, char *reason, size_t size) {
    if (pfring_device_has_module(interface))
        return true;
    snprintf(reason, size, "%s", when_chosen);
    return false;
}

static bool probe(const char *interface, char *reason, size_t size) {
    struct capture_error_info error = {0};
    struct pfring_device device;
    if (!pfring_library_find(reason, size))
        return false;
    if (interface && pfring_device_examine(interface, &device, &error) != CAPTURE_OK) {
        snprintf(reason, size, "%s", error.message);
        return false;
    }
    snprintf(reason, size, "%s", when_chosen);
    return true;
}

/* Source ptp is refused for all devices: which interface's clock would stand behind a cluster or a module? */
static int check(const struct capture_config *config, struct capture_error_info *error) {
    struct pfring_device device;
    if (config->timestamp_source == CAPTURE_TIMESTAMP_PTP)
        return capture_fail(
            error, CAPTURE_ERR_INVALID, "timestamp_source",
            "timestamp_source is 3 (ptp): backend pfring does not tell whose PTP clock it would be, accepted are 0 "
            "(default), 1 (kernel), 2 (hardware) and 4 (ntp)");
    if (config->timestamp_source == CAPTURE_TIMESTAMP_NTP &&
        pfring_device_examine(config->interface, &device, NULL) == CAPTURE_OK && device.module == PFRING_PCAP_FILE)
        return capture_fail(
            error, CAPTURE_ERR_INVALID, "timestamp_source",
            "timestamp_source is 4 (ntp): device %.100s is a file, which carries its own timestamps, accepted is 0 "
            "(default)",
            config->interface);
    return CAPTURE_OK;
}

static void release(void *opaque) {
    struct pfring_state *state = opaque;
    state->arena_used = 0;
}

static void close_state(void *opaque) {
    struct pfring_state *state = opaque;
    if (state->ring) {
        state->library->breakloop(state->ring);
        state->library->close(state->ring);
    }
    if (state->arena)
        munmap(state->arena, (size_t)FRAME_BATCH * state->snaplen);
    pthread_mutex_destroy(&state->lock);
    free(state->name);
    free(state);
}

/* errno of a failed pfring_open: mostly ENODEV, whatever the cause. */
static int open_failed(const struct pfring_state *state, int reason, struct capture_error_info *error) {
    bool needs_kernel = state->device.module == PFRING_KERNEL || state->device.module == PFRING_ZERO_COPY;
    bool has_kernel = access("/proc/net/pf_ring", F_OK) == 0;
    int code = reason == EPERM || reason == EACCES ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO;
    return capture_fail(error, code, "interface", "interface %.100s cannot be opened by PF_RING: %s%s", state->name,
                        reason ? strerror(reason) : "no reason given",
                        needs_kernel && !has_kernel ? " (the kernel module pf_ring is not loaded)" : "");
}

static int refuse_hardware_timestamps(const struct pfring_state *state, struct capture_error_info *error) {
    return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                        "timestamp_source is 2 (hardware): device %.100s has no hardware timestamps, accepted are 0 (default), 1 "
                        "(kernel) and 4 (ntp)",
                        state->name);
}

static int open_ring(struct pfring_state *state, const struct capture_config *config, struct capture_error_info *error) {
    uint32_t flags = PFRING_LONG_HEADER | PFRING_DO_NOT_PARSE;
    bool is_pcap = state->device.module == PFRING_PCAP_FILE || state->device.module == PFRING_PCAP_LIVE;
    state->hardware_timestamps = config->timestamp_source == CAPTURE_TIMESTAMP_HARDWARE;
    if (state->hardware_timestamps && is_pcap)
        return refuse_hardware_timestamps(state, error);
    flags |= state->hardware_timestamps ? PFRING_HARDWARE_TIMESTAMP : PFRING_SOFTWARE_TIMESTAMP;
    flags |= config->promiscuous ? PFRING_PROMISCUOUS : 0;
    errno = 0;
    state->ring = state->library->open(state->name, state->snaplen, flags);
    return state->ring ? CAPTURE_OK : open_failed(state, errno, error);
}

/* The number that all queues of one capture share and no other capture is likely to have: made of the process and the
 * configuration that they were opened with. Small, as users of PF_RING number clusters. */
static unsigned cluster_of(const struct capture_config *config) {
    uint64_t mixed = ((uint64_t)getpid() << 48 ^ (uint64_t)(uintptr_t)config) * UINT64_C(0x9e3779b97f4a7c15);
    return (unsigned)((mixed >> 32) % CLUSTER_IDS) + 1;
}

/* A module without a call answers it with an error: what is only of use to others (name, watermark) may fail, and where all that
 * arrives was received (past the kernel, files) there is no direction to set. */
static int set_up_ring(struct pfring_state *state, const struct capture_config *config, uint32_t queues,
                       struct capture_error_info *error) {
    const struct pfring_library *library = state->library;
    char application[] = "jarvis-capture";
    library->set_application_name(state->ring, application);
    library->set_socket_mode(state->ring, PFRING_RECEIVE_ONLY);
    library->set_poll_watermark(state->ring, 1); /* a quiet link delivers at once */
    int result = library->set_direction(state->ring, PFRING_RECEIVED_ONLY);
    if (result < 0 && state->device.module == PFRING_KERNEL)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %.100s: pfring_set_direction fails with %d",
                            state->name, result);
    result = queues > 1 ? library->set_cluster(state->ring, cluster_of(config), PFRING_CLUSTER_BY_ADDRESSES) : 0;
    if (result < 0)
        return capture_fail(
            error, CAPTURE_ERR_INVALID, "workers",
            "workers is %u: device %.100s has no clusters (pfring_set_cluster fails with %d), accepted are 0 and 1", queues,
            state->name, result);
    result = library->enable_ring(state->ring);
    if (result < 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %.100s: pfring_enable_ring fails with %d", state->name,
                            result);
    return CAPTURE_OK;
}

static int prepare(struct pfring_state *state, const struct capture_config *config, uint32_t queues,
                   struct capture_error_info *error) {
    char reason[160];
    state->library = pfring_library_find(reason, sizeof reason);
    if (!state->library)
        return capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is pfring, which is not usable here: %s", reason);
    int code = pfring_device_examine(state->name, &state->device, error);
    if (code != CAPTURE_OK)
        return code;
    void *arena = mmap(NULL, (size_t)FRAME_BATCH * state->snaplen, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "snaplen", "no memory for %d frames of %u bytes", FRAME_BATCH,
                            state->snaplen);
    state->arena = arena;
    code = open_ring(state, config, error);
    return code == CAPTURE_OK ? set_up_ring(state, config, queues, error) : code;
}

static int open_state(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out,
                      struct capture_error_info *error) {
    (void)queue; /* the cluster gives each its share */
    struct pfring_state *state = calloc(1, sizeof *state);
    char *name = strdup(config->interface);
    if (!state || !name) {
        free(state);
        free(name);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    }
    pthread_mutex_init(&state->lock, NULL);
    state->name = name;
    state->snaplen = capture_config_snaplen(config);
    int code = prepare(state, config, queues, error);
    if (code != CAPTURE_OK) {
        close_state(state);
        return code;
    }
    *out = state;
    return CAPTURE_OK;
}

static uint64_t field(const struct pfring_state *state, enum pfring_header place, size_t size) {
    uint64_t value = 0; /* little-endian, as the library is for x86-64 alone */
    memcpy(&value, state->header + place, size);
    return value;
}

static uint64_t timestamp_of(const struct pfring_state *state) {
    uint64_t ns = field(state, PFRING_HEADER_TIMESTAMP_NS, 8);
    if (ns == 0)
        ns = field(state, PFRING_HEADER_SECONDS, 8) * 1000000000u + field(state, PFRING_HEADER_MICROSECONDS, 8) * 1000u;
    return ns == 0 && state->device.module != PFRING_PCAP_FILE ? now_ns(CLOCK_REALTIME) : ns;
}

static uint16_t index_of(const struct pfring_state *state) {
    int32_t index = (int32_t)field(state, PFRING_HEADER_IF_INDEX, 4);
    if (state->device.module == PFRING_PCAP_FILE)
        return 1;
    if (state->device.index == 0 && index > 0)
        return interface_index_of(index);
    return interface_index_of(state->device.index);
}

static void append(struct pfring_state *state, struct frame_batch *batch, const uint8_t *data) {
    uint32_t caplen = (uint32_t)field(state, PFRING_HEADER_CAPLEN, 4), length = (uint32_t)field(state, PFRING_HEADER_LENGTH, 4);
    uint32_t kept = caplen < state->snaplen ? caplen : state->snaplen;
    uint8_t *copy = state->arena + state->arena_used;
    memcpy(copy, data, kept);
    state->arena_used += kept;
    batch->frames[batch->count++] = (struct frame){
        .data = copy,
        .ts_ns = timestamp_of(state),
        .caplen = kept,
        .wirelen = length < caplen ? caplen : length,
        .link_type = state->device.link_type,
        .interface_index = index_of(state),
        .flags = kept < length ? FRAME_TRUNCATED : 0,
    };
}

/* No packet came: not yet, at the end of a file, or by a failure. */
static void note_none(struct pfring_state *state, int result) {
    bool is_pcap = state->device.module == PFRING_PCAP_FILE || state->device.module == PFRING_PCAP_LIVE;
    if ((result == 0 && state->device.module == PFRING_PCAP_FILE) || (result == PFRING_FILE_END && is_pcap))
        state->over.code = BACKEND_END;
    else if (result < 0)
        capture_fail(&state->over, CAPTURE_ERR_IO, "interface", "capturing from %.100s failed: pfring_recv returns %d",
                     state->name, result);
    else if (state->drain_until_ns)
        state->drain_until_ns = 1; /* what the ring held is out */
}

/* What the ring has ready. Negative: the end, or failed. */
static int collect(struct pfring_state *state, struct frame_batch *batch, struct capture_error_info *error) {
    const struct pfring_library *library = state->library;
    unsigned char *data = NULL;
    int result = 1;
    pthread_mutex_lock(&state->lock);
    while (result > 0 && batch->count < FRAME_BATCH && state->over.code == CAPTURE_OK) {
        memset(state->header, 0, PFRING_HEADER_USED); /* not every module fills all of it */
        bool ready = state->device.module != PFRING_PCAP_LIVE || library->poll(state->ring, 0) > 0;
        result = ready ? library->recv(state->ring, &data, 0, state->header, 0) : 0;
        if (result <= 0)
            note_none(state, result);
        else if (state->hardware_timestamps && field(state, PFRING_HEADER_TIMESTAMP_NS, 8) == 0)
            refuse_hardware_timestamps(state, &state->over);
        else
            append(state, batch, data);
    }
    pthread_mutex_unlock(&state->lock);
    if (batch->count > 0 || state->over.code == CAPTURE_OK)
        return (int)batch->count;
    if (error && state->over.code != BACKEND_END)
        *error = state->over;
    return state->over.code;
}

/* Until there may be a packet, at most timeout_ms. */
static void wait_for_frame(const struct pfring_state *state, int timeout_ms) {
    const struct pfring_library *library = state->library;
    uint64_t until = now_ns(CLOCK_MONOTONIC) + (uint64_t)timeout_ms * 1000000u;
    if (state->device.module != PFRING_PCAP_LIVE) {
        if (library->poll(state->ring, (unsigned)timeout_ms) >= 0)
            return;
    } else {
        struct pollfd ready = {.fd = library->get_selectable_fd(state->ring), .events = POLLIN};
        if (ready.fd >= 0) {
            poll(&ready, 1, timeout_ms); /* interrupted: the caller looks, and comes again */
            return;
        }
    }
    do { /* a module that cannot wait, or a signal */
        usleep(NAP_US);
    } while (state->device.module == PFRING_PCAP_LIVE && library->poll(state->ring, 0) == 0 && now_ns(CLOCK_MONOTONIC) < until);
}

static int read_batch(void *opaque, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    struct pfring_state *state = opaque;
    batch->count = 0;
    state->arena_used = 0;
    if (state->drain_until_ns && now_ns(CLOCK_MONOTONIC) >= state->drain_until_ns)
        return 0;
    int count = collect(state, batch, error);
    if (count != 0 || timeout_ms == 0 || state->drain_until_ns)
        return count;
    wait_for_frame(state, timeout_ms);
    count = collect(state, batch, error);
    bool known = state->device.index && state->device.module != PFRING_ZERO_COPY; /* past the kernel it may go from its sight */
    if (count == 0 && known && if_nametoindex(state->device.interface) != (unsigned)state->device.index)
        return interface_failed(state->device.interface, state->device.index, ENODEV, error);
    return count;
}

/* in_flight and ring_usage stay 0: PF_RING does not tell what waits in a ring. Its count of received packets is of those read or
 * of those offered, as the module has it, and not used: what was read is counted by whoever reads. Past the kernel it is the card
 * that drops. */
static void stats(void *opaque, struct backend_stats *out) {
    struct pfring_state *state = opaque;
    struct pfring_counters now = {0};
    *out = (struct backend_stats){0};
    pthread_mutex_lock(&state->lock);
    if (state->library->stats(state->ring, &now) >= 0) { /* fails for files: nothing is dropped */
        state->dropped += now.dropped >= state->last_dropped ? now.dropped - state->last_dropped : now.dropped;
        state->last_dropped = now.dropped;
    }
    *(state->device.module == PFRING_ZERO_COPY ? &out->dropped_nic : &out->dropped_kernel) = state->dropped;
    pthread_mutex_unlock(&state->lock);
}

static void quiesce(void *opaque) {
    struct pfring_state *state = opaque;
    bool holds_frames = state->device.module != PFRING_PCAP_FILE; /* of a file nothing was offered that was not read */
    state->drain_until_ns = holds_frames ? now_ns(CLOCK_MONOTONIC) + DRAIN_NS : 1;
}

const struct capture_backend_ops pfring_backend = {
    .name = "pfring",
    .description = "PF_RING through libpfring.so where it is installed, a ring per worker",
    .live = true,
    .many_queues = true,
    .device_names = true,
    .probe = probe,
    .automatic = automatic,
    .check = check,
    .open = open_state,
    .read = read_batch,
    .release = release,
    .stats = stats,
    .quiesce = quiesce,
    .close = close_state,
};
