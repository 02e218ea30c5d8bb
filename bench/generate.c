/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends a bounded number of 64-byte UDP frames over a number of flows as fast as it can, for bench/live.py:
 *
 *     generate INTERFACE FRAMES FLOWS
 *
 * Frames go out round robin over the flows, past the queueing discipline. They are addressed to a MAC address that nobody has, so
 * the receiving host's IP layer drops them at once and the capture alone is measured. Prints {"sent": N, "seconds": S}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, FRAME = 60 /* and 4 of checksum on a wire */, FRAMES_MAX = 100000000, FLOWS_MAX = 16777216 };

static uint8_t frames[BATCH][FRAME];

static void prepare_frames(void) {
    static const uint8_t head[42] = {
        0x02, 0,    0,   0,          0, 0xfe,       0x02, 0, 0,  0,  0, 0x01, 8,  0, /* Ethernet */
        0x45, 0,    0,   FRAME - 14, 0, 0,          0,    0, 64, 17, 0, 0,    10, 0,
        0,    0,    172, 16,         0, 1,                   /* IPv4; source address per flow */
        0x0f, 0xa0, 0,   53,         0, FRAME - 34, 0,    0, /* UDP 4000 -> 53 */
    };
    for (int i = 0; i < BATCH; i++)
        memcpy(frames[i], head, sizeof head);
}

static void address_frame(uint8_t *frame, uint32_t flow) {
    uint32_t source = htonl(0x0a000000u | flow), sum = 0;
    memcpy(frame + 26, &source, sizeof source);
    frame[24] = frame[25] = 0;
    for (int i = 14; i < 34; i += 2)
        sum += (uint32_t)frame[i] << 8 | frame[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    frame[24] = (uint8_t)(sum >> 8);
    frame[25] = (uint8_t)sum;
}

static int open_sender(const char *interface) {
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    int bypass = 1, sender = socket(AF_PACKET, SOCK_RAW, 0);
    if (address.sll_ifindex == 0 || sender < 0 || bind(sender, (struct sockaddr *)&address, sizeof address) != 0 ||
        setsockopt(sender, SOL_PACKET, PACKET_QDISC_BYPASS, &bypass, sizeof bypass) != 0) {
        fprintf(stderr, "generate: interface %s cannot be sent to: %s\n", interface, strerror(errno));
        exit(1);
    }
    return sender;
}

/* Sends everything; what the kernel refuses for lack of buffers is tried again. */
static void send_frames(int sender, uint64_t count, uint32_t flows) {
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){.iov_base = frames[i], .iov_len = FRAME};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    uint32_t flow = 0;
    for (uint64_t sent = 0; sent < count;) {
        int batch = count - sent < BATCH ? (int)(count - sent) : BATCH;
        for (int i = 0; i < batch; i++, flow = flow + 1 == flows ? 0 : flow + 1)
            address_frame(frames[i], flow);
        for (int done = 0; done < batch;) {
            int result = sendmmsg(sender, messages + done, (unsigned)(batch - done), 0);
            if (result < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR) {
                fprintf(stderr, "generate: sending failed after %llu frames: %s\n", (unsigned long long)sent, strerror(errno));
                exit(1);
            }
            done += result > 0 ? result : 0;
        }
        sent += (uint64_t)batch;
    }
}

static uint64_t number(const char *text, const char *name, uint64_t most) {
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || value < 1 || value > most) {
        fprintf(stderr, "generate: %s is %s: accepted are 1 to %llu\n", name, text, (unsigned long long)most);
        exit(2);
    }
    return value;
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "usage: generate INTERFACE FRAMES FLOWS\n");
        return 2;
    }
    uint64_t total = number(arguments[2], "FRAMES", FRAMES_MAX);
    uint32_t flows = (uint32_t)number(arguments[3], "FLOWS", FLOWS_MAX);
    int sender = open_sender(arguments[1]);
    struct timespec began, ended;
    prepare_frames();
    clock_gettime(CLOCK_MONOTONIC, &began);
    send_frames(sender, total, flows);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds = (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9;
    printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)total, seconds);
    return 0;
}
