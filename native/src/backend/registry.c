/* SPDX-License-Identifier: Apache-2.0 */
/* The backends of this process: the built-in ones, and those that capture_add_module and capture_note_module bring. */
#include "registry.h"

#include "error.h"
#include "module.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static struct backend_row rows[BACKEND_ROWS_MAX] = {
    {.ops = &afpacket_backend}, {.ops = &pcap_backend}, {.ops = &pfring_backend}, {.ops = &file_backend}};

/* In the order of the table. Rows keep their place in memory, so a reader holds none that moves. */
static _Atomic(const struct backend_row *) order[BACKEND_ROWS_MAX] = {&rows[0], &rows[1], &rows[2], &rows[3]};
static uint32_t used = 4;
static bool closed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of whoever adds */

const struct backend_row *registry_row(uint32_t at) {
    return at < BACKEND_ROWS_MAX ? atomic_load_explicit(&order[at], memory_order_acquire) : NULL;
}

static const char *name_of(const struct backend_row *row) {
    return row->ops ? row->ops->name : row->name;
}

const struct backend_row *registry_find(const char *name) {
    const struct backend_row *row;
    for (uint32_t at = 0; (row = registry_row(at)); at++)
        if (strcmp(name_of(row), name) == 0)
            return row;
    return NULL;
}

void registry_close(void) {
    pthread_mutex_lock(&lock);
    closed = true;
    pthread_mutex_unlock(&lock);
}

/* Backends by rank, then what is only known by name. */
static int place_of(const struct backend_row *row) {
    return row->ops ? row->ops->rank : -1;
}

static int add(const struct backend_row *new, struct capture_error_info *error) {
    if (closed)
        return capture_fail(error, CAPTURE_ERR_STATE, "module",
                            "module %s comes too late: a capture has chosen its backend already", name_of(new));
    if (registry_find(name_of(new)))
        return capture_fail(error, CAPTURE_ERR_INVALID, "module", "module %s: a backend of this name is known already",
                            name_of(new));
    if (used == BACKEND_ROWS_MAX)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "module", "module %s: there are %d backends already", name_of(new),
                            BACKEND_ROWS_MAX);
    rows[used] = *new;
    uint32_t at = used;
    for (; at > 0 && place_of(order[at - 1]) < place_of(new); at--)
        atomic_store_explicit(&order[at], order[at - 1], memory_order_release);
    atomic_store_explicit(&order[at], &rows[used], memory_order_release);
    used++;
    return CAPTURE_OK;
}

static int add_locked(const struct backend_row *row, struct capture_error_info *error) {
    pthread_mutex_lock(&lock);
    int code = add(row, error);
    pthread_mutex_unlock(&lock);
    return code;
}

static bool is_name(const char *name) {
    return name && name[0] && strlen(name) < sizeof((struct backend_row *)0)->name && strcmp(name, "auto") != 0;
}

static bool is_complete(const struct capture_backend_ops *ops) {
    return ops && is_name(ops->name) && ops->description && ops->live && ops->rank >= 0 && ops->probe && ops->open && ops->read &&
           ops->release && ops->stats && ops->close;
}

int capture_add_module(const struct capture_module *module, struct capture_error_info *error) {
    if (!module || module->abi != CAPTURE_MODULE_ABI)
        return capture_fail(error, CAPTURE_ERR_INVALID, "abi", "module has ABI %u: accepted is %d", module ? module->abi : 0,
                            CAPTURE_MODULE_ABI);
    if (!module->version || strcmp(module->version, capture_version()) != 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "version", "module is of version %.32s: accepted is %s",
                            module->version ? module->version : "(none)", capture_version());
    if (!is_complete(module->ops))
        return capture_fail(error, CAPTURE_ERR_INVALID, "ops", "module has no complete table of a live backend");
    return add_locked(&(struct backend_row){.ops = module->ops}, error);
}

int capture_note_module(const char *name, const char *description, const char *reason) {
    struct backend_row row = {0};
    if (!is_name(name) || !description || !reason || !reason[0])
        return CAPTURE_ERR_INVALID;
    snprintf(row.name, sizeof row.name, "%s", name);
    snprintf(row.description, sizeof row.description, "%s", description);
    snprintf(row.reason, sizeof row.reason, "%s", reason);
    return add_locked(&row, NULL);
}

int capture_get_backends(const char *interface, struct capture_backend_info *out, uint32_t capacity) {
    uint32_t count = 0;
    const struct backend_row *row;
    for (; (row = registry_row(count)); count++) {
        if (!out || count >= capacity)
            continue;
        struct capture_backend_info *info = &out[count];
        *info = (struct capture_backend_info){.live = !row->ops || row->ops->live};
        snprintf(info->name, sizeof info->name, "%s", name_of(row));
        snprintf(info->description, sizeof info->description, "%s", row->ops ? row->ops->description : row->description);
        if (row->ops)
            info->usable = row->ops->probe(interface, info->reason, sizeof info->reason);
        else
            snprintf(info->reason, sizeof info->reason, "%s", row->reason);
    }
    return (int)count;
}
