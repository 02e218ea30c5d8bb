/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making an AF_PACKET ring (TPACKET_V3): socket, filter, ring, bind, fan-out, timestamps.
 *
 * The order matters. The socket is made with protocol 0 and with a filter that lets nothing in, so that neither frames of other
 * interfaces (before bind) nor frames meant for another queue (before the fan-out is joined) get into the ring; the last step
 * swaps in the filter that cuts at snaplen. On a loopback interface each frame is seen going out and coming in: that filter keeps
 * the latter.
 */
#include "afpacket.h"
#include "config.h"
#include "error.h"
#include "link_type.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BLOCK_SIZE = 1 << 20,       /* holds the longest frame many times over */
    BLOCK_SIZE_SMALL = 1 << 18, /* where a queue's share is below 16 MiB */
    RETIRE_MS = 40,             /* a block that is not full is handed over after this long: the delay on a quiet link */
    FRAME_SIZE = 2048,          /* TPACKET_V3 packs frames tightly; the kernel only checks this for being a divisor */
};

/* The queues of one capture join one fan-out group, whose number the kernel gives to the first. They know each other by the
 * address of the configuration they were opened with. */
struct fanout_group {
    const struct capture_config *config;
    uint32_t id; /* 16 bits */
    uint32_t members;
    struct fanout_group *next;
};

static struct fanout_group *groups;
static pthread_mutex_t groups_lock = PTHREAD_MUTEX_INITIALIZER;

int afpacket_link_type(int hardware) {
    switch (hardware) {
    case ARPHRD_ETHER:
    case ARPHRD_LOOPBACK:
        return LINK_ETHERNET;
    case ARPHRD_NONE: /* tun, WireGuard */
    case 519:         /* ARPHRD_RAWIP: mobile broadband */
        return LINK_RAW_IP;
    default:
        return -1;
    }
}

static int refused(const struct afpacket_state *state, const char *what, struct capture_error_info *error) {
    return capture_fail(error, errno == EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO, "interface", "interface %s: %s: %s",
                        state->interface, what, strerror(errno));
}

static int open_socket(struct afpacket_state *state, struct capture_error_info *error) {
    state->socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (state->socket < 0)
        return capture_fail(error, errno == EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO, "interface",
                            "interface %s: a packet socket cannot be opened: %s", state->interface,
                            errno == EPERM ? "CAP_NET_RAW is missing" : strerror(errno));
    interface_shut(state->socket);
    int hardware;
    int code = interface_examine(state->socket, state->interface, &state->index, &hardware, error);
    if (code != CAPTURE_OK)
        return code;
    int link_type = afpacket_link_type(hardware);
    if (link_type < 0)
        return capture_fail(error, CAPTURE_ERR_BACKEND, "backend",
                            "backend afpacket does not know the link type of interface %s (ARPHRD %d): use pcap",
                            state->interface, hardware);
    state->link_type = (uint16_t)link_type;
    state->loopback = hardware == ARPHRD_LOOPBACK;
    return CAPTURE_OK;
}

