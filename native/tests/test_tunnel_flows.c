/* SPDX-License-Identifier: Apache-2.0 */
/* Whole captures of tunnelled packets: what outer, inner and both make of them, and that every counter adds up. */
#include "trace_file.h"

enum {
    INNER_FLOWS = 3000,
    PLAIN_FLOWS = 10,
    PACKETS = 12000,
    VNI = 0x123456,
    INNER_OCTETS = 28 + 50,
    OUTER_OCTETS = 28 + 8 + 14 + INNER_OCTETS,
};

/* Three of four packets are in one VXLAN tunnel, each of a flow of its own in turn; the others are plain. */
static struct trace_file tunnelled_trace(void) {
    struct trace_file trace = trace_new(101);
    for (uint32_t i = 0; i < PACKETS; i++) {
        struct bytes frame = {0};
        if (i % 4 == 0) {
            add_ipv4(&frame, 0xc0000201, 0xc0000300 + i / 4 % PLAIN_FLOWS, 17, 8, 0, 0);
            add_udp(&frame, 5, 6, 0);
        } else {
            add_ipv4(&frame, 0xc0000201, 0xc0000202, 17, OUTER_OCTETS - 20, 0, 0);
            add_udp(&frame, 50000, 4789, 0);
            add_be32(&frame, 0x08000000);
            add_be32(&frame, VNI << 8);
            add_ethernet(&frame, 0x0800);
            add_ipv4(&frame, 0x0a000000 + i % INNER_FLOWS, 0xc0000202, 17, 8 + 50, 0, 0);
            add_udp(&frame, 1, 2, 50);
        }
        trace_packet(&trace, 1700000000ull * SECOND + i * 1000000ull, &frame);
    }
    return trace;
}

struct sums {
    uint64_t records, packets, octets, inner_records, inner_packets;
};

/* Every record of a capture, through a lossless reader whose log is the smallest there is. */
static struct sums sums_of(capture_t *capture) {
    struct sums sums = {0};
    static uint32_t tunnel_id[4096];
    static uint8_t tunnel_type[4096];
    static uint64_t forward[4096], back[4096], forward_octets[4096], back_octets[4096];
    struct capture_flow_columns columns = {.tunnel_id = tunnel_id,
                                           .tunnel_type = tunnel_type,
                                           .fwd_packets = forward,
                                           .rev_packets = back,
                                           .fwd_octets = forward_octets,
                                           .rev_octets = back_octets};
    struct capture_batch_info info = {0};
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){.lossless = true});
    start(capture);
    while (!info.end) {
        CHECK(capture_poll(capture, 10) >= 0);
        CHECK(capture_reader_read_columns(reader, &columns, 4096, &info) >= 0);
        CHECK_EQUAL(0, info.lost);
        for (uint32_t i = 0; i < info.records; i++) {
            sums.records++;
            sums.packets += forward[i] + back[i];
            sums.octets += forward_octets[i] + back_octets[i];
            if (!tunnel_type[i])
                continue;
            CHECK_EQUAL(CAPTURE_TUNNEL_TYPE_VXLAN, tunnel_type[i]);
            CHECK_EQUAL(VNI, tunnel_id[i]);
            sums.inner_records++;
            sums.inner_packets += forward[i] + back[i];
        }
        if (!info.more && capture_poll(capture, 0) == 0)
            capture_stop(capture, true);
    }
    return sums;
}

static void check_mode(uint32_t tunnel, struct sums expected, uint64_t metered_octets, uint64_t tunnelled) {
    for (uint32_t workers = 0; workers <= 1; workers++) {
        struct trace_file trace = tunnelled_trace();
        capture_t *capture = capture_of(
            &trace, (struct capture_options){.tunnel = tunnel, .log_records = 1024, .workers = workers, .active_s = 1});
        struct sums sums = sums_of(capture);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(PACKETS, stats.received);
        CHECK_EQUAL(PACKETS, stats.metered);
        CHECK_EQUAL(metered_octets, stats.metered_octets);
        CHECK_EQUAL(tunnelled, stats.tunnelled);
        CHECK_EQUAL(tunnelled * INNER_OCTETS, stats.tunnelled_octets);
        CHECK_EQUAL(0, stats.in_flight);
        CHECK_EQUAL(expected.packets, sums.packets);
        CHECK_EQUAL(expected.octets, sums.octets);
        CHECK_EQUAL(expected.inner_packets, sums.inner_packets);
        CHECK_EQUAL(expected.inner_records > 0, sums.inner_records > 0);
        CHECK_EQUAL(stats.flows_total, sums.records);
        capture_destroy(capture);
        trace_forget(&trace);
    }
}

enum { INSIDE = PACKETS / 4 * 3, PLAIN_SUM = PACKETS / 4 * 28 };

static void outer_counts_each_packet_in_the_tunnels_own_flow(void) {
    uint64_t octets = PLAIN_SUM + (uint64_t)INSIDE * OUTER_OCTETS;
    check_mode(CAPTURE_TUNNEL_OUTER, (struct sums){.packets = PACKETS, .octets = octets}, octets, 0);
}

static void inner_counts_each_packet_in_the_flow_that_the_tunnel_carries(void) {
    uint64_t octets = PLAIN_SUM + (uint64_t)INSIDE * INNER_OCTETS;
    check_mode(CAPTURE_TUNNEL_INNER,
               (struct sums){.packets = PACKETS, .octets = octets, .inner_packets = INSIDE, .inner_records = 1}, octets, INSIDE);
}

static void both_counts_a_tunnelled_packet_in_two_flows_and_once_as_metered(void) {
    uint64_t octets = PLAIN_SUM + (uint64_t)INSIDE * OUTER_OCTETS;
    check_mode(CAPTURE_TUNNEL_BOTH,
               (struct sums){.packets = PACKETS + INSIDE,
                             .octets = octets + (uint64_t)INSIDE * INNER_OCTETS,
                             .inner_packets = INSIDE,
                             .inner_records = 1},
               octets, INSIDE);
}

/* The same addresses and ports in two tunnels, and outside of any: three flows. */
static void the_tunnel_is_part_of_an_inner_flows_key(void) {
    struct trace_file trace = trace_new(101);
    for (uint32_t i = 0; i < 30; i++) {
        struct bytes frame = {0};
        uint32_t key = i % 3;
        if (key) {
            add_ipv4(&frame, 0xc0000201, 0xc0000202, 47, 8 + 28, 0, 0);
            add_be32(&frame, 0x20000800);
            add_be32(&frame, key);
        }
        bool back = i & 1;
        add_ipv4(&frame, back ? 2 : 1, back ? 1 : 2, 17, 8, 0, 0);
        add_udp(&frame, back ? 6 : 5, back ? 5 : 6, 0);
        trace_packet(&trace, SECOND, &frame);
    }
    capture_t *capture = capture_of(&trace, (struct capture_options){.tunnel = CAPTURE_TUNNEL_INNER});
    start(capture);
    while (capture_poll(capture, 10) > 0)
        continue;
    struct capture_stats stats = stats_of(capture);
    CHECK_EQUAL(3, stats.flows_total);
    CHECK_EQUAL(20, stats.tunnelled);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(outer_counts_each_packet_in_the_tunnels_own_flow);
    RUN(inner_counts_each_packet_in_the_flow_that_the_tunnel_carries);
    RUN(both_counts_a_tunnelled_packet_in_two_flows_and_once_as_metered);
    RUN(the_tunnel_is_part_of_an_inner_flows_key);
    return 0;
}
