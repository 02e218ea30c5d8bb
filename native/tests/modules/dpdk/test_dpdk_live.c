/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's net_af_packet on a veth in a network namespace of the test's own. Needs root and iproute2; else skips. */
#include "dpdk_capture.h"
#include "live_link.h"

enum { SENT = 5000 };

static const char device[] = "net_af_packet0,iface=jarvis0,blocksz=1048576,framesz=2048,framecnt=8192";

static void every_frame_sent_is_metered_once(void) {
    struct capture_config config = dpdk_config(device);
    config.workers = 1;
    config.promiscuous = true;
    capture_t *capture = begin(&config);
    int sender = sender_on("jarvis1");
    for (uint16_t port = 0; port < SENT; port++)
        send_frame(sender, 100, 10000 + port % 1000, 9, -1);
    run_until(capture, SENT);
    struct capture_flow flows[2];
    struct capture_flow_query query = {.limit = 2, .sort_by = CAPTURE_SORT_PACKETS};
    CHECK_EQUAL(2, capture_flow_get_all(capture, &query, flows, NULL, NULL));
    CHECK_EQUAL(SENT / 1000, flows[0].fwd_packets);
    CHECK_EQUAL(if_nametoindex("jarvis0"), flows[0].interface_index);
    struct capture_stats stats = finish(capture);
    CHECK_EQUAL(SENT, stats.received);
    CHECK_EQUAL(SENT, stats.metered);
    CHECK_EQUAL(1000, stats.flows_total);
    CHECK_EQUAL(SENT * 86, stats.metered_octets);
    close(sender);
    capture_destroy(capture);
}

static void a_tagged_frame_keeps_its_vlan_and_passes_its_filter(void) {
    struct capture_config config = dpdk_config(device);
    config.filter = "vlan 5 and udp";
    capture_t *capture = begin(&config);
    int sender = sender_on("jarvis1");
    for (int i = 0; i < 10; i++) {
        send_frame(sender, 100, 1, 2, 3 << 13 | 5);
        send_frame(sender, 100, 1, 2, 6);
    }
    run_until(capture, 20);
    struct capture_flow flow;
    struct capture_flow_query query = {.limit = 1};
    CHECK_EQUAL(1, capture_flow_get_all(capture, &query, &flow, NULL, NULL));
    CHECK_EQUAL(5, flow.vlan_id);
    struct capture_stats stats = finish(capture);
    CHECK_EQUAL(10, stats.metered);
    CHECK_EQUAL(10, stats.filtered);
    CHECK_EQUAL(820, stats.metered_octets); /* the IP packets' */
    close(sender);
    capture_destroy(capture);
}

static void two_queues_share_the_frames(void) {
    struct capture_config config =
        dpdk_config("net_af_packet0,iface=jarvis0,qpairs=2,blocksz=1048576,framesz=2048,framecnt=8192");
    config.workers = 2;
    capture_t *capture = begin(&config);
    int sender = sender_on("jarvis1");
    for (uint16_t port = 0; port < SENT; port++)
        send_frame(sender, 100, 10000 + port % 1000, 9, -1);
    run_until(capture, SENT);
    struct capture_stats stats = finish(capture);
    CHECK_EQUAL(SENT, stats.received);
    CHECK_EQUAL(SENT, stats.metered);
    close(sender);
    capture_destroy(capture);
}

static void a_frame_on_a_quiet_link_is_metered_within_100_ms(void) {
    struct capture_config config = dpdk_config(device);
    config.packet_ring_mb = 1;
    capture_t *capture = begin(&config);
    int sender = sender_on("jarvis1");
    uint64_t slowest = 0;
    for (int turn = 0; turn < 5; turn++) {
        struct capture_packet_batch batch;
        usleep(20000);
        uint64_t sent = now_ns(CLOCK_MONOTONIC);
        send_frame(sender, 60, 1, 2, -1);
        CHECK_EQUAL(1, capture_packets_next(capture, 1000, &batch));
        uint64_t took = now_ns(CLOCK_MONOTONIC) - sent;
        CHECK(batch.packets[0].timestamp_ns <= now_ns(CLOCK_REALTIME));
        capture_packets_release(capture);
        slowest = took > slowest ? took : slowest;
    }
    printf("#   at most %.2f ms\n", (double)slowest / 1e6);
    CHECK(slowest < UINT64_C(100000000));
    finish(capture);
    close(sender);
    capture_destroy(capture);
}

static void a_quiet_link_costs_little(void) {
    struct capture_config config = dpdk_config(device);
    capture_t *capture = begin(&config);
    CHECK(capture_poll(capture, 50) >= 0);
    uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    CHECK(capture_poll(capture, 500) >= 0);
    double share = (double)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 5e8;
    printf("#   %.0f %% of a CPU\n", 100 * share);
    CHECK(share < 0.5);
    finish(capture);
    capture_destroy(capture);
}

static void frames_are_not_taken_from_the_host_unasked(void) {
    struct capture_config config = dpdk_config("net_af_xdp0,iface=jarvis0");
    check_refused(&config, CAPTURE_ERR_INVALID, "exclusive",
                  "(driver net_af_xdp) takes the frames of the host's interface number");
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    add_module();
    RUN(every_frame_sent_is_metered_once);
    RUN(a_tagged_frame_keeps_its_vlan_and_passes_its_filter);
    RUN(two_queues_share_the_frames);
    RUN(a_frame_on_a_quiet_link_is_metered_within_100_ms);
    RUN(a_quiet_link_costs_little);
    RUN(frames_are_not_taken_from_the_host_unasked);
    return 0;
}
