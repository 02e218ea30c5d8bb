/* SPDX-License-Identifier: Apache-2.0 */
/* The backend "pfring" over a fake libpfring: how rings are opened, what frames become, what is counted and refused. */
#include "pfring_fake.h"

#include <net/if.h>
#include <pthread.h>

enum { PACKETS = 1000 };

static const uint64_t start_ns = 1700000000ull * SECOND;

static void a_ring_is_opened_for_what_was_asked(void) {
    struct capture_config config = config_of("lo");
    void *state = open_queue(&config, 0, 1);
    struct fake_pfring_view view = fake->look("lo");
    CHECK_EQUAL(262144, view.caplen);
    CHECK_EQUAL(1 << 2 | 1 << 4 | 1 << 9, view.flags); /* long header, software timestamps, unparsed; never reentrant */
    CHECK_EQUAL(1, view.direction);
    CHECK_EQUAL(2, view.mode);
    CHECK_EQUAL(1, view.watermark);
    CHECK_EQUAL(0, view.cluster);
    CHECK_TEXT("jarvis-capture", view.application);
    CHECK(view.enabled && !view.broken);
    pfring_backend.close(state);
    view = fake->look("lo");
    CHECK(view.broken); /* before it was closed */
    CHECK_EQUAL(0, view.open);
    config.promiscuous = true;
    config.snaplen = 96;
    config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
    state = open_queue(&config, 0, 1);
    view = fake->look("lo");
    CHECK_EQUAL(96, view.caplen);
    CHECK_EQUAL(1 << 2 | 1 << 3 | 1 << 5 | 1 << 9, view.flags);
    pfring_backend.close(state);
}

static void frames_arrive_whole_and_in_order_though_the_library_lends_each_only_until_the_next(void) {
    void *state = open_device("zc:eth7");
    for (uint32_t i = 0; i < PACKETS; i++)
        give_packet("zc:eth7", i, i & 1, i % 900, start_ns + i * 1000ull);
    struct frame_batch batch;
    uint32_t seen = 0;
    int count;
    while ((count = pfring_backend.read(state, &batch, 0, NULL)) > 0) {
        CHECK_EQUAL(count, batch.count);
        for (int i = 0; i < count; i++, seen++) {
            const struct frame *frame = &batch.frames[i];
            CHECK_EQUAL(42 + seen % 900, frame->caplen);
            CHECK_EQUAL(42 + seen % 900, frame->wirelen);
            CHECK_EQUAL(start_ns + seen * 1000ull, frame->ts_ns);
            CHECK_EQUAL(1, frame->link_type);
            CHECK_EQUAL(0, frame->flags);
            CHECK_EQUAL(seen >> 8, frame->data[seen & 1 ? 32 : 28]); /* the flow's number in its address */
            CHECK_EQUAL(seen & 0xff, frame->data[seen & 1 ? 33 : 29]);
        }
        pfring_backend.release(state);
    }
    CHECK_EQUAL(0, count);
    CHECK_EQUAL(PACKETS, seen);
    pfring_backend.close(state);
}

static struct frame one_frame(void *state, const char *device, struct fake_pfring_packet packet) {
    static uint8_t kept[2000];
    static const uint8_t zeros[2000];
    struct frame_batch batch;
    packet.bytes = packet.bytes ? packet.bytes : zeros;
    fake->give(device, &packet);
    CHECK_EQUAL(1, pfring_backend.read(state, &batch, 0, NULL));
    memcpy(kept, batch.frames[0].data, batch.frames[0].caplen);
    batch.frames[0].data = kept;
    pfring_backend.release(state);
    return batch.frames[0];
}

