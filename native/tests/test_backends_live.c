/* SPDX-License-Identifier: Apache-2.0 */
/* What the live backends deliver and count. Needs root and iproute2; else skips. */
#include "backend/afpacket.h"
#include "filter.h"
#include "live_cases.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <sys/ioctl.h>

static void every_frame_arrives_once_whole_and_in_order(void) {
    for (int i = 0; i < 2; i++) {
        struct rig rig = rig_on(live_backends[i]);
        check_every_frame_arrives_once_whole_and_in_order(&rig, 0);
        rig_close(&rig);
    }
}

static void a_single_frame_on_a_quiet_link_is_delivered_soon(void) {
    for (int i = 0; i < 2; i++) {
        struct rig rig = rig_on(live_backends[i]);
        struct frame_batch batch;
        uint64_t slowest = 0;
        for (int turn = 0; turn < 5; turn++) {
            CHECK_EQUAL(0, rig.ops->read(rig.state, &batch, 0, NULL));
            uint64_t sent = now_ns(CLOCK_MONOTONIC);
            rig_send(&rig, 1, 60, -1);
            int count = 0;
            while (count == 0 && now_ns(CLOCK_MONOTONIC) - sent < 2000000000u)
                count = rig.ops->read(rig.state, &batch, 1000, NULL);
            uint64_t delay = now_ns(CLOCK_MONOTONIC) - sent;
            CHECK_EQUAL(1, count);
            rig.ops->release(rig.state);
            slowest = delay > slowest ? delay : slowest;
        }
        printf("#   %s: at most %.1f ms\n", rig.ops->name, (double)slowest / 1e6);
        CHECK(slowest < ONE_BLOCK_MS * UINT64_C(1000000)); /* 100 ms are meant; the machine may be busy */
        rig_close(&rig);
    }
}

static void a_read_waits_no_longer_than_its_timeout(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        struct frame_batch batch;
        uint64_t start = now_ns(CLOCK_MONOTONIC);
        CHECK_EQUAL(0, live_backends[i]->read(state, &batch, 120, NULL));
        uint64_t waited = now_ns(CLOCK_MONOTONIC) - start;
        CHECK(waited >= 100000000 && waited < 1000000000);
        live_backends[i]->close(state);
    }
}

static void afpacket_busy_polls_when_asked_and_says_how_it_captures(void) {
    for (uint32_t us = 0; us <= 50; us += 50) {
        struct capture_config config = config_for("jarvis0");
        config.busy_poll_us = us;
        struct afpacket_state *state = open_backend(&afpacket_backend, &config);
        int value = -1;
        socklen_t length = sizeof value;
        CHECK_EQUAL(0, getsockopt(state->socket, SOL_SOCKET, SO_BUSY_POLL, &value, &length));
        CHECK(us ? value == 50 : value >= 0); /* off: what sysctl net.core.busy_read says */
        char text[128];
        afpacket_backend.describe(state, text, sizeof text);
        CHECK_TEXT(us ? "TPACKET_V3, 64 blocks of 1024 KiB a worker, busy poll 50 us"
                      : "TPACKET_V3, 64 blocks of 1024 KiB a worker",
                   text);
        int sender = sender_on("jarvis1");
        for (int i = 0; i < 100; i++)
            send_frame(sender, 100, 1, 9, -1);
        CHECK_EQUAL(100, drain(&afpacket_backend, state, NULL, NULL));
        close(sender);
        afpacket_backend.close(state);
    }
}

static void frames_that_this_host_sends_are_captured_too(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        void *state = open_backend(live_backends[i], &config);
        int sender = sender_on("jarvis0");
        for (int j = 0; j < 10; j++)
            send_frame(sender, 60, 1, 2, -1);
        CHECK_EQUAL(10, drain(live_backends[i], state, NULL, NULL));
        close(sender);
        live_backends[i]->close(state);
    }
}

static void check_tag(const struct frame *frame, void *context) {
    const char *const yes[] = {"vlan 5 and udp", "vlan and dst port 2"}, *const no[] = {"vlan 6", "udp"};
    for (int i = 0; i < 4; i++) {
        struct frame_filter *filter;
        CHECK_EQUAL(CAPTURE_OK, frame_filter_compile(i < 2 ? yes[i] : no[i - 2], 0, &filter, NULL));
        CHECK_EQUAL(i < 2, frame_filter_match(filter, frame));
        frame_filter_free(filter);
    }
    if (context == &afpacket_backend) {
        CHECK_EQUAL(FRAME_VLAN, frame->flags);
        CHECK_EQUAL(3 << 13 | 5, frame->vlan_tci); /* priority included */
    } else {
        CHECK_EQUAL(0, frame->flags);
        CHECK(frame->data[12] == 0x81 && frame->data[15] == 5);
    }
}

