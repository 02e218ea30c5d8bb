/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "dpdk": frames in place in the mbufs of one receive queue.
 *
 * A batch is what one or two bursts give, up to 64 frames; release frees its mbufs together. A queue is polled: without pause
 * while frames come and for 2 ms after the last, then every 50 microseconds, so that a quiet link costs little and a queue of
 * 4,096 descriptors does not overflow meanwhile at 14.88 million packets per second.
 */
#include "device.h"
#include "eal.h"
#include "eal_args.h"
#include "error.h"
#include "link_type.h"
#include "module.h"
#include "port.h"

#include <rte_pause.h>
#include <rte_prefetch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BUSY_NS = 2000000, BUSY_PAUSES = 32, QUIET_US = 50, MILLISECOND_NS = 1000000 };

static bool probe(const char *interface, char *reason, size_t size) {
    bool no_huge;
    uint64_t pages = eal_free_huge_pages();
    const char *name = interface ? dpdk_device_name(interface) : NULL;
    if (name && (name[0] == '\0' || (name == interface && !dpdk_is_device_name(name)))) {
        snprintf(reason, size, "not a DPDK device: accepted are a PCI address, net_DRIVER0,argument=value,... and dpdk:PORT");
        return false;
    }
    if (eal_running(&no_huge))
        snprintf(reason, size, "for DPDK devices, by name; running %s huge pages", no_huge ? "without" : "with");
    else if (pages > 0)
        snprintf(reason, size, "for DPDK devices, by name; %llu huge pages are free", (unsigned long long)pages);
    else
        snprintf(reason, size, "for DPDK devices, by name; no huge page is free, so that it would run with --no-huge");
    return true;
}

/* Never a device that the capture did not say is DPDK's. */
static bool automatic(const char *interface, char *reason, size_t size) {
    bool named = dpdk_device_name(interface) != interface;
    if (!named)
        snprintf(reason, size, "taken when asked for: backend dpdk, or dpdk: before the device's name");
    return named;
}

static int check(const struct capture_config *config, struct capture_error_info *error) {
    static const char *const of_the_kernel[] = {
        [CAPTURE_TIMESTAMP_KERNEL] = "kernel", [CAPTURE_TIMESTAMP_PTP] = "ptp", [CAPTURE_TIMESTAMP_NTP] = "ntp"};
    if (config->timestamp_source != CAPTURE_TIMESTAMP_DEFAULT && config->timestamp_source != CAPTURE_TIMESTAMP_HARDWARE)
        return capture_fail(
            error, CAPTURE_ERR_INVALID, "timestamp_source",
            "timestamp_source is %u (%s): with backend dpdk no frame passes the kernel, accepted are 0 (the driver's "
            "timestamps, else the system's clock at hand-over) and 2 (hardware)",
            config->timestamp_source, of_the_kernel[config->timestamp_source]);
    return eal_args_check(config, error);
}

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* `length` bytes of a frame that lies in several segments, in one piece; NULL: no room left in this batch. */
static const uint8_t *linearise(struct dpdk_queue *queue, const struct rte_mbuf *mbuf, uint32_t length) {
    if (!queue->scratch)
        queue->scratch = malloc(SCRATCH_BYTES);
    if (!queue->scratch || queue->scratch_used + length > SCRATCH_BYTES)
        return NULL;
    const uint8_t *data = rte_pktmbuf_read(mbuf, 0, length, queue->scratch + queue->scratch_used);
    if (data == queue->scratch + queue->scratch_used)
        queue->scratch_used += length;
    return data;
}

/* False: the frame must wait for the next batch. */
static bool append(struct dpdk_queue *queue, struct frame_batch *batch, const struct rte_mbuf *mbuf) {
    uint32_t length = mbuf->pkt_len < queue->snaplen ? mbuf->pkt_len : queue->snaplen;
    const uint8_t *data = rte_pktmbuf_mtod(mbuf, const uint8_t *);
    if (__builtin_expect(length > mbuf->data_len, 0)) {
        const uint8_t *whole = linearise(queue, mbuf, length);
        if (!whole && batch->count > 0)
            return false;
        length = whole ? length : mbuf->data_len; /* no memory at all: cut after the first segment, and counted as such */
        data = whole ? whole : data;
    }
    bool tagged = mbuf->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED;
    batch->frames[batch->count++] = (struct frame){
        .data = data,
        .ts_ns = frame_clock_stamp(&queue->clock, mbuf),
        .caplen = length,
        .wirelen = mbuf->pkt_len,
        .link_type = LINK_ETHERNET,
        .interface_index = queue->port->interface_index,
        .vlan_tci = tagged ? mbuf->vlan_tci : 0,
        .flags = (uint16_t)((tagged ? FRAME_VLAN : 0) | (length < mbuf->pkt_len ? FRAME_TRUNCATED : 0)),
    };
    return true;
}

