/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libpfring as far as the backend "pfring" uses it: found at run time, never linked.
 *
 * The calls are those of PF_RING's public API, version 8; a ring is an opaque handle. Where they return an int, 0 is success and
 * negative one of PF_RING's error numbers, unless it says otherwise.
 */
#ifndef JARVIS_PFRING_LIBRARY_H
#define JARVIS_PFRING_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pfring_open_flags {
    PFRING_LONG_HEADER = 1 << 2, /* fills the header beyond its first 24 bytes */
    PFRING_PROMISCUOUS = 1 << 3,
    PFRING_SOFTWARE_TIMESTAMP = 1 << 4,
    PFRING_HARDWARE_TIMESTAMP = 1 << 5,
    PFRING_DO_NOT_PARSE = 1 << 9,
};

enum { PFRING_RECEIVED_ONLY = 1 /* direction */, PFRING_RECEIVE_ONLY = 2 /* socket mode */ };

/* Both directions of a flow and its fragments, which carry no ports, come to one ring. */
enum { PFRING_CLUSTER_BY_ADDRESSES = 2 };

/* What pfring_recv returns for a capture file that is at its end: the answer of libpcap, passed on. */
enum { PFRING_FILE_END = -2 };

/* Places in the packet header, which is packed and 209 bytes long in version 8.9; room for a longer one is given. */
enum pfring_header {
    PFRING_HEADER_SECONDS = 0,       /* int64 */
    PFRING_HEADER_MICROSECONDS = 8,  /* int64 */
    PFRING_HEADER_CAPLEN = 16,       /* uint32: bytes that are there */
    PFRING_HEADER_LENGTH = 20,       /* uint32: bytes on the wire */
    PFRING_HEADER_TIMESTAMP_NS = 24, /* uint64: 0 when there is none */
    PFRING_HEADER_IF_INDEX = 40,     /* int32 */
    PFRING_HEADER_USED = 44,
    PFRING_HEADER_ROOM = 512,
};

struct pfring_counters {
    uint64_t received; /* read by us, or offered to us: the modules of PF_RING differ */
    uint64_t dropped;
    uint64_t shunted;
};

struct pfring_library {
    void *(*open)(const char *device, uint32_t caplen, uint32_t flags); /* NULL and errno */
    int (*set_application_name)(void *ring, char *name);
    int (*set_direction)(void *ring, int direction);
    int (*set_socket_mode)(void *ring, int mode);
    int (*set_poll_watermark)(void *ring, uint16_t packets);
    int (*set_cluster)(void *ring, unsigned id, int type);
    int (*enable_ring)(void *ring); /* nothing arrives before it */
    /* With buffer_len 0 *buffer is set to the packet, which is valid until the next call. 1: a packet; 0: none. */
    int (*recv)(void *ring, unsigned char **buffer, unsigned buffer_len, void *header, uint8_t wait);
    int (*stats)(void *ring, struct pfring_counters *counters);
    int (*get_selectable_fd)(void *ring); /* negative: none */
    int (*poll)(void *ring, unsigned ms); /* above 0: there is a packet. Module pcap: seconds! */
    void (*breakloop)(void *ring);
    void (*close)(void *ring);
};

/* The library, looked for at the first call and then kept: a process that has measured what it runs loads nothing later. NULL
 * with the reason: it is not there (the loader's words), or which call it lacks. Any thread. */
const struct pfring_library *pfring_library_find(char *reason, size_t size);

#endif
