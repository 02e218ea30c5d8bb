/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "pcap": live capture through libpcap, for interfaces and link types that afpacket does not take ("any", tunnels,
 * Wi-Fi).
 *
 * libpcap lends a frame only inside its callback, so frames are copied into an arena that lives until release. libpcap puts VLAN
 * tags back into the frame itself. pcap_t is not thread-safe: one lock covers dispatch (which never waits) and pcap_stats.
 */
#include "backend.h"
#include "config.h"
#include "error.h"
#include "interface.h"
#include "link_type.h"

#include <errno.h>
#include <net/if.h>
#include <pcap/pcap.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { BUFFER_MB_MAX = 2047, BUFFER_TIMEOUT_MS = 50, STAMP_US = 1000 };

struct pcap_state {
    pcap_t *handle;
    char interface[IFNAMSIZ];
    int index; /* 0: "any" */
    uint16_t link_type;
    uint32_t snaplen;
    uint32_t ns_per_fraction;
    uint8_t *arena; /* FRAME_BATCH frames of snaplen bytes, paged in as used */
    size_t arena_used;
    struct frame_batch *batch; /* of the read that is running */
    struct nic_drops nic;
    pthread_mutex_t lock;
    uint32_t last_drop; /* pcap_stats counts in 32 bits */
    uint64_t dropped_kernel;
};

static bool probe(const char *interface, char *reason, size_t size) {
    if (!interface_may_capture(reason, size))
        return false;
    struct capture_error_info error = {0};
    int hardware;
    if (interface && strcmp(interface, "any") != 0 && interface_look(interface, &hardware, &error) != CAPTURE_OK) {
        snprintf(reason, size, "%s", error.message);
        return false;
    }
    snprintf(reason, size, "chosen when afpacket is not usable");
    return true;
}

static void release(void *opaque) {
    struct pcap_state *state = opaque;
    state->arena_used = 0;
}

static void close_state(void *opaque) {
    struct pcap_state *state = opaque;
    if (state->handle)
        pcap_close(state->handle);
    if (state->arena)
        munmap(state->arena, (size_t)FRAME_BATCH * state->snaplen);
    if (state->index)
        nic_drops_close(&state->nic);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

static int choose_timestamps(struct pcap_state *state, const struct capture_config *config, struct capture_error_info *error) {
    /* Set before activation, these fail only where the interface or libpcap has no such timestamps. */
    if (config->timestamp_source == CAPTURE_TIMESTAMP_HARDWARE && pcap_set_tstamp_type(state->handle, PCAP_TSTAMP_ADAPTER) != 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 2 (hardware): interface %s has no hardware timestamps, accepted are 0 "
                            "(default), 1 (kernel) and 4 (ntp)",
                            state->interface);
    bool nanoseconds = pcap_set_tstamp_precision(state->handle, PCAP_TSTAMP_PRECISION_NANO) == 0;
    state->ns_per_fraction = nanoseconds ? 1 : STAMP_US;
    return CAPTURE_OK;
}

static int activate(struct pcap_state *state, const struct capture_config *config, struct capture_error_info *error) {
    uint32_t buffer_mb = capture_config_buffer_mb(config);
    if (buffer_mb > BUFFER_MB_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "buffer_size_mb",
                            "buffer_size_mb is %u: with backend pcap accepted are 64 to %d", buffer_mb, BUFFER_MB_MAX);
    pcap_set_snaplen(state->handle, (int)state->snaplen);
    pcap_set_promisc(state->handle, config->promiscuous);
    pcap_set_timeout(state->handle, BUFFER_TIMEOUT_MS);
    pcap_set_buffer_size(state->handle, (int)(buffer_mb << 20));
    int code = choose_timestamps(state, config, error);
    if (code != CAPTURE_OK)
        return code;
    int result = pcap_activate(state->handle);
    if (result == PCAP_ERROR_NO_SUCH_DEVICE)
        return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface", "interface %s does not exist", state->interface);
    if (result == PCAP_ERROR_PERM_DENIED)
        return capture_fail(error, CAPTURE_ERR_PERMISSION, "interface", "interface %s: CAP_NET_RAW is missing", state->interface);
    if (result == PCAP_ERROR_IFACE_NOT_UP)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s is down: bring it up first (ip link set %s up)",
                            state->interface, state->interface);
    if (result == PCAP_WARNING_TSTAMP_TYPE_NOTSUP)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 2 (hardware): interface %s has no hardware timestamps, accepted are 0 "
                            "(default), 1 (kernel) and 4 (ntp)",
                            state->interface);
    if (result < 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s cannot be captured from: %s", state->interface,
                            pcap_geterr(state->handle));
    return CAPTURE_OK;
}

static int prepare(struct pcap_state *state, const struct capture_config *config, struct capture_error_info *error) {
    char message[PCAP_ERRBUF_SIZE] = "";
    state->handle = pcap_create(state->interface, message);
    if (!state->handle)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "libpcap: %s", message);
    int code = activate(state, config, error);
    if (code != CAPTURE_OK)
        return code;
    if (pcap_setnonblock(state->handle, 1, message) != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "libpcap: %s", message);
    state->link_type = link_type_from_dlt(pcap_datalink(state->handle));
    void *arena = mmap(NULL, (size_t)FRAME_BATCH * state->snaplen, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "snaplen", "no memory for %d frames of %u bytes", FRAME_BATCH,
                            state->snaplen);
    state->arena = arena;
    int index = strcmp(state->interface, "any") == 0 ? 0 : (int)if_nametoindex(state->interface);
    if (index) {
        code = nic_drops_open(&state->nic, index, error);
        if (code == CAPTURE_OK)
            state->index = index;
    }
    return code;
}