/* What the port has, without waiting. */
static uint32_t collect(struct dpdk_queue *queue, struct frame_batch *batch) {
    if (queue->held == 0) {
        uint16_t came;
        do { /* drivers that work in vectors give at most 32 at once */
            came = rte_eth_rx_burst(queue->port->id, queue->number, queue->mbufs + queue->held,
                                    (uint16_t)(FRAME_BATCH - queue->held));
            queue->held += came;
        } while (came > 0 && queue->held < FRAME_BATCH);
        if (queue->held == 0)
            return 0;
        frame_clock_burst(&queue->clock);
    }
    for (uint32_t i = 0; i < queue->held; i++)
        rte_prefetch0(rte_pktmbuf_mtod(queue->mbufs[i], const void *));
    while (queue->given < queue->held && append(queue, batch, queue->mbufs[queue->given]))
        queue->given++;
    atomic_store_explicit(&queue->waiting, queue->held - queue->given, memory_order_relaxed);
    return batch->count;
}

static void release(void *state) {
    struct dpdk_queue *queue = state;
    rte_pktmbuf_free_bulk(queue->mbufs, queue->given);
    queue->held -= queue->given;
    memmove(queue->mbufs, queue->mbufs + queue->given, queue->held * sizeof *queue->mbufs);
    queue->given = 0;
    queue->scratch_used = 0;
}

static void pause_shortly(const struct dpdk_queue *queue, uint64_t now) {
    if (now - queue->busy_ns >= BUSY_NS) {
        usleep(QUIET_US);
        return;
    }
    for (int i = 0; i < BUSY_PAUSES; i++)
        rte_pause();
}

static int read_batch(void *state, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    struct dpdk_queue *queue = state;
    batch->count = 0;
    eal_attach_thread();
    if (queue->clock.ns_per_cycle == 0)
        queue->clock = queue->port->clock; /* not at open: the port starts with the last queue */
    if (collect(queue, batch) == 0 && timeout_ms > 0) {
        uint64_t now = monotonic_ns(), until = now + (uint64_t)timeout_ms * MILLISECOND_NS;
        do {
            pause_shortly(queue, now);
            now = monotonic_ns();
        } while (collect(queue, batch) == 0 && now < until && !atomic_load_explicit(&queue->port->removed, memory_order_relaxed));
    }
    if (batch->count > 0)
        queue->busy_ns = monotonic_ns();
    else if (atomic_load_explicit(&queue->port->removed, memory_order_relaxed))
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "device %s is gone", queue->port->name);
    return (int)batch->count;
}

static void stats(void *state, struct backend_stats *out) {
    struct dpdk_queue *queue = state;
    int ready = rte_eth_rx_queue_count(queue->port->id, queue->number); /* negative: the driver cannot tell */
    *out = (struct backend_stats){
        .dropped_nic = queue->number == 0 ? dpdk_port_lost(queue->port) : 0, /* of all queues: counted once */
        .in_flight = atomic_load_explicit(&queue->waiting, memory_order_relaxed) + (ready > 0 ? (uint32_t)ready : 0),
        .ring_usage = ready > 0 && queue->port->descriptors ? (double)ready / queue->port->descriptors : 0,
    };
}

static void describe(void *state, char *text, size_t size) {
    static const char *const clocks[] = {
        [FRAME_CLOCK_SYSTEM] = "the system's clock at hand-over",
        [FRAME_CLOCK_DRIVER] = "the driver",
        [FRAME_CLOCK_HARDWARE] = "the card",
    };
    const struct dpdk_port *port = ((struct dpdk_queue *)state)->port;
    bool no_huge;
    eal_running(&no_huge);
    snprintf(text, size, "driver %s, %u queue%s, %u mbufs each, %s huge pages, timestamps by %s", port->driver, port->queues,
             port->queues == 1 ? "" : "s", port->pools[0]->size, no_huge ? "without" : "with", clocks[port->clock.kind]);
}

static const struct capture_backend_ops dpdk_backend = {
    .name = "dpdk",
    .description = "DPDK 22.11 poll-mode drivers, a receive queue per worker",
    .live = true,
    .many_queues = true,
    .device_names = true,
    .rank = 1,
    .probe = probe,
    .automatic = automatic,
    .check = check,
    .open = dpdk_open,
    .read = read_batch,
    .release = release,
    .stats = stats,
    .describe = describe,
    .close = dpdk_close,
};

const struct capture_module *jarvis_capture_module(void) {
    static const struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = JARVIS_VERSION, .ops = &dpdk_backend};
    return &module;
}
