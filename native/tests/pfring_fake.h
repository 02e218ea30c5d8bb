/* SPDX-License-Identifier: Apache-2.0 */
/* The fake libpfring that CMake puts into the library path of the tests that include this, and packets for it. */
#ifndef JARVIS_PFRING_FAKE_H
#define JARVIS_PFRING_FAKE_H

#include "backend/backend.h"
#include "backend/interface.h"
#include "check.h"
#include "fake_pfring.h"
#include "frames.h"

#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

enum { MS = 1000000 };

static const struct fake_pfring *fake;

static inline uint64_t now_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* First in main: 0, or 77 with the reason printed. */
static inline int find_fake(void) {
    int hardware;
    if (interface_look("lo", &hardware, NULL) != CAPTURE_OK) {
        printf("skipped: interface lo is down\n");
        return 77;
    }
    void *library = dlopen("libpfring.so", RTLD_NOW);
    fake = library ? dlsym(library, "fake_pfring") : NULL;
    if (fake)
        return 0;
    printf("skipped: the library path leads to another libpfring.so: %s\n", library ? "not the fake" : dlerror());
    return 77;
}

static inline struct capture_config config_of(const char *device) {
    return (struct capture_config){.struct_size = sizeof(struct capture_config), .interface = device, .backend = "pfring"};
}

static inline void *open_queue(const struct capture_config *config, uint32_t queue, uint32_t queues) {
    struct capture_error_info error = {0};
    void *state = NULL;
    int code = pfring_backend.open(config, queue, queues, &state, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return state;
}

static inline void *open_device(const char *device) {
    struct capture_config config = config_of(device);
    return open_queue(&config, 0, 1);
}

/* A UDP packet of flow `flow` in an Ethernet frame of 42 + payload bytes; every second flow's comes from the other side. */
static inline void give_packet(const char *device, uint32_t flow, bool back, uint32_t payload, uint64_t ts_ns) {
    struct bytes frame = {0};
    uint32_t near = 0x0a000000 + flow, far = 0xac100001;
    add_ethernet(&frame, 0x0800);
    add_ipv4(&frame, back ? far : near, back ? near : far, 17, 8 + payload, flow, 0);
    add_udp(&frame, back ? 53 : 4000, back ? 4000 : 53, payload);
    fake->give(device, &(struct fake_pfring_packet){.bytes = frame.data,
                                                    .caplen = frame.length,
                                                    .length = frame.length,
                                                    .seconds = (int64_t)(ts_ns / SECOND),
                                                    .microseconds = (int64_t)(ts_ns % SECOND / 1000)});
}

#endif
