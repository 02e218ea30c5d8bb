/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "xdp": Linux AF_XDP, as a module (src/module.h) over libxdp and libbpf.
 *
 * An XDP program on the interface hands each received frame to the AF_XDP socket of its receive queue; the host's stack does not
 * see it any more. Frames that the host sends do not pass it.
 *
 *   host_use.c   does the host itself use the interface? (rtnetlink)
 *   program.c    the XDP program, its map and its link, shared by the queues of one capture
 *   xsk.c        one AF_XDP socket with its memory, one a receive queue of the interface
 *   open.c       a capture's queue: the sockets that are its share
 *   xdp.c        reading, counting, the ops table
 */
#ifndef JARVIS_XDP_H
#define JARVIS_XDP_H

#include "backend/backend.h"
#include "backend/interface.h"

#include <net/if.h>
#include <stdatomic.h>
#include <xdp/xsk.h>

enum {
    XDP_QUEUES_MAX = 64,      /* receive queues of an interface */
    XDP_FRAME_ROOM = 4096,    /* bytes a frame has in memory, at most: a page */
    XDP_FRAME_HEADROOM = 256, /* of them, before the frame: XDP_PACKET_HEADROOM */
    XDP_TAGS = 14 + 8,        /* Ethernet header and two VLAN tags: a frame's length beyond the MTU */
};

/* ---- host_use.c */

/* Does the host itself use the interface: an address, a default route, a bridge or bond above it, a VLAN device on it? Fills
 * reason when it does or when that cannot be found out (which counts as use). Any thread. */
bool xdp_host_uses(const char *interface, char *reason, size_t size);

/* What frames an interface has and over how many receive queues they come. */
struct xdp_interface {
    int index;
    int hardware; /* ARPHRD_* */
    uint32_t mtu;
    uint32_t queues;
    bool takes_tags_off; /* VLAN tags go where an XDP program cannot see them (ethtool: rxvlan on) */
};

int xdp_interface_examine(const char *name, struct xdp_interface *out, struct capture_error_info *error);

/* ---- program.c */

/* What the program writes before each frame; a driver without room for it leaves nothing there. */
struct xdp_stamp {
    uint64_t mark;    /* the program's own number: this is a stamp, and not what was there before */
    uint64_t mono_ns; /* CLOCK_MONOTONIC when the program ran */
};

/* The program on one interface. It is attached by a bpf_link, so that the kernel detaches it when the process ends, however it
 * ends. */
struct xdp_program {
    const struct capture_config *config; /* the queues of one capture know each other by it */
    int map, program, link;
    uint64_t mark;
    bool native; /* run by the driver; else by the stack ("generic", "skb") */
    uint32_t members;
    struct xdp_socket *sockets[XDP_QUEUES_MAX]; /* by receive queue; the rest of the struct's users see it through functions */
    uint64_t dropped_closed;                    /* by those that are closed */
    struct xdp_program *next;
};

/* Attaches the program, or joins the queues of the same capture. */
int xdp_program_join(const struct capture_config *config, int index, struct xdp_program **out, struct capture_error_info *error);
/* The last one to leave detaches it. */
void xdp_program_leave(struct xdp_program *program);
/* From now on the frames of a socket's receive queue go to it. 0 or a negative errno. */
int xdp_program_admit(struct xdp_program *program, struct xdp_socket *xsk);
/* They go to the host again; what is in the socket's ring stays there. */
void xdp_program_shut(const struct xdp_program *program, const struct xdp_socket *xsk);
/* The socket is about to be closed. */
void xdp_program_forget(struct xdp_program *program, const struct xdp_socket *xsk);
/* Frames that the sockets of all queues could not store. Any thread. */
uint64_t xdp_program_dropped(struct xdp_program *program);

/* ---- xsk.c */

struct xdp_socket {
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    int fd;
    uint8_t *memory;
    size_t memory_size;
    bool huge_pages, zero_copy;
    uint32_t queue;       /* receive queue of the interface */
    uint32_t frame_size;  /* power of two */
    uint32_t frame_count; /* power of two; both rings hold that many */
    struct xsk_ring_cons received;
    struct xsk_ring_prod fill;
    struct xsk_ring_cons sent; /* libxdp wants it; nothing is sent */
    _Atomic uint32_t taken;    /* frames taken from `received`, modulo 2^32 as its indices are */
    _Atomic uint32_t returned; /* frames given back */
};

/* Makes the socket of one receive queue with `bytes` of frame memory, every frame the kernel's. */
int xdp_socket_open(struct xdp_socket *xsk, const char *interface, uint32_t queue, bool native, uint32_t frame_size,
                    uint64_t bytes, struct capture_error_info *error);
void xdp_socket_close(struct xdp_socket *xsk);
/* Frames that the kernel had for this socket and could not store. Any thread while open. */
uint64_t xdp_socket_dropped(const struct xdp_socket *xsk);

/* ---- open.c */

struct xdp_state {
    char interface[IFNAMSIZ];
    int index;
    uint32_t snaplen;
    uint32_t busy_poll_us;
    bool loses_tags; /* the card takes VLAN tags off before the program sees the frame */
    struct xdp_program *program;
    struct xdp_socket *sockets;
    uint32_t socket_count;
    int examiner; /* packet socket without a protocol: to ask after the interface, and to hold it promiscuous */

    uint32_t next;          /* socket to look at first */
    bool busy;              /* the last read brought frames */
    int64_t wall_offset_ns; /* CLOCK_REALTIME - CLOCK_MONOTONIC */
    uint64_t measured_ns;   /* when it was measured, CLOCK_MONOTONIC */
    struct {
        struct xdp_socket *socket;
        uint64_t address;
    } held[FRAME_BATCH]; /* frames of the last read */
    uint32_t held_count;
    _Atomic uint64_t unstamped; /* frames that came without the program's stamp: they have the time of the read */

    bool counts_nic; /* `nic` is open: queue 0 does, so that a sum over the queues is right */
    struct nic_drops nic;
    pthread_mutex_t lock; /* of the one below */
    uint64_t nic_said;
};

int xdp_open(const struct capture_config *config, uint32_t queue, uint32_t queues, void **state,
             struct capture_error_info *error);
void xdp_close(void *state);

#endif
