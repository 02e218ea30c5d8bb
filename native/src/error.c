/* SPDX-License-Identifier: Apache-2.0 */
/* Error codes as text, error details as one struct, and the library's version. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int capture_fail(struct capture_error_info *error, int code, const char *field, const char *format, ...) {
    if (!error)
        return code;
    error->code = code;
    snprintf(error->field, sizeof error->field, "%s", field ? field : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return code;
}

const char *capture_strerror(int code) {
    switch (code) {
    case CAPTURE_OK:
        return "success";
    case CAPTURE_ERR_INVALID:
        return "an argument is out of range";
    case CAPTURE_ERR_NO_MEMORY:
        return "memory for a ring or table could not be mapped";
    case CAPTURE_ERR_NO_INTERFACE:
        return "no such network interface";
    case CAPTURE_ERR_PERMISSION:
        return "permission denied: CAP_NET_RAW, or read permission on the file, is missing";
    case CAPTURE_ERR_FILTER:
        return "the BPF expression does not compile";
    case CAPTURE_ERR_BACKEND:
        return "the backend is unknown, not built in, or not usable here";
    case CAPTURE_ERR_FILE:
        return "not a capture file, or damaged in its file header";
    case CAPTURE_ERR_STATE:
        return "not allowed in this state";
    case CAPTURE_ERR_IO:
        return "the operating system refused";
    case CAPTURE_ERR_TIMEOUT:
        return "a worker did not answer in time";
    case CAPTURE_ERR_SPACE:
        return "the buffer cannot hold one record";
    case CAPTURE_ERR_TOKEN:
        return "the resume token is malformed or of another capture";
    case CAPTURE_ERR_NOT_FOUND:
        return "no such flow";
    case CAPTURE_ERR_LEASE:
        return "no lease is in force: nothing is given out";
    case CAPTURE_ERR_REFUSED:
        return "the lease or command is refused";
    default:
        return code > 0 ? "success" : "unknown error code";
    }
}

const char *capture_version(void) {
    return JARVIS_VERSION;
}
