/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The export encoder alone: how many flow records a second one core turns into messages.
 *
 *     encoder LIBRARY PROTOCOL PROFILE BIFLOW STATISTICS [SECONDS]
 *
 * LIBRARY is the path of libjarvis_capture.so, PROTOCOL 1 to 4 and PROFILE 1 to 3 as in jarvis_capture_export.h, BIFLOW 0 or 1,
 * STATISTICS their sum. Encodes 4,096 flows (IPv4 and, one in four, IPv6; all with both directions) again and again into blocks
 * of 256 KiB, for SECONDS (2) of CPU time. Prints
 * {"records": N, "flows": N, "messages": N, "octets": of messages, "seconds": CPU time}.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../native/include/jarvis_capture.h"

enum { FLOWS = 4096, BLOCK = 262144, MESSAGES = 1024, ROUNDS_BETWEEN_LOOKS = 64 };

static struct capture_flow flows[FLOWS];
static struct capture_flow_statistics statistics[FLOWS];

static __typeof__(&capture_exporter_create) exporter_create;
static __typeof__(&capture_exporter_write) exporter_write;
static __typeof__(&capture_exporter_get_totals) exporter_get_totals;

static void *find(void *library, const char *name) {
    void *function = library ? dlsym(library, name) : NULL;
    if (!function) {
        fprintf(stderr, "encoder: %s\n", dlerror());
        exit(1);
    }
    return function;
}

static void make_flows(void) {
    uint64_t random = 1;
    for (int i = 0; i < FLOWS; i++) {
        struct capture_flow *flow = &flows[i];
        random = random * 6364136223846793005u + 1442695040888963407u;
        flow->flow_id = random;
        flow->ip_version = i % 4 == 3 ? 6 : 4;
        for (int byte = 0; byte < (flow->ip_version == 4 ? 4 : 16); byte++) {
            flow->src_addr[byte] = (uint8_t)(random >> (byte % 8 * 8));
            flow->dst_addr[byte] = (uint8_t)(~random >> (byte % 8 * 8));
        }
        flow->src_port = (uint16_t)(random >> 40);
        flow->dst_port = 443;
        flow->ip_protocol = 6;
        flow->fwd_packets = 1 + (random >> 56);
        flow->rev_packets = 1 + (random >> 55 & 63);
        flow->fwd_octets = flow->fwd_packets * 100;
        flow->rev_octets = flow->rev_packets * 1400;
        flow->start_time_ns = 1700000000000000000u + random % 1000000000000u;
        flow->end_time_ns = flow->start_time_ns + (random >> 32);
        flow->fwd_tcp_flags = flow->rev_tcp_flags = 0x1b;
        flow->interface_index = 2;
        flow->end_reason = CAPTURE_FLOW_END_DETECTED;
        statistics[i].fwd_payload = statistics[i].rev_payload = (struct capture_spread){1, 1460, 700.5, 10};
        statistics[i].fwd_interval = statistics[i].rev_interval = (struct capture_spread){1000, 9000000, 5e6, 1e5};
    }
}

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Every flow once. Returns the octets of the messages. */
static uint64_t encode(capture_exporter_t *exporter, bool with_statistics) {
    static uint8_t out[BLOCK];
    static struct capture_export_message messages[MESSAGES];
    uint64_t octets = 0;
    for (uint32_t at = 0, taken; at < FLOWS; at += taken) {
        int count = exporter_write(exporter, flows + at, with_statistics ? statistics + at : NULL, FLOWS - at, &taken, out,
                                   sizeof(out), messages, MESSAGES, false);
        if (count > 0)
            octets += messages[count - 1].offset + messages[count - 1].length;
    }
    return octets;
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "usage: encoder LIBRARY PROTOCOL PROFILE BIFLOW STATISTICS [SECONDS]\n");
        return 2;
    }
    struct capture_export_config config = {.struct_size = sizeof(config),
                                           .protocol = (uint32_t)atoi(argv[2]),
                                           .profile = (uint32_t)atoi(argv[3]),
                                           .biflow = atoi(argv[4]) != 0,
                                           .statistics = (uint32_t)atoi(argv[5]),
                                           .system_init_ns = 1700000000000000000u};
    void *library = dlopen(argv[1], RTLD_NOW);
    exporter_create = (__typeof__(exporter_create))find(library, "capture_exporter_create");
    exporter_write = (__typeof__(exporter_write))find(library, "capture_exporter_write");
    exporter_get_totals = (__typeof__(exporter_get_totals))find(library, "capture_exporter_get_totals");
    double limit = argc > 6 ? atof(argv[6]) : 2, began = 0, seconds = 0;
    struct capture_error_info error;
    capture_exporter_t *exporter;
    if (exporter_create(&config, &exporter, &error) != CAPTURE_OK) {
        fprintf(stderr, "encoder: %s\n", error.message);
        return 1;
    }
    make_flows();
    encode(exporter, config.statistics != 0); /* pages are there, and caches warm */
    struct capture_export_totals before, after;
    exporter_get_totals(exporter, &before);
    uint64_t octets = 0;
    for (began = cpu_seconds(); seconds < limit; seconds = cpu_seconds() - began)
        for (int i = 0; i < ROUNDS_BETWEEN_LOOKS; i++)
            octets += encode(exporter, config.statistics != 0);
    exporter_get_totals(exporter, &after);
    printf("{\"records\": %llu, \"flows\": %llu, \"messages\": %llu, \"octets\": %llu, \"seconds\": %.6f}\n",
           (unsigned long long)(after.records - before.records), (unsigned long long)(after.flows_read - before.flows_read),
           (unsigned long long)(after.messages - before.messages), (unsigned long long)octets, seconds);
    return 0;
}