static int map_ring(struct afpacket_state *state, const struct capture_config *config, uint32_t queues,
                    struct capture_error_info *error) {
    int version = TPACKET_V3;
    if (setsockopt(state->socket, SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0)
        return refused(state, "the kernel has no TPACKET_V3", error);
    uint64_t share = ((uint64_t)capture_config_buffer_mb(config) << 20) / queues;
    state->block_size = share >= 16u * BLOCK_SIZE ? BLOCK_SIZE : BLOCK_SIZE_SMALL;
    state->block_count = (uint32_t)(share / state->block_size);
    struct tpacket_req3 request = {
        .tp_block_size = state->block_size,
        .tp_block_nr = state->block_count,
        .tp_frame_size = FRAME_SIZE,
        .tp_frame_nr = state->block_count * (state->block_size / FRAME_SIZE),
        .tp_retire_blk_tov = RETIRE_MS,
    };
    if (setsockopt(state->socket, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) != 0)
        return capture_fail(error, errno == ENOMEM ? CAPTURE_ERR_NO_MEMORY : CAPTURE_ERR_IO, "buffer_size_mb",
                            "buffer_size_mb is %u: the kernel refuses a ring of %u blocks of %u KiB: %s",
                            capture_config_buffer_mb(config), state->block_count, state->block_size >> 10, strerror(errno));
    void *ring = mmap(NULL, (size_t)state->block_size * state->block_count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                      state->socket, 0);
    if (ring == MAP_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "buffer_size_mb", "buffer_size_mb is %u: the ring cannot be mapped: %s",
                            capture_config_buffer_mb(config), strerror(errno));
    state->ring = ring;
    return CAPTURE_OK;
}

static bool supports_hardware_timestamps(const struct afpacket_state *state) {
    struct ethtool_ts_info info = {.cmd = ETHTOOL_GET_TS_INFO};
    struct ifreq request = {.ifr_data = (void *)&info};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", state->interface);
    const uint32_t needed = SOF_TIMESTAMPING_RX_HARDWARE | SOF_TIMESTAMPING_RAW_HARDWARE;
    return ioctl(state->socket, SIOCETHTOOL, &request) == 0 && (info.so_timestamping & needed) == needed;
}

/* The setting of the network card is shared by every user of it and stays after the capture, as with other capture programs. */
static int choose_timestamps(const struct afpacket_state *state, const struct capture_config *config,
                             struct capture_error_info *error) {
    if (config->timestamp_source != CAPTURE_TIMESTAMP_HARDWARE)
        return CAPTURE_OK;
    if (!supports_hardware_timestamps(state))
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 2 (hardware): interface %s has no hardware timestamps, accepted are 0 "
                            "(default), 1 (kernel) and 4 (ntp)",
                            state->interface);
    struct hwtstamp_config card = {.tx_type = HWTSTAMP_TX_OFF, .rx_filter = HWTSTAMP_FILTER_ALL};
    struct ifreq request = {.ifr_data = (void *)&card};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", state->interface);
    if (ioctl(state->socket, SIOCSHWTSTAMP, &request) != 0 || card.rx_filter != HWTSTAMP_FILTER_ALL)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is 2 (hardware): interface %s does not stamp every frame: %s, accepted are 0 "
                            "(default), 1 (kernel), 3 (ptp) and 4 (ntp)",
                            state->interface, card.rx_filter != HWTSTAMP_FILTER_ALL ? "only some kinds" : strerror(errno));
    int source = SOF_TIMESTAMPING_RAW_HARDWARE;
    if (setsockopt(state->socket, SOL_PACKET, PACKET_TIMESTAMP, &source, sizeof source) != 0)
        return refused(state, "hardware timestamps cannot be switched on", error);
    return CAPTURE_OK;
}

static int bind_interface(const struct afpacket_state *state, const struct capture_config *config,
                          struct capture_error_info *error) {
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = state->index};
    if (bind(state->socket, (const struct sockaddr *)&address, sizeof address) != 0)
        return errno == ENODEV
                   ? capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface", "interface %s does not exist", state->interface)
                   : refused(state, "the socket cannot be bound", error);
    if (!config->promiscuous)
        return CAPTURE_OK;
    struct packet_mreq membership = {.mr_ifindex = state->index, .mr_type = PACKET_MR_PROMISC};
    if (setsockopt(state->socket, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof membership) != 0)
        return refused(state, "promiscuous mode cannot be switched on", error);
    return CAPTURE_OK;
}

static struct fanout_group *find_group(const struct capture_config *config) {
    struct fanout_group *group = groups;
    while (group && group->config != config)
        group = group->next;
    return group;
}

/* Under groups_lock. The hash is symmetric: both directions of a flow come to one queue. Fragments are put together by the kernel
 * first, else they would not find the queue of their flow. */
