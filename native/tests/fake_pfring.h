/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake of ntop's libpfring for the tests of the backend "pfring": the calls of its public API over queues that a test fills,
 * and over capture files. It is not PF_RING; what follows is the fake's own side, which tests reach with dlsym.
 *
 * It behaves as the modules of the real library do where they differ: a packet is lent until the next call (then overwritten and
 * freed); "pcap:" knows neither directions nor clusters, ends a file with -2, waits in recv and polls in seconds, so both end the
 * program here; "zc:" knows neither directions nor clusters; "blind:" cannot wait.
 */
#ifndef JARVIS_FAKE_PFRING_H
#define JARVIS_FAKE_PFRING_H

#include <stdbool.h>
#include <stdint.h>

struct fake_pfring_packet {
    const void *bytes;
    uint32_t caplen, length;
    int64_t seconds, microseconds;
    uint64_t timestamp_ns;
    int32_t if_index;
};

/* What was done with the newest ring of a device. */
struct fake_pfring_view {
    uint32_t caplen, flags;
    int direction, mode, watermark, cluster_type;
    unsigned cluster;
    bool enabled, broken; /* broken: breakloop was called */
    char application[32];
    unsigned open; /* rings of the device that are open */
};

struct fake_pfring {
    /* Puts a packet into the device's rings: into each, or into one of a cluster by the packet's IPv4 addresses. */
    void (*give)(const char *device, const struct fake_pfring_packet *packet);
    void (*set_dropped)(const char *device, uint64_t dropped); /* what the counter says from now on */
    void (*set_answer)(const char *device, int result);        /* of recv, once the ring is empty */
    struct fake_pfring_view (*look)(const char *device);
};

#endif
