/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing: the first queue of a capture finds and configures the port, every queue gets a pool of mbufs of its own,
 * the last one starts the port; the last close stops it and gives everything back.
 *
 * Several queues: the card spreads frames by a hash (RSS) of the two addresses alone, under a key that makes it symmetric. Both
 * directions of a flow, and every fragment of a datagram, come to one queue so; ports would part fragments from their flow.
 */
#include "port.h"

#include "device.h"
#include "eal.h"
#include "error.h"

#include <rte_errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DESCRIPTORS_WANTED = 4096, MTU_WANTED = 9600, POOL_CACHE_MAX = 256 };

static struct dpdk_port *ports;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The negative code of DPDK with its text and what it logged since `mark`. */
static int refused(const struct dpdk_port *port, const char *field, const char *what, int result, uint64_t mark,
                   struct capture_error_info *error) {
    char said[128];
    eal_log_since(mark, said, sizeof said);
    int code = result == -ENOMEM ? CAPTURE_ERR_NO_MEMORY : result == -EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO;
    return capture_fail(error, code, field, "device %s: %s: %s%s", port->name, what, rte_strerror(-result), said);
}

static int check_queues(const struct dpdk_port *port, const struct rte_eth_dev_info *info, uint32_t queues,
                        struct capture_error_info *error) {
    if (queues > info->max_rx_queues)
        return capture_fail(error, CAPTURE_ERR_INVALID, "workers",
                            "workers is %u: device %s has %u receive queue%s, accepted are 0 to %u", queues, port->name,
                            info->max_rx_queues, info->max_rx_queues == 1 ? "" : "s", info->max_rx_queues);
    if (queues > 1 && strcmp(port->bus, "vdev") != 0 && !(info->flow_type_rss_offloads & RTE_ETH_RSS_IP))
        return capture_fail(
            error, CAPTURE_ERR_INVALID, "workers",
            "workers is %u: device %s (driver %s) cannot spread frames over queues by address, accepted are 0 and 1", queues,
            port->name, port->driver);
    return CAPTURE_OK;
}

/* A card whose kernel driver stays (mlx5), or AF_XDP, hands frames to DPDK that the host's stack then does not get. */
static int check_host(const struct dpdk_port *port, const struct rte_eth_dev_info *info, struct capture_error_info *error) {
    bool takes = info->if_index && (strcmp(port->bus, "vdev") != 0 || strcmp(port->driver, "net_af_xdp") == 0);
    if (!takes || port->config->exclusive)
        return CAPTURE_OK;
    return capture_fail(
        error, CAPTURE_ERR_INVALID, "exclusive",
        "device %s (driver %s) takes the frames of the host's interface number %u away from it: accepted with exclusive",
        port->name, port->driver, info->if_index);
}

/* RSS over the addresses with the key 6d5a 6d5a ...: swapped addresses give the same hash. */
static void spread_by_address(struct rte_eth_conf *conf, const struct rte_eth_dev_info *info, uint8_t *key, size_t key_room) {
    uint64_t by_address = info->flow_type_rss_offloads &
                          (RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_FRAG_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_OTHER | RTE_ETH_RSS_IPV6 |
                           RTE_ETH_RSS_FRAG_IPV6 | RTE_ETH_RSS_NONFRAG_IPV6_OTHER | RTE_ETH_RSS_IPV6_EX);
    if (!by_address)
        return; /* a virtual device whose queues are sources of their own, or spread by the kernel */
    for (size_t i = 0; i < key_room; i++)
        key[i] = i % 2 ? 0x5a : 0x6d;
    conf->rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
    conf->rx_adv_conf.rss_conf = (struct rte_eth_rss_conf){
        .rss_hf = by_address,
        .rss_key = info->hash_key_size && info->hash_key_size <= key_room ? key : NULL,
        .rss_key_len = info->hash_key_size && info->hash_key_size <= key_room ? info->hash_key_size : 0,
    };
}

static int configure(struct dpdk_port *port, uint32_t queues, struct capture_error_info *error) {
    const struct capture_config *config = port->config;
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf = {0};
    uint8_t key[256];
    uint64_t stamps, mark = eal_log_mark();
    int result = rte_eth_dev_info_get(port->id, &info);
    if (result != 0)
        return refused(port, "interface", "it does not say what it can do", result, mark, error);
    int code = check_host(port, &info, error);
    if (code == CAPTURE_OK)
        code = check_queues(port, &info, queues, error);
    if (code == CAPTURE_OK)
        code = frame_clock_choose(&port->clock, port->id, config, info.rx_offload_capa, port->driver, &stamps, error);
    if (code != CAPTURE_OK)
        return code;
    port->offloads = stamps | (info.rx_offload_capa & (RTE_ETH_RX_OFFLOAD_SCATTER | RTE_ETH_RX_OFFLOAD_VLAN_STRIP));
    conf.rxmode.offloads = port->offloads;
    if (port->offloads & RTE_ETH_RX_OFFLOAD_SCATTER)
        conf.rxmode.mtu = info.max_mtu < MTU_WANTED ? info.max_mtu : MTU_WANTED;
    conf.intr_conf.rmv = info.dev_flags && *info.dev_flags & RTE_ETH_DEV_INTR_RMV;
    if (queues > 1)
        spread_by_address(&conf, &info, key, sizeof key);
    uint16_t transmit = 0;
    port->descriptors = DESCRIPTORS_WANTED;
    result = rte_eth_dev_configure(port->id, (uint16_t)queues, 0, &conf);
    if (result == 0)
        result = rte_eth_dev_adjust_nb_rx_tx_desc(port->id, &port->descriptors, &transmit);
    return result == 0 ? CAPTURE_OK : refused(port, "interface", "it cannot be configured", result, mark, error);
}