static int open_state(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out,
                      struct capture_error_info *error) {
    (void)queue;
    (void)queues; /* backend_select allows one worker */
    struct pcap_state *state = calloc(1, sizeof *state);
    if (!state)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    pthread_mutex_init(&state->lock, NULL);
    snprintf(state->interface, sizeof state->interface, "%s", config->interface);
    state->snaplen = capture_config_snaplen(config);
    int code = prepare(state, config, error);
    if (code != CAPTURE_OK) {
        close_state(state);
        return code;
    }
    *out = state;
    return CAPTURE_OK;
}

static void on_frame(u_char *opaque, const struct pcap_pkthdr *header, const u_char *data) {
    struct pcap_state *state = (void *)opaque;
    uint32_t kept = header->caplen < state->snaplen ? header->caplen : state->snaplen;
    uint8_t *copy = state->arena + state->arena_used;
    memcpy(copy, data, kept);
    state->arena_used += kept;
    state->batch->frames[state->batch->count++] = (struct frame){
        .data = copy,
        .ts_ns = (uint64_t)header->ts.tv_sec * 1000000000u + (uint64_t)header->ts.tv_usec * state->ns_per_fraction,
        .caplen = kept,
        .wirelen = header->len,
        .link_type = state->link_type,
        .interface_index = interface_index_of(state->index),
        .flags = kept < header->len ? FRAME_TRUNCATED : 0,
    };
}

/* What libpcap has ready. Negative: failed. */
static int dispatch(struct pcap_state *state, struct frame_batch *batch, bool look, struct capture_error_info *error) {
    pthread_mutex_lock(&state->lock);
    state->batch = batch;
    int result = pcap_dispatch(state->handle, FRAME_BATCH, on_frame, (u_char *)state);
    state->batch = NULL;
    pthread_mutex_unlock(&state->lock);
    if (batch->count > 0)
        return (int)batch->count; /* a failure behind good frames is met again by the next read */
    if (result >= 0)              /* libpcap goes on waiting on an interface that went down: nothing came, so look */
        return state->index && look ? interface_check(pcap_fileno(state->handle), state->interface, state->index, error) : 0;
    return capture_fail(error, CAPTURE_ERR_IO, "interface", "capturing from interface %s failed: %s", state->interface,
                        pcap_geterr(state->handle));
}

static int read_batch(void *opaque, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    struct pcap_state *state = opaque;
    batch->count = 0;
    state->arena_used = 0;
    int count = dispatch(state, batch, false, error);
    if (count != 0 || timeout_ms == 0)
        return count;
    struct pollfd ready = {.fd = pcap_get_selectable_fd(state->handle), .events = POLLIN};
    int result = poll(&ready, 1, timeout_ms);
    if (result < 0 && errno != EINTR)
        return interface_failed(state->interface, state->index, errno, error);
    if (result < 0)
        return 0;
    if (ready.revents & (POLLERR | POLLHUP | POLLNVAL)) {
        int reason = 0;
        socklen_t length = sizeof reason;
        if (getsockopt(ready.fd, SOL_SOCKET, SO_ERROR, &reason, &length) == 0 && reason != 0)
            return interface_failed(state->interface, state->index, reason, error);
    }
    return dispatch(state, batch, true, error);
}

static int wait_fd(void *opaque) {
    return pcap_get_selectable_fd(((struct pcap_state *)opaque)->handle);
}

/* in_flight and ring_usage stay 0: libpcap does not tell what waits in its ring. */
static void stats(void *opaque, struct backend_stats *out) {
    struct pcap_state *state = opaque;
    struct pcap_stat now;
    *out = (struct backend_stats){0};
    pthread_mutex_lock(&state->lock);
    if (pcap_stats(state->handle, &now) == 0) { /* fails once the interface is gone: the last figure stands */
        state->dropped_kernel += (uint32_t)(now.ps_drop - state->last_drop);
        state->last_drop = now.ps_drop;
    }
    out->dropped_kernel = state->dropped_kernel;
    pthread_mutex_unlock(&state->lock);
    if (state->index)
        out->dropped_nic = nic_drops_read(&state->nic);
}

/* Straight to the socket: pcap_setfilter would also throw away what already waits in libpcap's ring. */
static void quiesce(void *opaque) {
    struct pcap_state *state = opaque;
    interface_shut(pcap_fileno(state->handle));
}

const struct capture_backend_ops pcap_backend = {
    .name = "pcap",
    .description = "libpcap live capture",
    .live = true,
    .rank = 10,
    .probe = probe,
    .open = open_state,
    .read = read_batch,
    .wait_fd = wait_fd,
    .release = release,
    .stats = stats,
    .quiesce = quiesce,
    .close = close_state,
};
