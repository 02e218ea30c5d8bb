/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "xdp": frames in place in the memory that the kernel (or, with zero copy, the card) put them into.
 *
 * What it is for: a mirror port, whose frames concern nobody but the capture. It takes frames away from the host, so where the
 * host itself uses the interface "auto" passes it by, and by name it needs exclusive.
 *
 * Waiting: the kernel wakes a socket's reader for every frame, which costs more than metering it. So while frames come the reader
 * naps and takes what has gathered, and only when that is nothing does it wait to be woken. A nap is so short that a queue's
 * memory holds what 30 million frames a second bring meanwhile, and 1 ms at most. With busy_poll_us it does not nap but has the
 * kernel poll the driver for so long.
 *
 * Time: the XDP program reads the kernel's CLOCK_MONOTONIC for each frame before it goes into the ring; the wall clock's distance
 * from it is measured here every MEASURE_NS of that time, and taken over when it has moved (the wall clock was set) by more than
 * the measurement's error of OFFSET_ERROR_NS. A frame that comes without a stamp, from a driver without room for metadata, gets
 * the wall clock's time as it is taken from the ring: late by as long as it has waited there; such frames are counted and told.
 */
#include "xdp.h"

#include "error.h"
#include "link_type.h"
#include "module.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <net/if_arp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { NAP_NS_PER_FRAME = 30, NAP_NS_MAX = 1000000, MEASURE_NS = 10000000, OFFSET_ERROR_NS = 1000, READS_OF_CLOCK = 3 };

static int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- what it says of an interface */

static bool kernel_has_it(char *reason, size_t size) {
    int socket_tried = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    int reason_socket = errno;
    if (socket_tried >= 0)
        close(socket_tried);
    int map = socket_tried < 0 ? -reason_socket : bpf_map_create(BPF_MAP_TYPE_XSKMAP, "jarvis_probe", 4, 4, 1, NULL);
    if (map >= 0) {
        close(map);
        return true;
    }
    if (map == -EPERM || map == -EACCES)
        snprintf(reason, size, "%s is missing", socket_tried < 0 ? "CAP_NET_RAW" : "CAP_BPF");
    else
        snprintf(reason, size, "the kernel has no AF_XDP: %s", strerror(-map));
    return false;
}

/* Only where nothing is lost by it, neither to the host nor to the capture. */
static bool automatic(const char *interface, char *reason, size_t size) {
    struct xdp_interface found;
    if (xdp_host_uses(interface, reason, size))
        return false;
    if (xdp_interface_examine(interface, &found, NULL) != CAPTURE_OK || !found.takes_tags_off)
        return true; /* an interface that has gone meanwhile: opening it says so */
    snprintf(reason, size, "interface %s takes VLAN tags off (ethtool -K %s rxvlan off keeps them)", interface, interface);
    return false;
}

/* Has the interface frames that this backend can take? Fills reason when not. */
static bool fits(const char *interface, char *reason, size_t size) {
    struct xdp_interface found;
    struct capture_error_info error = {0};
    if (strcmp(interface, "any") == 0)
        snprintf(reason, size, "captures from one interface, not from any");
    else if (xdp_interface_examine(interface, &found, &error) != CAPTURE_OK)
        snprintf(reason, size, "%s", error.message);
    else if (found.hardware != ARPHRD_ETHER)
        snprintf(reason, size, "interface %s is not Ethernet (ARPHRD %d)", interface, found.hardware);
    else if (found.mtu + XDP_TAGS + XDP_FRAME_HEADROOM > XDP_FRAME_ROOM)
        snprintf(reason, size, "interface %s has MTU %u: a frame must fit into a page, accepted is up to %d", interface,
                 found.mtu, XDP_FRAME_ROOM - XDP_FRAME_HEADROOM - XDP_TAGS);
    else if (found.queues > XDP_QUEUES_MAX)
        snprintf(reason, size, "interface %s has %u receive queues: accepted are up to %d (ethtool -L)", interface, found.queues,
                 XDP_QUEUES_MAX);
    else
        return true;
    return false;
}

