/* SPDX-License-Identifier: Apache-2.0 */
/* capture_routes_*: the kernel's routes and an AS database behind one lookup.
 *
 * What lookups read never changes: a refresh builds another and puts it in the old one's place, for which lookups wait a few
 * instructions. Refreshing is one thread's work at a time; the others go on with what there is. */
#include "route/routes.h"

#include "error.h"
#include "route/asn.h"
#include "route/netlink.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LOOK_NS = 1000000000, /* nothing is looked at twice within this time */
    REBUILD_SHARE = 10    /* reading the tables takes at most one part in so many of the time: a full table is large */
};

struct capture_routes {
    atomic_uint holders;
    pthread_rwlock_t lock; /* of what lookups read: kernel, asn */
    struct kernel_routes kernel;
    struct asn_tables asn;

    pthread_mutex_t refreshing; /* of all that follows */
    bool has_kernel;
    struct route_feed feed;
    bool changed;             /* the kernel's tables are to be read again */
    uint64_t looked_ns;       /* monotonic clock */
    uint64_t rebuild_ns;      /* not before this time */
    char *asn_path;           /* or NULL */
    struct asn_file asn_file; /* that was read last, or refused */
};

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Puts `fresh` in the place of what lookups read; the old one is the caller's. */
static void exchange(capture_routes_t *routes, void *place, void *fresh, size_t size) {
    uint8_t old[sizeof(struct kernel_routes)];
    pthread_rwlock_wrlock(&routes->lock);
    memcpy(old, place, size);
    memcpy(place, fresh, size);
    pthread_rwlock_unlock(&routes->lock);
    memcpy(fresh, old, size);
}

_Static_assert(sizeof(struct asn_tables) <= sizeof(struct kernel_routes), "exchange has room for both");

static int read_kernel(capture_routes_t *routes, struct capture_error_info *error) {
    struct kernel_routes fresh = {0};
    bool consistent;
    uint64_t begun_ns = monotonic_ns();
    int code = route_feed_dump(&routes->feed, &fresh, &consistent, error);
    uint64_t ended_ns = monotonic_ns();
    routes->rebuild_ns = ended_ns + (ended_ns - begun_ns) * (REBUILD_SHARE - 1);
    routes->changed = code != CAPTURE_OK || !consistent;
    if (code == CAPTURE_OK)
        exchange(routes, &routes->kernel, &fresh, sizeof fresh);
    kernel_routes_clear(&fresh);
    return code;
}

static int read_asn(capture_routes_t *routes, struct capture_error_info *error) {
    struct asn_tables fresh = {0};
    routes->asn_file = asn_file_at(routes->asn_path);
    int code = asn_load(routes->asn_path, &fresh, error);
    if (code == CAPTURE_OK)
        exchange(routes, &routes->asn, &fresh, sizeof fresh);
    asn_clear(&fresh);
    return code;
}

static int check_config(const struct capture_routes_config *config, struct capture_error_info *error) {
    if (!config || config->struct_size != sizeof *config)
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size", "struct_size is %u: the library was built with %zu",
                            config ? config->struct_size : 0, sizeof *config);
    bool has_database = config->asn_database && config->asn_database[0];
    if (!config->kernel && !has_database)
        return capture_fail(error, CAPTURE_ERR_INVALID, "kernel",
                            "kernel is false and asn_database is not given: there is nothing to look up; give one or both");
    return CAPTURE_OK;
}

static capture_routes_t *make(void) {
    capture_routes_t *routes = calloc(1, sizeof *routes);
    if (!routes)
        return NULL;
    pthread_rwlockattr_t writers_first; /* lookups that never pause must not keep a refresh waiting */
    pthread_rwlockattr_init(&writers_first);
    pthread_rwlockattr_setkind_np(&writers_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&routes->lock, &writers_first);
    pthread_rwlockattr_destroy(&writers_first);
    pthread_mutex_init(&routes->refreshing, NULL);
    atomic_init(&routes->holders, 1);
    routes->feed = (struct route_feed){.notices = -1, .requests = -1};
    return routes;
}

