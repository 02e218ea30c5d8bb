/* SPDX-License-Identifier: Apache-2.0 */
/* Captures through the public API with the module added: opening, running dry, comparing. The EAL is one for the whole program.
 */
#ifndef JARVIS_DPDK_CAPTURE_H
#define JARVIS_DPDK_CAPTURE_H

#include "balance.h"
#include "check.h"
#include "module.h"

#include <time.h>
#include <unistd.h>

static const char *const eal_args[] = {"--no-huge", "-m", "512", "--no-pci", "--vdev=net_null7"};

static inline struct capture_config dpdk_config(const char *device) {
    return (struct capture_config){
        .struct_size = sizeof(struct capture_config),
        .interface = device,
        .backend = "dpdk",
        .dpdk_eal_args = eal_args,
        .dpdk_eal_arg_count = sizeof eal_args / sizeof *eal_args,
    };
}

static inline void add_module(void) {
    struct capture_error_info error = {0};
    if (capture_add_module(jarvis_capture_module(), &error) != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, error.code);
}

/* A metering capture, started. Timeouts are off: what ends flows is the stop. */
static inline capture_t *begin(const struct capture_config *config) {
    struct capture_error_info error = {0};
    struct capture_flow_config flows = {.struct_size = sizeof flows, .max_flows = 4096, .hash_seed = 1};
    capture_t *capture = NULL;
    int code = capture_init(config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_flow_enable(capture, &flows, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    return capture;
}

/* What opening this configuration says. */
static inline struct capture_error_info refusal(const struct capture_config *config) {
    struct capture_error_info error = {0};
    capture_t *capture = NULL;
    int code = capture_init(config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_start(capture, &error);
    CHECK(code != CAPTURE_OK);
    CHECK_EQUAL(code, error.code);
    capture_destroy(capture);
    return error;
}

static inline void check_refused(const struct capture_config *config, int code, const char *field, const char *part) {
    struct capture_error_info error = refusal(config);
    if (code != error.code || !strstr(error.message, part))
        fprintf(stderr, "%d %s: %s\n", error.code, error.field, error.message);
    CHECK_EQUAL(code, error.code);
    CHECK_TEXT(field, error.field);
    CHECK(strstr(error.message, part) != NULL);
}

/* Polls until `frames` were received, or 5 s have passed; then 50 ms more, for frames that must not come. */
static inline void run_until(capture_t *capture, uint64_t frames) {
    struct capture_stats stats = {0};
    for (int turn = 0; turn < 500 && stats.received < frames; turn++) {
        CHECK(capture_poll(capture, 10) >= 0);
        CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
    }
    CHECK(capture_poll(capture, 50) >= 0);
}

/* Stops gracefully; the counters then, which must add up. */
static inline struct capture_stats finish(capture_t *capture) {
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(0, stats.in_flight);
    return stats;
}

#endif
