/* SPDX-License-Identifier: Apache-2.0 */
/* A veth pair jarvis0 - jarvis1 and a loopback in a network namespace of the test's own, frames to send over it, and reading them
 * all. */
#ifndef JARVIS_LIVE_LINK_H
#define JARVIS_LIVE_LINK_H

#include "backend/backend.h"
#include "check.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77, ONE_BLOCK_MS = 250, DRAIN_MS = 150 };

static const struct capture_backend_ops *const live_backends[] = {&afpacket_backend, &pcap_backend};

static inline void run(const char *command) {
    int result = system(command);
    if (result != 0)
        fprintf(stderr, "failed: %s\n", command);
    CHECK_EQUAL(0, result);
}

static inline uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline struct capture_config config_for(const char *interface) {
    return (struct capture_config){.struct_size = sizeof(struct capture_config), .interface = interface};
}

/* Until the interface may send: for a moment after its peer came up the kernel throws away what it is given. */
static inline void await_running(const char *interface) {
    struct ifreq request = {0};
    int examiner = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    for (int turn = 0; turn < 1000 && !(request.ifr_flags & IFF_RUNNING); turn++) {
        usleep(10000);
        CHECK_EQUAL(0, ioctl(examiner, SIOCGIFFLAGS, &request));
    }
    close(examiner);
    usleep(10000);
}

static inline void *open_backend(const struct capture_backend_ops *ops, const struct capture_config *config) {
    void *state = NULL;
    struct capture_error_info error = {0};
    int code = ops->open(config, 0, 1, &state, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return state;
}

static inline int sender_on(const char *interface) {
    int sender = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    CHECK(sender >= 0);
    CHECK_EQUAL(0, bind(sender, (const struct sockaddr *)&address, sizeof address));
    return sender;
}

/* An Ethernet frame of `length` bytes with a UDP packet from port `from` to port `to` in it, tagged if tag >= 0. */
static inline size_t make_frame(uint8_t *room, size_t length, uint16_t from, uint16_t to, int tag) {
    memset(room, 0, length);
    memset(room, 0xff, 6);
    room[6] = 2;
    uint8_t *at = room + 12;
    if (tag >= 0) {
        memcpy(at, (const uint8_t[]){0x81, 0, (uint8_t)(tag >> 8), (uint8_t)tag}, 4);
        at += 4;
    }
    size_t ip_length = length - (size_t)(at + 2 - room);
    memcpy(at, (const uint8_t[]){8, 0, 0x45, 0, (uint8_t)(ip_length >> 8), (uint8_t)ip_length, 0, 0, 0, 0, 64, 17}, 12);
    memcpy(at + 14, (const uint8_t[]){10, 9, 0, from < to ? 1 : 2, 10, 9, 0, from < to ? 2 : 1}, 8);
    memcpy(at + 22, (const uint8_t[]){(uint8_t)(from >> 8), (uint8_t)from, (uint8_t)(to >> 8), (uint8_t)to}, 4);
    memcpy(at + 26, (const uint8_t[]){(uint8_t)((ip_length - 20) >> 8), (uint8_t)(ip_length - 20)}, 2);
    return length;
}

static inline void send_frame(int sender, size_t length, uint16_t from, uint16_t to, int tag) {
    static uint8_t room[16384];
    make_frame(room, length, from, to, tag);
    ssize_t sent;
    while ((sent = send(sender, room, length, 0)) < 0 && errno == ENOBUFS)
        usleep(100);
    CHECK_EQUAL(length, sent);
}

/* Reads until nothing came for DRAIN_MS. Calls `look` for each frame. Returns the count. */
static inline uint64_t drain(const struct capture_backend_ops *ops, void *state,
                             void (*look)(const struct frame *frame, void *context), void *context) {
    struct frame_batch batch;
    struct capture_error_info error = {0};
    uint64_t total = 0;
    int count;
    while ((count = ops->read(state, &batch, DRAIN_MS, &error)) > 0) {
        CHECK_EQUAL(count, batch.count);
        for (int i = 0; look && i < count; i++)
            look(&batch.frames[i], context);
        total += (uint64_t)count;
        ops->release(state);
    }
    if (count < 0)
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK_EQUAL(0, count);
    return total;
}

/* The reason this test cannot run here, or NULL with the namespace made. */
static inline const char *enter_namespace(void) {
    if (geteuid() != 0)
        return "not root";
    if (system("ip -V > /dev/null 2>&1") != 0)
        return "iproute2 is missing";
    if (unshare(CLONE_NEWNET) != 0)
        return strerror(errno);
    if (system("ip link add jarvis0 mtu 9000 type veth peer name jarvis1 mtu 9000") != 0)
        return "a veth pair cannot be made";
    run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"); /* no neighbour discovery among the frames that are counted */
    run("ip link add jarvisdown type veth peer name jarvisdown1");
    run("ip link set lo up && ip link set jarvis0 up && ip link set jarvis1 up");
    return NULL;
}

/* First in main: 0, or SKIPPED with the reason printed. */
static inline int prepare_link(void) {
    const char *obstacle = enter_namespace();
    if (!obstacle)
        return 0;
    printf("skipped: live capture needs a network namespace: %s\n", obstacle);
    return SKIPPED;
}

#endif
