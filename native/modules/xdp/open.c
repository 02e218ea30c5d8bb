/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a capture's queue: the program, then a socket for each receive queue that is this queue's share (number i of n has the
 * receive queues i, i + n, i + 2n ...), and only then the frames.
 */
#include "xdp.h"

#include "config.h"
#include "error.h"

#include <errno.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { QUEUE_BYTES_MIN = 2 << 20 };

/* Frame memory of one receive queue: its share of the whole, rounded down to a power of two. */
static uint64_t bytes_of_queue(const struct capture_config *config, uint32_t queues) {
    uint64_t share = ((uint64_t)capture_config_buffer_mb(config) << 20) / queues, bytes = QUEUE_BYTES_MIN;
    while (bytes * 2 <= share)
        bytes *= 2;
    return bytes;
}

static uint32_t frame_size_for(uint32_t mtu) {
    return mtu + XDP_TAGS + XDP_FRAME_HEADROOM <= XDP_FRAME_ROOM / 2 ? XDP_FRAME_ROOM / 2 : XDP_FRAME_ROOM;
}

static int open_sockets(struct xdp_state *state, const struct capture_config *config, const struct xdp_interface *found,
                        uint32_t queue, uint32_t queues, struct capture_error_info *error) {
    state->sockets = calloc((found->queues + queues - 1) / queues, sizeof *state->sockets);
    if (!state->sockets)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    for (uint32_t at = queue; at < found->queues; at += queues) {
        int code = xdp_socket_open(&state->sockets[state->socket_count++], state->interface, at, state->program->native,
                                   frame_size_for(found->mtu), bytes_of_queue(config, found->queues), error);
        if (code == CAPTURE_OK)
            code = interface_busy_poll(state->sockets[state->socket_count - 1].fd, state->interface, config->busy_poll_us, error);
        if (code != CAPTURE_OK)
            return code;
    }
    return CAPTURE_OK;
}

static int admit_frames(struct xdp_state *state, struct capture_error_info *error) {
    for (uint32_t i = 0; i < state->socket_count; i++) {
        int result = xdp_program_admit(state->program, &state->sockets[i]);
        if (result != 0)
            return capture_fail(error, CAPTURE_ERR_IO, "interface", "interface %s: receive queue %u cannot be directed: %s",
                                state->interface, state->sockets[i].queue, strerror(-result));
    }
    return CAPTURE_OK;
}

/* Through a packet socket without a protocol, so that the kernel ends it with the process. */
static int become_promiscuous(const struct xdp_state *state, struct capture_error_info *error) {
    struct packet_mreq request = {.mr_ifindex = state->index, .mr_type = PACKET_MR_PROMISC};
    if (setsockopt(state->examiner, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) == 0)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_IO, "promiscuous", "promiscuous is true: interface %s refuses: %s", state->interface,
                        strerror(errno));
}

static int prepare(struct xdp_state *state, const struct capture_config *config, uint32_t queue, uint32_t queues,
                   struct capture_error_info *error) {
    struct xdp_interface found;
    state->examiner = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (state->examiner < 0)
        return capture_fail(error, errno == EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO, "interface",
                            "interface %s: a packet socket cannot be opened: %s", state->interface,
                            errno == EPERM ? "CAP_NET_RAW is missing" : strerror(errno));
    int code = xdp_interface_examine(state->interface, &found, error);
    if (code != CAPTURE_OK)
        return code;
    if (queues > found.queues || found.queues > XDP_QUEUES_MAX) /* they were changed since the configuration was checked */
        return capture_fail(error, CAPTURE_ERR_INVALID, "workers", "workers is %u: interface %s has %u receive queues", queues,
                            state->interface, found.queues);
    state->index = found.index;
    state->loses_tags = found.takes_tags_off;
    code = xdp_program_join(config, state->index, &state->program, error);
    if (code == CAPTURE_OK)
        code = open_sockets(state, config, &found, queue, queues, error);
    if (code == CAPTURE_OK && queue == 0) {
        code = nic_drops_open(&state->nic, state->index, error);
        state->counts_nic = code == CAPTURE_OK;
    }
    if (code == CAPTURE_OK && queue == 0 && config->promiscuous)
        code = become_promiscuous(state, error);
    return code == CAPTURE_OK ? admit_frames(state, error) : code;
}

int xdp_open(const struct capture_config *config, uint32_t queue, uint32_t queues, void **out, struct capture_error_info *error) {
    struct xdp_state *state = calloc(1, sizeof *state);
    if (!state)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    pthread_mutex_init(&state->lock, NULL);
    state->examiner = -1;
    state->busy_poll_us = config->busy_poll_us;
    state->snaplen = capture_config_snaplen(config);
    snprintf(state->interface, sizeof state->interface, "%s", config->interface);
    int code = prepare(state, config, queue, queues, error);
    if (code != CAPTURE_OK) {
        xdp_close(state);
        return code;
    }
    *out = state;
    return CAPTURE_OK;
}

void xdp_close(void *opaque) {
    struct xdp_state *state = opaque;
    for (uint32_t i = 0; i < state->socket_count; i++) {
        xdp_program_shut(state->program, &state->sockets[i]);
        xdp_program_forget(state->program, &state->sockets[i]);
        xdp_socket_close(&state->sockets[i]);
    }
    free(state->sockets);
    if (state->program)
        xdp_program_leave(state->program);
    if (state->examiner >= 0)
        close(state->examiner);
    if (state->counts_nic)
        nic_drops_close(&state->nic);
    pthread_mutex_destroy(&state->lock);
    free(state);
}
