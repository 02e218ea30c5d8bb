/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packet ring: frame bytes in a memory file that is mapped twice in a row, so that a frame that runs over the end goes on, in
 * addresses, where the ring begins; descriptors in a plain circular array beside it.
 *
 * One producer and one consumer. Positions only grow. The producer owns written and data_written, the consumer owns released and
 * data_released; each publishes with release order and reads the other's with acquire order, so what lies between is owned by one
 * of them at any time and needs no atomics.
 */
#include "packet_ring.h"

#include "error.h"

#include <errno.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    CACHE_LINE = 64,
    HUGE_PAGE = 2 << 20,
    FRAME_ALIGNMENT = 8,
    OCTETS_PER_DESCRIPTOR = 128, /* one descriptor per so many bytes of ring: smaller frames fill the descriptors first */
};

struct packet_ring {
    uint8_t *base;
    uint64_t size; /* bytes, a power of two; 2 * size are mapped */
    struct capture_packet *packets;
    uint64_t packet_capacity; /* a power of two */

    alignas(CACHE_LINE) _Atomic uint64_t written; /* descriptors ever written */
    _Atomic uint64_t data_written;                /* bytes ever written, padding included */
    uint64_t known_released, known_data_released; /* the producer's last look at the consumer */

    alignas(CACHE_LINE) _Atomic uint64_t released;
    _Atomic uint64_t data_released;
    uint64_t handed_out; /* end of the batch that packet_ring_next gave out */
};

/* An empty frame takes room too: so a frame that waits always begins less than one ring after the bytes that are free. */
static uint64_t data_end(uint32_t captured_length, uint64_t start) {
    uint64_t length = captured_length ? captured_length : 1;
    return start + ((length + FRAME_ALIGNMENT - 1) & ~(uint64_t)(FRAME_ALIGNMENT - 1));
}

