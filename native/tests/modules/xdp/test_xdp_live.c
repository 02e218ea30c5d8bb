/* SPDX-License-Identifier: Apache-2.0 */
/* What backend "xdp" delivers, counts and leaves behind, on veth pairs (copy mode). Needs root and iproute2; else skips. */
#include "xdp_link.h"

static void every_frame_arrives_once_whole_and_in_order(void) {
    struct rig rig = rig_on(xdp);
    check_every_frame_arrives_once_whole_and_in_order(&rig, 1000);
    CHECK(rig_stats(&rig).ring_usage < 0.001);
    char text[256];
    xdp->describe(rig.state, text, sizeof text);
    printf("#   %s\n", text);
    CHECK(strstr(text, " mode, copy, 1 receive queue a worker, need-wakeup, 32768 frames of 2048 bytes in ") != NULL);
    CHECK(strstr(text, "stamped late") == NULL);
    rig_close(&rig);
}

struct times {
    uint64_t sent_ns, count;
};

static void check_time(const struct frame *frame, void *context) {
    struct times *times = context;
    int64_t after = (int64_t)(frame->ts_ns - times->sent_ns);
    if (after < -1000 || after > 20000000)
        fprintf(stderr, "stamped %" PRId64 " ns after it was sent\n", after);
    CHECK(after >= -1000 && after < 20000000); /* read 100 ms later */
    times->count++;
}

static void a_frame_has_the_time_of_its_arrival_and_not_of_its_reading(void) {
    struct rig rig = rig_on(xdp);
    struct times times = {0};
    for (uint64_t turn = 1; turn <= 3; turn++) {
        times.sent_ns = now_ns(CLOCK_REALTIME);
        rig_send(&rig, 1, 60, -1);
        usleep(100000);
        rig_drain(&rig, check_time, &times);
        CHECK_EQUAL(turn, times.count);
    }
    rig_close(&rig);
}

static void a_single_frame_on_a_quiet_link_is_delivered_at_once(void) {
    struct rig rig = rig_on(xdp);
    struct frame_batch batch;
    CHECK_EQUAL(0, xdp->read(rig.state, &batch, 0, NULL));
    uint64_t sent = now_ns(CLOCK_MONOTONIC);
    rig_send(&rig, 1, 60, -1);
    CHECK_EQUAL(1, xdp->read(rig.state, &batch, 1000, NULL));
    CHECK(now_ns(CLOCK_MONOTONIC) - sent < 100000000);
    xdp->release(rig.state);
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    CHECK_EQUAL(0, xdp->read(rig.state, &batch, 120, NULL));
    uint64_t waited = now_ns(CLOCK_MONOTONIC) - start;
    CHECK(waited >= 100000000 && waited < 1000000000);
    rig_close(&rig);
}

static void busy_polling_delivers_every_frame_and_is_told(void) {
    struct capture_config config = config_for("jarvis0");
    config.busy_poll_us = 50;
    void *state = open_backend(xdp, &config);
    int sender = sender_on("jarvis1");
    struct order order = {.next_port = 1000};
    for (uint16_t port = 1000; port < 6000; port++)
        send_frame(sender, 100, port, 9, -1);
    CHECK_EQUAL(5000, drain(xdp, state, check_order, &order));
    char text[256];
    xdp->describe(state, text, sizeof text);
    CHECK(strstr(text, ", busy poll 50 us") != NULL);
    close(sender);
    xdp->close(state);
}

static void check_tag(const struct frame *frame, void *context) {
    (void)context;
    CHECK_EQUAL(0, frame->flags);
    CHECK_EQUAL(100, frame->wirelen);
    CHECK_EQUAL(0x8100, frame->data[12] << 8 | frame->data[13]);
    CHECK_EQUAL(3 << 13 | 5, frame->data[14] << 8 | frame->data[15]);
}

static void vlan_tags_stay_in_the_frame(void) {
    struct rig rig = rig_on(xdp);
    rig_send(&rig, 10, 100, 3 << 13 | 5);
    CHECK_EQUAL(10, rig_drain(&rig, check_tag, NULL));
    rig_close(&rig);
}

static void frames_longer_than_snaplen_are_cut_and_marked(void) {
    check_frames_longer_than_snaplen_are_cut_and_marked(xdp);
}

static void the_longest_frame_an_mtu_allows_arrives_whole(void) {
    static const char *const mtus[] = {"1500", "1770", "1771", "3818"};
    for (int i = 0; i < 4; i++) {
        char command[96];
        snprintf(command, sizeof command, "ip link set jarvis0 mtu %s && ip link set jarvis1 mtu %s", mtus[i], mtus[i]);
        run(command);
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(xdp, &config);
        int sender = sender_on("jarvis1");
        struct frame_batch batch;
        send_frame(sender, (size_t)atoi(mtus[i]) + 18, 1, 2, 5); /* with a tag */
        CHECK_EQUAL(1, xdp->read(state, &batch, 1000, NULL));
        CHECK_EQUAL(atoi(mtus[i]) + 18, batch.frames[0].caplen);
        CHECK_EQUAL(batch.frames[0].caplen, batch.frames[0].wirelen);
        xdp->release(state);
        char text[256];
        xdp->describe(state, text, sizeof text);
        printf("#   MTU %s: %.12s\n", mtus[i], text); /* beyond 3520 or so veth leaves the program to the stack */
        CHECK(strstr(text, "stamped late") == NULL);
        close(sender);
        xdp->close(state);
    }
    run("ip link set jarvis0 mtu 1500 && ip link set jarvis1 mtu 1500");
}

