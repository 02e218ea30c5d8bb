/* SPDX-License-Identifier: Apache-2.0 */
/* Making and freeing a capture: configuration copied and checked, files opened, tables allocated. */
#include "engine/capture.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backend/registry.h"
#include "config.h"
#include "engine/flow_config.h"
#include "error.h"

static char *copy_string(const char *text, bool *ok) {
    char *copy = text ? strdup(text) : NULL;
    *ok = *ok && (copy || !text);
    return copy;
}

static const char *const *copy_strings(const char *const *texts, uint32_t *count, bool *ok) {
    const char **copies = *count ? calloc(*count, sizeof(*copies)) : NULL;
    *ok = *ok && (copies || !*count);
    *count = copies ? *count : 0;
    for (uint32_t i = 0; i < *count; i++)
        copies[i] = copy_string(texts[i], ok);
    return copies;
}

static void free_strings(const char *const *texts, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        free((char *)texts[i]);
    free((void *)texts);
}

static bool copy_config(struct capture_config *copy, const struct capture_config *config) {
    bool ok = true;
    *copy = *config;
    copy->interface = copy_string(config->interface, &ok);
    copy->backend = copy_string(config->backend, &ok);
    copy->filter = copy_string(config->filter, &ok);
    copy->interfaces = copy_strings(config->interfaces, &copy->interface_count, &ok);
    copy->files = copy_strings(config->files, &copy->file_count, &ok);
    copy->dpdk_eal_args = copy_strings(config->dpdk_eal_args, &copy->dpdk_eal_arg_count, &ok);
    int32_t *cpus = config->worker_cpus ? calloc(config->worker_cpu_count, sizeof(*cpus)) : NULL;
    copy->worker_cpus = cpus;
    if (cpus)
        memcpy(cpus, config->worker_cpus, config->worker_cpu_count * sizeof(*cpus));
    return ok && (cpus || !config->worker_cpus);
}

static void free_config(struct capture_config *config) {
    free_strings(config->interfaces, config->interface_count);
    free_strings(config->files, config->file_count);
    free_strings(config->dpdk_eal_args, config->dpdk_eal_arg_count);
    free((void *)config->worker_cpus);
    free((char *)config->interface);
    free((char *)config->backend);
    free((char *)config->filter);
}

static int no_memory(struct capture_error_info *error, const char *field, const char *what, uint64_t bytes) {
    return capture_fail(error, CAPTURE_ERR_NO_MEMORY, field, "%llu bytes for the %s could not be mapped",
                        (unsigned long long)bytes, what);
}

static int random_bytes(void *out, size_t size, struct capture_error_info *error) {
    if (getrandom(out, size, 0) != (ssize_t)size)
        return capture_fail(error, CAPTURE_ERR_IO, "", "the operating system gave no random bytes");
    return CAPTURE_OK;
}

/* Waits end by the monotonic clock: the system's may be set in the middle of one. */
static void init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void init_locks(struct capture *capture) {
    event_log_init(&capture->events);
    pthread_mutex_init(&capture->error_mutex, NULL);
    pthread_mutex_init(&capture->control_mutex, NULL);
    pthread_mutex_init(&capture->stats_mutex, NULL);
    pthread_mutex_init(&capture->wake_mutex, NULL);
    init_condition(&capture->wake);
    pthread_mutex_init(&capture->scan_mutex, NULL);
    pthread_mutex_init(&capture->readers_mutex, NULL);
    for (uint32_t i = 0; i < capture->worker_count; i++) {
        struct worker *worker = &capture->workers[i];
        worker->capture = capture;
        worker->number = i;
        worker->look_mono_ns = UINT64_MAX;
        pthread_mutex_init(&worker->owner, NULL);
        pthread_mutex_init(&worker->scan.lock, NULL);
        init_condition(&worker->scan.done);
    }
}

static int init_worker(struct worker *worker, struct capture_error_info *error) {
    const struct capture *capture = worker->capture;
    const struct capture_config *config = &capture->config;
    bool shared = capture->sources[0]->ops->whole_input;
    worker->shard = (struct shard){.number = worker->number, .count = shared ? capture->worker_count : 1};
    for (uint32_t place = 0; place < FRAME_BATCH; place++)
        worker->input.places[place] = (uint8_t)place;
    int result = frame_filter_compile(config->filter, capture_config_snaplen(config), &worker->filter, error);
    if (result == CAPTURE_OK && config->packet_ring_mb) {
        uint32_t share = config->packet_ring_mb / capture->worker_count;
        result = packet_ring_create(share ? share : 1, &worker->ring, error);
    }
    return result;
}

int capture_init(const struct capture_config *config, capture_t **out, struct capture_error_info *error) {
    *out = NULL;
    int result = capture_config_validate(config, error);
    if (result != CAPTURE_OK)
        return result;
    registry_close();
    struct capture *capture = calloc(1, sizeof(*capture));
    uint32_t worker_count = config->workers ? config->workers : 1;
    struct worker *workers = calloc(worker_count, sizeof(*workers));
    if (!capture || !workers) {
        free(capture);
        free(workers);
        return no_memory(error, "workers", "workers", worker_count * sizeof(*workers));
    }
    capture->workers = workers;
    capture->worker_count = worker_count;
    capture->threaded = config->workers > 0;
    init_locks(capture);
    if (!copy_config(&capture->config, config))
        result = no_memory(error, "", "configuration", 0);
    monitor_init(capture);
    if (result == CAPTURE_OK)
        result = random_bytes(capture->epoch, sizeof(capture->epoch), error);
    if (result == CAPTURE_OK)
        result = sources_init(capture, error);
    for (uint32_t i = 0; i < worker_count && result == CAPTURE_OK; i++)
        result = init_worker(&workers[i], error);
    if (result == CAPTURE_OK && !capture->live)
        result = sources_open(capture, error);
    if (result != CAPTURE_OK) {
        capture_destroy(capture);
        return result;
    }
    *out = capture;
    return CAPTURE_OK;
}

