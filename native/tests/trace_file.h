/* SPDX-License-Identifier: Apache-2.0 */
/* A capture file of many small flows, in memory, and a capture on it. */
#ifndef JARVIS_TEST_TRACE_FILE_H
#define JARVIS_TEST_TRACE_FILE_H

#include <sys/mman.h>
#include <unistd.h>

#include "balance.h"
#include "check.h"
#include "frames.h"
#include "jarvis_capture.h"

struct trace_file {
    int file;
    char path[64];
};

static inline void trace_write(const struct trace_file *trace, const void *bytes, size_t length) {
    CHECK_EQUAL(length, write(trace->file, bytes, length));
}

static inline struct trace_file trace_new(uint32_t link_type) {
    struct trace_file trace = {.file = memfd_create("trace", MFD_CLOEXEC)};
    CHECK(trace.file >= 0);
    snprintf(trace.path, sizeof(trace.path), "/proc/self/fd/%d", trace.file);
    uint32_t header[6] = {0xa1b23c4d, 2 | 4 << 16, 0, 0, 262144, link_type};
    trace_write(&trace, header, sizeof(header));
    return trace;
}

static inline void trace_packet(const struct trace_file *trace, uint64_t ts_ns, const struct bytes *frame) {
    uint32_t header[4] = {(uint32_t)(ts_ns / SECOND), (uint32_t)(ts_ns % SECOND), frame->length, frame->length};
    struct bytes record = {0};
    add_bytes(&record, header, sizeof(header));
    add_bytes(&record, frame->data, frame->length);
    trace_write(trace, record.data, record.length);
}

/* packets UDP packets of 28 + flow % 100 octets, round robin over the flows, 1 ms apart, every second round backwards. */
static inline struct trace_file trace_of_flows(uint32_t flows, uint32_t packets) {
    struct trace_file trace = trace_new(101);
    for (uint32_t i = 0; i < packets; i++) {
        uint32_t flow = i % flows, back = i / flows & 1, payload = flow % 100;
        struct bytes frame = {0};
        add_ipv4(&frame, back ? 0xac100001 : 0x0a000000 + flow, back ? 0x0a000000 + flow : 0xac100001, 17, 8 + payload, i, 0);
        add_udp(&frame, back ? 53 : 4000, back ? 4000 : 53, payload);
        trace_packet(&trace, 1700000000ull * SECOND + i * 1000000ull, &frame);
    }
    return trace;
}

static inline void trace_forget(struct trace_file *trace) {
    close(trace->file);
}

struct capture_options {
    uint32_t workers, log_records, packet_ring_mb, tunnel, sampling, sampling_interval, statistics;
    uint64_t idle_s, active_s, hash_seed;
    const char *filter;
    bool without_flows, mirror_timestamps;
};

static inline capture_t *capture_of(const struct trace_file *trace, struct capture_options options) {
    const char *files[] = {trace->path};
    struct capture_error_info error = {0};
    struct capture_config config = {.struct_size = sizeof(config),
                                    .files = files,
                                    .file_count = 1,
                                    .workers = options.workers,
                                    .filter = options.filter,
                                    .packet_ring_mb = options.packet_ring_mb};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config),
                                              .max_flows = 65536,
                                              .log_records = options.log_records,
                                              .tunnel = options.tunnel,
                                              .sampling = options.sampling,
                                              .sampling_interval = options.sampling_interval,
                                              .hash_seed = options.hash_seed,
                                              .mirror_timestamps = options.mirror_timestamps,
                                              .statistics = options.statistics,
                                              .idle_timeout_ns = options.idle_s * SECOND,
                                              .active_timeout_ns = options.active_s * SECOND};
    capture_t *capture;
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK && !options.without_flows)
        code = capture_flow_enable(capture, &flow_config, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

static inline capture_flow_reader_t *reader_of(capture_t *capture, struct capture_reader_config config) {
    struct capture_error_info error = {0};
    capture_flow_reader_t *reader;
    config.struct_size = sizeof(config);
    int code = capture_reader_open(capture, &config, &reader, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return reader;
}

static inline void start(capture_t *capture) {
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, &error));
}

#endif
