/* SPDX-License-Identifier: Apache-2.0 */
/* One worker's packet path: frames -> filter -> decode -> fragments -> table -> expiry -> log, a batch at a time in four passes:
 * decode; canonical key and hash; prefetch of the records; count. Each finds in the cache what the one before asked for. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "decode/decode.h"
#include "engine/capture.h"

enum { SECOND_NS = 1000000000, DRAIN_WAIT_MS = 10, BLOCKED_WAIT_US = 200, AWAIT_TURN_US = 50 };

/* Counts of one batch, added to the counters once. */
struct batch_tally {
    uint64_t metered_octets, tunnelled, tunnelled_octets, filtered, unsampled, non_ip, malformed, ring_dropped, damaged;
};

/* Whether the frames of the batch in work are to be counted as paused: the lease is over, or they may have come before it began.
 * The order matters: whoever sees a new lease's end sees its spell. */
static bool is_paused(struct worker *worker) {
    const struct capture *capture = worker->capture;
    if (!capture_may_look(capture))
        return true;
    if (!capture->authority || !capture->live)
        return false;
    return authority_spells(capture->authority) != worker->queue->spell || sources_are_stale(worker);
}

/* Passes one frame on to the packet ring and the decoder; true when *packet holds an IP packet with its hash. */
static bool take_frame(struct worker *worker, const struct frame *frame, uint64_t packet_id, struct packet *packet,
                       struct batch_tally *tally) {
    if (frame->flags & FRAME_DAMAGED) {
        tally->malformed++;
        tally->damaged++;
        return false;
    }
    if (worker->filter && !frame_filter_match(worker->filter, frame)) {
        tally->filtered++;
        return false;
    }
    if (worker->ring && !packet_ring_push(worker->ring, frame, packet_id))
        tally->ring_dropped++;
    enum decode_result result = decode_frame(frame, packet);
    if (result != DECODE_IP) {
        tally->non_ip += result == DECODE_NON_IP;
        tally->malformed += result == DECODE_MALFORMED;
        return false;
    }
    packet->packet_id = packet_id;
    tally->metered_octets += packet->octets;
    return true;
}

/* A mirrored packet takes its time from the mirror's header where that says one. */
static void take_mirror_time(struct worker *worker, const struct packet *outer, struct packet *inner) {
    struct mirror_stamp stamp;
    if (decode_mirror_stamp(outer, &stamp))
        inner->ts_ns = mirror_clock_time(&worker->mirrors, outer, &stamp);
}

/* Looks into the packet's tunnel, if it is one. With CAPTURE_TUNNEL_INNER what is inside takes its place; with _BOTH it is put
 * behind it, and true returned. */
static bool take_tunnelled(struct worker *worker, struct packet *packet, struct batch_tally *tally) {
    struct packet inner;
    if (!decode_tunnelled(packet, &inner))
        return false;
    if (worker->mirrors.entries)
        take_mirror_time(worker, packet, &inner);
    tally->tunnelled++;
    tally->tunnelled_octets += inner.octets;
    bool both = worker->capture->flow_config.tunnel == CAPTURE_TUNNEL_BOTH;
    if (!both)
        tally->metered_octets += (uint64_t)inner.octets - packet->octets;
    packet[both] = inner;
    return both;
}

/* The key as the table wants it: ports of fragments, the interface, the lower endpoint first. */
static inline void complete_key(struct worker *worker, struct packet *packet) {
    if (__builtin_expect(packet->fragment != PACKET_WHOLE, 0))
        fragment_cache_resolve(&worker->fragments, packet);
    if (__builtin_expect(worker->key_interface != 0, 0))
        packet->key.interface = worker->key_interface;
    packet_canonicalise(packet);
}

/* Asks for the bucket of a packet whose key is complete. */
static inline void ask_for_flow(struct worker *worker, struct packet *packet) {
    packet->hash = flow_table_hash(&worker->table, &packet->key);
    flow_table_prefetch_bucket(&worker->table, packet->hash);
}

