/* SPDX-License-Identifier: Apache-2.0 */
/* Making, opening, closing and counting sources; adding and removing them while the capture runs. */
#include "engine/source.h"

#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "engine/capture.h"
#include "error.h"

enum { CONTROL_WAIT_US = 1000 };

static int make_source(struct capture *capture, const char *interface, struct source **out, struct capture_error_info *error) {
    struct capture_error_info refusal = {0};
    struct capture_config config = capture->config;
    config.interface = interface;
    config.interfaces = NULL;
    config.interface_count = 0;
    const struct capture_backend_ops *ops = backend_select(&config, &refusal);
    if (!ops) {
        if (error)
            *error = refusal;
        return refusal.code;
    }
    struct source *source = calloc(1, sizeof(*source) + capture->worker_count * sizeof(source->queues[0]));
    char *name = interface ? strdup(interface) : NULL;
    if (!source || (interface && !name)) {
        free(source);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    }
    config.interface = name;
    source->config = config;
    source->ops = ops;
    source->number = capture->source_numbers++; /* after 65,535 others a number comes again: no flow is that old */
    source->state = CAPTURE_INTERFACE_DOWN;
    for (uint32_t i = 0; i < capture->worker_count; i++)
        source->queues[i].source = source;
    *out = source;
    return CAPTURE_OK;
}

static void free_source(struct source *source) {
    free((char *)source->config.interface);
    free(source);
}

int sources_init(struct capture *capture, struct capture_error_info *error) {
    const struct capture_config *config = &capture->config;
    uint32_t count = config->interface_count ? config->interface_count : 1;
    int result = CAPTURE_OK;
    for (uint32_t i = 0; i < count && result == CAPTURE_OK; i++)
        result = make_source(capture, config->interface_count ? config->interfaces[i] : config->interface, &capture->sources[i],
                             error);
    if (result == CAPTURE_OK)
        capture->live = capture->sources[0]->ops->live;
    return result;
}

static void add_backend_stats(struct backend_stats *sum, const struct backend_stats *stats) {
    sum->dropped_nic += stats->dropped_nic;
    sum->dropped_kernel += stats->dropped_kernel;
}

void source_close_queue(struct capture *capture, struct source_queue *queue) {
    struct source *source = queue->source;
    struct backend_stats last = {0};
    pthread_mutex_lock(&capture->stats_mutex);
    if (capture->state != CAPTURE_CREATED)
        source->ops->stats(queue->backend, &last);
    add_backend_stats(&queue->closed, &last);
    if (capture->live && last.in_flight) {
        struct worker_counters *counters = &capture->workers[queue - source->queues].counters;
        counter_add(&queue->read, last.in_flight);
        counter_add(&counters->read, last.in_flight);
        counter_add(&counters->dropped_user, last.in_flight);
    }
    source->ops->close(queue->backend);
    queue->backend = NULL;
    queue->leaving_since_ns = 0;
    pthread_mutex_unlock(&capture->stats_mutex);
    atomic_fetch_sub(&source->open_queues, 1); /* the last touch: whoever removes the source waits for it */
}

static void close_source(struct capture *capture, struct source *source) {
    for (uint32_t i = 0; i < capture->worker_count; i++)
        if (source->queues[i].backend)
            source_close_queue(capture, &source->queues[i]);
}

int source_open(struct capture *capture, struct source *source, struct capture_error_info *error) {
    void *opened[WORKERS_MAX] = {0};
    int result = CAPTURE_OK;
    uint32_t count = capture->worker_count, index = source->config.interface ? if_nametoindex(source->config.interface) : 0;
    uint64_t spell = capture->authority ? authority_spells(capture->authority) : 0; /* before anything can be received */
    for (uint32_t i = 0; i < count && result == CAPTURE_OK; i++)
        if (!source->queues[i].backend)
            result = source->ops->open(&source->config, i, count, &opened[i], error);
    if (result != CAPTURE_OK) {
        for (uint32_t i = 0; i < count; i++)
            if (opened[i])
                source->ops->close(opened[i]);
        return result;
    }
    pthread_mutex_lock(&capture->stats_mutex);
    for (uint32_t i = 0; i < count; i++) {
        if (!opened[i])
            continue;
        source->queues[i].backend = opened[i];
        source->queues[i].spell = spell;
        source->queues[i].stale_end = source->queues[i].stale_since_ns = 0;
        atomic_fetch_add(&source->open_queues, 1);
    }
    if (source->index && source->index != index) /* another interface of the same name: other flows */
        source->number = capture->source_numbers++;
    source->index = index;
    source->state = CAPTURE_INTERFACE_UP;
    source->error[0] = '\0';
    source->look_mono_ns = clock_ns(CLOCK_MONOTONIC) + SOURCE_LOOK_UP_NS;
    pthread_mutex_unlock(&capture->stats_mutex);
    atomic_fetch_add(&capture->sources_version, 1);
    return CAPTURE_OK;
}