/* A pool of mbufs for one queue: its share of buffer_size_mb. */
static int make_pool(struct dpdk_port *port, uint32_t queue, struct capture_error_info *error) {
    static _Atomic unsigned serial;
    char name[RTE_MEMPOOL_NAMESIZE];
    uint64_t share = ((uint64_t)capture_config_buffer_mb(port->config) << 20) / port->queues;
    unsigned count = (unsigned)(share / (RTE_MBUF_DEFAULT_BUF_SIZE + sizeof(struct rte_mbuf) + RTE_CACHE_LINE_SIZE));
    unsigned cache = count / 8 < POOL_CACHE_MAX ? count / 8 : POOL_CACHE_MAX;
    uint64_t mark = eal_log_mark();
    snprintf(name, sizeof name, "jarvis_%u", atomic_fetch_add(&serial, 1));
    port->pools[queue] =
        rte_pktmbuf_pool_create(name, count, cache, 0, RTE_MBUF_DEFAULT_BUF_SIZE, rte_eth_dev_socket_id(port->id));
    if (port->pools[queue])
        return CAPTURE_OK;
    char said[96];
    eal_log_since(mark, said, sizeof said);
    return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "buffer_size_mb",
                        "buffer_size_mb is %u: DPDK has no memory for %u frames of queue %u (see -m and huge pages): %s%s",
                        capture_config_buffer_mb(port->config), count, queue, rte_strerror(rte_errno), said);
}

static int set_up_queue(struct dpdk_port *port, uint32_t queue, struct capture_error_info *error) {
    int code = make_pool(port, queue, error);
    if (code != CAPTURE_OK)
        return code;
    struct rte_eth_dev_info info;
    uint64_t mark = eal_log_mark();
    int result = rte_eth_dev_info_get(port->id, &info);
    uint32_t most = port->pools[queue]->size / 2; /* the other half is for frames that are being metered */
    uint16_t descriptors = port->descriptors;
    while (descriptors > most)
        descriptors /= 2;
    struct rte_eth_rxconf receive = info.default_rxconf;
    receive.offloads = port->offloads;
    receive.rx_drop_en = 1; /* a full queue loses its own frames, not those of the others */
    if (result == 0)
        result = rte_eth_rx_queue_setup(port->id, (uint16_t)queue, descriptors, (unsigned)rte_eth_dev_socket_id(port->id),
                                        &receive, port->pools[queue]);
    if (result == 0)
        return CAPTURE_OK;
    rte_mempool_free(port->pools[queue]); /* a pool in the array is a queue's */
    port->pools[queue] = NULL;
    return refused(port, "interface", "a receive queue cannot be set up", result, mark, error);
}

static int note_removal(uint16_t id, enum rte_eth_event_type event, void *opaque, void *unused) {
    (void)id, (void)event, (void)unused;
    struct dpdk_port *port = opaque;
    atomic_store(&port->removed, true);
    return 0;
}

static void free_pools(struct rte_mempool **pools) {
    for (uint32_t i = 0; i < CONFIG_WORKERS_MAX; i++) {
        rte_mempool_free(pools[i]);
        pools[i] = NULL;
    }
}

static uint64_t lost_total(const struct dpdk_port *port) {
    struct rte_eth_stats stats;
    if (rte_eth_stats_get(port->id, &stats) != 0)
        return 0;
    return stats.imissed + stats.ierrors + (port->nombuf_loses ? stats.rx_nombuf : 0);
}

static int start(struct dpdk_port *port, struct capture_error_info *error) {
    uint64_t mark = eal_log_mark();
    rte_eth_dev_callback_register(port->id, RTE_ETH_EVENT_INTR_RMV, note_removal, port);
    port->base = lost_total(port);
    port->last = 0;
    int result = rte_eth_dev_start(port->id);
    if (result != 0)
        return refused(port, "interface", "it cannot be started", result, mark, error);
    port->started = true;
    free_pools(port->old_pools); /* no queue has them any more */
    if (port->config->promiscuous)
        result = rte_eth_promiscuous_enable(port->id);
    if (result != 0 && !(result == -ENOTSUP && strcmp(port->bus, "vdev") == 0))
        return refused(port, "promiscuous", "promiscuous mode cannot be switched on", result, mark, error);
    return frame_clock_start(&port->clock, error);
}

