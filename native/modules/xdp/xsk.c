/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One AF_XDP socket: frame memory (umem), fill ring, receive ring.
 *
 * Both rings hold as many entries as there are frames. So there is always room for what is given back, the receive ring cannot
 * overflow, and the kernel loses a frame exactly when no memory is left.
 */
#include "xdp.h"

#include "error.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20, SENT_RING = 64, BUSY_TRIES = 50, BUSY_WAIT_US = 10000 };

/* In huge pages if the host has set some aside; else the kernel is asked for what it can make of normal ones. The pages come when
 * the memory is shared with the kernel, which pins them. */
static int map_memory(struct xdp_socket *xsk, uint64_t bytes, struct capture_error_info *error) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    xsk->memory_size = (size_t)bytes; /* a power of two of at least HUGE_PAGE */
    void *memory = mmap(NULL, xsk->memory_size, PROT_READ | PROT_WRITE, flags | MAP_HUGETLB, -1, 0);
    xsk->huge_pages = memory != MAP_FAILED;
    if (memory == MAP_FAILED)
        memory = mmap(NULL, xsk->memory_size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "buffer_size_mb", "%zu bytes for the frames of a queue: %s",
                            xsk->memory_size, strerror(errno));
    if (!xsk->huge_pages)
        (void)madvise(memory, xsk->memory_size, MADV_HUGEPAGE); /* a kernel without them refuses */
    xsk->memory = memory;
    return CAPTURE_OK;
}

static int make_umem(struct xdp_socket *xsk, struct capture_error_info *error) {
    const struct xsk_umem_config config = {
        .fill_size = xsk->frame_count, .comp_size = SENT_RING, .frame_size = xsk->frame_size, .frame_headroom = 0};
    int result = xsk_umem__create(&xsk->umem, xsk->memory, xsk->memory_size, &xsk->fill, &xsk->sent, &config);
    if (result == 0)
        return CAPTURE_OK;
    xsk->umem = NULL;
    return capture_fail(error, result == -ENOMEM || result == -ENOBUFS ? CAPTURE_ERR_NO_MEMORY : CAPTURE_ERR_IO, "buffer_size_mb",
                        "%zu bytes cannot be shared with the kernel: %s", xsk->memory_size,
                        result == -ENOBUFS ? "more than RLIMIT_MEMLOCK" : strerror(-result));
}

static bool is_zero_copy(int fd) {
    struct xdp_options options = {0};
    socklen_t length = sizeof options;
    return getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &length) == 0 && (options.flags & XDP_OPTIONS_ZEROCOPY);
}

/* Without a flag the kernel binds with zero copy where the driver has it; a program in the stack needs copies. *busy: the queue
 * has a socket, or had one a moment ago: the kernel lets go of it after the close that ended it has returned. */
static int bind_socket(struct xdp_socket *xsk, const char *interface, bool native, bool *busy, struct capture_error_info *error) {
    const struct xsk_socket_config config = {
        .rx_size = xsk->frame_count,
        .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .bind_flags = (uint16_t)(XDP_USE_NEED_WAKEUP | (native ? 0 : XDP_COPY)),
    };
    int result = xsk_socket__create(&xsk->socket, interface, xsk->queue, xsk->umem, &xsk->received, NULL, &config);
    *busy = result == -EBUSY;
    if (result != 0) {
        xsk->socket = NULL;
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s: no AF_XDP socket for receive queue %u: %s",
                            interface, xsk->queue, *busy ? "the queue has one already" : strerror(-result));
    }
    xsk->fd = xsk_socket__fd(xsk->socket);
    xsk->zero_copy = is_zero_copy(xsk->fd);
    return CAPTURE_OK;
}

static void give_all(struct xdp_socket *xsk) {
    uint32_t at = 0;
    xsk_ring_prod__reserve(&xsk->fill, xsk->frame_count, &at); /* succeeds: the ring is empty and holds them all */
    for (uint32_t frame = 0; frame < xsk->frame_count; frame++)
        *xsk_ring_prod__fill_addr(&xsk->fill, at + frame) = (uint64_t)frame * xsk->frame_size;
    xsk_ring_prod__submit(&xsk->fill, xsk->frame_count);
}

static int open_once(struct xdp_socket *xsk, const char *interface, bool native, uint64_t bytes, bool *busy,
                     struct capture_error_info *error) {
    int code = map_memory(xsk, bytes, error);
    if (code == CAPTURE_OK)
        code = make_umem(xsk, error);
    if (code == CAPTURE_OK)
        give_all(xsk);
    if (code == CAPTURE_OK)
        code = bind_socket(xsk, interface, native, busy, error);
    return code;
}

int xdp_socket_open(struct xdp_socket *xsk, const char *interface, uint32_t queue, bool native, uint32_t frame_size,
                    uint64_t bytes, struct capture_error_info *error) {
    const struct xdp_socket closed = {
        .fd = -1, .queue = queue, .frame_size = frame_size, .frame_count = (uint32_t)(bytes / frame_size)};
    for (int try = 1;; try++) {
        bool busy = false;
        *xsk = closed;
        int code = open_once(xsk, interface, native, bytes, &busy, error);
        if (!busy || try == BUSY_TRIES)
            return code;
        xdp_socket_close(xsk); /* what was made for the kernel cannot be offered to it twice */
        usleep(BUSY_WAIT_US);
    }
}

void xdp_socket_close(struct xdp_socket *xsk) {
    if (xsk->socket)
        xsk_socket__delete(xsk->socket);
    if (xsk->umem)
        xsk_umem__delete(xsk->umem);
    if (xsk->memory)
        munmap(xsk->memory, xsk->memory_size);
}

/* rx_dropped are frames for which no memory was left or that were too long for it, rx_ring_full those without a place in the
 * ring. rx_fill_ring_empty_descs counts the first kind a second time and is left out. None of them is ever reset. */
uint64_t xdp_socket_dropped(const struct xdp_socket *xsk) {
    struct xdp_statistics statistics = {0};
    socklen_t length = sizeof statistics;
    if (getsockopt(xsk->fd, SOL_XDP, XDP_STATISTICS, &statistics, &length) != 0)
        return 0;
    return statistics.rx_dropped + statistics.rx_ring_full;
}