int sources_open(struct capture *capture, struct capture_error_info *error) {
    int result = CAPTURE_OK;
    for (int i = 0; i < CAPTURE_INTERFACES_MAX && result == CAPTURE_OK; i++)
        if (capture->sources[i])
            result = source_open(capture, capture->sources[i], error);
    if (result != CAPTURE_OK && capture->live)
        sources_close(capture);
    return result;
}

void sources_close(struct capture *capture) {
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++)
        if (capture->sources[i])
            close_source(capture, capture->sources[i]);
}

void sources_free(struct capture *capture) {
    sources_close(capture);
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++)
        if (capture->sources[i])
            free_source(capture->sources[i]);
}

/* ---- counting */

/* What one source has received; *usage: of the fullest ring. */
static struct backend_stats sum_queues(const struct capture *capture, const struct source *source, uint64_t *read) {
    struct backend_stats sum = {0};
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        const struct source_queue *queue = &source->queues[i];
        struct backend_stats stats = {0};
        if (queue->backend)
            source->ops->stats(queue->backend, &stats);
        add_backend_stats(&sum, &stats);
        add_backend_stats(&sum, &queue->closed);
        sum.in_flight += stats.in_flight;
        if (stats.ring_usage > sum.ring_usage)
            sum.ring_usage = stats.ring_usage;
        if (read)
            *read += counter_get(&queue->read);
    }
    return sum;
}

void sources_add_stats(struct capture *capture, struct capture_stats *out) {
    struct backend_stats sum = capture->removed;
    for (int i = 0; i < CAPTURE_INTERFACES_MAX; i++) {
        if (!capture->sources[i])
            continue;
        struct backend_stats stats = sum_queues(capture, capture->sources[i], NULL);
        add_backend_stats(&sum, &stats);
        out->in_flight += stats.in_flight;
        if (stats.ring_usage > out->ring_usage)
            out->ring_usage = stats.ring_usage;
    }
    out->dropped_nic += sum.dropped_nic;
    out->dropped_kernel += sum.dropped_kernel;
}

static void describe_source(const struct capture *capture, const struct source *source, struct capture_interface_info *out) {
    uint64_t read = 0;
    struct backend_stats stats = sum_queues(capture, source, &read);
    *out = (struct capture_interface_info){
        .interface_index = source->index,
        .state = source->state,
        .received = read + stats.in_flight + stats.dropped_nic + stats.dropped_kernel,
        .dropped_nic = stats.dropped_nic,
        .dropped_kernel = stats.dropped_kernel,
    };
    snprintf(out->name, sizeof(out->name), "%s", source->config.interface);
    snprintf(out->backend, sizeof(out->backend), "%s", source->ops->name);
    snprintf(out->error, sizeof(out->error), "%s", source->error);
    if (source->queues[0].backend && source->ops->describe)
        source->ops->describe(source->queues[0].backend, out->detail, sizeof(out->detail));
}

int capture_get_interfaces(capture_t *capture, struct capture_interface_info *out, uint32_t capacity) {
    uint32_t count = 0;
    pthread_mutex_lock(&capture->stats_mutex);
    for (int i = 0; capture->live && i < CAPTURE_INTERFACES_MAX; i++) {
        if (!capture->sources[i])
            continue;
        if (count < capacity)
            describe_source(capture, capture->sources[i], &out[count]);
        count++;
    }
    pthread_mutex_unlock(&capture->stats_mutex);
    return (int)count;
}

int capture_describe_backend(capture_t *capture, char *text, uint32_t size) {
    if (size == 0)
        return CAPTURE_ERR_SPACE;
    text[0] = '\0';
    pthread_mutex_lock(&capture->stats_mutex);
    const struct source *first = NULL; /* the others: capture_get_interfaces; the other queues are opened alike */
    for (int i = 0; !first && i < CAPTURE_INTERFACES_MAX; i++)
        first = capture->sources[i];
    if (counter_get(&capture->start_mono_ns) && first && first->queues[0].backend && first->ops->describe)
        first->ops->describe(first->queues[0].backend, text, size);
    pthread_mutex_unlock(&capture->stats_mutex);
    return CAPTURE_OK;
}

/* ---- adding and removing while it runs */

static int check_running(const struct capture *capture, struct capture_error_info *error) {
    if (!capture->live)
        return capture_fail(error, CAPTURE_ERR_STATE, "interface", "the capture reads files: it has no interfaces to change");
    if (capture->state == CAPTURE_CREATED)
        return capture_fail(error, CAPTURE_ERR_STATE, "interface", "the capture has not been started");
    if (capture->state == CAPTURE_STOPPED || atomic_load(&capture->stop_requested) || atomic_load(&capture->failed))
        return capture_fail(error, CAPTURE_ERR_STATE, "interface", "the capture has ended");
    return CAPTURE_OK;
}