/* Maps `file` twice in a row. NULL with errno set. */
static uint8_t *map_twice(int file, uint64_t size, uint64_t page) {
    uint8_t *reserved = mmap(NULL, 2 * size + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return NULL;
    uint8_t *base = (uint8_t *)(((uintptr_t)reserved + page - 1) & ~(uintptr_t)(page - 1));
    if (base != reserved)
        munmap(reserved, (size_t)(base - reserved));
    munmap(base + 2 * size, (size_t)(reserved + page - base));
    for (int half = 0; half < 2; half++)
        if (mmap(base + (uint64_t)half * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
            int reason = errno;
            munmap(base, 2 * size);
            errno = reason;
            return NULL;
        }
    return base;
}

static uint8_t *map_ring(uint64_t size, unsigned flags, uint64_t page) {
    int file = memfd_create("jarvis-packet-ring", MFD_CLOEXEC | flags);
    if (file < 0)
        return NULL;
    uint8_t *base = ftruncate(file, (off_t)size) == 0 ? map_twice(file, size, page) : NULL;
    int reason = errno;
    close(file);
    errno = reason;
    return base;
}

static uint64_t power_of_two(uint64_t at_least) {
    uint64_t value = 1;
    while (value < at_least)
        value <<= 1;
    return value;
}

int packet_ring_create(uint32_t size_mb, struct packet_ring **out, struct capture_error_info *error) {
    *out = NULL;
    if (size_mb < 1 || size_mb > 8192)
        return capture_fail(error, CAPTURE_ERR_INVALID, "packet_ring_mb", "packet_ring_mb is %u: accepted are 1 to 8192",
                            size_mb);
    struct packet_ring *ring = aligned_alloc(CACHE_LINE, sizeof *ring);
    if (!ring)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "packet_ring_mb", "no memory for the packet ring");
    memset(ring, 0, sizeof *ring);
    ring->size = power_of_two((uint64_t)size_mb << 20);
    ring->packet_capacity = ring->size / OCTETS_PER_DESCRIPTOR;
    if (ring->size >= HUGE_PAGE)
        ring->base = map_ring(ring->size, MFD_HUGETLB, HUGE_PAGE);
    if (!ring->base)
        ring->base = map_ring(ring->size, 0, (uint64_t)sysconf(_SC_PAGESIZE));
    int reason = errno;
    void *packets = mmap(NULL, ring->packet_capacity * sizeof *ring->packets, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ring->packets = packets == MAP_FAILED ? NULL : packets;
    if (!ring->base || !ring->packets) {
        packet_ring_destroy(ring);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "packet_ring_mb", "a packet ring of %u MiB cannot be mapped: %s",
                            size_mb, strerror(reason));
    }
    *out = ring;
    return CAPTURE_OK;
}

void packet_ring_destroy(struct packet_ring *ring) {
    if (!ring)
        return;
    if (ring->base)
        munmap(ring->base, 2 * ring->size);
    if (ring->packets)
        munmap(ring->packets, ring->packet_capacity * sizeof *ring->packets);
    free(ring);
}

static bool has_room(struct packet_ring *ring, uint64_t written, uint64_t end) {
    if (written - ring->known_released < ring->packet_capacity && end - ring->known_data_released <= ring->size)
        return true;
    ring->known_released = atomic_load_explicit(&ring->released, memory_order_acquire);
    ring->known_data_released = atomic_load_explicit(&ring->data_released, memory_order_acquire);
    return written - ring->known_released < ring->packet_capacity && end - ring->known_data_released <= ring->size;
}

bool packet_ring_push(struct packet_ring *ring, const struct frame *frame, uint64_t packet_id) {
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    uint64_t start = atomic_load_explicit(&ring->data_written, memory_order_relaxed);
    struct capture_packet packet = {
        .packet_id = packet_id,
        .timestamp_ns = frame->ts_ns,
        .offset = start & (ring->size - 1),
        .captured_length = frame->caplen,
        .wire_length = frame->wirelen,
        .interface_index = frame->interface_index,
        .link_type = frame->link_type,
        .vlan_tci = frame->flags & FRAME_VLAN ? frame->vlan_tci : 0,
    };
    uint64_t end = data_end(frame->caplen, start);
    if (!has_room(ring, written, end))
        return false;
    memcpy(ring->base + packet.offset, frame->data, frame->caplen);
    ring->packets[written & (ring->packet_capacity - 1)] = packet;
    atomic_store_explicit(&ring->data_written, end, memory_order_release);
    atomic_store_explicit(&ring->written, written + 1, memory_order_release);
    return true;
}

uint32_t packet_ring_room(struct packet_ring *ring, const struct frame *frames, uint32_t count) {
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    uint64_t end = atomic_load_explicit(&ring->data_written, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        end = data_end(frames[i].caplen, end);
        if (!has_room(ring, written + i, end))
            return i;
    }
    return count;
}

void packet_ring_next(struct packet_ring *ring, struct capture_packet_batch *out) {
    uint64_t released = atomic_load_explicit(&ring->released, memory_order_relaxed);
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_acquire);
    uint64_t first = released & (ring->packet_capacity - 1);
    uint64_t count = written - released;
    if (count > ring->packet_capacity - first) /* descriptors do wrap: the rest comes with the next call */
        count = ring->packet_capacity - first;
    ring->handed_out = released + count;
    *out = (struct capture_packet_batch){
        .base = ring->base, .size = 2 * ring->size, .packets = ring->packets + first, .count = (uint32_t)count};
}

void packet_ring_release(struct packet_ring *ring) {
    uint64_t released = atomic_load_explicit(&ring->released, memory_order_relaxed);
    if (ring->handed_out <= released)
        return;
    /* Frames lie in order: the last one's place says how far the bytes are free. */
    const struct capture_packet *last = &ring->packets[(ring->handed_out - 1) & (ring->packet_capacity - 1)];
    uint64_t data_released = atomic_load_explicit(&ring->data_released, memory_order_relaxed);
    uint64_t last_start = data_released + ((last->offset - data_released) & (ring->size - 1));
    uint64_t end = data_end(last->captured_length, last_start);
    atomic_store_explicit(&ring->data_released, end, memory_order_release);
    atomic_store_explicit(&ring->released, ring->handed_out, memory_order_release);
}

double packet_ring_usage(const struct packet_ring *ring) {
    /* Released first: the positions only grow, so the difference cannot come out negative. */
    uint64_t data_released = atomic_load_explicit(&ring->data_released, memory_order_acquire);
    uint64_t released = atomic_load_explicit(&ring->released, memory_order_acquire);
    uint64_t data_written = atomic_load_explicit(&ring->data_written, memory_order_acquire);
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_acquire);
    double data = (double)(data_written - data_released) / (double)ring->size;
    double packets = (double)(written - released) / (double)ring->packet_capacity;
    double usage = data > packets ? data : packets;
    return usage < 1.0 ? usage : 1.0;
}
