/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/frame_sampler.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "engine/capture.h"
#include "error.h"

enum {
    SAMPLES_LEAST = 256,
    SAMPLES_MOST = 65536,
    SAMPLES_DEFAULT = 4096,
    SOURCES_KEPT = 2 * CAPTURE_INTERFACES_MAX, /* those that are gone may have samples left */
    WORD = sizeof(uint64_t),
};

/* ---- the worker's side */

/* The batch's frames that may be taken, by their place in it. Only asked for when one is to be taken. */
static uint32_t find_eligible(struct worker *worker, uint32_t first, uint32_t end, uint8_t *places) {
    uint32_t count = 0;
    for (uint32_t i = first; i < end; i++) {
        const struct frame *frame = &worker->frames.frames[i];
        if (!(frame->flags & FRAME_DAMAGED) && (!worker->filter || frame_filter_match(worker->filter, frame)))
            places[count++] = (uint8_t)i;
    }
    return count;
}

static void take_frame(const struct capture_sampler *sampler, struct worker *worker, uint32_t place, struct sample_pool *pool) {
    struct word_ring *ring = &sampler->lanes[worker->number].ring;
    const struct source *source = worker->queue->source;
    const struct frame *frame = &worker->frames.frames[place];
    bool live = worker->capture->live;
    struct frame_sample sample;
    sample.ts_ns = frame->ts_ns;
    sample.pool = pool->frames;
    sample.taken = ++pool->taken;
    sample.source_number = source->number;
    /* A port of DPDK's is none of the kernel's: it goes by the number that its frames and flows have. */
    sample.input_index = live && source->index ? source->index : frame->interface_index;
    sample.source_index = live ? sample.input_index : 0;
    sample.reserved = 0;
    frame_sample_take(&sample, frame, sampler->header_length);
    uint32_t bytes = FRAME_SAMPLE_HEAD + sample.header_length;
    memset((uint8_t *)&sample + bytes, 0, -bytes % WORD);
    word_ring_store(word_ring_claim(ring), &sample, (bytes + WORD - 1) / WORD);
    word_ring_publish(ring);
}

/* The worker's counts of what the sampler might have taken from the queue in work. */
static struct sample_pool *pool_of(const struct capture_sampler *sampler, struct source_queue *queue) {
    struct sample_pool *pool = &queue->pools[sampler->slot];
    if (pool->sampler != sampler->id)
        *pool = (struct sample_pool){.sampler = sampler->id};
    return pool;
}

/* places: NULL, the frames from `first` on, or those that the array names. Returns how many were taken. */
static uint32_t take_from(const struct capture_sampler *sampler, struct worker *worker, uint32_t first, uint32_t count,
                          const uint8_t *places) {
    struct sampler_lane *lane = &sampler->lanes[worker->number];
    struct sample_pool *pool = pool_of(sampler, worker->queue);
    uint32_t taken = 0;
    for (uint32_t at = 0; at < count; at++, taken++) {
        uint32_t before = sampler_next(&lane->sampler, count - at);
        pool->frames += before;
        at += before;
        if (at == count)
            break;
        pool->frames++;
        take_frame(sampler, worker, places ? places[at] : first + at, pool);
    }
    return taken;
}

void samplers_take(struct worker *worker, uint32_t first, uint32_t end, uint32_t left_out) {
    struct capture *capture = worker->capture;
    uint8_t places[FRAME_BATCH];
    uint32_t count = end - first - left_out, taken = 0;
    bool found = left_out == 0; /* else the places are looked for when they are needed */
    for (uint32_t slot = 0; slot < SAMPLERS_MAX; slot++) {
        const struct capture_sampler *sampler = atomic_load(&capture->samplers[slot]);
        if (!sampler)
            continue;
        if (!found && sampler->lanes[worker->number].sampler.left <= count) {
            find_eligible(worker, first, end, places);
            found = true;
        }
        taken += take_from(sampler, worker, first, count, left_out ? places : NULL);
    }
    counter_add(&worker->counters.sampled, taken);
}

bool samplers_have_room(const struct worker *worker) {
    for (uint32_t slot = 0; slot < SAMPLERS_MAX; slot++) {
        const struct capture_sampler *sampler = atomic_load(&worker->capture->samplers[slot]);
        if (!sampler || !sampler->lossless)
            continue;
        const struct sampler_lane *lane = &sampler->lanes[worker->number];
        uint64_t unread = word_ring_head(&lane->ring) - counter_get(&lane->cursor);
        if (lane->ring.mask + 1 - unread < FRAME_BATCH)
            return false;
    }
    return true;
}

/* ---- the reader's side */