static int join_or_make_group(struct afpacket_state *state, const struct capture_config *config,
                              struct capture_error_info *error) {
    struct fanout_group *group = find_group(config);
    uint32_t kind = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_DEFRAG;
    uint32_t request = group ? group->id | kind << 16 : (kind | PACKET_FANOUT_FLAG_UNIQUEID) << 16;
    if (setsockopt(state->socket, SOL_PACKET, PACKET_FANOUT, &request, sizeof request) != 0)
        return refused(state, "the queues cannot share the interface (PACKET_FANOUT)", error);
    if (!group) {
        socklen_t length = sizeof request;
        if (getsockopt(state->socket, SOL_PACKET, PACKET_FANOUT, &request, &length) != 0)
            return refused(state, "the fan-out group has no number", error);
        group = calloc(1, sizeof *group);
        if (!group)
            return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "workers", "no memory for the queues of interface %s",
                                state->interface);
        *group = (struct fanout_group){.config = config, .id = request & 0xffff, .next = groups};
        groups = group;
    }
    group->members++;
    state->group = group;
    return CAPTURE_OK;
}

static int join_fanout(struct afpacket_state *state, const struct capture_config *config, uint32_t queues,
                       struct capture_error_info *error) {
    if (queues <= 1)
        return CAPTURE_OK;
    pthread_mutex_lock(&groups_lock);
    int code = join_or_make_group(state, config, error);
    pthread_mutex_unlock(&groups_lock);
    return code;
}

static void leave_group(struct fanout_group *group) {
    pthread_mutex_lock(&groups_lock);
    if (--group->members == 0) {
        struct fanout_group **link = &groups;
        while (*link != group)
            link = &(*link)->next;
        *link = group->next;
        free(group);
    }
    pthread_mutex_unlock(&groups_lock);
}

static int admit_frames(const struct afpacket_state *state, const struct capture_config *config,
                        struct capture_error_info *error) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_PKTTYPE)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, capture_config_snaplen(config)),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    if (!state->loopback) {
        program.len = 1;
        program.filter = &code[3];
    }
    if (setsockopt(state->socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
        return refused(state, "the kernel refuses the snaplen filter", error);
    return CAPTURE_OK;
}

static int prepare(struct afpacket_state *state, const struct capture_config *config, uint32_t queue, uint32_t queues,
                   struct capture_error_info *error) {
    int code = open_socket(state, error);
    if (code == CAPTURE_OK)
        code = map_ring(state, config, queues, error);
    if (code == CAPTURE_OK)
        code = choose_timestamps(state, config, error);
    if (code == CAPTURE_OK && queue == 0) {
        code = nic_drops_open(&state->nic, state->index, error);
        state->counts_nic = code == CAPTURE_OK;
    }
    if (code == CAPTURE_OK)
        code = bind_interface(state, config, error);
    if (code == CAPTURE_OK)
        code = join_fanout(state, config, queues, error);
    if (code == CAPTURE_OK)
        code = interface_busy_poll(state->socket, state->interface, config->busy_poll_us, error);
    if (code == CAPTURE_OK)
        code = admit_frames(state, config, error);
    return code;
}

int afpacket_open(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out,
                  struct capture_error_info *error) {
    struct afpacket_state *state = calloc(1, sizeof *state);
    if (!state)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    pthread_mutex_init(&state->lock, NULL);
    state->busy_poll_us = config->busy_poll_us;
    snprintf(state->interface, sizeof state->interface, "%s", config->interface);
    int code = prepare(state, config, queue, queues, error);
    if (code != CAPTURE_OK) {
        afpacket_close(state);
        return code;
    }
    *out = state;
    return CAPTURE_OK;
}

void afpacket_close(void *opaque) {
    struct afpacket_state *state = opaque;
    if (state->ring)
        munmap(state->ring, (size_t)state->block_size * state->block_count);
    if (state->socket >= 0)
        close(state->socket);
    if (state->group)
        leave_group(state->group);
    if (state->counts_nic)
        nic_drops_close(&state->nic);
    pthread_mutex_destroy(&state->lock);
    free(state);
}
