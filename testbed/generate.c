/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends a bounded number of 64-byte UDP frames through a TX ring, for the live benchmarks and the soak:
 *
 *     generate --interface NAME --frames N [--flows N] [--train N] [--rate N] [--churn N]
 *
 * Data path: frames are written into the slots of a PACKET_TX_RING, many slots to a send(), past the queueing discipline. Each
 * slot begins with a virtio header whose hdr_len is the whole frame: the kernel then copies the 60 bytes into the packet's linear
 * part, where without it it would map the slot's page, and veth would copy that once more. With --train N above 1 a slot holds N
 * datagrams of one flow, which the kernel cuts apart (UDP segmentation, off in the device; the queueing discipline is not passed
 * by then, for only its path cuts): N frames of one flow follow each other, as in any bulk transfer, for the price of one send.
 *
 * Frames go out round robin over the flows. With --churn N the window of flows moves on by N at the end of each turn, so that N
 * flows end and N begin. Flow i is 10.0.0.0 + (i mod 2^24), port 4000 + (i div 2^24), to 172.16.0.1 port 53. Frames are addressed
 * to a MAC address that nobody has, so the receiving host's IP layer drops them at once and the capture alone is measured.
 *
 * Prints {"sent": frames, "seconds": S, "flows": distinct flows}. Exit code 2: an argument; 1: the kernel refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

enum {
    HEADERS = 42,        /* Ethernet, IPv4, UDP */
    PAYLOAD = 18,        /* makes the smallest frame: 60 bytes, and 4 of checksum on a wire */
    SLOT_SINGLE = 128,   /* bytes of ring a frame; a power of two */
    SLOT_TRAIN = 2048,   /* bytes of ring a train */
    BLOCK = 1 << 16,     /* bytes; of whole pages and whole slots */
    SLOTS_SINGLE = 4096, /* 1 MiB: stays in the cache */
    SLOTS_TRAIN = 512,   /* likewise */
    KICK = 256,          /* frames a send(), at most */
    TRAIN_MAX = 64,      /* UDP_MAX_SEGMENTS of older kernels */
    GSO_UDP_L4 = 5,      /* VIRTIO_NET_HDR_GSO_UDP_L4; not in Debian 12's header */
    FLOWS_MAX = 1 << 24, /* at a time: the addresses of 10/8 */
    IDS_MAX = 1 << 28,   /* over all, with ports 4000 to 4015 */
    NS = 1000000000,
};
static const uint64_t FRAMES_MAX = 10000000000u;

struct plan {
    const char *interface;
    uint64_t frames, flows, train, rate, churn; /* rate: frames a second, 0 = as fast as possible */
};

struct ring {
    int socket;
    uint8_t *slots;
    uint32_t count, size, next;
};

