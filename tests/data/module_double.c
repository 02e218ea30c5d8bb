/* SPDX-License-Identifier: Apache-2.0 */
/* A backend module as small as can be, for the tests of the loader: it delivers no frame. Built with -DVERSION="...". */
#include "module.h"

#include <stdio.h>

static bool probe(const char *interface, char *reason, size_t size) {
    snprintf(reason, size, "a test's module, for %s", interface ? interface : "nothing");
    return false;
}

static int open_queue(const struct capture_config *config, uint32_t queue, uint32_t queues, void **state,
                      struct capture_error_info *error) {
    (void)config, (void)queue, (void)queues, (void)state, (void)error;
    return CAPTURE_ERR_BACKEND;
}

static int read_batch(void *state, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    (void)state, (void)batch, (void)timeout_ms, (void)error;
    return BACKEND_END;
}

static void release(void *state) {
    (void)state;
}

static void stats(void *state, struct backend_stats *out) {
    (void)state;
    *out = (struct backend_stats){0};
}

static const struct capture_backend_ops ops = {.name = "double",
                                               .description = "a test's module",
                                               .live = true,
                                               .probe = probe,
                                               .open = open_queue,
                                               .read = read_batch,
                                               .release = release,
                                               .stats = stats,
                                               .close = release};
static const struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = VERSION, .ops = &ops};

const struct capture_module *jarvis_capture_module(void) {
    return &module;
}
