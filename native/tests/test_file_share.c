/* SPDX-License-Identifier: Apache-2.0 */
/* Queues that read files together, driven by one thread in random order, beside one queue that reads them by itself: the same
 * frames, each once, to the queue whose it is; the time that each sees; one that lags behind; damage; what cannot be shared. And
 * whole captures in threads that are held up and stopped midway. */
#include "backend/backend.h"
#include "engine/shard.h"
#include "trace_file.h"

enum { QUEUES_MOST = 7, FRAMES_MOST = 200000, SLOTS = 256 };

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % limit;
}

/* What one queue alone reads. */
struct seen {
    uint64_t ts_ns; /* 0: damaged */
    uint32_t wirelen, sum;
    uint16_t flags;
    uint8_t queue;
};
static struct seen expected[FRAMES_MOST];

static uint32_t sum_of(const struct frame *frame) {
    uint32_t sum = frame->caplen * 31 + frame->link_type;
    for (uint32_t i = 0; i < frame->caplen; i++)
        sum = sum * 31 + frame->data[i];
    return sum;
}

static struct capture_config config_of(const char *const *paths, uint32_t count, uint32_t snaplen) {
    return (struct capture_config){
        .struct_size = sizeof(struct capture_config), .files = paths, .file_count = count, .snaplen = snaplen};
}

/* Number of frames; *end: what ended them. */
static uint32_t read_alone(const struct capture_config *config, uint32_t queues, int *end) {
    struct capture_error_info error = {0};
    struct frame_batch batch;
    void *state;
    uint32_t frames = 0;
    CHECK_EQUAL(CAPTURE_OK, file_backend.open(config, 0, 1, &state, &error));
    while ((*end = file_backend.read(state, &batch, 0, &error)) > 0) {
        for (uint32_t i = 0; i < batch.count; i++, frames++) {
            const struct frame *frame = &batch.frames[i];
            CHECK(frames < FRAMES_MOST);
            expected[frames] = (struct seen){.ts_ns = frame->flags & FRAME_DAMAGED ? 0 : frame->ts_ns,
                                             .wirelen = frame->wirelen,
                                             .sum = sum_of(frame),
                                             .flags = frame->flags,
                                             .queue = (uint8_t)shard_of_frame(frame, queues, false)};
        }
        file_backend.release(state);
    }
    file_backend.close(state);
    return frames;
}

struct together {
    void *states[QUEUES_MOST];
    struct shard shard;
    uint64_t position[QUEUES_MOST];
    uint32_t queues, damaged;
};

static void open_together(struct together *all, const struct capture_config *config, uint32_t queues) {
    struct capture_error_info error = {0};
    *all = (struct together){.shard = {.count = queues}, .queues = queues};
    for (uint32_t i = 0; i < queues; i++)
        CHECK_EQUAL(CAPTURE_OK, file_backend.open(config, i, queues, &all->states[i], &error));
    CHECK_EQUAL(CAPTURE_OK, file_backend.unite(all->states, queues, shard_of_batch, &all->shard, &error));
}

static void close_together(struct together *all) {
    for (uint32_t i = 0; i < all->queues; i++)
        file_backend.close(all->states[i]);
}

/* Reads once for the queue and compares; returns what read_share did. */
static int read_one(struct together *all, uint32_t queue) {
    static struct frame_batch batch;
    static struct shard_batch share;
    struct capture_error_info error = {0};
    int span = file_backend.read_share(all->states[queue], &batch, &share, 0, &error);
    if (span <= 0)
        return span;
    CHECK_EQUAL(span, share.span);
    const struct seen *first = &expected[all->position[queue]];
    uint64_t newest = 0;
    uint32_t own = 0;
    for (uint32_t i = 0; i < share.span; i++) {
        newest = first[i].ts_ns > newest ? first[i].ts_ns : newest;
        if (first[i].queue != queue)
            continue;
        const struct frame *frame = &batch.frames[own];
        CHECK(own < batch.count);
        CHECK_EQUAL(i, share.places[own]);
        CHECK_EQUAL(first[i].flags, frame->flags);
        CHECK_EQUAL(first[i].wirelen, frame->wirelen);
        if (frame->flags & FRAME_DAMAGED) {
            all->damaged++;
            CHECK(strstr(error.message, "is damaged at byte") != NULL);
        } else {
            CHECK_EQUAL(first[i].ts_ns, frame->ts_ns);
            CHECK_EQUAL(first[i].sum, sum_of(frame));
        }
        own++;
    }
    CHECK_EQUAL(own, batch.count);
    CHECK_EQUAL(newest, share.newest_ns);
    all->position[queue] += share.span;
    file_backend.release(all->states[queue]);
    return span;
}