static bool probe(const char *interface, char *reason, size_t size) {
    char why_not[120];
    if (!kernel_has_it(reason, size) || (interface && !fits(interface, reason, size)))
        return false;
    if (!interface)
        snprintf(reason, size, "chosen first for interfaces that the host does not use itself, such as mirror ports");
    else if (xdp_host_uses(interface, why_not, sizeof why_not))
        snprintf(reason, size, "only with exclusive: %s", why_not);
    else if (!automatic(interface, why_not, sizeof why_not))
        snprintf(reason, size, "only by name: %s", why_not);
    else
        snprintf(reason, size, "chosen first: the host does not use the interface itself");
    return true;
}

static int check(const struct capture_config *config, struct capture_error_info *error) {
    char use[120];
    struct xdp_interface found;
    if (config->timestamp_source == CAPTURE_TIMESTAMP_HARDWARE)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 2 (hardware): backend xdp does not get the card's timestamps, accepted are 0 "
                            "(default), 1 (kernel), 3 (ptp) and 4 (ntp)");
    if (!config->exclusive && xdp_host_uses(config->interface, use, sizeof use))
        return capture_fail(error, CAPTURE_ERR_INVALID, "exclusive",
                            "exclusive is false: %s, and backend xdp would take its frames away from the host; accepted is true, "
                            "or another backend",
                            use);
    int code = xdp_interface_examine(config->interface, &found, error);
    if (code == CAPTURE_OK && config->workers > found.queues)
        return capture_fail(error, CAPTURE_ERR_INVALID, "workers",
                            "workers is %u: interface %s has %u receive queues, accepted with backend xdp are 0 to %u",
                            config->workers, config->interface, found.queues, found.queues);
    return code;
}

/* ---- time */

/* Measures the wall clock's distance from the monotonic one; a measurement that was interrupted is not used. */
static void follow_wall_clock(struct xdp_state *state) {
    for (int tries = 0; tries < READS_OF_CLOCK; tries++) {
        int64_t before = clock_ns(CLOCK_MONOTONIC), wall = clock_ns(CLOCK_REALTIME), after = clock_ns(CLOCK_MONOTONIC);
        int64_t offset = wall - (before + (after - before) / 2), moved = offset - state->wall_offset_ns;
        if (after - before > OFFSET_ERROR_NS && state->wall_offset_ns != 0)
            continue;
        if (moved > OFFSET_ERROR_NS || moved < -OFFSET_ERROR_NS)
            state->wall_offset_ns = offset;
        state->measured_ns = (uint64_t)after;
        return;
    }
}

/* The stamp's mark is wiped out, so that it cannot be taken for that of the next frame in this place. */
static uint64_t time_of(struct xdp_state *state, uint8_t *frame) {
    struct xdp_stamp stamp;
    uint8_t *place = frame - sizeof stamp;
    memcpy(&stamp, place, sizeof stamp);
    memset(place, 0, sizeof stamp.mark);
    if (stamp.mark == state->program->mark) {
        if (stamp.mono_ns > state->measured_ns + MEASURE_NS)
            follow_wall_clock(state);
        return (uint64_t)((int64_t)stamp.mono_ns + state->wall_offset_ns);
    }
    atomic_fetch_add_explicit(&state->unstamped, 1, memory_order_relaxed);
    return (uint64_t)clock_ns(CLOCK_REALTIME);
}

/* ---- reading */

static void append(struct xdp_state *state, struct xdp_socket *xsk, const struct xdp_desc *descriptor,
                   struct frame_batch *batch) {
    uint8_t *data = xsk->memory + descriptor->addr;
    uint32_t caplen = descriptor->len < state->snaplen ? descriptor->len : state->snaplen;
    state->held[state->held_count].socket = xsk;
    state->held[state->held_count++].address = descriptor->addr & ~(uint64_t)(xsk->frame_size - 1);
    batch->frames[batch->count++] = (struct frame){
        .data = data,
        .ts_ns = time_of(state, data),
        .caplen = caplen,
        .wirelen = descriptor->len,
        .link_type = LINK_ETHERNET,
        .interface_index = interface_index_of(state->index),
        .flags = caplen < descriptor->len ? FRAME_TRUNCATED : 0,
    };
}

/* A frame and its stamp lie in two cache lines. */
static void prefetch(const uint8_t *frame) {
    __builtin_prefetch(frame - sizeof(struct xdp_stamp));
    __builtin_prefetch(frame);
}

