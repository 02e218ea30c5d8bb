/* SPDX-License-Identifier: Apache-2.0 */
/* Files shared out over workers: whose a frame is, over every capture at hand and frames changed at random; whole captures with
 * several workers, their packet ids, their errors. */
#include <dirent.h>

#include "backend/backend.h"
#include "decode/decode.h"
#include "engine/shard.h"
#include "trace_file.h"

enum { MOST_SHARDS = 7, MUTATIONS = 8 };

static const char *const directories[] = {"../../tests/data", "../../../shared/pcaps"};

static uint64_t random_state = 0x2545f4914f6cdd1d;

static uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % limit;
}

/* The key that the frame's packet is metered under: every packet of it must be one worker's. */
static void check_shard(const struct frame *frame) {
    struct packet packet, inside;
    bool flow = !(frame->flags & FRAME_DAMAGED) && decode_frame(frame, &packet) == DECODE_IP;
    bool tunnelled = flow && decode_tunnelled(&packet, &inside);
    for (uint32_t count = 1; count <= MOST_SHARDS; count++) {
        uint32_t outer = shard_of_frame(frame, count, false), inner = shard_of_frame(frame, count, true);
        CHECK(outer < count && inner < count);
        if (flow)
            CHECK_EQUAL(shard_of_key(&packet.key, count), outer);
        if (flow)
            CHECK_EQUAL(shard_of_key(tunnelled ? &inside.key : &packet.key, count), inner);
    }
}

/* Changes some bytes, cuts the frame; where it ends the allocation ends, so that ASan sees one byte too many. */
static void check_mutations(const struct frame *original) {
    static const uint16_t link_types[] = {0, 1, 9, 12, 50, 51, 101, 105, 108, 113, 127, 192, 228, 229, 276};
    for (int i = 0; i < MUTATIONS && original->caplen; i++) {
        struct frame frame = *original;
        if (random_below(2))
            frame.caplen = random_below(frame.caplen < 96 ? frame.caplen + 1 : 96);
        uint8_t *bytes = malloc(frame.caplen ? frame.caplen : 1);
        memcpy(bytes, frame.data, frame.caplen);
        for (uint32_t changes = random_below(4); changes && frame.caplen; changes--)
            bytes[random_below(frame.caplen < 64 ? frame.caplen : 64)] = (uint8_t)random_below(256);
        if (random_below(4) == 0)
            frame.link_type = link_types[random_below(sizeof(link_types) / sizeof(*link_types))];
        frame.data = bytes;
        check_shard(&frame);
        free(bytes);
    }
}

static uint64_t check_file(const char *path) {
    const char *const paths[] = {path};
    struct capture_config config = {.struct_size = sizeof(config), .files = paths, .file_count = 1};
    struct capture_error_info error;
    struct frame_batch batch;
    uint64_t frames = 0;
    void *state;
    if (file_backend.open(&config, 0, 1, &state, &error) != CAPTURE_OK)
        return 0; /* no capture file */
    while (file_backend.read(state, &batch, 0, &error) > 0) {
        frames += batch.count;
        for (uint32_t i = 0; i < batch.count; i++) {
            check_shard(&batch.frames[i]);
            check_mutations(&batch.frames[i]);
        }
        file_backend.release(state);
    }
    file_backend.close(state);
    return frames;
}

static void a_frame_belongs_to_the_shard_of_the_flow_that_it_is_metered_in(void) {
    uint64_t frames = 0;
    for (size_t i = 0; i < sizeof(directories) / sizeof(*directories); i++) {
        DIR *directory = opendir(directories[i]);
        for (struct dirent *entry; directory && (entry = readdir(directory));) {
            char path[512];
            snprintf(path, sizeof(path), "%s/%s", directories[i], entry->d_name);
            if (strstr(entry->d_name, ".pcap"))
                frames += check_file(path);
        }
        if (directory)
            closedir(directory);
    }
    printf("   %llu frames\n", (unsigned long long)frames);
    CHECK(frames > 100);
}

static struct flow_key key_of(uint8_t version, uint64_t a, uint64_t b) {
    struct flow_key key = {.ip_version = version};
    memcpy(key.addr[0] + (version == 4 ? 0 : 8), &a, version == 4 ? 4 : 8);
    memcpy(key.addr[1] + (version == 4 ? 0 : 8), &b, version == 4 ? 4 : 8);
    return key;
}

static void both_directions_are_one_shards(void) {
    for (int i = 0; i < 10000; i++) {
        uint8_t version = i & 1 ? 4 : 6;
        uint64_t a = random_below(UINT32_MAX), b = random_below(UINT32_MAX);
        struct flow_key there = key_of(version, a, b), back = key_of(version, b, a);
        uint32_t count = 2 + random_below(63);
        CHECK_EQUAL(shard_of_key(&there, count), shard_of_key(&back, count));
    }
}