/* In random order, and some far behind others, to the end. */
static uint32_t compare(const struct capture_config *config, uint32_t queues) {
    struct together all;
    int end;
    uint32_t frames = read_alone(config, queues, &end), ended = 0;
    open_together(&all, config, queues);
    bool done[QUEUES_MOST] = {0};
    while (ended < queues) {
        uint32_t queue = random_below(queues);
        for (uint32_t reads = random_below(300); reads > 0 && !done[queue]; reads--) {
            int result = read_one(&all, queue);
            if (result == 0) /* it must wait for the others */
                break;
            done[queue] = result < 0;
            ended += done[queue];
            if (result < 0)
                CHECK_EQUAL(end, result);
        }
    }
    for (uint32_t i = 0; i < queues; i++)
        CHECK_EQUAL(frames, all.position[i]);
    close_together(&all);
    return all.damaged;
}

static void each_frame_goes_to_the_queue_whose_it_is_and_to_no_other(void) {
    struct trace_file trace = trace_of_flows(1000, 100000), small = trace_of_flows(3, 10), empty = trace_new(1);
    const char *const paths[] = {small.path, trace.path, empty.path, small.path, small.path};
    for (uint32_t queues = 2; queues <= QUEUES_MOST; queues++) {
        struct capture_config config = config_of(paths, 5, queues & 1 ? 64 : 0);
        CHECK_EQUAL(0, compare(&config, queues));
    }
    trace_forget(&trace);
    trace_forget(&small);
    trace_forget(&empty);
}

/* Of every few hundred packets one is older than the one before. */
static struct trace_file trace_of_steps(uint32_t packets) {
    struct trace_file trace = trace_new(101);
    uint64_t ts_ns = 1700000000ull * SECOND;
    for (uint32_t i = 0; i < packets; i++) {
        struct bytes frame = {0};
        add_ipv4(&frame, 0x0a000000 + random_below(500), 0xac100001, 17, 8, i, 0);
        add_udp(&frame, 4000, 53, 0);
        ts_ns += random_below(300) ? random_below(1000) : -(uint64_t)random_below(1000000);
        trace_packet(&trace, ts_ns, &frame);
    }
    return trace;
}

static void where_time_steps_back_each_queue_sees_the_times_that_one_alone_would(void) {
    struct trace_file trace = trace_of_steps(40000);
    const char *const paths[] = {trace.path, trace.path}; /* the second goes over the same times again */
    struct capture_config config = config_of(paths, 2, 0);
    for (uint32_t queues = 2; queues <= 4; queues++)
        CHECK_EQUAL(0, compare(&config, queues));
    trace_forget(&trace);
}

static void damage_reaches_one_queue_and_the_next_file_is_read_on(void) {
    struct trace_file traces[3];
    const char *paths[3];
    for (int i = 0; i < 3; i++) {
        traces[i] = trace_of_flows(5, i == 1 ? 0 : 1000);
        trace_write(&traces[i], "cut", 3);
        paths[i] = traces[i].path;
    }
    struct capture_config config = config_of(paths, 3, 0);
    for (uint32_t queues = 2; queues <= 4; queues++)
        CHECK_EQUAL(3, compare(&config, queues));
    for (int i = 0; i < 3; i++)
        trace_forget(&traces[i]);
}

static void a_queue_that_does_not_read_holds_the_others_up_and_loses_nothing(void) {
    struct trace_file trace = trace_of_flows(1000, 100000);
    const char *const paths[] = {trace.path};
    struct capture_config config = config_of(paths, 1, 0);
    struct together all;
    int end;
    uint32_t frames = read_alone(&config, 2, &end), reads = 0;
    open_together(&all, &config, 2);
    while (read_one(&all, 0) > 0)
        reads++;
    CHECK(reads > 0 && reads <= SLOTS);
    CHECK(all.position[0] < frames);
    CHECK_EQUAL(0, read_one(&all, 0));
    while (read_one(&all, 1) > 0 || read_one(&all, 0) > 0)
        continue;
    CHECK_EQUAL(frames, all.position[0]);
    CHECK_EQUAL(frames, all.position[1]);
    close_together(&all);
    trace_forget(&trace);
}

