/* SPDX-License-Identifier: Apache-2.0 */
/* The backends of this build, what each says of an interface, and which one a configuration gets. */
#include "backend.h"
#include "config.h"
#include "error.h"
#include "filter.h"
#include "interface.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const struct capture_backend_ops *const backend_table[] = {&afpacket_backend, &pcap_backend, &file_backend, NULL};

static const struct capture_backend_ops *find(const char *name) {
    for (const struct capture_backend_ops *const *ops = backend_table; *ops; ops++)
        if (strcmp((*ops)->name, name) == 0)
            return *ops;
    return NULL;
}

/* Not usable: which of the reasons that have a code of their own is it? */
static int live_failure(void) {
    int probe = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (probe >= 0)
        close(probe);
    return probe < 0 && (errno == EPERM || errno == EACCES) ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_BACKEND;
}

static const struct capture_backend_ops *check_interface(const struct capture_config *config, struct capture_error_info *error) {
    const struct capture_backend_ops *wanted =
        config->backend && strcmp(config->backend, "auto") != 0 ? find(config->backend) : NULL;
    int hardware;
    if (strcmp(config->interface, "any") != 0 && interface_look(config->interface, &hardware, error) != CAPTURE_OK)
        return NULL;
    char reason[160], reasons[240] = "";
    for (const struct capture_backend_ops *const *ops = backend_table; *ops; ops++) {
        if (!(*ops)->live || (wanted && *ops != wanted))
            continue;
        if ((*ops)->probe(config->interface, reason, sizeof reason))
            return *ops;
        size_t used = strlen(reasons);
        snprintf(reasons + used, sizeof reasons - used, "%s%s: %s", used ? "; " : "", (*ops)->name, reason);
    }
    capture_fail(error, live_failure(), wanted ? "backend" : "interface", "interface %s cannot be captured from: %s",
                 config->interface, reasons);
    return NULL;
}

/* What the fields of a valid configuration must not ask of this backend. */
static const struct capture_backend_ops *check_fit(const struct capture_config *config, const struct capture_backend_ops *ops,
                                                   struct capture_error_info *error) {
    if (config->workers > 1 && ops != &afpacket_backend) {
        capture_fail(error, CAPTURE_ERR_INVALID, "workers", "workers is %u: with backend %s accepted are 0 and 1",
                     config->workers, ops->name);
        return NULL;
    }
    return ops;
}

const struct capture_backend_ops *backend_select(const struct capture_config *config, struct capture_error_info *error) {
    bool automatic = !config->backend || strcmp(config->backend, "auto") == 0;
    const struct capture_backend_ops *wanted = automatic ? NULL : find(config->backend);
    if (!automatic && !wanted) {
        capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is \"%.32s\": accepted are auto, afpacket, pcap and file",
                     config->backend);
        return NULL;
    }
    bool live = config->interface != NULL;
    if (wanted && wanted->live != live) {
        capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is %s: for %s accepted are %s", wanted->name,
                     live ? "an interface" : "files", live ? "auto, afpacket and pcap" : "auto and file");
        return NULL;
    }
    const struct capture_backend_ops *ops = live ? check_interface(config, error) : &file_backend;
    return ops ? check_fit(config, ops, error) : NULL;
}

int capture_get_backends(const char *interface, struct capture_backend_info *out, uint32_t capacity) {
    uint32_t count = 0;
    for (const struct capture_backend_ops *const *ops = backend_table; *ops; ops++, count++) {
        if (!out || count >= capacity)
            continue;
        struct capture_backend_info *info = &out[count];
        *info = (struct capture_backend_info){.live = (*ops)->live};
        snprintf(info->name, sizeof info->name, "%s", (*ops)->name);
        snprintf(info->description, sizeof info->description, "%s", (*ops)->description);
        info->usable = (*ops)->probe(interface, info->reason, sizeof info->reason);
    }
    return (int)count;
}

int capture_select_backend(const struct capture_config *config, char *name, struct capture_error_info *error) {
    struct capture_error_info own = {0};
    int code = capture_config_validate(config, error);
    if (code != CAPTURE_OK)
        return code;
    const struct capture_backend_ops *ops = backend_select(config, &own);
    if (!ops) {
        if (error)
            *error = own;
        return own.code;
    }
    snprintf(name, 16, "%s", ops->name);
    return CAPTURE_OK;
}

int capture_check_filter(const char *filter, struct capture_error_info *error) {
    struct frame_filter *compiled;
    int code = frame_filter_compile(filter, 0, &compiled, error);
    frame_filter_free(compiled);
    return code;
}