static void free_worker(struct worker *worker) {
    flow_table_destroy(&worker->table);
    fragment_cache_destroy(&worker->fragments);
    mirror_clock_destroy(&worker->mirrors);
    record_log_destroy(&worker->log);
    frame_filter_free(worker->filter);
    if (worker->ring)
        packet_ring_destroy(worker->ring);
    pthread_mutex_destroy(&worker->owner);
    pthread_mutex_destroy(&worker->scan.lock);
    pthread_cond_destroy(&worker->scan.done);
}

void capture_destroy(capture_t *capture) {
    if (!capture)
        return;
    if (capture->state == CAPTURE_RUNNING)
        capture_stop(capture, false);
    while (capture->readers)
        capture_reader_close(capture->readers);
    for (uint32_t slot = 0; slot < SAMPLERS_MAX; slot++)
        capture_sampler_close(capture->samplers[slot]);
    sources_free(capture);
    for (uint32_t i = 0; i < capture->worker_count; i++)
        free_worker(&capture->workers[i]);
    free_config(&capture->config);
    monitor_destroy(capture);
    event_log_destroy(&capture->events);
    pthread_mutex_destroy(&capture->error_mutex);
    pthread_mutex_destroy(&capture->control_mutex);
    pthread_mutex_destroy(&capture->stats_mutex);
    pthread_mutex_destroy(&capture->wake_mutex);
    pthread_cond_destroy(&capture->wake);
    pthread_mutex_destroy(&capture->scan_mutex);
    pthread_mutex_destroy(&capture->readers_mutex);
    capture_authority_release(capture->authority);
    free(capture->request);
    free(capture->workers);
    free(capture);
}

static void log_flow(void *log, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    record_log_write(log, flow, statistics);
}

static int enable_worker(struct worker *worker, const struct capture_flow_config *config, struct capture_error_info *error) {
    uint32_t workers = worker->capture->worker_count;
    struct flow_table_config table = {
        .max_flows = (config->max_flows + workers - 1) / workers,
        .idle_timeout_ns = config->idle_timeout_ns,
        .active_timeout_ns = config->active_timeout_ns,
        .hash_seed = config->hash_seed + worker->number,
        .hash_mask = UINT64_MAX,
        .merge_interfaces = config->merge_interfaces,
        .sampling_interval = config->sampling_interval,
        .statistics = config->statistics,
        .emit = log_flow,
        .context = &worker->log,
    };
    sampler_init(&worker->sampler, config->sampling, config->sampling_interval);
    if (!flow_table_init(&worker->table, &table))
        return no_memory(error, "max_flows", "flow table", flow_table_bytes(&worker->table));
    if (!fragment_cache_init(&worker->fragments, config->fragment_slots, table.hash_seed))
        return no_memory(error, "fragment_slots", "fragment cache", fragment_cache_bytes(&worker->fragments));
    if (config->mirror_timestamps && !mirror_clock_init(&worker->mirrors, table.hash_seed))
        return no_memory(error, "mirror_timestamps", "mirrors' clocks", mirror_clock_bytes(&worker->mirrors));
    if (!record_log_init(&worker->log, config->log_records, config->statistics != 0))
        return no_memory(error, "log_records", "record log", record_log_bytes(&worker->log));
    return CAPTURE_OK;
}

static void disable_worker(struct worker *worker) {
    flow_table_destroy(&worker->table);
    fragment_cache_destroy(&worker->fragments);
    mirror_clock_destroy(&worker->mirrors);
    record_log_destroy(&worker->log);
}

/* A frame goes to one worker: its outer and its inner flow would have to be that one's, and so would all that they meet. */
static int check_sharing(struct capture *capture, struct capture_error_info *error) {
    if (capture->flow_config.tunnel == CAPTURE_TUNNEL_BOTH && capture->workers[0].shard.count > 1)
        return capture_fail(error, CAPTURE_ERR_INVALID, "tunnel",
                            "tunnel is 2 (both): with files and %u workers accepted are 0 (outer) and 1 (inner), or one worker",
                            capture->worker_count);
    for (uint32_t i = 0; i < capture->worker_count; i++)
        capture->workers[i].shard.inner = capture->flow_config.tunnel == CAPTURE_TUNNEL_INNER;
    return CAPTURE_OK;
}

int capture_flow_enable(capture_t *capture, const struct capture_flow_config *config, struct capture_error_info *error) {
    if (capture->state != CAPTURE_CREATED)
        return capture_fail(error, CAPTURE_ERR_STATE, "", "flow metering can only be enabled before the capture is started");
    if (capture->metering)
        return capture_fail(error, CAPTURE_ERR_STATE, "", "flow metering is enabled already");
    int result = capture_flow_config_resolve(config, &capture->flow_config, error);
    if (result == CAPTURE_OK)
        result = check_sharing(capture, error);
    if (result == CAPTURE_OK && !capture->flow_config.hash_seed)
        result = random_bytes(&capture->flow_config.hash_seed, sizeof(uint64_t), error);
    for (uint32_t i = 0; i < capture->worker_count && result == CAPTURE_OK; i++)
        result = enable_worker(&capture->workers[i], &capture->flow_config, error);
    if (result != CAPTURE_OK) {
        for (uint32_t i = 0; i < capture->worker_count; i++)
            disable_worker(&capture->workers[i]);
        return result;
    }
    capture->metering = true;
    return CAPTURE_OK;
}