/* The place of an interface in the list, or -1; *free_place: the first that is free, or -1; *alive: how many are not gone. */
static int find_source(const struct capture *capture, const char *interface, int *free_place, uint32_t *alive) {
    int found = -1;
    *free_place = -1;
    *alive = 0;
    for (int i = CAPTURE_INTERFACES_MAX - 1; i >= 0; i--) {
        const struct source *source = capture->sources[i];
        if (!source)
            *free_place = i;
        else if (strcmp(source->config.interface, interface) == 0)
            found = i;
        *alive += source && source->state != CAPTURE_INTERFACE_GONE;
    }
    return found;
}

static void raise_change(struct capture *capture, uint32_t type, const char *interface, const char *what) {
    struct capture_event event = {.type = type};
    snprintf(event.interface, sizeof(event.interface), "%s", interface);
    event_log_raise(&capture->events, &event, "interface %.200s %s", interface, what);
}

static int add_source(struct capture *capture, const char *interface, struct capture_error_info *error) {
    int place;
    uint32_t alive;
    if (find_source(capture, interface, &place, &alive) >= 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface", "interface %.64s is captured already", interface);
    if (place < 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                            "interface %.64s: the capture has %d interfaces, the most there may be", interface,
                            CAPTURE_INTERFACES_MAX);
    struct source *source;
    int result = clock_source_admit(&capture->monitor.clock, interface, error);
    if (result == CAPTURE_OK)
        result = make_source(capture, interface, &source, error);
    if (result != CAPTURE_OK)
        return result;
    result = source_open(capture, source, error);
    if (result != CAPTURE_OK) {
        free_source(source);
        return result;
    }
    pthread_mutex_lock(&capture->stats_mutex);
    capture->sources[place] = source;
    pthread_mutex_unlock(&capture->stats_mutex);
    atomic_fetch_add(&capture->sources_version, 1);
    raise_change(capture, CAPTURE_EVENT_INTERFACE_ADDED, interface, "was added");
    return CAPTURE_OK;
}

int capture_add_interface(capture_t *capture, const char *interface, struct capture_error_info *error) {
    pthread_mutex_lock(&capture->control_mutex);
    int result = check_running(capture, error);
    if (result == CAPTURE_OK)
        result = capture_config_check_interface(&capture->config, interface, error);
    if (result == CAPTURE_OK && capture->authority)
        result = authority_take_interface(capture->authority, interface, error);
    if (result == CAPTURE_OK)
        result = add_source(capture, interface, error);
    pthread_mutex_unlock(&capture->control_mutex);
    return result;
}

/* Until every worker has drained and closed its queue. Inline, the packet path is moved here unless a poll moves it. False: the
 * capture ended meanwhile, and the source with it. */
static bool await_closed(struct capture *capture, struct source *source) {
    while (atomic_load(&source->open_queues) > 0) {
        struct worker *worker = &capture->workers[0];
        if (atomic_load(&capture->stop_requested) || atomic_load(&capture->finished))
            return false;
        if (!capture->threaded && pthread_mutex_trylock(&worker->owner) == 0) {
            worker_turn(worker, 0);
            pthread_mutex_unlock(&worker->owner);
        }
        usleep(CONTROL_WAIT_US);
    }
    return true;
}

static int remove_source(struct capture *capture, const char *interface, struct capture_error_info *error) {
    int free_place;
    uint32_t alive;
    int place = find_source(capture, interface, &free_place, &alive);
    if (place < 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface", "interface %.64s is not captured", interface);
    struct source *source = capture->sources[place];
    if (alive - (source->state != CAPTURE_INTERFACE_GONE) == 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                            "interface %.64s is the last one: stop the capture, or add another first", interface);
    atomic_store(&source->removed, true);
    atomic_fetch_add(&capture->sources_version, 1);
    if (!await_closed(capture, source))
        return capture_fail(error, CAPTURE_ERR_STATE, "interface", "the capture has ended");
    pthread_mutex_lock(&capture->stats_mutex);
    struct backend_stats last = sum_queues(capture, source, NULL);
    add_backend_stats(&capture->removed, &last);
    capture->sources[place] = NULL;
    pthread_mutex_unlock(&capture->stats_mutex);
    free_source(source);
    raise_change(capture, CAPTURE_EVENT_INTERFACE_REMOVED, interface, "was removed");
    return CAPTURE_OK;
}

int capture_remove_interface(capture_t *capture, const char *interface, struct capture_error_info *error) {
    pthread_mutex_lock(&capture->control_mutex);
    int result = check_running(capture, error);
    if (result == CAPTURE_OK && !interface)
        result = capture_fail(error, CAPTURE_ERR_INVALID, "interface", "interface is missing");
    if (result == CAPTURE_OK)
        result = remove_source(capture, interface, error);
    pthread_mutex_unlock(&capture->control_mutex);
    return result;
}