/* First pass: decode the frames from `first` to before `end`. Returns the number of packets, an inner one counted by itself. */
static uint32_t decode_frames(struct worker *worker, uint32_t first, uint32_t end, struct batch_tally *tally) {
    bool tunnels = worker->capture->flow_config.tunnel != CAPTURE_TUNNEL_OUTER;
    uint32_t packets = 0;
    for (uint32_t i = first; i < end; i++) {
        const struct frame *frame = &worker->frames.frames[i];
        struct packet *packet = &worker->packets[packets];
        if (!take_frame(worker, frame, worker->packet_id + worker->input.places[i] + 1, packet, tally))
            continue;
        packets++;
        if (__builtin_expect(tunnels, 0) && take_tunnelled(worker, packet, tally))
            packets++;
    }
    return packets;
}

/* Counts as left out what take_frame and take_tunnelled have counted: a packet, and with it the inner one if `count` is 2. */
static void leave_out(const struct packet *packet, uint32_t count, struct batch_tally *tally) {
    const struct packet *innermost = &packet[count - 1];
    tally->unsampled++;
    tally->metered_octets -= packet->octets;
    tally->tunnelled -= innermost->key.tunnel_type != 0;
    tally->tunnelled_octets -= innermost->key.tunnel_type ? innermost->octets : 0;
}

/* The pass that sampling needs: keeps the packets that are metered, with an outer one its inner one, and returns how many. Every
 * key is completed first, so that later fragments find their first one though that one is left out. */
static uint32_t sample_batch(struct worker *worker, uint32_t packets, struct batch_tally *tally) {
    bool both = worker->capture->flow_config.tunnel == CAPTURE_TUNNEL_BOTH;
    struct packet *packet = worker->packets;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < packets; i++)
        complete_key(worker, &packet[i]);
    for (uint32_t i = 0, count; i < packets; i += count) {
        count = both && i + 1 < packets && packet[i + 1].key.tunnel_type ? 2 : 1;
        if (!sampler_takes(&worker->sampler, &packet[i].key)) {
            leave_out(&packet[i], count, tally);
            continue;
        }
        memmove(&packet[kept], &packet[i], count * sizeof(*packet));
        kept += count;
    }
    return kept;
}

/* The other passes; returns how many packets were metered. The hash is one of them because it reads whole words of what the
 * decoder has just stored in pieces. */
static uint32_t meter_batch(struct worker *worker, uint32_t packets, struct batch_tally *tally) {
    if (__builtin_expect(worker->capture->flow_config.sampling != CAPTURE_SAMPLING_NONE, 0)) {
        packets = sample_batch(worker, packets, tally);
        for (uint32_t i = 0; i < packets; i++)
            ask_for_flow(worker, &worker->packets[i]);
    } else {
        for (uint32_t i = 0; i < packets; i++) {
            complete_key(worker, &worker->packets[i]);
            ask_for_flow(worker, &worker->packets[i]);
        }
    }
    for (uint32_t i = 0; i < packets; i++)
        flow_table_prefetch_record(&worker->table, worker->packets[i].hash);
    if (__builtin_expect(worker->capture->flow_config.statistics != 0, 0)) {
        for (uint32_t i = 0; i < packets; i++)
            flow_table_prefetch_statistics(&worker->table, worker->packets[i].hash);
    }
    for (uint32_t i = 0; i < packets; i++)
        flow_table_add(&worker->table, &worker->packets[i]);
    return packets;
}

static void publish_batch(struct worker *worker, const struct batch_tally *tally, uint64_t metered) {
    struct worker_counters *counters = &worker->counters;
    counter_add(&counters->metered, metered);
    counter_add(&counters->metered_octets, tally->metered_octets);
    counter_add(&counters->tunnelled, tally->tunnelled);
    counter_add(&counters->tunnelled_octets, tally->tunnelled_octets);
    counter_add(&counters->filtered, tally->filtered);
    counter_add(&counters->unsampled, tally->unsampled);
    counter_add(&counters->non_ip, tally->non_ip);
    counter_add(&counters->malformed, tally->malformed);
    counter_add(&counters->packet_ring_dropped, tally->ring_dropped);
}