static void vlan_tags_filter_alike_whether_the_kernel_took_them_off_or_not(void) {
    for (int i = 0; i < 2; i++) {
        struct rig rig = rig_on(live_backends[i]);
        rig_send(&rig, 10, 100, 3 << 13 | 5);
        CHECK_EQUAL(10, rig_drain(&rig, check_tag, (void *)(uintptr_t)live_backends[i]));
        rig_close(&rig);
    }
}

static void frames_longer_than_snaplen_are_cut_and_marked(void) {
    for (int i = 0; i < 2; i++)
        check_frames_longer_than_snaplen_are_cut_and_marked(live_backends[i]);
}

static void a_frame_on_the_loopback_is_seen_once(void) {
    int receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(4000)};
    CHECK_EQUAL(0, bind(receiver, (const struct sockaddr *)&address, sizeof address));
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("lo");
        void *state = open_backend(live_backends[i], &config);
        for (int j = 0; j < 25; j++)
            CHECK_EQUAL(5, sendto(sender, "hello", 5, 0, (const struct sockaddr *)&address, sizeof address));
        CHECK_EQUAL(25, drain(live_backends[i], state, NULL, NULL));
        struct backend_stats stats;
        live_backends[i]->stats(state, &stats);
        CHECK_EQUAL(0, stats.in_flight);
        live_backends[i]->close(state);
    }
    close(receiver);
    close(sender);
}

/* Sends more than the ring holds before reading: what arrived and what the kernel says it dropped must add up to what was sent.
 */
static void every_frame_is_either_delivered_or_counted_as_dropped(void) {
    enum { SENT = 12000 };
    for (int i = 0; i < 2; i++) {
        struct rig rig = rig_on(live_backends[i]);
        rig_send(&rig, SENT, 9000, -1);
        struct backend_stats full = rig_stats(&rig);
        rig.ops->quiesce(rig.state);
        uint64_t delivered = rig_drain(&rig, NULL, NULL);
        struct backend_stats stats = rig_stats(&rig);
        printf("#   %s: %" PRIu64 " delivered, %" PRIu64 " dropped, ring %.0f %% full\n", rig.ops->name, delivered,
               stats.dropped_kernel, 100 * full.ring_usage);
        CHECK_EQUAL(SENT, delivered + stats.dropped_kernel);
        CHECK(delivered > 1000 && stats.dropped_kernel > 1000);
        CHECK_EQUAL(0, stats.in_flight);
        if (rig.ops == &afpacket_backend) {
            CHECK(full.ring_usage > 0.9);
            CHECK_EQUAL(SENT, full.in_flight + full.dropped_kernel);
            CHECK(stats.ring_usage < 0.1);
        }
        rig_close(&rig);
    }
}

static void after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(void) {
    for (int i = 0; i < 2; i++)
        check_after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in(live_backends[i]);
}

enum { QUEUES = 3, FLOWS = 300 };
struct split {
    int queue;
    uint8_t queue_of[FLOWS]; /* + 1 */
    uint32_t frames[QUEUES];
};

static void note_queue(const struct frame *frame, void *context) {
    struct split *split = context;
    uint16_t from = (uint16_t)(frame->data[34] << 8 | frame->data[35]), to = (uint16_t)(frame->data[36] << 8 | frame->data[37]);
    uint32_t flow = (from < to ? from : to) - 1000u;
    CHECK(flow < FLOWS);
    CHECK(split->queue_of[flow] == 0 || split->queue_of[flow] == split->queue + 1);
    split->queue_of[flow] = (uint8_t)(split->queue + 1);
    split->frames[split->queue]++;
}

static void queues_share_the_frames_and_a_flow_stays_in_its_queue(void) {
    struct capture_config config = config_for("jarvis0");
    config.workers = QUEUES;
    void *states[QUEUES];
    for (uint32_t queue = 0; queue < QUEUES; queue++)
        CHECK_EQUAL(CAPTURE_OK, afpacket_backend.open(&config, queue, QUEUES, &states[queue], NULL));
    int sender = sender_on("jarvis1");
    for (int turn = 0; turn < 4; turn++)
        for (uint16_t flow = 0; flow < FLOWS; flow++)
            send_frame(sender, 100, turn % 2 ? 1000 + flow : 30000, turn % 2 ? 30000 : 1000 + flow, -1); /* both directions */
    static struct split split;
    uint64_t total = 0;
    for (split.queue = 0; split.queue < QUEUES; split.queue++)
        total += drain(&afpacket_backend, states[split.queue], note_queue, &split);
    CHECK_EQUAL(4 * FLOWS, total);
    for (int queue = 0; queue < QUEUES; queue++) {
        struct backend_stats stats;
        afpacket_backend.stats(states[queue], &stats);
        CHECK(split.frames[queue] > 0);
        CHECK_EQUAL(0, stats.in_flight + stats.dropped_kernel);
        afpacket_backend.close(states[queue]);
    }
    close(sender);
}