/* One server and its clients; pairs counted up together; pairs of which one counts up and the other down. */
static void hosts_that_were_numbered_in_order_spread_over_the_shards(void) {
    enum { PAIRS = 65536, SHARDS = 8 };
    for (int pattern = 0; pattern < 6; pattern++) {
        uint32_t held[SHARDS] = {0};
        for (uint32_t i = 0; i < PAIRS; i++) {
            uint32_t other = pattern / 2 == 0 ? 0xac100001 : pattern / 2 == 1 ? 0xac100000 + i : 0xac1fffff - i;
            struct flow_key key = key_of(pattern & 1 ? 4 : 6, htobe32(0x0a000000 + i), htobe32(other));
            held[shard_of_key(&key, SHARDS)]++;
        }
        for (int shard = 0; shard < SHARDS; shard++)
            CHECK(held[shard] > PAIRS / SHARDS * 8 / 10 && held[shard] < PAIRS / SHARDS * 12 / 10);
    }
}

static void run_to_the_end(capture_t *capture) {
    start(capture);
    while (capture_poll(capture, 50) > 0)
        continue;
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
}

static void packet_ids_are_numbers_in_the_trace_whatever_the_workers(void) {
    enum { FLOWS = 300, PACKETS = 9000 };
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 0; workers <= 5; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers, .packet_ring_mb = 16});
        static bool seen[PACKETS + 1];
        memset(seen, 0, sizeof(seen));
        start(capture);
        struct capture_packet_batch batch;
        uint32_t taken = 0;
        while (taken < PACKETS) {
            int count = capture_packets_next(capture, 5000, &batch);
            CHECK(count > 0);
            for (int i = 0; i < count; i++) {
                const struct capture_packet *packet = &batch.packets[i];
                CHECK(packet->packet_id >= 1 && packet->packet_id <= PACKETS && !seen[packet->packet_id]);
                CHECK_EQUAL(1700000000ull * SECOND + (packet->packet_id - 1) * 1000000, packet->timestamp_ns);
                seen[packet->packet_id] = true;
            }
            taken += (uint32_t)count;
            capture_packets_release(capture);
        }
        while (capture_poll(capture, 50) > 0)
            continue;
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void every_worker_has_some_of_the_flows_and_the_sum_is_exact(void) {
    enum { FLOWS = 1000, PACKETS = 50000 };
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t workers = 1; workers <= 4; workers++) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.workers = workers});
        capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
        start(capture);
        uint64_t of_shard[4] = {0};
        static uint8_t buffer[65536];
        struct capture_batch_info info;
        do {
            CHECK(capture_reader_read_batch(reader, buffer, sizeof(buffer), 500, &info) >= 0);
            of_shard[info.shard] += info.records;
        } while (!info.end);
        while (capture_poll(capture, 50) > 0)
            continue;
        capture_stop(capture, true);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(PACKETS, stats.received);
        CHECK_EQUAL(PACKETS, stats.metered);
        CHECK_EQUAL(FLOWS, stats.flows_total);
        for (uint32_t shard = 0; shard < workers; shard++)
            CHECK(of_shard[shard] > FLOWS / workers / 2);
        CHECK_EQUAL(FLOWS, of_shard[0] + of_shard[1] + of_shard[2] + of_shard[3]);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

static void damage_in_several_files_is_counted_once_a_file_and_each_is_told(void) {
    enum { FILES = 3 };
    struct trace_file traces[FILES];
    const char *paths[FILES];
    for (int i = 0; i < FILES; i++) {
        traces[i] = trace_of_flows(5, 100);
        trace_write(&traces[i], "cut", 3);
        paths[i] = traces[i].path;
    }
    for (uint32_t workers = 0; workers <= 3; workers++) {
        struct capture_config config = {.struct_size = sizeof(config), .files = paths, .file_count = FILES, .workers = workers};
        struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config)};
        struct capture_error_info error, errors[FILES + 1];
        capture_t *capture;
        CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
        CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, &error));
        run_to_the_end(capture);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(FILES, stats.malformed);
        CHECK_EQUAL(FILES * 100, stats.metered);
        CHECK_EQUAL(FILES, capture_get_errors(capture, errors, FILES + 1));
        for (int i = 0; i < FILES; i++) {
            CHECK_EQUAL(CAPTURE_ERR_FILE, errors[i].code);
            CHECK(strstr(errors[i].message, paths[i]) != NULL);
        }
        capture_destroy(capture);
    }
    for (int i = 0; i < FILES; i++)
        trace_forget(&traces[i]);
}

static void a_packet_in_two_flows_is_refused_with_several_workers(void) {
    struct trace_file trace = trace_of_flows(5, 100);
    const char *paths[] = {trace.path};
    struct capture_config config = {.struct_size = sizeof(config), .files = paths, .file_count = 1, .workers = 2};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config), .tunnel = CAPTURE_TUNNEL_BOTH};
    struct capture_error_info error;
    capture_t *capture;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_flow_enable(capture, &flow_config, &error));
    CHECK_TEXT("tunnel", error.field);
    CHECK_TEXT("tunnel is 2 (both): with files and 2 workers accepted are 0 (outer) and 1 (inner), or one worker", error.message);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(a_frame_belongs_to_the_shard_of_the_flow_that_it_is_metered_in);
    RUN(both_directions_are_one_shards);
    RUN(hosts_that_were_numbered_in_order_spread_over_the_shards);
    RUN(packet_ids_are_numbers_in_the_trace_whatever_the_workers);
    RUN(every_worker_has_some_of_the_flows_and_the_sum_is_exact);
    RUN(damage_in_several_files_is_counted_once_a_file_and_each_is_told);
    RUN(a_packet_in_two_flows_is_refused_with_several_workers);
    return 0;
}