static void publish_table(struct worker *worker) {
    struct worker_counters *counters = &worker->counters;
    const struct flow_table *table = &worker->table;
    if (!worker->capture->metering)
        return;
    counter_set(&counters->fragments_matched, worker->fragments.matched);
    counter_set(&counters->fragments_unmatched, worker->fragments.unmatched);
    counter_set(&counters->time_regressions, table->time_regressions);
    counter_set(&counters->flows_total, table->created);
    for (int reason = 1; reason <= CAPTURE_FLOW_END_RESOURCES; reason++)
        counter_set(&counters->flows_ended[reason], table->ended[reason]);
}

static void wake_waiters(struct capture *capture) {
    if (!atomic_load(&capture->waiters))
        return;
    pthread_mutex_lock(&capture->wake_mutex);
    pthread_cond_broadcast(&capture->wake);
    pthread_mutex_unlock(&capture->wake_mutex);
}

/* Frames of the batch that can be processed now: on a live link all of them, but a file waits for the consumer of its packets. */
static uint32_t processable_end(const struct worker *worker) {
    const struct frame_batch *batch = &worker->frames;
    uint32_t first = worker->frames_done;
    if (!worker->ring || worker->capture->live)
        return batch->count;
    return first + packet_ring_room(worker->ring, batch->frames + first, batch->count - first);
}

/* Takes the frames' times from the system's clock over to the one that was asked for (timestamp_source ptp). */
static void shift_times(struct frame *frames, uint32_t count, int64_t offset_ns) {
    for (uint32_t i = 0; i < count; i++)
        frames[i].ts_ns += (uint64_t)offset_ns;
}

/* Processes the batch's frames up to before `end`, and gives the batch back when that was all. */
static void process_frames(struct worker *worker, uint32_t end) {
    struct capture *capture = worker->capture;
    struct batch_tally tally = {0};
    uint32_t first = worker->frames_done, count = end - first;
    bool last = end == worker->frames.count;
    uint64_t newest = last ? worker->input.newest_ns : 0, octets = 0, truncated = 0;
    int64_t offset_ns = atomic_load_explicit(&capture->monitor.clock.applied_ns, memory_order_relaxed);
    if (__builtin_expect(offset_ns != 0, 0))
        shift_times(&worker->frames.frames[first], count, offset_ns);
    for (uint32_t i = first; i < end; i++) {
        const struct frame *frame = &worker->frames.frames[i];
        octets += frame->wirelen;
        truncated += (frame->flags & FRAME_TRUNCATED) != 0;
        if (frame->ts_ns > newest && !(frame->flags & FRAME_DAMAGED))
            newest = frame->ts_ns;
    }
    counter_add(&worker->counters.read_octets, octets);
    counter_add(&worker->counters.truncated, truncated);
    if (is_paused(worker)) {
        counter_add(&worker->counters.paused, count);
    } else {
        uint32_t packets = decode_frames(worker, first, end, &tally);
        if (__builtin_expect(atomic_load_explicit(&capture->sampler_count, memory_order_relaxed) != 0, 0))
            samplers_take(worker, first, end, (uint32_t)(tally.filtered + tally.damaged));
        if (capture->metering)
            packets = meter_batch(worker, packets, &tally);
        bool both = capture->flow_config.tunnel == CAPTURE_TUNNEL_BOTH;
        publish_batch(worker, &tally, packets - (both ? tally.tunnelled : 0));
    }
    if (newest) { /* damaged frames have no time */
        worker->newest_ns = newest;
        if (capture->metering)
            flow_table_set_time(&worker->table, newest, last ? worker->input.span - first : count);
    }
    worker->frames_done = end;
    if (!last)
        return;
    worker->packet_id += worker->input.span;
    worker->frames_done = worker->frames.count = 0;
    worker->queue->source->ops->release(worker->queue->backend);
}