static void two_captures_of_one_interface_do_not_take_each_others_frames(void) {
    struct capture_config configs[2] = {config_for("jarvis0"), config_for("jarvis0")};
    void *states[2][2];
    for (int i = 0; i < 2; i++)
        for (uint32_t queue = 0; queue < 2; queue++)
            CHECK_EQUAL(CAPTURE_OK, afpacket_backend.open(&configs[i], queue, 2, &states[i][queue], NULL));
    int sender = sender_on("jarvis1");
    for (uint16_t port = 1; port <= 100; port++)
        send_frame(sender, 60, port, 500, -1);
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(100, drain(&afpacket_backend, states[i][0], NULL, NULL) + drain(&afpacket_backend, states[i][1], NULL, NULL));
    for (int i = 0; i < 4; i++)
        afpacket_backend.close(states[i / 2][i % 2]);
    close(sender);
}

struct asker {
    const struct capture_backend_ops *ops;
    void *state;
    _Atomic bool finished;
};

static void *ask_again_and_again(void *opaque) {
    struct asker *asker = opaque;
    struct backend_stats before = {0}, now;
    while (!atomic_load(&asker->finished)) {
        asker->ops->stats(asker->state, &now);
        CHECK(now.dropped_kernel >= before.dropped_kernel && now.dropped_nic >= before.dropped_nic);
        before = now;
    }
    return NULL;
}

static void statistics_are_asked_from_another_thread_meanwhile(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        struct asker asker = {.ops = live_backends[i], .state = open_backend(live_backends[i], &config)};
        pthread_t thread;
        CHECK_EQUAL(0, pthread_create(&thread, NULL, ask_again_and_again, &asker));
        int sender = sender_on("jarvis1");
        for (int j = 0; j < 2000; j++)
            send_frame(sender, 100, 1, 2, -1);
        CHECK_EQUAL(2000, drain(live_backends[i], asker.state, NULL, NULL));
        atomic_store(&asker.finished, true);
        pthread_join(thread, NULL);
        close(sender);
        live_backends[i]->close(asker.state);
    }
}

static void check_raw(const struct frame *frame, void *context) {
    (void)context;
    CHECK_EQUAL(101, frame->link_type);
    CHECK_EQUAL(0x45, frame->data[0]);
}

static void a_tun_interface_gives_raw_ip(void) {
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (tun < 0) {
        printf("#   left out, /dev/net/tun: %s\n", strerror(errno));
        return;
    }
    struct ifreq request = {.ifr_name = "jarvistun", .ifr_flags = IFF_TUN | IFF_NO_PI};
    CHECK_EQUAL(0, ioctl(tun, TUNSETIFF, &request));
    run("ip link set jarvistun up");
    uint8_t packet[28] = {0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8};
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvistun");
        void *state = open_backend(live_backends[i], &config);
        CHECK_EQUAL(sizeof packet, write(tun, packet, sizeof packet));
        CHECK_EQUAL(1, drain(live_backends[i], state, check_raw, NULL));
        live_backends[i]->close(state);
    }
    close(tun);
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    RUN(every_frame_arrives_once_whole_and_in_order);
    RUN(a_single_frame_on_a_quiet_link_is_delivered_soon);
    RUN(a_read_waits_no_longer_than_its_timeout);
    RUN(afpacket_busy_polls_when_asked_and_says_how_it_captures);
    RUN(frames_that_this_host_sends_are_captured_too);
    RUN(vlan_tags_filter_alike_whether_the_kernel_took_them_off_or_not);
    RUN(frames_longer_than_snaplen_are_cut_and_marked);
    RUN(a_frame_on_the_loopback_is_seen_once);
    RUN(every_frame_is_either_delivered_or_counted_as_dropped);
    RUN(after_quiesce_the_ring_is_read_out_and_nothing_new_comes_in);
    RUN(queues_share_the_frames_and_a_flow_stays_in_its_queue);
    RUN(two_captures_of_one_interface_do_not_take_each_others_frames);
    RUN(statistics_are_asked_from_another_thread_meanwhile);
    RUN(a_tun_interface_gives_raw_ip);
    return 0;
}