int capture_routes_open(const struct capture_routes_config *config, capture_routes_t **out, struct capture_error_info *error) {
    int code = check_config(config, error);
    if (code != CAPTURE_OK)
        return code;
    capture_routes_t *routes = make();
    bool has_database = config->asn_database && config->asn_database[0];
    if (routes && has_database)
        routes->asn_path = strdup(config->asn_database);
    if (!routes || (has_database && !routes->asn_path)) {
        free(routes);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "there is no memory for routes");
    }
    if (has_database)
        code = read_asn(routes, error);
    routes->has_kernel = config->kernel;
    if (code == CAPTURE_OK && config->kernel)
        code = route_feed_open(&routes->feed, error);
    if (code == CAPTURE_OK && config->kernel)
        code = read_kernel(routes, error);
    routes->looked_ns = monotonic_ns();
    if (code != CAPTURE_OK) {
        capture_routes_release(routes);
        return code;
    }
    *out = routes;
    return CAPTURE_OK;
}

void capture_routes_retain(capture_routes_t *routes) {
    atomic_fetch_add_explicit(&routes->holders, 1, memory_order_relaxed);
}

void capture_routes_release(capture_routes_t *routes) {
    if (!routes || atomic_fetch_sub_explicit(&routes->holders, 1, memory_order_acq_rel) != 1)
        return;
    route_feed_close(&routes->feed);
    kernel_routes_clear(&routes->kernel);
    asn_clear(&routes->asn);
    free(routes->asn_path);
    pthread_mutex_destroy(&routes->refreshing);
    pthread_rwlock_destroy(&routes->lock);
    free(routes);
}

static int refresh(capture_routes_t *routes, struct capture_error_info *error) {
    uint64_t now_ns = monotonic_ns();
    if (now_ns - routes->looked_ns < LOOK_NS)
        return CAPTURE_OK;
    routes->looked_ns = now_ns;
    int code = CAPTURE_OK;
    if (routes->has_kernel) {
        routes->changed |= route_feed_changed(&routes->feed);
        if (routes->changed && now_ns >= routes->rebuild_ns)
            code = read_kernel(routes, error);
    }
    if (routes->asn_path) {
        struct asn_file file = asn_file_at(routes->asn_path);
        if (memcmp(&file, &routes->asn_file, sizeof file) != 0) {
            int asn_code = read_asn(routes, code == CAPTURE_OK ? error : NULL);
            code = code == CAPTURE_OK ? asn_code : code;
        }
    }
    return code;
}

int capture_routes_refresh(capture_routes_t *routes, struct capture_error_info *error) {
    if (pthread_mutex_trylock(&routes->refreshing) != 0)
        return CAPTURE_OK; /* another thread is at it */
    int code = refresh(routes, error);
    pthread_mutex_unlock(&routes->refreshing);
    return code;
}

int capture_routes_lookup(capture_routes_t *routes, const uint8_t *addr, uint8_t ip_version, struct capture_route *out) {
    *out = (struct capture_route){0};
    if (ip_version != 4 && ip_version != 6)
        return CAPTURE_ERR_INVALID;
    int family = ip_version == 6;
    uint8_t length;
    pthread_rwlock_rdlock(&routes->lock);
    uint32_t hop = routes->kernel.tables[family] ? route_table_lookup(routes->kernel.tables[family], addr, &length) : 0;
    if (hop) {
        const struct route_hop *found = &routes->kernel.hops[hop - 1];
        memcpy(out->next_hop, found->address, sizeof out->next_hop);
        out->next_hop_version = (uint8_t)found->version;
        out->interface_index = found->interface;
        out->prefix_length = length;
        out->has_prefix = true;
    }
    out->as_number = routes->asn.tables[family] ? route_table_lookup(routes->asn.tables[family], addr, &length) : 0;
    if (out->as_number && !out->has_prefix) {
        out->prefix_length = length;
        out->has_prefix = true;
    }
    pthread_rwlock_unlock(&routes->lock);
    return CAPTURE_OK;
}