/* Records that may be written now without overrunning a lossless reader. */
static uint64_t log_room(const struct worker *worker) {
    const struct capture *capture = worker->capture;
    if (!atomic_load(&capture->lossless_count)) /* in one order with `turns`, see worker_await_turn */
        return UINT64_MAX;
    uint64_t head = record_log_head(&worker->log), behind = 0;
    for (int i = 0; i < LOSSLESS_READERS_MAX; i++) {
        const struct lossless_reader *reader = &capture->lossless[i];
        if (!atomic_load_explicit(&reader->active, memory_order_acquire))
            continue;
        uint64_t unread = head - counter_get(&reader->cursor[worker->number]);
        if (unread > behind)
            behind = unread;
    }
    uint64_t capacity = worker->log.ring.mask + 1;
    return behind < capacity ? capacity - behind : 0;
}

static void take_rates(struct worker *worker, uint64_t mono_ns) {
    struct worker_counters *counters = &worker->counters;
    uint64_t passed = mono_ns - worker->rate_mono_ns;
    if (passed < SECOND_NS)
        return;
    uint64_t frames = counter_get(&counters->read), octets = counter_get(&counters->read_octets);
    double seconds = (double)passed / SECOND_NS;
    counter_set(&counters->rate_pps, (uint64_t)((double)(frames - worker->rate_frames) / seconds));
    counter_set(&counters->rate_bps, (uint64_t)((double)(octets - worker->rate_octets) * 8 / seconds));
    counter_set(&counters->rates_known, 1);
    worker->rate_mono_ns = mono_ns;
    worker->rate_frames = frames;
    worker->rate_octets = octets;
}

/* Ends flows whose time has come. On a quiet live link packet time goes on with the monotonic clock: the flows of a silent
 * network end too, whatever clock stamped the packets. */
static void expire_flows(struct worker *worker, bool quiet, uint64_t mono_ns, uint64_t room) {
    if (quiet && worker->capture->live && worker->newest_ns)
        flow_table_set_time(&worker->table, worker->newest_ns + (mono_ns - worker->newest_mono_ns), 0);
    uint64_t budget = room == UINT64_MAX ? EXPIRY_BUDGET : room > BATCH_RECORDS_MAX ? room - BATCH_RECORDS_MAX : 0;
    if (budget > EXPIRY_BUDGET)
        budget = EXPIRY_BUDGET;
    worker->expiring = flow_table_expire(&worker->table, (uint32_t)budget) == budget;
}

static enum worker_turn flush_flows(struct worker *worker) {
    uint64_t room = worker->capture->metering ? log_room(worker) : 0;
    bool done =
        !worker->capture->metering || flow_table_flush(&worker->table, room < FLUSH_BUDGET ? (uint32_t)room : FLUSH_BUDGET);
    publish_table(worker);
    if (done) {
        atomic_store(&worker->state, WORKER_DONE);
        capture_note_progress(worker->capture);
    }
    wake_waiters(worker->capture);
    return done ? TURN_DONE : room ? TURN_MORE : TURN_BLOCKED;
}

static bool holds_damaged_frame(const struct frame_batch *batch) {
    uint32_t flags = 0;
    for (uint32_t i = 0; i < batch->count; i++)
        flags |= batch->frames[i].flags;
    return flags & FRAME_DAMAGED;
}

/* What the worker has of the batch that was read: all of it, or of an input that the workers share its shard. */
static void take_share(struct worker *worker) {
    if (worker->shard.count > 1 && !worker->united)
        shard_keep(&worker->shard, &worker->frames, &worker->input);
    else if (worker->shard.count == 1)
        worker->input.span = worker->frames.count;
    counter_add(&worker->counters.read, worker->frames.count);
}

/* Goes on with the batch in work, else reads and begins one. Positive: there was one; else the backend's answer. */
static int read_batch(struct worker *worker, uint32_t wait_ms) {
    struct capture *capture = worker->capture;
    struct capture_error_info error = {0};
    if (worker->frames.count) {
        process_frames(worker, processable_end(worker));
        return 1;
    }
    int count = sources_read(worker, wait_ms, &error);
    if (count > 0) {
        worker->key_interface = capture->flow_config.merge_interfaces ? 0 : worker->queue->source->number;
        take_share(worker);
        if (holds_damaged_frame(&worker->frames))
            capture_note_error(capture, &error);
        process_frames(worker, processable_end(worker));
    } else if (count < 0) {
        if (count != BACKEND_END) {
            error.code = count;
            capture_note_error(capture, &error);
            atomic_store(&capture->failed, true);
        }
        atomic_store(&worker->state, WORKER_ENDED);
    }
    return count;
}