static void the_finer_timestamp_is_taken_where_there_is_one(void) {
    void *state = open_device("zc:eth7");
    struct fake_pfring_packet packet = {
        .caplen = 60, .length = 60, .seconds = 1700000000, .microseconds = 999999, .timestamp_ns = 1700000001123456789};
    CHECK_EQUAL(1700000001123456789, one_frame(state, "zc:eth7", packet).ts_ns);
    packet.timestamp_ns = 0;
    CHECK_EQUAL(1700000000999999000, one_frame(state, "zc:eth7", packet).ts_ns);
    packet.seconds = packet.microseconds = 0; /* the module stamps nothing: the clock does, on receipt */
    uint64_t before = now_of(CLOCK_REALTIME);
    struct frame frame = one_frame(state, "zc:eth7", packet);
    CHECK(frame.ts_ns >= before && frame.ts_ns <= now_of(CLOCK_REALTIME));
    pfring_backend.close(state);
}

static void hardware_timestamps_that_are_not_there_are_an_error(void) {
    struct capture_config config = config_of("zc:eth7");
    struct capture_error_info error = {0};
    struct frame_batch batch;
    config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
    void *state = open_queue(&config, 0, 1);
    struct fake_pfring_packet packet = {.caplen = 60, .length = 60, .seconds = 1700000000, .timestamp_ns = 1700000000000000001};
    CHECK_EQUAL(1700000000000000001, one_frame(state, "zc:eth7", packet).ts_ns);
    give_packet("zc:eth7", 1, false, 0, start_ns);
    CHECK_EQUAL(CAPTURE_ERR_INVALID, pfring_backend.read(state, &batch, 0, &error));
    CHECK_TEXT("timestamp_source", error.field);
    CHECK(strstr(error.message, "device zc:eth7 has no hardware timestamps") != NULL);
    pfring_backend.close(state);
    config = config_of("pcap:lo");
    config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, pfring_backend.open(&config, 0, 1, &state, &error));
    CHECK_TEXT("timestamp_source", error.field);
}

static void of_the_systems_clocks_ptp_is_refused_and_ntp_for_files(void) {
    struct capture_config config = config_of("zc:eth7");
    struct capture_error_info error = {0};
    config.timestamp_source = CAPTURE_TIMESTAMP_NTP;
    CHECK_EQUAL(CAPTURE_OK, pfring_backend.check(&config, &error));
    config.timestamp_source = CAPTURE_TIMESTAMP_PTP;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, pfring_backend.check(&config, &error));
    CHECK_TEXT("timestamp_source", error.field);
    config = config_of("pcap:../../tests/data/connection.pcap");
    config.timestamp_source = CAPTURE_TIMESTAMP_KERNEL;
    CHECK_EQUAL(CAPTURE_OK, pfring_backend.check(&config, &error));
    config.timestamp_source = CAPTURE_TIMESTAMP_NTP;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, pfring_backend.check(&config, &error));
    CHECK(strstr(error.message, "is a file, which carries its own timestamps") != NULL);
}

static void frames_longer_than_snaplen_are_cut_and_marked(void) {
    struct capture_config config = config_of("zc:eth7");
    config.snaplen = 64;
    void *state = open_queue(&config, 0, 1);
    struct frame frame = one_frame(state, "zc:eth7", (struct fake_pfring_packet){.caplen = 64, .length = 1000, .seconds = 1});
    CHECK_EQUAL(64, frame.caplen);
    CHECK_EQUAL(1000, frame.wirelen);
    CHECK_EQUAL(FRAME_TRUNCATED, frame.flags);
    frame = one_frame(state, "zc:eth7", (struct fake_pfring_packet){.caplen = 1000, .length = 1000, .seconds = 1});
    CHECK_EQUAL(64, frame.caplen); /* not every module heeds it */
    CHECK_EQUAL(FRAME_TRUNCATED, frame.flags);
    pfring_backend.close(state);
}

static void a_frame_knows_its_interface(void) {
    struct fake_pfring_packet packet = {.caplen = 60, .length = 60, .seconds = 1, .if_index = 77};
    void *state = open_device("zc:99@0");
    CHECK_EQUAL(77, one_frame(state, "zc:99@0", packet).interface_index);
    pfring_backend.close(state);
    state = open_device("lo@0");
    packet.if_index = 0;
    CHECK_EQUAL(if_nametoindex("lo"), one_frame(state, "lo@0", packet).interface_index);
    pfring_backend.close(state);
}

