/* SPDX-License-Identifier: Apache-2.0 */
/* The one way errors are made: code, field, sentence. */
#ifndef JARVIS_ERROR_H
#define JARVIS_ERROR_H

#include "jarvis_capture.h"

/* Fills *error (NULL allowed) and returns code, so that `return capture_fail(...)` reads as one step. */
__attribute__((format(printf, 4, 5))) int capture_fail(struct capture_error_info *error, int code, const char *field, const char *format, ...);

#endif
