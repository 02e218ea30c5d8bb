/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of a backend module: a shared object libjarvis_capture_<name>.so beside the library, for a backend that needs a
 * library which not every host has.
 *
 * It exports one symbol, jarvis_capture_module (declared in jarvis_capture.h), and no other: what it needs of the core's helpers
 * (error.c, backend/interface.c ...) it compiles into itself. Whoever loads it has verified its bytes and hands it to
 * capture_add_module. It is never unloaded.
 */
#ifndef JARVIS_MODULE_H
#define JARVIS_MODULE_H

#include "backend/backend.h"

enum { CAPTURE_MODULE_ABI = 4 }; /* of this struct, frame.h, backend.h and struct capture_config together */

struct capture_module {
    uint32_t abi;        /* CAPTURE_MODULE_ABI */
    const char *version; /* JARVIS_VERSION: modules and library are of one release */
    const struct capture_backend_ops *ops;
};

#endif
