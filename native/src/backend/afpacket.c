/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "afpacket": frames in place in the kernel's TPACKET_V3 ring.
 *
 * The ring is a circle of blocks. The kernel fills one and hands it over when it is full or RETIRE_MS old; we walk its frames,
 * and give it back once every frame in it was released. Frames leave the interface as they enter it: both directions are
 * captured, on a loopback interface each frame once.
 *
 * Every frame has the kernel's timestamp, or with timestamp_source hardware the card's; a frame that this host sends has no
 * receive timestamp of the card and keeps the kernel's. With several queues fragments are put together by the kernel before they
 * get here, so a fragmented datagram counts as the one packet that it is.
 */
#include "afpacket.h"

#include "link_type.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static bool probe(const char *interface, char *reason, size_t size) {
    if (!interface_may_capture(reason, size))
        return false;
    if (!interface) {
        snprintf(reason, size, "chosen for interfaces where xdp is not");
        return true;
    }
    if (strcmp(interface, "any") == 0) {
        snprintf(reason, size, "captures from one interface, not from any");
        return false;
    }
    int hardware = -1;
    struct capture_error_info error = {0};
    int code = interface_look(interface, &hardware, &error);
    if (code == CAPTURE_OK && afpacket_link_type(hardware) < 0)
        snprintf(reason, size, "link type of interface %s (ARPHRD %d) is not supported", interface, hardware);
    else
        snprintf(reason, size, "%s", code == CAPTURE_OK ? "chosen for interfaces where xdp is not" : error.message);
    return code == CAPTURE_OK && afpacket_link_type(hardware) >= 0;
}

static struct tpacket_block_desc *block_at(const struct afpacket_state *state, uint32_t block) {
    return (struct tpacket_block_desc *)(void *)(state->ring + (size_t)block * state->block_size);
}

static uint32_t status_of(const struct afpacket_state *state, uint32_t block) {
    return __atomic_load_n(&block_at(state, block)->hdr.bh1.block_status, __ATOMIC_ACQUIRE);
}

