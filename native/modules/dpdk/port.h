/* SPDX-License-Identifier: Apache-2.0 */
/* Backend "dpdk": one port of DPDK for one capture, a receive queue for each worker. */
#ifndef JARVIS_DPDK_PORT_H
#define JARVIS_DPDK_PORT_H

#include "backend/backend.h"
#include "clock.h"
#include "config.h"

#include <pthread.h>
#include <rte_ethdev.h>
#include <rte_mempool.h>
#include <stdatomic.h>

enum { SCRATCH_BYTES = 1 << 20 }; /* for frames in several segments: never less than the longest snaplen */

/* Shared by the queues of one capture, under port.c's lock but for what is atomic or set before the first read. */
struct dpdk_port {
    const struct capture_config *config; /* whose capture has it; NULL: it is stopped and waits for the next one */
    uint16_t id;
    char name[RTE_ETH_NAME_MAX_LEN], bus[32], driver[32];
    bool added; /* by us: taken out of DPDK again at the end */
    bool started;
    uint32_t queues, opened;
    uint16_t descriptors; /* of each receive queue */
    uint16_t interface_index;
    bool nombuf_loses; /* net_pcap: a frame that it has no mbuf for is lost, elsewhere it waits in the card */
    uint64_t offloads;
    struct rte_mempool *pools[CONFIG_WORKERS_MAX], *old_pools[CONFIG_WORKERS_MAX];
    struct frame_clock clock;
    _Atomic bool removed;
    uint64_t base, last; /* frames lost before the start; since then, as last seen */
    struct dpdk_port *next;
};

/* One worker's queue: the state of the backend. */
struct dpdk_queue {
    struct dpdk_port *port;
    uint16_t number;
    uint32_t snaplen;
    struct frame_clock clock;
    uint64_t busy_ns;         /* when the last frame came, monotonic clock */
    uint32_t held, given;     /* mbufs taken from the port; of these, handed out */
    _Atomic uint32_t waiting; /* held and not handed out, for stats */
    size_t scratch_used;
    uint8_t *scratch; /* NULL until a frame needs it */
    struct rte_mbuf *mbufs[FRAME_BATCH];
};

/* "dpdk:" taken off. */
const char *dpdk_device_name(const char *interface);

/* capture_backend_ops.open and close: the port is configured by the first queue, started by the last, stopped by the last close.
 */
int dpdk_open(const struct capture_config *config, uint32_t queue, uint32_t queues, void **state,
              struct capture_error_info *error);
void dpdk_close(void *state);

/* Frames that the card or its driver lost since the start: imissed, ierrors, and rx_nombuf where that loses. Never falls. */
uint64_t dpdk_port_lost(struct dpdk_port *port);

#endif
