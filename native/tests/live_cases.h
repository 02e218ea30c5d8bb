/* SPDX-License-Identifier: Apache-2.0 */
/* What every live backend must do alike, on the pair of live_link.h; and a capture on jarvis0 with a sender at its other end. */
#ifndef JARVIS_LIVE_CASES_H
#define JARVIS_LIVE_CASES_H

#include "live_link.h"

struct rig {
    const struct capture_backend_ops *ops;
    void *state;
    int sender;
};

static inline struct rig rig_open(const struct capture_backend_ops *ops, const struct capture_config *config) {
    return (struct rig){.ops = ops, .state = open_backend(ops, config), .sender = sender_on("jarvis1")};
}

static inline struct rig rig_on(const struct capture_backend_ops *ops) {
    struct capture_config config = config_for("jarvis0");
    return rig_open(ops, &config);
}

static inline void rig_close(const struct rig *rig) {
    close(rig->sender);
    rig->ops->close(rig->state);
}

static inline void rig_send(const struct rig *rig, int frames, size_t length, int tag) {
    for (int i = 0; i < frames; i++)
        send_frame(rig->sender, length, 1, 2, tag);
}

static inline uint64_t rig_drain(const struct rig *rig, void (*look)(const struct frame *frame, void *context), void *context) {
    return drain(rig->ops, rig->state, look, context);
}

static inline struct backend_stats rig_stats(const struct rig *rig) {
    struct backend_stats stats;
    rig->ops->stats(rig->state, &stats);
    return stats;
}

static inline void rig_check_nothing_lost(const struct rig *rig) {
    struct backend_stats stats = rig_stats(rig);
    CHECK_EQUAL(0, stats.dropped_kernel);
    CHECK_EQUAL(0, stats.dropped_nic);
    CHECK_EQUAL(0, stats.in_flight);
}

struct order {
    uint64_t frames, last_ts_ns;
    uint16_t next_port;
};

static inline void check_order(const struct frame *frame, void *context) {
    struct order *order = context;
    uint8_t expected[100];
    make_frame(expected, 100, order->next_port++, 9, -1);
    CHECK_EQUAL(100, frame->caplen);
    CHECK_EQUAL(100, frame->wirelen);
    CHECK_EQUAL(1, frame->link_type);
    CHECK_EQUAL(if_nametoindex("jarvis0"), frame->interface_index);
    CHECK_EQUAL(0, frame->flags);
    CHECK(memcmp(expected, frame->data, 100) == 0);
    CHECK(frame->ts_ns >= order->last_ts_ns);
    order->last_ts_ns = frame->ts_ns;
    order->frames++;
}

/* clock_slack_ns: how far the backend's clock may be behind CLOCK_REALTIME. */
static inline void check_every_frame_arrives_once_whole_and_in_order(const struct rig *rig, uint64_t clock_slack_ns) {
    struct order order = {.next_port = 1000, .last_ts_ns = now_ns(CLOCK_REALTIME) - clock_slack_ns};
    for (uint16_t port = 1000; port < 11000; port++)
        send_frame(rig->sender, 100, port, 9, -1);
    CHECK_EQUAL(10000, rig_drain(rig, check_order, &order));
    CHECK_EQUAL(10000, order.frames);
    CHECK(order.last_ts_ns <= now_ns(CLOCK_REALTIME));
    rig_check_nothing_lost(rig);
}

static inline void check_cut(const struct frame *frame, void *context) {
    (void)context;
    CHECK_EQUAL(64, frame->caplen);
    CHECK_EQUAL(1000, frame->wirelen);
    CHECK_EQUAL(FRAME_TRUNCATED, frame->flags);
}

static inline void check_frames_longer_than_snaplen_are_cut_and_marked(const struct capture_backend_ops *ops) {
    struct capture_config config = config_for("jarvis0");
    config.snaplen = 64;
    config.promiscuous = true;
    struct rig rig = rig_open(ops, &config);
    rig_send(&rig, 10, 1000, -1);
    CHECK_EQUAL(10, rig_drain(&rig, check_cut, NULL));
    rig_close(&rig);
}

static inline void check_after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(const struct capture_backend_ops *ops) {
    struct rig rig = rig_on(ops);
    rig_send(&rig, 100, 60, -1);
    usleep(20000); /* a veth pair hands frames over in a soft interrupt */
    ops->quiesce(rig.state);
    rig_send(&rig, 100, 60, -1);
    CHECK_EQUAL(100, rig_drain(&rig, NULL, NULL));
    rig_check_nothing_lost(&rig);
    rig_close(&rig);
}

#endif