static void take(struct xdp_state *state, struct xdp_socket *xsk, struct frame_batch *batch) {
    uint32_t at, count = (uint32_t)xsk_ring_cons__peek(&xsk->received, FRAME_BATCH - batch->count, &at);
    if (count == 0)
        return;
    for (uint32_t i = 0; i < count; i++)
        prefetch(xsk->memory + xsk_ring_cons__rx_desc(&xsk->received, at + i)->addr);
    for (uint32_t i = 0; i < count; i++)
        append(state, xsk, xsk_ring_cons__rx_desc(&xsk->received, at + i), batch);
    xsk_ring_cons__release(&xsk->received, count);
    atomic_fetch_add_explicit(&xsk->taken, count, memory_order_release);
}

/* What is there, without waiting; the socket after the one that filled the batch is the first of the next. */
static uint32_t collect(struct xdp_state *state, struct frame_batch *batch) {
    for (uint32_t i = 0; i < state->socket_count && batch->count < FRAME_BATCH; i++) {
        take(state, &state->sockets[state->next], batch);
        state->next = state->next + 1 == state->socket_count ? 0 : state->next + 1;
    }
    return batch->count;
}

/* 1: look again; 0: nothing came; negative: the interface failed. AF_XDP does not tell of an interface that goes down. */
static int wait_for_frames(const struct xdp_state *state, int timeout_ms, struct capture_error_info *error) {
    struct pollfd ready[XDP_QUEUES_MAX];
    for (uint32_t i = 0; i < state->socket_count; i++)
        ready[i] = (struct pollfd){.fd = state->sockets[i].fd, .events = POLLIN};
    int result = poll(ready, state->socket_count, timeout_ms);
    if (result < 0 && errno != EINTR)
        return interface_failed(state->interface, state->index, errno, error);
    for (uint32_t i = 0; result > 0 && i < state->socket_count; i++)
        if (ready[i].revents & (POLLERR | POLLHUP | POLLNVAL))
            return interface_failed(state->interface, state->index, ENETDOWN, error);
    if (result > 0)
        return 1;
    return interface_check(state->examiner, state->interface, state->index, error);
}

static void nap(const struct xdp_state *state) {
    uint64_t ns = (uint64_t)state->sockets[0].frame_count * NAP_NS_PER_FRAME;
    const struct timespec time = {.tv_nsec = ns < NAP_NS_MAX ? (long)ns : NAP_NS_MAX};
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL); /* a signal may end it early */
}

/* Asked for frames, the kernel runs the driver's poll itself (busy_poll_us: for so long before it sleeps). */
static void busy_poll(struct xdp_state *state, struct frame_batch *batch) {
    int64_t until = clock_ns(CLOCK_MONOTONIC) + (int64_t)state->busy_poll_us * 1000;
    do {
        for (uint32_t i = 0; i < state->socket_count; i++)
            (void)recvfrom(state->sockets[i].fd, NULL, 0, MSG_DONTWAIT, NULL, NULL); /* poll() below tells of errors */
    } while (collect(state, batch) == 0 && clock_ns(CLOCK_MONOTONIC) < until);
}

static int read_batch(void *opaque, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    struct xdp_state *state = opaque;
    batch->count = 0;
    if (collect(state, batch) == 0 && timeout_ms > 0) {
        if (state->busy_poll_us) {
            busy_poll(state, batch);
        } else if (state->busy) {
            nap(state);
            collect(state, batch);
        }
    }
    int result = batch->count > 0 || timeout_ms == 0 ? 0 : wait_for_frames(state, timeout_ms, error);
    if (result > 0)
        collect(state, batch);
    state->busy = batch->count > 0;
    return result < 0 ? result : (int)batch->count;
}

/* Several sockets have no descriptor in common. */
static int wait_fd(void *opaque) {
    const struct xdp_state *state = opaque;
    return state->socket_count == 1 ? state->sockets[0].fd : -1;
}

static void give_back(struct xdp_socket *xsk, uint64_t address) {
    uint32_t at = 0;
    xsk_ring_prod__reserve(&xsk->fill, 1, &at); /* succeeds: the ring holds every frame there is */
    *xsk_ring_prod__fill_addr(&xsk->fill, at) = address;
}

