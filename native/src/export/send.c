/* SPDX-License-Identifier: Apache-2.0 */
/* Messages over a connected datagram socket: capture_export_send, the one place of the core that sends.
 *
 * sendmmsg(2) takes many messages a system call; over UDP a run of messages of one length (the last may be shorter) is one of its
 * entries, which the kernel cuts at UDP_SEGMENT bytes (udp(7), Linux 4.18), so that the stack is passed once a run. Where the
 * path does not take that (a device without checksum offload, an MTU below the messages, IPsec) the messages go one by one.
 *
 * An error that an earlier datagram met (ECONNREFUSED after an ICMP) is reported by the kernel before it sends the next one,
 * which then has not left. sendmmsg reports it only when it is met first: so what was sent before is always counted, never
 * guessed. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

#include "jarvis_capture.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h */
#endif

enum {
    ENTRIES = 64,      /* of one sendmmsg */
    PIECES = 256,      /* messages of one sendmmsg */
    RUN_MESSAGES = 64, /* UDP_MAX_SEGMENTS of the kernel */
    RUN_BYTES = 65000  /* below what one IP packet can hold, which bounds a run too */
};

/* One sendmmsg: entries of one message each, or of a run. */
struct batch {
    struct mmsghdr entries[ENTRIES];
    struct iovec pieces[PIECES];
    uint32_t messages[ENTRIES]; /* of each entry */
    union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control[ENTRIES];
};

static bool is_udp(int socket) {
    int protocol = 0;
    socklen_t length = sizeof(protocol);
    return getsockopt(socket, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 && protocol == IPPROTO_UDP;
}

/* How many messages from the first on may leave as one run. */
static uint32_t run_length(const struct capture_export_message *messages, uint32_t count) {
    uint32_t length = messages[0].length, run = 1, bytes = length;
    uint32_t most = count < RUN_MESSAGES ? count : RUN_MESSAGES;
    while (run < most && messages[run].length <= length && bytes + messages[run].length <= RUN_BYTES) {
        bytes += messages[run].length;
        if (messages[run++].length < length)
            break; /* a shorter one ends it */
    }
    return run;
}

static void ask_for_segments(struct batch *batch, uint32_t entry, uint32_t length) {
    struct msghdr *header = &batch->entries[entry].msg_hdr;
    header->msg_control = batch->control[entry].bytes;
    header->msg_controllen = sizeof(batch->control[entry].bytes);
    struct cmsghdr *control = CMSG_FIRSTHDR(header);
    control->cmsg_level = SOL_UDP;
    control->cmsg_type = UDP_SEGMENT;
    control->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    uint16_t size = (uint16_t)length;
    memcpy(CMSG_DATA(control), &size, sizeof(size));
}

/* As many entries as there is room for; returns how many. */
static uint32_t fill(struct batch *batch, const uint8_t *block, const struct capture_export_message *messages, uint32_t count,
                     bool in_runs) {
    uint32_t entry = 0, piece = 0, taken = 0;
    for (; entry < ENTRIES && taken < count && piece < PIECES; entry++) {
        uint32_t left = count - taken < PIECES - piece ? count - taken : PIECES - piece;
        uint32_t run = in_runs ? run_length(messages + taken, left) : 1;
        batch->messages[entry] = run;
        batch->entries[entry].msg_hdr = (struct msghdr){.msg_iov = &batch->pieces[piece], .msg_iovlen = run};
        if (run > 1)
            ask_for_segments(batch, entry, messages[taken].length);
        for (uint32_t i = 0; i < run; i++, taken++)
            batch->pieces[piece++] = (struct iovec){.iov_base = (void *)(uintptr_t)(block + messages[taken].offset),
                                                    .iov_len = messages[taken].length};
    }
    return entry;
}

/* Whether the run, and not the messages in it, may be what the kernel refused. */
static bool refuses_runs(int error) {
    return error == EIO || error == EINVAL || error == EMSGSIZE || error == EOPNOTSUPP || error == ENOPROTOOPT ||
           error == ENOBUFS;
}

/* No error of the messages or the collector: they leave later. */
static bool would_block(int error) {
    return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS;
}

CAPTURE_API int capture_export_send(int socket, const uint8_t *block, const struct capture_export_message *messages,
                                    uint32_t count, int32_t *os_error) {
    if (os_error == NULL || (count != 0 && (block == NULL || messages == NULL)) || count > INT32_MAX)
        return CAPTURE_ERR_INVALID;
    *os_error = 0;
    struct batch batch;
    bool in_runs = count > 1 && is_udp(socket);
    uint32_t sent = 0;
    while (sent < count) {
        uint32_t entries = fill(&batch, block, messages + sent, count - sent, in_runs);
        int left = sendmmsg(socket, batch.entries, entries, 0);
        for (int entry = 0; entry < left; entry++)
            sent += batch.messages[entry];
        if (left >= 0 || errno == EINTR)
            continue; /* what stopped it short is met again, now as the first */
        if (batch.messages[0] > 1 && refuses_runs(errno)) {
            in_runs = false;
            continue;
        }
        *os_error = errno;
        return sent != 0 || would_block(errno) ? (int)sent : CAPTURE_ERR_IO;
    }
    return (int)sent;
}