static struct backend_stats stats_of_state(void *state) {
    struct backend_stats stats;
    pfring_backend.stats(state, &stats);
    CHECK_EQUAL(0, stats.in_flight);
    return stats;
}

static void drops_are_the_kernels_or_past_it_the_cards_and_never_become_fewer(void) {
    const char *const devices[] = {"lo", "zc:eth7"};
    for (int past = 0; past < 2; past++) {
        void *state = open_device(devices[past]);
        CHECK_EQUAL(0, stats_of_state(state).dropped_kernel + stats_of_state(state).dropped_nic);
        const struct { uint64_t counter, total; } steps[] = {{7, 7}, {7, 7}, {5000000000, 5000000000}, {3, 5000000003}};
        for (int i = 0; i < 4; i++) {
            fake->set_dropped(devices[past], steps[i].counter);
            struct backend_stats stats = stats_of_state(state);
            CHECK_EQUAL(past ? 0 : steps[i].total, stats.dropped_kernel);
            CHECK_EQUAL(past ? steps[i].total : 0, stats.dropped_nic);
        }
        fake->set_dropped(devices[past], 0);
        pfring_backend.close(state);
    }
}

static void queues_of_one_capture_form_a_cluster_that_keeps_a_flow_together(void) {
    struct capture_config config = config_of("lo"), other_config = config_of("lo");
    void *queues[2] = {open_queue(&config, 0, 2)};
    unsigned cluster = fake->look("lo").cluster;
    queues[1] = open_queue(&config, 1, 2);
    CHECK(cluster > 0 && cluster < 65536);
    CHECK_EQUAL(cluster, fake->look("lo").cluster);
    CHECK_EQUAL(2, fake->look("lo").cluster_type);
    uint32_t seen[2][8] = {0};
    for (uint32_t i = 0; i < 160; i++)
        give_packet("lo", i % 8, i & 8, 0, start_ns);
    for (int queue = 0; queue < 2; queue++) {
        struct frame_batch batch;
        while (pfring_backend.read(queues[queue], &batch, 0, NULL) > 0)
            for (uint32_t i = 0; i < batch.count; i++) /* ends of the addresses: the flow's number and 1 */
                seen[queue][(batch.frames[i].data[29] + batch.frames[i].data[33] - 1) & 7]++;
    }
    for (int flow = 0; flow < 8; flow++) {
        CHECK_EQUAL(20, seen[0][flow] + seen[1][flow]);
        CHECK(seen[0][flow] == 0 || seen[1][flow] == 0);
    }
    CHECK(seen[0][0] != seen[0][1]);
    void *other = open_queue(&other_config, 0, 2);
    CHECK(fake->look("lo").cluster != cluster);
    pfring_backend.close(other);
    for (int queue = 0; queue < 2; queue++)
        pfring_backend.close(queues[queue]);
}

static void what_the_library_reports_ends_the_capture_behind_the_last_good_frame(void) {
    void *state = open_device("zc:eth7");
    struct capture_error_info error = {0};
    struct frame_batch batch;
    fake->set_answer("zc:eth7", -1);
    give_packet("zc:eth7", 1, false, 0, start_ns);
    CHECK_EQUAL(1, pfring_backend.read(state, &batch, 0, &error));
    pfring_backend.release(state);
    fake->set_answer("zc:eth7", 0);
    for (int turn = 0; turn < 2; turn++) {
        CHECK_EQUAL(CAPTURE_ERR_IO, pfring_backend.read(state, &batch, 0, &error));
        CHECK_TEXT("capturing from zc:eth7 failed: pfring_recv returns -1", error.message);
    }
    pfring_backend.close(state);
}