/* Begins the current block if the kernel has handed it over. */
static bool begin_block(struct afpacket_state *state) {
    if (state->unreleased == state->block_count || !(status_of(state, state->block) & TP_STATUS_USER))
        return false;
    struct tpacket_block_desc *block = block_at(state, state->block);
    state->packets_left = block->hdr.bh1.num_pkts;
    state->next = (const void *)((const uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
    state->unreleased++;
    return true;
}

static void end_block(struct afpacket_state *state) {
    state->next = NULL;
    state->block = state->block + 1 == state->block_count ? 0 : state->block + 1;
}

static void append(struct afpacket_state *state, struct frame_batch *batch, const struct tpacket3_hdr *header) {
    bool tagged = header->tp_status & TP_STATUS_VLAN_VALID;
    batch->frames[batch->count++] = (struct frame){
        .data = (const uint8_t *)header + header->tp_mac,
        .ts_ns = (uint64_t)header->tp_sec * 1000000000u + header->tp_nsec,
        .caplen = header->tp_snaplen,
        .wirelen = header->tp_len,
        .link_type = state->link_type,
        .interface_index = interface_index_of(state->index),
        .vlan_tci = tagged ? (uint16_t)header->hv1.tp_vlan_tci : 0,
        .flags = (uint16_t)((tagged ? FRAME_VLAN : 0) | (header->tp_snaplen < header->tp_len ? FRAME_TRUNCATED : 0)),
    };
}

/* What the kernel has handed over, without waiting. */
static uint32_t collect(struct afpacket_state *state, struct frame_batch *batch) {
    while (batch->count < FRAME_BATCH) {
        if (!state->next && !begin_block(state))
            break;
        while (state->packets_left > 0 && batch->count < FRAME_BATCH) {
            const struct tpacket3_hdr *header = state->next;
            state->next = (const void *)((const uint8_t *)header + header->tp_next_offset);
            __builtin_prefetch(state->next);
            append(state, batch, header);
            state->packets_left--;
        }
        if (state->packets_left == 0)
            end_block(state);
    }
    atomic_fetch_add_explicit(&state->delivered, batch->count, memory_order_relaxed);
    return batch->count;
}

/* 1: look again; 0: nothing came; negative: the interface failed. */
static int wait_for_block(const struct afpacket_state *state, int timeout_ms, struct capture_error_info *error) {
    struct pollfd ready = {.fd = state->socket, .events = POLLIN};
    int result = poll(&ready, 1, timeout_ms);
    if (result < 0 && errno != EINTR)
        return interface_failed(state->interface, state->index, errno, error);
    if (result <= 0)
        return 0;
    if (ready.revents & (POLLERR | POLLHUP | POLLNVAL)) {
        int reason = 0;
        socklen_t length = sizeof reason;
        if (getsockopt(state->socket, SOL_SOCKET, SO_ERROR, &reason, &length) != 0)
            reason = errno;
        if (reason != 0)
            return interface_failed(state->interface, state->index, reason, error);
    }
    return 1;
}

static int read_batch(void *opaque, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    struct afpacket_state *state = opaque;
    batch->count = 0;
    if (collect(state, batch) > 0 || timeout_ms == 0)
        return (int)batch->count;
    int result = wait_for_block(state, timeout_ms, error);
    return result <= 0 ? result : (int)collect(state, batch);
}

static int wait_fd(void *opaque) {
    return ((struct afpacket_state *)opaque)->socket;
}

static void release(void *opaque) {
    struct afpacket_state *state = opaque;
    uint32_t done = state->unreleased - (state->next ? 1 : 0); /* a block with frames yet to come stays */
    for (; done > 0; done--, state->unreleased--) {
        struct tpacket_block_desc *block = block_at(state, state->first_unreleased);
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        state->first_unreleased = state->first_unreleased + 1 == state->block_count ? 0 : state->first_unreleased + 1;
    }
}

static double usage(const struct afpacket_state *state) {
    uint32_t full = 0;
    for (uint32_t block = 0; block < state->block_count; block++)
        full += (status_of(state, block) & TP_STATUS_USER) != 0;
    return (double)full / state->block_count;
}

static void stats(void *opaque, struct backend_stats *out) {
    struct afpacket_state *state = opaque;
    *out = (struct backend_stats){.ring_usage = usage(state)};
    pthread_mutex_lock(&state->lock);
    struct tpacket_stats_v3 kernel = {0};
    socklen_t length = sizeof kernel;
    if (getsockopt(state->socket, SOL_PACKET, PACKET_STATISTICS, &kernel, &length) ==
        0) { /* cannot fail on a ring of this version */
        state->dropped_kernel += kernel.tp_drops;
        state->accepted += kernel.tp_packets - kernel.tp_drops; /* tp_packets counts the dropped ones too */
    }
    out->dropped_kernel = state->dropped_kernel;
    uint64_t delivered = atomic_load_explicit(&state->delivered, memory_order_relaxed);
    out->in_flight = state->accepted > delivered ? state->accepted - delivered : 0;
    pthread_mutex_unlock(&state->lock);
    if (state->counts_nic)
        out->dropped_nic = nic_drops_read(&state->nic);
}

static void quiesce(void *opaque) {
    struct afpacket_state *state = opaque;
    interface_shut(state->socket);
}

static void describe(void *opaque, char *text, size_t size) {
    const struct afpacket_state *state = opaque;
    int used = snprintf(text, size, "TPACKET_V3, %u blocks of %u KiB a worker", state->block_count, state->block_size >> 10);
    if (state->busy_poll_us && used > 0 && (size_t)used < size)
        snprintf(text + used, size - (size_t)used, ", busy poll %u us", state->busy_poll_us);
}

const struct capture_backend_ops afpacket_backend = {
    .name = "afpacket",
    .description = "Linux AF_PACKET, mapped TPACKET_V3 ring, a queue per worker",
    .live = true,
    .many_queues = true,
    .busy_polls = true,
    .tells_waiting = true,
    .rank = 20,
    .probe = probe,
    .open = afpacket_open,
    .read = read_batch,
    .wait_fd = wait_fd,
    .release = release,
    .stats = stats,
    .quiesce = quiesce,
    .describe = describe,
    .close = afpacket_close,
};
