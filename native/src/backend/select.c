/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a configuration gets, and why not another. */
#include "backend.h"
#include "config.h"
#include "error.h"
#include "filter.h"
#include "interface.h"
#include "registry.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* "auto, afpacket and pcap": what may be asked for, for an interface or in general. */
static void list_names(bool live_only, char *text, size_t size) {
    const struct backend_row *row;
    const char *last = NULL;
    size_t used = (size_t)snprintf(text, size, "auto");
    for (uint32_t at = 0; (row = registry_row(at)); at++) {
        if (!row->ops || (live_only && !row->ops->live))
            continue;
        if (last && used < size)
            used += (size_t)snprintf(text + used, size - used, ", %s", last);
        last = row->ops->name;
    }
    if (last && used < size)
        snprintf(text + used, size - used, " and %s", last);
}

/* Not usable: which of the reasons that have a code of their own is it? */
static int live_failure(void) {
    int probe = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (probe >= 0)
        close(probe);
    return probe < 0 && (errno == EPERM || errno == EACCES) ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_BACKEND;
}

/* Whose names may it be? An interface's name is for every backend; "zc:eth0" cannot be one (no name of the kernel's holds a
 * colon), so it is for backends that have names of their own. */
static bool judge_name(const struct capture_config *config, const struct capture_backend_ops *wanted, bool *device_name,
                       struct capture_error_info *error) {
    int hardware;
    *device_name = wanted && wanted->device_names;
    if (*device_name || strcmp(config->interface, "any") == 0 ||
        interface_look(config->interface, &hardware, error) == CAPTURE_OK)
        return true;
    *device_name = !wanted && strchr(config->interface, ':');
    return *device_name;
}

static bool claims_names(const struct capture_backend_ops *ops) {
    return ops->device_names && ops->automatic;
}

/* What the fields of a valid configuration must not ask of this backend. */
static int check_fit(const struct capture_config *config, const struct capture_backend_ops *ops,
                     struct capture_error_info *error) {
    if (config->workers > 1 && !ops->many_queues)
        return capture_fail(error, CAPTURE_ERR_INVALID, "workers", "workers is %u: with backend %s accepted are 0 and 1",
                            config->workers, ops->name);
    if (config->busy_poll_us && !ops->busy_polls)
        return capture_fail(error, CAPTURE_ERR_INVALID, "busy_poll_us",
                            "busy_poll_us is %u: with backend %s accepted is 0 (afpacket and xdp: to 1000)", config->busy_poll_us,
                            ops->name);
    return ops->check ? ops->check(config, error) : CAPTURE_OK;
}

/* Every backend's reason why "auto" passed it by, or the wanted one's. */
struct refusals {
    char reasons[240];
    struct capture_error_info misfit; /* code 0: none; else it was the configuration, not the interface */
};

static bool suits(const struct capture_config *config, const struct capture_backend_ops *ops, bool by_name,
                  struct refusals *refusals) {
    char reason[160];
    struct capture_error_info misfit = {0};
    bool usable = ops->probe(config->interface, reason, sizeof reason) &&
                  (by_name || !ops->automatic || ops->automatic(config->interface, reason, sizeof reason));
    if (usable && check_fit(config, ops, &misfit) == CAPTURE_OK)
        return true;
    if (usable)
        refusals->misfit = misfit;
    size_t used = strlen(refusals->reasons);
    snprintf(refusals->reasons + used, sizeof refusals->reasons - used, "%s%s: %s", used ? "; " : "", ops->name,
             usable ? misfit.message : reason);
    return false;
}

static const struct capture_backend_ops *
for_interface(const struct capture_config *config, const struct capture_backend_ops *wanted, struct capture_error_info *error) {
    bool device_name;
    if (!judge_name(config, wanted, &device_name, error))
        return NULL;
    struct refusals refusals = {0};
    const struct backend_row *row;
    for (uint32_t at = 0; (row = registry_row(at)); at++) {
        const struct capture_backend_ops *ops = row->ops;
        if (!ops || !ops->live || (wanted ? ops != wanted : device_name ? !claims_names(ops) : ops->rank == 0))
            continue;
        if (suits(config, ops, wanted != NULL, &refusals))
            return ops;
    }
    if (refusals.misfit.code != CAPTURE_OK)
        *error = refusals.misfit;
    else
        capture_fail(error, live_failure(), wanted ? "backend" : "interface", "interface %.64s cannot be captured from: %s",
                     config->interface, refusals.reasons);
    return NULL;
}

/* Files have one backend. */
static const struct capture_backend_ops *for_files(const struct capture_config *config, struct capture_error_info *error) {
    return check_fit(config, &file_backend, error) == CAPTURE_OK ? &file_backend : NULL;
}

/* The backend that is asked for by name. False with *error filled: it is unknown, not here, or not for what is captured from. */
static bool named(const struct capture_config *config, const struct capture_backend_ops **out, struct capture_error_info *error) {
    bool live = config->interface != NULL;
    char accepted[160];
    *out = NULL;
    if (!config->backend || strcmp(config->backend, "auto") == 0)
        return true;
    const struct backend_row *row = registry_find(config->backend);
    if (!row) {
        list_names(false, accepted, sizeof accepted);
        capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is \"%.32s\": accepted are %s", config->backend, accepted);
    } else if (!row->ops) {
        capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is %s, which is not here: %s", row->name, row->reason);
    } else if (row->ops->live != live) {
        list_names(true, accepted, sizeof accepted);
        capture_fail(error, CAPTURE_ERR_BACKEND, "backend", "backend is %s: for %s accepted are %s", row->ops->name,
                     live ? "an interface" : "files", live ? accepted : "auto and file");
    } else {
        *out = row->ops;
    }
    return *out != NULL;
}

const struct capture_backend_ops *backend_select(const struct capture_config *config, struct capture_error_info *error) {
    const struct capture_backend_ops *wanted;
    if (!named(config, &wanted, error))
        return NULL;
    return config->interface ? for_interface(config, wanted, error) : for_files(config, error);
}

int capture_select_backend(const struct capture_config *config, char *name, struct capture_error_info *error) {
    struct capture_error_info own = {0};
    int code = capture_config_validate(config, error);
    if (code != CAPTURE_OK)
        return code;
    const struct capture_backend_ops *first = NULL;
    uint32_t count = config->interface_count ? config->interface_count : 1;
    for (uint32_t i = 0; i < count; i++) {
        struct capture_config one = *config;
        one.interface = config->interface_count ? config->interfaces[i] : config->interface;
        const struct capture_backend_ops *ops = backend_select(&one, &own);
        if (!ops) {
            if (error)
                *error = own;
            return own.code;
        }
        if (i == 0)
            first = ops;
        snprintf(name, 16, "%s", i > 0 && (ops != first || strcmp(name, "several") == 0) ? "several" : ops->name);
    }
    return CAPTURE_OK;
}

int capture_check_filter(const char *filter, struct capture_error_info *error) {
    struct frame_filter *compiled;
    int code = frame_filter_compile(filter, 0, &compiled, error);
    frame_filter_free(compiled);
    return code;
}