enum worker_turn worker_turn(struct worker *worker, uint32_t wait_ms) {
    struct capture *capture = worker->capture;
    atomic_fetch_add(&worker->turns, 1);
    worker_serve_scan(worker);
    if (worker->state == WORKER_DONE)
        return TURN_DONE;
    if (worker->state == WORKER_ENDED)
        return flush_flows(worker);
    if (capture->authority)
        sources_follow_lease(worker);
    uint64_t room = capture->metering ? log_room(worker) : UINT64_MAX;
    if (room < BATCH_RECORDS_MAX)
        return TURN_BLOCKED;
    if (__builtin_expect(atomic_load_explicit(&capture->sampler_count, memory_order_relaxed) != 0, 0) &&
        !samplers_have_room(worker))
        return TURN_BLOCKED;

    uint64_t sampled = counter_get(&worker->counters.sampled);
    uint64_t head = record_log_head(&worker->log);
    uint32_t done = worker->frames_done;
    bool busy = atomic_load(&worker->scan.posted) || worker->expiring;
    int count = read_batch(worker, busy ? 0 : wait_ms);
    uint64_t mono_ns = clock_ns(CLOCK_MONOTONIC);
    if (count > 0)
        worker->newest_mono_ns = mono_ns;
    if (capture->metering) {
        if (room != UINT64_MAX)
            room -= record_log_head(&worker->log) - head;
        expire_flows(worker, count == 0, mono_ns, room);
        publish_table(worker);
    }
    take_rates(worker, mono_ns);
    if (__builtin_expect(mono_ns >= worker->look_mono_ns, 0))
        sources_look_after(worker, mono_ns);
    bool sampling = counter_get(&worker->counters.sampled) != sampled;
    if (record_log_head(&worker->log) != head || sampling || (worker->ring && count > 0))
        wake_waiters(capture);
    if (worker->frames.count && worker->frames_done == done)
        return TURN_BLOCKED;
    return count == 0 ? TURN_QUIET : TURN_MORE;
}

void worker_await_turn(struct worker *worker) {
    uint64_t turn = atomic_load(&worker->turns);
    while (pthread_mutex_trylock(&worker->owner) != 0) {
        if (atomic_load(&worker->turns) != turn)
            return;
        usleep(AWAIT_TURN_US);
    }
    pthread_mutex_unlock(&worker->owner);
}

void worker_wait_for_room(void) {
    usleep(BLOCKED_WAIT_US);
}

/* A file's batch that waits for the packet ring: the rest is metered without it, or thrown away. */
static void end_batch(struct worker *worker, bool gracefully) {
    uint32_t rest = worker->frames.count - worker->frames_done;
    if (rest && gracefully)
        process_frames(worker, worker->frames.count);
    else
        counter_add(&worker->counters.dropped_user, rest);
}

void worker_end_input(struct worker *worker, bool gracefully) {
    if (worker->state != WORKER_RUNNING)
        return;
    end_batch(worker, gracefully);
    if (worker->capture->live) {
        sources_leave(worker, gracefully);
        while (worker->queue_count > 0)
            read_batch(worker, DRAIN_WAIT_MS);
    }
    atomic_store(&worker->state, WORKER_ENDED);
}

void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct capture *capture = worker->capture;
    pthread_mutex_lock(&worker->owner);
    while (!atomic_load_explicit(&capture->stop_requested, memory_order_relaxed)) {
        enum worker_turn turn = worker_turn(worker, TURN_WAIT_MS);
        if (turn == TURN_DONE)
            break;
        if (turn == TURN_BLOCKED)
            worker_wait_for_room();
    }
    if (atomic_load(&capture->stop_requested))
        worker_end_input(worker, atomic_load(&capture->stop_gracefully));
    pthread_mutex_unlock(&worker->owner);
    return NULL;
}
