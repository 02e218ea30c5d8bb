/* SPDX-License-Identifier: Apache-2.0 */
/* Backend "afpacket", in two files: afpacket_open.c makes the socket and its ring, afpacket.c reads the ring. */
#ifndef JARVIS_AFPACKET_H
#define JARVIS_AFPACKET_H

#include "backend.h"
#include "interface.h"

#include <linux/if_packet.h>
#include <net/if.h>
#include <stdatomic.h>

struct fanout_group;

struct afpacket_state {
    int socket;
    char interface[IFNAMSIZ];
    int index;
    uint16_t link_type;
    bool loopback;
    uint8_t *ring;
    uint32_t block_size, block_count;
    uint32_t busy_poll_us;
    struct fanout_group *group; /* NULL: only queue */

    /* the reader's place */
    uint32_t block;            /* being read, or next to be */
    uint32_t first_unreleased; /* blocks before `block` that release() will hand back begin here */
    uint32_t unreleased;       /* how many */
    uint32_t packets_left;     /* in `block`; 0: not begun */
    const struct tpacket3_hdr *next;

    _Atomic uint64_t delivered; /* frames handed out */
    bool counts_nic;            /* `nic` is open: queue 0 does, so that a sum over the queues is right */
    struct nic_drops nic;
    pthread_mutex_t lock; /* of the two below: PACKET_STATISTICS resets on read */
    uint64_t accepted, dropped_kernel;
};

/* capture_backend_ops.open: everything up to a running ring. */
int afpacket_open(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out,
                  struct capture_error_info *error);
void afpacket_close(void *state);

/* LINKTYPE_* for an ARPHRD_*, or -1 where this backend cannot tell what the frames look like. */
int afpacket_link_type(int hardware);

#endif
