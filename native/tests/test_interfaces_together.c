/* SPDX-License-Identifier: Apache-2.0 */
/* Several interfaces together with what else a capture may be asked for: merging, statistics, sampling, a deadline that passes,
 * interfaces removed meanwhile. Every frame counts once, in one place, and no counter falls. */
#include "jarvis_capture.h"
#include "live_link.h"

enum { PAIRS = 2, BURST = 60, INTERVAL = 3, PATIENCE_MS = 10000, FRAME_BYTES = 100, PAYLOAD = FRAME_BYTES - 14 - 20 - 8 };

static int senders[PAIRS];
static struct capture_stats before;

static void make_pair(int number) {
    char command[256], peer[16];
    snprintf(command, sizeof command,
             "ip link add jarvisn%d type veth peer name peer%d && ip link set jarvisn%d up && ip link set peer%d up", number,
             number, number, number);
    run(command);
    snprintf(peer, sizeof peer, "peer%d", number);
    senders[number] = sender_on(peer);
    await_running(peer);
}

/* No counter falls, whatever comes and goes. */
static struct capture_stats stats_of(capture_t *capture) {
    struct capture_stats s;
    CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &s));
    uint64_t lost = s.dropped_nic + s.dropped_kernel + s.dropped_user;
    CHECK_EQUAL(s.received, s.metered + s.filtered + s.unsampled + s.non_ip + s.malformed + s.paused + lost + s.in_flight);
    CHECK(s.received >= before.received && s.metered >= before.metered && s.unsampled >= before.unsampled);
    CHECK(s.paused >= before.paused && s.filtered >= before.filtered);
    CHECK(s.dropped_nic >= before.dropped_nic && s.dropped_kernel >= before.dropped_kernel);
    CHECK_EQUAL(0, lost);
    return before = s;
}

static uint64_t judged(const struct capture_stats *s) {
    return s->metered + s->unsampled + s->paused;
}

static struct capture_stats await_judged(capture_t *capture, uint64_t frames) {
    uint64_t until = now_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
    struct capture_stats s = stats_of(capture);
    for (; judged(&s) < frames && now_ns(CLOCK_MONOTONIC) < until; s = stats_of(capture))
        CHECK_EQUAL(1, capture_poll(capture, 10));
    CHECK_EQUAL(frames, judged(&s));
    return s;
}

static capture_t *capture_all(const char *backend, uint32_t workers) {
    static const char *const both[] = {"jarvisn0", "jarvisn1"};
    struct capture_config config = {.struct_size = sizeof config,
                                    .interfaces = both,
                                    .interface_count = PAIRS,
                                    .backend = backend,
                                    .workers = workers,
                                    .filter = "udp"};
    struct capture_flow_config flows = {
        .struct_size = sizeof flows,
        .max_flows = 4096,
        .merge_interfaces = true,
        .statistics = CAPTURE_STATISTICS_TCP | CAPTURE_STATISTICS_SIZES | CAPTURE_STATISTICS_INTERVALS,
        .sampling = CAPTURE_SAMPLING_SYSTEMATIC,
        .sampling_interval = INTERVAL,
    };
    struct capture_error_info error = {0};
    capture_t *capture = NULL;
    before = (struct capture_stats){0};
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flows, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, &error));
    return capture;
}

static void send_both(int count) {
    for (int i = 0; i < count; i++)
        for (int pair = 0; pair < PAIRS; pair++)
            send_frame(senders[pair], FRAME_BYTES, 1000, 2000, -1);
}

static void check_flow(capture_t *capture, uint64_t packets) {
    struct capture_flow flow;
    struct capture_flow_statistics statistics;
    struct capture_flow_query query = {.limit = 1, .sort_by = CAPTURE_SORT_PACKETS};
    struct capture_error_info error = {0};
    CHECK_EQUAL(1, capture_flow_get_all(capture, &query, &flow, &statistics, &error));
    CHECK_EQUAL(packets, flow.fwd_packets);
    CHECK_EQUAL(INTERVAL, flow.sampling_interval);
    CHECK(flow.second_interface_index != 0 && flow.second_interface_index != flow.interface_index);
    CHECK_EQUAL(PAYLOAD, statistics.fwd_payload.min);
    CHECK_EQUAL(PAYLOAD, statistics.fwd_payload.max);
    CHECK_EQUAL(0, statistics.fwd_retransmissions);
    CHECK(statistics.fwd_interval.max <= flow.end_time_ns - flow.start_time_ns);
}

/* One worker: systematic sampling then takes exactly every third. */
static void every_frame_counts_once_while_the_capture_is_paused_and_an_interface_leaves(const char *backend, uint32_t workers) {
    capture_t *capture = capture_all(backend, workers);
    struct capture_error_info error = {0};
    send_both(BURST);
    struct capture_stats s = await_judged(capture, 2 * BURST);
    CHECK_EQUAL(2 * BURST / INTERVAL, s.metered);
    check_flow(capture, s.metered);

    CHECK_EQUAL(CAPTURE_OK, capture_set_deadline(capture, now_ns(CLOCK_BOOTTIME) - 1));
    send_both(BURST);
    s = await_judged(capture, 4 * BURST);
    CHECK_EQUAL(2 * BURST, s.paused);
    send_both(BURST); /* in the rings, when one of them goes */
    CHECK_EQUAL(CAPTURE_OK, capture_remove_interface(capture, "jarvisn1", &error));
    s = await_judged(capture, 6 * BURST);
    CHECK_EQUAL(4 * BURST, s.paused);

    CHECK_EQUAL(CAPTURE_OK, capture_set_deadline(capture, 0));
    send_both(BURST); /* half of them where nobody captures any more */
    s = await_judged(capture, 7 * BURST);
    CHECK_EQUAL(3 * BURST / INTERVAL, s.metered); /* the count of sampling goes on where the pause began */
    check_flow(capture, s.metered);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    s = stats_of(capture);
    CHECK_EQUAL(7 * BURST, s.received);
    CHECK_EQUAL(0, s.in_flight);
    CHECK_EQUAL(1, s.flows_total);
    capture_destroy(capture);
    printf("ok - every_frame_counts_once_while_the_capture_is_paused_and_an_interface_leaves(%s, %u)\n", backend, workers);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    for (int pair = 0; pair < PAIRS; pair++)
        make_pair(pair);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        every_frame_counts_once_while_the_capture_is_paused_and_an_interface_leaves("afpacket", workers);
        every_frame_counts_once_while_the_capture_is_paused_and_an_interface_leaves("pcap", workers);
    }
    return 0;
}