/* More than the memory holds, before anything is read. */
static void every_frame_is_either_delivered_or_counted_as_dropped(void) {
    enum { HELD = 32768, SENT = 50000 };
    struct rig rig = rig_on(xdp);
    rig_send(&rig, SENT, 100, -1);
    usleep(50000);
    struct backend_stats full = rig_stats(&rig);
    CHECK_EQUAL(HELD, full.in_flight);
    CHECK_EQUAL(SENT - HELD, full.dropped_kernel);
    CHECK_EQUAL(0, full.dropped_nic);
    CHECK(full.ring_usage > 0.999);
    CHECK_EQUAL(HELD, rig_drain(&rig, NULL, NULL));
    rig_send(&rig, 100, 100, -1); /* and it goes on */
    CHECK_EQUAL(100, rig_drain(&rig, NULL, NULL));
    struct backend_stats stats = rig_stats(&rig);
    CHECK_EQUAL(SENT - HELD, stats.dropped_kernel);
    CHECK_EQUAL(0, stats.dropped_nic + stats.in_flight);
    rig_close(&rig);
}

static void after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(void) {
    check_after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(xdp);
}

/* Reads until something other than silence comes, or than `passing`. */
static int read_on(void *state, int passing, struct capture_error_info *error) {
    struct frame_batch batch;
    int result = 0;
    for (int turn = 0; turn < 40 && (result == 0 || result == passing); turn++)
        result = xdp->read(state, &batch, 50, error);
    xdp->release(state);
    return result;
}

static void an_interface_that_goes_down_delivers_again_when_it_is_up_and_one_that_goes_away_is_an_error(void) {
    run("ip link add jarvisx0 type veth peer name jarvisx1 && ip link set jarvisx1 up && ip link set jarvisx0 up");
    struct capture_config config = config_for("jarvisx0");
    struct capture_error_info error = {0};
    void *state = open_backend(xdp, &config);
    run("ip link set jarvisx0 down");
    CHECK_EQUAL(BACKEND_DOWN, read_on(state, 0, &error));
    CHECK_TEXT("interface jarvisx0 went down", error.message);
    run("ip link set jarvisx0 up");
    await_running("jarvisx1");
    int sender = sender_on("jarvisx1");
    send_frame(sender, 60, 1, 2, -1);
    CHECK_EQUAL(1, read_on(state, BACKEND_DOWN, &error));
    close(sender);
    run("ip link delete jarvisx0");
    CHECK_EQUAL(CAPTURE_ERR_IO, read_on(state, BACKEND_DOWN, &error));
    CHECK_TEXT("interface jarvisx0 is gone", error.message);
    xdp->close(state);
}

static void a_whole_capture_counts_exactly_and_says_how_it_captures(void) {
    struct capture_config config = config_for("jarvis0");
    config.workers = 1;
    capture_t *capture;
    struct capture_error_info error = {0};
    char text[256] = "x";
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    struct capture_flow_config flows = {.struct_size = sizeof flows};
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flows, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_describe_backend(capture, text, sizeof text));
    CHECK_TEXT("", text);
    CHECK_EQUAL(CAPTURE_OK, capture_start(capture, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_describe_backend(capture, text, sizeof text));
    CHECK(strstr(text, "copy") != NULL);
    int sender = sender_on("jarvis1");
    for (int j = 0; j < 20000; j++)
        send_frame(sender, 100, (uint16_t)(1000 + j % 100), 9, -1);
    usleep(50000);
    CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true));
    struct capture_stats stats;
    CHECK_EQUAL(CAPTURE_OK, capture_get_stats(capture, &stats));
    CHECK_EQUAL(20000, stats.received);
    CHECK_EQUAL(20000, stats.metered);
    CHECK_EQUAL(100, stats.flows_total);
    CHECK_EQUAL(0, stats.in_flight + stats.dropped_kernel + stats.dropped_nic + stats.dropped_user);
    CHECK_EQUAL(CAPTURE_OK, capture_describe_backend(capture, text, sizeof text));
    CHECK_TEXT("", text);
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_describe_backend(capture, text, 0));
    close(sender);
    capture_destroy(capture);
}

int main(void) {
    int obstacle = prepare_xdp_link();
    if (obstacle)
        return obstacle;
    RUN(every_frame_arrives_once_whole_and_in_order);
    RUN(a_frame_has_the_time_of_its_arrival_and_not_of_its_reading);
    RUN(a_single_frame_on_a_quiet_link_is_delivered_at_once);
    RUN(busy_polling_delivers_every_frame_and_is_told);
    RUN(vlan_tags_stay_in_the_frame);
    RUN(frames_longer_than_snaplen_are_cut_and_marked);
    RUN(the_longest_frame_an_mtu_allows_arrives_whole);
    RUN(every_frame_is_either_delivered_or_counted_as_dropped);
    RUN(after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in);
    RUN(an_interface_that_goes_down_delivers_again_when_it_is_up_and_one_that_goes_away_is_an_error);
    RUN(a_whole_capture_counts_exactly_and_says_how_it_captures);
    return 0;
}