static void fail(const char *what) {
    fprintf(stderr, "generate: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
}

static uint32_t folded(uint32_t sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

static void put16(uint8_t *out, uint32_t value) {
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
}

/* One frame, or a train of them with the lengths of the whole: the kernel sets those of the parts. */
static void write_frame(uint8_t *frame, uint32_t flow, uint32_t train) {
    static const uint8_t head[HEADERS] = {
        0x02, 0,    0, 0,  0, 0xfe, 0x02, 0, 0,  0,  0, 0x01, 8,  0,                      /* Ethernet */
        0x45, 0,    0, 0,  0, 0,    0,    0, 64, 17, 0, 0,    10, 0, 0, 0, 172, 16, 0, 1, /* IPv4; source address per flow */
        0x0f, 0xa0, 0, 53, 0, 0,    0,    0,                                              /* UDP 4000 -> 53 */
    };
    uint32_t octets = 8 + PAYLOAD * train, sum = 0;
    memcpy(frame, head, sizeof head);
    put16(frame + 16, 20 + octets);
    frame[27] = (uint8_t)(flow >> 16);
    frame[28] = (uint8_t)(flow >> 8);
    frame[29] = (uint8_t)flow;
    put16(frame + 34, 4000 + (flow >> 24));
    put16(frame + 38, octets);
    for (int i = 14; i < 34; i += 2)
        sum += (uint32_t)frame[i] << 8 | frame[i + 1];
    put16(frame + 24, ~folded(sum));
    if (train > 1) { /* the sum of the pseudo header, which the kernel completes for each part */
        for (sum = 17 + octets, octets = 26; octets < 34; octets += 2)
            sum += (uint32_t)frame[octets] << 8 | frame[octets + 1];
        put16(frame + 40, folded(sum));
    }
}

static struct ring open_ring(const struct plan *plan) {
    int one = 1, version = TPACKET_V2;
    struct ring ring = {.socket = socket(AF_PACKET, SOCK_RAW, 0), /* protocol 0: receives nothing */
                        .count = plan->train > 1 ? SLOTS_TRAIN : SLOTS_SINGLE,
                        .size = plan->train > 1 ? SLOT_TRAIN : SLOT_SINGLE};
    struct tpacket_req request = {.tp_block_size = BLOCK,
                                  .tp_frame_size = ring.size,
                                  .tp_frame_nr = ring.count,
                                  .tp_block_nr = ring.count / (BLOCK / ring.size)};
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(plan->interface)};
    if (ring.socket < 0 || address.sll_ifindex == 0)
        fail(plan->interface);
    if ((plan->train == 1 && setsockopt(ring.socket, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) != 0) ||
        setsockopt(ring.socket, SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
        setsockopt(ring.socket, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) != 0 ||
        setsockopt(ring.socket, SOL_PACKET, PACKET_TX_RING, &request, sizeof request) != 0)
        fail("no TX ring");
    if (bind(ring.socket, (struct sockaddr *)&address, sizeof address) != 0)
        fail(plan->interface);
    ring.slots = mmap(NULL, (size_t)ring.count * ring.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.socket, 0);
    if (ring.slots == MAP_FAILED)
        fail("mapping the TX ring");
    return ring;
}

/* Sends what the slots hold; with `wait` it returns when every slot is free again. */
static void kick(const struct ring *ring, int wait) {
    while (send(ring->socket, NULL, 0, wait ? 0 : MSG_DONTWAIT) < 0)
        if (errno != EINTR && errno != ENOBUFS && errno != EAGAIN)
            fail("sending failed");
}

/* Fills the next slot with `train` frames of a flow; waits for the slot where the kernel still has it. */
static void fill_slot(struct ring *ring, uint32_t flow, uint32_t train) {
    struct tpacket2_hdr *header = (struct tpacket2_hdr *)(ring->slots + (size_t)ring->next * ring->size);
    uint32_t status;
    while ((status = __atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE)) != TP_STATUS_AVAILABLE) {
        if (status == TP_STATUS_WRONG_FORMAT) {
            errno = EINVAL;
            fail("the kernel refused a frame");
        }
        kick(ring, 1);
    }
    uint8_t *data = (uint8_t *)header + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll);
    struct virtio_net_hdr offload = {.hdr_len = HEADERS + PAYLOAD};
    if (train > 1)
        offload = (struct virtio_net_hdr){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                          .gso_type = GSO_UDP_L4,
                                          .hdr_len = (uint16_t)(HEADERS + PAYLOAD * train),
                                          .gso_size = PAYLOAD,
                                          .csum_start = 34,
                                          .csum_offset = 6};
    memcpy(data, &offload, sizeof offload);
    write_frame(data + sizeof offload, flow, train);
    header->tp_len = (uint32_t)(sizeof offload) + HEADERS + PAYLOAD * train;
    __atomic_store_n(&header->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
    ring->next = ring->next + 1 == ring->count ? 0 : ring->next + 1;
}

static void sleep_until(uint64_t due_ns) {
    struct timespec due = {.tv_sec = (time_t)(due_ns / NS), .tv_nsec = (long)(due_ns % NS)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
        ;
}

/* Sends everything and returns the number of distinct flows. */
static uint64_t send_frames(struct ring *ring, const struct plan *plan) {
    uint64_t began = now_ns(), base = 0, position = 0, highest = 0;
    uint32_t waiting = 0; /* frames in slots that no send() was for */
    for (uint64_t sent = 0; sent < plan->frames;) {
        uint32_t train = plan->frames - sent < plan->train ? (uint32_t)(plan->frames - sent) : (uint32_t)plan->train;
        uint64_t flow = (base + position) % IDS_MAX;
        fill_slot(ring, (uint32_t)flow, train);
        highest = base + position > highest ? base + position : highest;
        if (++position == plan->flows) {
            position = 0;
            base += plan->churn;
        }
        sent += train;
        waiting += train;
        if (waiting >= KICK || sent == plan->frames) {
            kick(ring, 0);
            waiting = 0;
            if (plan->rate)
                sleep_until(began + (uint64_t)((double)sent / (double)plan->rate * NS));
        }
    }
    kick(ring, 1);
    return highest + 1 < IDS_MAX ? highest + 1 : IDS_MAX;
}

static uint64_t number(const char *text, const char *name, uint64_t least, uint64_t most) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < least || value > most) {
        fprintf(stderr, "generate: --%s is %s: accepted are %llu to %llu\n", name, text, (unsigned long long)least,
                (unsigned long long)most);
        exit(2);
    }
    return value;
}

static struct plan parse(int count, char **arguments) {
    static const struct option options[] = {{"interface", 1, NULL, 'i'},
                                            {"frames", 1, NULL, 'n'},
                                            {"flows", 1, NULL, 'f'},
                                            {"train", 1, NULL, 't'},
                                            {"rate", 1, NULL, 'r'},
                                            {"churn", 1, NULL, 'c'},
                                            {0}};
    struct plan plan = {.flows = 1, .train = 1};
    for (int option; (option = getopt_long(count, arguments, "", options, NULL)) != -1;) {
        switch (option) {
        case 'i':
            plan.interface = optarg;
            break;
        case 'n':
            plan.frames = number(optarg, "frames", 1, FRAMES_MAX);
            break;
        case 'f':
            plan.flows = number(optarg, "flows", 1, FLOWS_MAX);
            break;
        case 't':
            plan.train = number(optarg, "train", 1, TRAIN_MAX);
            break;
        case 'r':
            plan.rate = number(optarg, "rate", 0, FRAMES_MAX);
            break;
        case 'c':
            plan.churn = number(optarg, "churn", 0, FLOWS_MAX);
            break;
        default:
            exit(2);
        }
    }
    if (optind != count || !plan.interface || !plan.frames) {
        fprintf(stderr, "usage: generate --interface NAME --frames N [--flows N] [--train N] [--rate N] [--churn N]\n");
        exit(2);
    }
    return plan;
}

int main(int count, char **arguments) {
    struct plan plan = parse(count, arguments);
    struct ring ring = open_ring(&plan);
    uint64_t began = now_ns(), flows = send_frames(&ring, &plan);
    printf("{\"sent\": %llu, \"seconds\": %.6f, \"flows\": %llu}\n", (unsigned long long)plan.frames,
           (double)(now_ns() - began) / NS, (unsigned long long)flows);
    return 0;
}