static void a_stop_hands_out_what_the_ring_holds_and_nothing_that_comes_later(void) {
    void *state = open_device("zc:eth7");
    struct frame_batch batch;
    for (uint32_t i = 0; i < 100; i++)
        give_packet("zc:eth7", i, false, 0, start_ns);
    pfring_backend.quiesce(state);
    CHECK_EQUAL(64, pfring_backend.read(state, &batch, 100, NULL));
    CHECK_EQUAL(36, pfring_backend.read(state, &batch, 100, NULL));
    give_packet("zc:eth7", 1, false, 0, start_ns);
    CHECK_EQUAL(0, pfring_backend.read(state, &batch, 100, NULL));
    pfring_backend.close(state);
    state = open_device("zc:eth7");
    pfring_backend.quiesce(state);
    uint64_t start = now_of(CLOCK_MONOTONIC);
    int count;
    do /* a link that is faster than the reader: it ends all the same */
        for (int i = 0; i < 65; i++)
            give_packet("zc:eth7", 1, false, 0, start_ns);
    while ((count = pfring_backend.read(state, &batch, 100, NULL)) > 0);
    CHECK_EQUAL(0, count);
    uint64_t took = now_of(CLOCK_MONOTONIC) - start;
    CHECK(took >= 50 * MS && took < 2 * SECOND);
    pfring_backend.close(state);
}

static void *give_later(void *device) {
    usleep(50000);
    give_packet(device, 1, false, 0, start_ns);
    return NULL;
}

static void a_quiet_link_is_waited_for_but_no_longer_than_asked(void) {
    const char *const devices[] = {"zc:eth7", "pcap:lo", "blind:0"};
    for (int i = 0; i < 3; i++) {
        void *state = open_device(devices[i]);
        struct frame_batch batch;
        uint64_t start = now_of(CLOCK_MONOTONIC);
        CHECK_EQUAL(0, pfring_backend.read(state, &batch, 0, NULL));
        CHECK(now_of(CLOCK_MONOTONIC) - start < 50 * MS);
        CHECK_EQUAL(0, pfring_backend.read(state, &batch, 60, NULL));
        CHECK(now_of(CLOCK_MONOTONIC) - start < SECOND);
        pthread_t giver;
        pthread_create(&giver, NULL, give_later, (void *)(uintptr_t)devices[i]);
        start = now_of(CLOCK_MONOTONIC);
        int count = 0;
        while (count == 0 && now_of(CLOCK_MONOTONIC) - start < 5ull * SECOND)
            count = pfring_backend.read(state, &batch, 2000, NULL);
        CHECK_EQUAL(1, count);
        CHECK(now_of(CLOCK_MONOTONIC) - start < SECOND); /* 50 ms are meant; the machine may be busy */
        pthread_join(giver, NULL);
        pfring_backend.close(state);
    }
}

int main(void) {
    int obstacle = find_fake();
    if (obstacle)
        return obstacle;
    RUN(a_ring_is_opened_for_what_was_asked);
    RUN(frames_arrive_whole_and_in_order_though_the_library_lends_each_only_until_the_next);
    RUN(the_finer_timestamp_is_taken_where_there_is_one);
    RUN(hardware_timestamps_that_are_not_there_are_an_error);
    RUN(of_the_systems_clocks_ptp_is_refused_and_ntp_for_files);
    RUN(frames_longer_than_snaplen_are_cut_and_marked);
    RUN(a_frame_knows_its_interface);
    RUN(drops_are_the_kernels_or_past_it_the_cards_and_never_become_fewer);
    RUN(queues_of_one_capture_form_a_cluster_that_keeps_a_flow_together);
    RUN(what_the_library_reports_ends_the_capture_behind_the_last_good_frame);
    RUN(a_stop_hands_out_what_the_ring_holds_and_nothing_that_comes_later);
    RUN(a_quiet_link_is_waited_for_but_no_longer_than_asked);
    return 0;
}