static struct sample_source *source_of(struct capture_sampler *sampler, const struct frame_sample *frame) {
    struct sample_source *oldest = &sampler->sources[0];
    for (uint32_t i = 0; i < SOURCES_KEPT; i++) {
        struct sample_source *source = &sampler->sources[i];
        if (source->seen && source->number == frame->source_number)
            return source;
        if (source->seen < oldest->seen)
            oldest = source;
    }
    void *lanes = oldest->lanes;
    memset(lanes, 0, sampler->capture->worker_count * sizeof(*oldest->lanes));
    *oldest = (struct sample_source){.number = frame->source_number, .index = frame->source_index, .lanes = lanes};
    return oldest;
}

/* Shows one sample and counts it; nothing is counted when the sink has no room for it. */
static bool show(struct capture_sampler *sampler, uint32_t lane, const struct frame_sample *frame, sample_sink *sink,
                 void *context) {
    struct sample_source *source = source_of(sampler, frame);
    uint64_t pool = source->pool + frame->pool - source->lanes[lane].pool;
    uint64_t taken = source->taken + frame->taken - source->lanes[lane].taken;
    bool worded = frame->protocol != SFLOW_NO_PROTOCOL;
    struct read_sample sample = {
        .frame = frame, .sequence = source->sequence + 1, .pool = pool, .drops = taken - (source->read + 1)};
    if (!sink(context, &sample))
        return false;
    source->seen = ++sampler->read;
    source->sequence += worded;
    source->pool = pool;
    source->taken = taken;
    source->read++;
    source->lanes[lane].pool = frame->pool;
    source->lanes[lane].taken = frame->taken;
    return true;
}

/* False: the sink has no room. */
static bool read_lane(struct capture_sampler *sampler, uint32_t number, sample_sink *sink, void *context,
                      struct capture_batch_info *info) {
    struct sampler_lane *lane = &sampler->lanes[number];
    uint64_t at = counter_get(&lane->cursor), head = word_ring_head(&lane->ring);
    struct frame_sample frame;
    bool room = true;
    while (room && at != head) {
        word_ring_load(&frame, word_ring_slot(&lane->ring, at), lane->ring.slot_words);
        uint64_t lost = word_ring_overtaken(&lane->ring, at);
        if (lost) {
            info->lost += lost;
            at += lost;
            head = word_ring_head(&lane->ring);
            continue;
        }
        room = show(sampler, number, &frame, sink, context);
        info->records += room;
        at += room;
    }
    counter_set(&lane->cursor, at);
    return room;
}

static void note_readiness(const struct capture_sampler *sampler, struct capture_batch_info *info) {
    const struct capture *capture = sampler->capture;
    bool finished = atomic_load(&capture->finished); /* before the heads: what is written after is not missed */
    for (uint32_t lane = 0; lane < capture->worker_count; lane++)
        info->more = info->more || counter_get(&sampler->lanes[lane].cursor) != word_ring_head(&sampler->lanes[lane].ring);
    info->end = finished && !info->more;
}

void sampler_read(struct capture_sampler *sampler, sample_sink *sink, void *context, struct capture_batch_info *info) {
    uint32_t lanes = sampler->capture->worker_count;
    memset(info, 0, sizeof(*info));
    capture_flush_released(sampler->capture);
    bool room = true;
    for (uint32_t tried = 0; tried < lanes && room; tried++) {
        uint32_t lane = (sampler->turn + tried) % lanes;
        room = read_lane(sampler, lane, sink, context, info);
        if (!room)
            sampler->turn = lane;
    }
    note_readiness(sampler, info);
}

/* ---- opening and closing */

static int check_config(const struct capture *capture, const struct capture_sampler_config *config,
                        struct capture_error_info *error) {
    uint32_t samples = config->samples;
    if (config->struct_size != sizeof(*config))
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size",
                            "struct_size is %u: accepted is %zu, the size this library was built with", config->struct_size,
                            sizeof(*config));
    if (config->sampling_rate < 1 || config->sampling_rate > SAMPLING_RATE_MOST)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_rate", "sampling_rate is %u: accepted are 1 to %d",
                            config->sampling_rate, SAMPLING_RATE_MOST);
    if (config->header_length && (config->header_length < SAMPLE_HEADER_LEAST || config->header_length > SAMPLE_HEADER_MOST))
        return capture_fail(error, CAPTURE_ERR_INVALID, "header_length",
                            "header_length is %u: accepted are %d to %d, or 0 for %d", config->header_length, SAMPLE_HEADER_LEAST,
                            SAMPLE_HEADER_MOST, SAMPLE_HEADER_DEFAULT);
    if (samples && (samples < SAMPLES_LEAST || samples > SAMPLES_MOST || (samples & (samples - 1))))
        return capture_fail(error, CAPTURE_ERR_INVALID, "samples",
                            "samples is %u: accepted are powers of two, %d to %d, or 0 for %d", samples, SAMPLES_LEAST,
                            SAMPLES_MOST, SAMPLES_DEFAULT);
    if (config->lossless && capture->live)
        return capture_fail(error, CAPTURE_ERR_INVALID, "lossless",
                            "lossless is set: accepted for captures from files only, a live capture cannot wait");
    return CAPTURE_OK;
}