/* The second of two files is changed after the start: every queue gets the first one's frames, then the error. */
static void check_changed(bool emptied) {
    struct trace_file first = trace_of_flows(5, 100), second = trace_of_flows(5, 100);
    const char *const paths[] = {first.path, second.path};
    struct capture_config config = config_of(paths, 2, 0), only = config_of(paths, 1, 0);
    const uint16_t minor = 3; /* of version 2.3, whose records may have their lengths the other way round */
    struct together all;
    int end;
    open_together(&all, &config, 2);
    if (emptied)
        CHECK_EQUAL(0, ftruncate(second.file, 0));
    else
        CHECK_EQUAL(sizeof(minor), pwrite(second.file, &minor, sizeof(minor), 6));
    uint32_t frames = read_alone(&only, 2, &end);
    for (uint32_t i = 0; i < 2; i++) {
        int result;
        while ((result = read_one(&all, i)) > 0)
            continue;
        CHECK_EQUAL(CAPTURE_ERR_FILE, result);
        CHECK_EQUAL(frames, all.position[i]);
    }
    close_together(&all);
    trace_forget(&first);
    trace_forget(&second);
}

static void a_file_that_was_changed_when_its_turn_comes_ends_every_queue_with_the_error(void) {
    check_changed(true);
    check_changed(false);
}

static void files_of_which_one_cannot_be_shared_are_read_by_each_queue(void) {
    struct trace_file trace = trace_of_flows(5, 100), old = {.file = memfd_create("old", MFD_CLOEXEC)};
    snprintf(old.path, sizeof(old.path), "/proc/self/fd/%d", old.file);
    uint32_t header[6] = {0xa1b2c3d4, 2 | 3 << 16, 0, 0, 262144, 1}; /* version 2.3: the lengths may be the other way round */
    trace_write(&old, header, sizeof(header));
    const char *const paths[] = {trace.path, old.path};
    struct capture_config config = config_of(paths, 2, 0);
    struct capture_error_info error = {0};
    struct shard shard = {.count = 2};
    struct frame_batch batch;
    void *states[2];
    for (uint32_t i = 0; i < 2; i++)
        CHECK_EQUAL(CAPTURE_OK, file_backend.open(&config, i, 2, &states[i], &error));
    CHECK_EQUAL(BACKEND_END, file_backend.unite(states, 2, shard_of_batch, &shard, &error));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_EQUAL(FRAME_BATCH, file_backend.read(states[i], &batch, 0, &error));
        file_backend.release(states[i]);
        file_backend.close(states[i]);
    }
    trace_forget(&trace);
    trace_forget(&old);
}

/* A packet ring of the least size, drained slowly: the workers wait for room and for each other. */
static void workers_that_wait_for_a_slow_consumer_deliver_every_packet(void) {
    enum { PACKETS = 100000 };
    struct trace_file trace = trace_of_flows(1000, PACKETS);
    static bool seen[PACKETS + 1];
    memset(seen, 0, sizeof(seen));
    capture_t *capture = capture_of(&trace, (struct capture_options){.workers = 3, .packet_ring_mb = 1});
    start(capture);
    struct capture_packet_batch batch;
    for (uint32_t taken = 0, rounds = 0; taken < PACKETS; rounds++) {
        int count = capture_packets_next(capture, 5000, &batch);
        CHECK(count > 0);
        for (int i = 0; i < count; i++) {
            CHECK(batch.packets[i].packet_id <= PACKETS && !seen[batch.packets[i].packet_id]);
            seen[batch.packets[i].packet_id] = true;
        }
        taken += (uint32_t)count;
        if (rounds % 64 == 0)
            usleep(1000);
        capture_packets_release(capture);
    }
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    CHECK_EQUAL(PACKETS, stats_of(capture).metered);
    capture_destroy(capture);
    trace_forget(&trace);
}

static void a_stop_midway_leaves_nothing_in_flight(void) {
    struct trace_file trace = trace_of_flows(1000, 150000);
    for (int round = 0; round < 20; round++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = 2 + random_below(3)});
        start(capture);
        usleep(random_below(5000));
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, round & 1));
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(0, stats.in_flight);
        CHECK_EQUAL(stats.received, stats.metered + stats.dropped_user);
        CHECK_EQUAL(0, stats.flows_active);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

int main(void) {
    RUN(each_frame_goes_to_the_queue_whose_it_is_and_to_no_other);
    RUN(where_time_steps_back_each_queue_sees_the_times_that_one_alone_would);
    RUN(damage_reaches_one_queue_and_the_next_file_is_read_on);
    RUN(a_queue_that_does_not_read_holds_the_others_up_and_loses_nothing);
    RUN(a_file_that_was_changed_when_its_turn_comes_ends_every_queue_with_the_error);
    RUN(files_of_which_one_cannot_be_shared_are_read_by_each_queue);
    RUN(workers_that_wait_for_a_slow_consumer_deliver_every_packet);
    RUN(a_stop_midway_leaves_nothing_in_flight);
    return 0;
}