static void release(void *opaque) {
    struct xdp_state *state = opaque;
    for (uint32_t from = 0, to; from < state->held_count; from = to) {
        struct xdp_socket *xsk = state->held[from].socket;
        for (to = from; to < state->held_count && state->held[to].socket == xsk; to++)
            give_back(xsk, state->held[to].address);
        xsk_ring_prod__submit(&xsk->fill, to - from);
        atomic_fetch_add_explicit(&xsk->returned, to - from, memory_order_release);
        if (xsk_ring_prod__needs_wakeup(&xsk->fill)) /* a driver that waits for memory */
            (void)recvfrom(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
    state->held_count = 0;
}

/* ---- counting */

/* A driver may count a frame that the socket could not store as dropped by itself (veth does): such a frame is not the card's.
 * The card is asked first, so that the difference is never too great; it never falls. */
static uint64_t dropped_by_card(struct xdp_state *state) {
    pthread_mutex_lock(&state->lock);
    uint64_t card = nic_drops_read(&state->nic), stored_not = xdp_program_dropped(state->program);
    if (card > stored_not && card - stored_not > state->nic_said)
        state->nic_said = card - stored_not;
    uint64_t said = state->nic_said;
    pthread_mutex_unlock(&state->lock);
    return said;
}

static void stats(void *opaque, struct backend_stats *out) {
    struct xdp_state *state = opaque;
    *out = (struct backend_stats){0};
    if (state->counts_nic)
        out->dropped_nic = dropped_by_card(state);
    for (uint32_t i = 0; i < state->socket_count; i++) {
        struct xdp_socket *xsk = &state->sockets[i];
        uint32_t returned = atomic_load_explicit(&xsk->returned, memory_order_acquire);
        uint32_t taken = atomic_load_explicit(&xsk->taken, memory_order_acquire);
        uint32_t arrived = __atomic_load_n(xsk->received.producer, __ATOMIC_ACQUIRE);
        double usage = (double)(arrived - returned) / xsk->frame_count;
        out->ring_usage = usage > out->ring_usage ? usage : out->ring_usage;
        out->in_flight += arrived - taken;
        out->dropped_kernel += xdp_socket_dropped(xsk);
    }
}

static void quiesce(void *opaque) {
    struct xdp_state *state = opaque;
    for (uint32_t i = 0; i < state->socket_count; i++)
        xdp_program_shut(state->program, &state->sockets[i]);
}

static void describe(void *opaque, char *text, size_t size) {
    struct xdp_state *state = opaque;
    const struct xdp_socket *first = &state->sockets[0];
    uint64_t unstamped = atomic_load_explicit(&state->unstamped, memory_order_relaxed);
    int used = snprintf(text, size, "%s mode, %s, %u receive queue%s a worker, need-wakeup, %u frames of %u bytes in %s pages",
                        state->program->native ? "native" : "generic", first->zero_copy ? "zero-copy" : "copy",
                        state->socket_count, state->socket_count == 1 ? "" : "s", first->frame_count, first->frame_size,
                        first->huge_pages ? "huge" : "normal");
    if (state->busy_poll_us && used > 0 && (size_t)used < size)
        used += snprintf(text + used, size - (size_t)used, ", busy poll %u us", state->busy_poll_us);
    if (unstamped && used > 0 && (size_t)used < size)
        used +=
            snprintf(text + used, size - (size_t)used, "; %llu frames stamped late, when read", (unsigned long long)unstamped);
    if (state->loses_tags && used > 0 && (size_t)used < size)
        snprintf(text + used, size - (size_t)used, "; VLAN tags that the card takes off are lost (ethtool -K %s rxvlan off)",
                 state->interface);
}

static const struct capture_backend_ops xdp_backend = {
    .name = "xdp",
    .description = "Linux AF_XDP, takes frames before the host's stack, a socket per receive queue",
    .live = true,
    .many_queues = true,
    .busy_polls = true,
    .tells_waiting = true,
    .rank = 30,
    .probe = probe,
    .automatic = automatic,
    .check = check,
    .open = xdp_open,
    .read = read_batch,
    .wait_fd = wait_fd,
    .release = release,
    .stats = stats,
    .quiesce = quiesce,
    .describe = describe,
    .close = xdp_close,
};

static const struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = JARVIS_VERSION, .ops = &xdp_backend};

const struct capture_module *jarvis_capture_module(void) {
    return &module;
}