static void free_sampler(struct capture_sampler *sampler) {
    for (uint32_t i = 0; sampler->lanes && i < sampler->capture->worker_count; i++)
        word_ring_destroy(&sampler->lanes[i].ring);
    for (uint32_t i = 0; sampler->sources && i < SOURCES_KEPT; i++)
        free(sampler->sources[i].lanes);
    free(sampler->sources);
    free(sampler->lanes);
    free(sampler);
}

static bool allocate_lanes(struct capture_sampler *sampler, const struct capture_sampler_config *config, uint64_t seed) {
    uint32_t workers = sampler->capture->worker_count;
    uint32_t words = (FRAME_SAMPLE_HEAD + sampler->header_length + WORD - 1) / WORD;
    sampler->lanes = aligned_alloc(_Alignof(struct sampler_lane), workers * sizeof(*sampler->lanes));
    sampler->sources = calloc(SOURCES_KEPT, sizeof(*sampler->sources));
    if (!sampler->lanes || !sampler->sources)
        return false;
    memset(sampler->lanes, 0, workers * sizeof(*sampler->lanes));
    bool ok = true;
    for (uint32_t i = 0; i < workers && ok; i++) {
        sampler_init_random(&sampler->lanes[i].sampler, sampler->sampling_rate, seed + i);
        ok = word_ring_init(&sampler->lanes[i].ring, config->samples ? config->samples : SAMPLES_DEFAULT, words);
    }
    for (uint32_t i = 0; i < SOURCES_KEPT && ok; i++) {
        sampler->sources[i].lanes = calloc(workers, sizeof(*sampler->sources[i].lanes));
        ok = sampler->sources[i].lanes != NULL;
    }
    return ok;
}

/* Gives the sampler to the workers. */
static bool take_slot(struct capture_sampler *sampler) {
    struct capture *capture = sampler->capture;
    bool found = false;
    pthread_mutex_lock(&capture->readers_mutex);
    for (uint32_t slot = 0; slot < SAMPLERS_MAX && !found; slot++) {
        if (atomic_load(&capture->samplers[slot]))
            continue;
        sampler->slot = slot;
        sampler->id = ++capture->sampler_ids;
        atomic_store(&capture->samplers[slot], sampler);
        atomic_fetch_add(&capture->sampler_count, 1);
        found = true;
    }
    pthread_mutex_unlock(&capture->readers_mutex);
    return found;
}

int capture_sampler_open(capture_t *capture, const struct capture_sampler_config *config, capture_sampler_t **out,
                         struct capture_error_info *error) {
    uint64_t seed = config->seed;
    *out = NULL;
    int result = check_config(capture, config, error);
    if (result != CAPTURE_OK)
        return result;
    if (!seed && getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
        return capture_fail(error, CAPTURE_ERR_IO, "", "the operating system gave no random bytes");
    struct capture_sampler *sampler = calloc(1, sizeof(*sampler));
    if (sampler)
        *sampler =
            (struct capture_sampler){.capture = capture,
                                     .sampling_rate = config->sampling_rate,
                                     .header_length = config->header_length ? config->header_length : SAMPLE_HEADER_DEFAULT,
                                     .lossless = config->lossless};
    if (!sampler || !allocate_lanes(sampler, config, seed)) {
        if (sampler)
            free_sampler(sampler);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "samples", "no memory for the samples of %u workers",
                            capture->worker_count);
    }
    if (!take_slot(sampler)) {
        free_sampler(sampler);
        return capture_fail(error, CAPTURE_ERR_STATE, "", "%d samplers are open already, the most there can be", SAMPLERS_MAX);
    }
    *out = sampler;
    return CAPTURE_OK;
}

void capture_sampler_close(capture_sampler_t *sampler) {
    if (!sampler)
        return;
    struct capture *capture = sampler->capture;
    pthread_mutex_lock(&capture->readers_mutex);
    atomic_store(&capture->samplers[sampler->slot], NULL);
    atomic_fetch_sub(&capture->sampler_count, 1);
    pthread_mutex_unlock(&capture->readers_mutex);
    for (uint32_t i = 0; i < capture->worker_count; i++)
        worker_await_turn(&capture->workers[i]);
    free_sampler(sampler);
}