static void stop(struct dpdk_port *port) {
    rte_eth_dev_callback_unregister(port->id, RTE_ETH_EVENT_INTR_RMV, note_removal, port);
    if (port->started)
        (void)rte_eth_dev_stop(port->id); /* it is stopped, or gone */
    port->started = false;
}

uint64_t dpdk_port_lost(struct dpdk_port *port) {
    pthread_mutex_lock(&lock);
    uint64_t now = lost_total(port);
    if (now >= port->base + port->last) /* a driver that resets its counters must not make ours fall */
        port->last = now - port->base;
    uint64_t lost = port->last;
    pthread_mutex_unlock(&lock);
    return lost;
}

static struct dpdk_port *port_of(const struct capture_config *config) {
    struct dpdk_port *port = ports;
    while (port && port->config != config)
        port = port->next;
    return port;
}

static void unlink_port(struct dpdk_port *port) {
    struct dpdk_port **link = &ports;
    while (*link != port)
        link = &(*link)->next;
    *link = port->next;
    free(port);
}

/* The queues are about to be set up anew. Where one was since the last start, it has left the older pool already. */
static void retire_pools(struct dpdk_port *port) {
    for (uint32_t i = 0; i < CONFIG_WORKERS_MAX; i++) {
        if (!port->pools[i])
            continue;
        rte_mempool_free(port->old_pools[i]);
        port->old_pools[i] = port->pools[i];
        port->pools[i] = NULL;
    }
}

/* A device found is either new to us, or was left stopped by an earlier capture, or is another capture's. */
static int adopt(struct dpdk_port *found, const struct capture_config *config, struct dpdk_port **out,
                 struct capture_error_info *error) {
    for (struct dpdk_port *port = ports; port; port = port->next) {
        if (found->added || port->id != found->id)
            continue;
        if (port->config)
            return capture_fail(error, CAPTURE_ERR_STATE, "interface", "device %s is being captured from by another capture",
                                port->name);
        retire_pools(port);
        port->config = config;
        atomic_store(&port->removed, false);
        *out = port;
        return CAPTURE_OK;
    }
    struct dpdk_port *port = malloc(sizeof *port);
    if (!port)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    *port = *found;
    port->config = config;
    port->next = ports;
    ports = port;
    *out = port;
    return CAPTURE_OK;
}

/* Gives a port that has no open queue back to DPDK. One that DPDK had before us keeps its queues, and so its pools, until it is
 * configured anew: a stopped queue may hold mbufs. */
static void give_back(struct dpdk_port *port) {
    stop(port);
    if (!port->added) {
        port->config = NULL;
        return;
    }
    dpdk_device_remove(port);
    free_pools(port->pools);
    free_pools(port->old_pools);
    unlink_port(port);
}

static int take_port(const struct capture_config *config, uint32_t queues, struct dpdk_port **out,
                     struct capture_error_info *error) {
    struct dpdk_port found = {0};
    *out = port_of(config);
    if (*out)
        return CAPTURE_OK;
    int code = dpdk_device_find(config->interface, &found, error);
    if (code == CAPTURE_OK)
        code = adopt(&found, config, out, error);
    if (code != CAPTURE_OK) {
        if (found.added)
            dpdk_device_remove(&found);
        return code;
    }
    (*out)->queues = queues;
    return configure(*out, queues, error);
}

static int open_locked(struct dpdk_queue *queue, const struct capture_config *config, uint32_t queues,
                       struct capture_error_info *error) {
    int code = take_port(config, queues, &queue->port, error);
    struct dpdk_port *port = queue->port;
    if (code == CAPTURE_OK)
        code = set_up_queue(port, queue->number, error);
    if (code == CAPTURE_OK && queue->number + 1u == queues)
        code = start(port, error);
    if (code == CAPTURE_OK)
        port->opened++;
    else if (port && port->opened == 0)
        give_back(port);
    return code;
}

int dpdk_open(const struct capture_config *config, uint32_t number, uint32_t queues, void **state,
              struct capture_error_info *error) {
    int code = eal_start(config, error);
    if (code != CAPTURE_OK)
        return code;
    struct dpdk_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    queue->number = (uint16_t)number;
    queue->snaplen = capture_config_snaplen(config);
    pthread_mutex_lock(&lock);
    code = open_locked(queue, config, queues, error);
    pthread_mutex_unlock(&lock);
    if (code != CAPTURE_OK) {
        free(queue);
        return code;
    }
    *state = queue;
    return CAPTURE_OK;
}

void dpdk_close(void *state) {
    struct dpdk_queue *queue = state;
    rte_pktmbuf_free_bulk(queue->mbufs, queue->held);
    pthread_mutex_lock(&lock);
    if (--queue->port->opened == 0)
        give_back(queue->port);
    pthread_mutex_unlock(&lock);
    free(queue->scratch);
    free(queue);
}
