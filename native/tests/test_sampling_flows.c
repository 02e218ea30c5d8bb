/* SPDX-License-Identifier: Apache-2.0 */
/* Whole captures with sampling: what is taken, that what is not is counted, and what records say of it. */
#include "flow/sampling.h"
#include "trace_file.h"

enum { FLOWS = 4000, ROUNDS = 5, PACKETS = FLOWS * ROUNDS, FOUND_MAX = 8192, GRE = 47 };

struct found {
    uint32_t records;
    uint64_t packets, octets;
    uint64_t flow_id[FOUND_MAX]; /* sorted */
    struct capture_stats stats;
};

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Every record of a capture of the whole trace, one a flow; each must say the interval. */
static void meter(const struct trace_file *trace, struct capture_options options, struct found *found) {
    static uint64_t forward[FOUND_MAX], back[FOUND_MAX], forward_octets[FOUND_MAX], back_octets[FOUND_MAX];
    static uint32_t interval[FOUND_MAX];
    struct capture_flow_columns columns = {.flow_id = found->flow_id,
                                           .fwd_packets = forward,
                                           .rev_packets = back,
                                           .fwd_octets = forward_octets,
                                           .rev_octets = back_octets,
                                           .sampling_interval = interval};
    struct capture_batch_info info = {0};
    capture_t *capture = capture_of(trace, options);
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    start(capture);
    while (capture_poll(capture, 10) > 0)
        continue;
    capture_stop(capture, true);
    CHECK(capture_reader_read_columns(reader, &columns, FOUND_MAX, &info) >= 0);
    CHECK(!info.more);
    found->records = info.records;
    found->packets = found->octets = 0;
    for (uint32_t i = 0; i < info.records; i++) {
        found->packets += forward[i] + back[i];
        found->octets += forward_octets[i] + back_octets[i];
        CHECK_EQUAL(options.sampling_interval, interval[i]);
    }
    qsort(found->flow_id, found->records, sizeof(uint64_t), by_value);
    found->stats = stats_of(capture);
    CHECK_EQUAL(0, found->stats.in_flight);
    CHECK_EQUAL(found->stats.metered + (options.tunnel == CAPTURE_TUNNEL_BOTH ? found->stats.tunnelled : 0), found->packets);
    capture_destroy(capture);
}

static struct found all, some, other;

static void without_sampling_nothing_is_left_out_and_records_say_0(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    meter(&trace, (struct capture_options){0}, &all);
    CHECK_EQUAL(PACKETS, all.packets);
    CHECK_EQUAL(0, all.stats.unsampled);
    trace_forget(&trace);
}

static void one_in_one_takes_everything_and_says_so(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    for (uint32_t mode = CAPTURE_SAMPLING_SYSTEMATIC; mode <= CAPTURE_SAMPLING_FLOW_HASH; mode++) {
        meter(&trace, (struct capture_options){.sampling = mode, .sampling_interval = 1}, &some);
        CHECK_EQUAL(PACKETS, some.packets);
        CHECK_EQUAL(FLOWS, some.records);
    }
    trace_forget(&trace);
}

/* What is not an IP packet has no place in the count. */
static void systematic_sampling_counts_every_nth_ip_packet(void) {
    struct trace_file trace = trace_new(1);
    for (uint32_t i = 0; i < 1000; i++) {
        struct bytes frame = {0};
        add_ethernet(&frame, i % 2 ? 0x0800 : 0x0806);
        add_ipv4(&frame, 0x0a000001, 0x0a000002, 17, 8 + i % 10, i, 0);
        add_udp(&frame, 1, 2, i % 10);
        trace_packet(&trace, SECOND + i, &frame);
    }
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_SYSTEMATIC, .sampling_interval = 7}, &some);
    CHECK_EQUAL(500, some.stats.non_ip);
    CHECK_EQUAL((500 + 6) / 7, some.stats.metered);
    CHECK_EQUAL(500 - (500 + 6) / 7, some.stats.unsampled);
    CHECK_EQUAL(some.stats.metered_octets, some.octets);
    trace_forget(&trace);
}

/* Leaving out the first k packets shifts what is taken by k: all N captures together have every packet once. */
static void the_n_captures_that_begin_one_packet_later_make_up_the_whole(void) {
    enum { N = 8 };
    uint64_t packets = 0, octets = 0;
    struct trace_file whole = trace_of_flows(100, 1600);
    meter(&whole, (struct capture_options){0}, &all);
    trace_forget(&whole);
    for (uint32_t skipped = 0; skipped < N; skipped++) {
        struct trace_file trace = trace_new(101);
        for (uint32_t i = skipped; i < 1600; i++) {
            uint32_t flow = i % 100, back = i / 100 & 1, payload = flow % 100;
            struct bytes frame = {0};
            add_ipv4(&frame, back ? 0xac100001 : 0x0a000000 + flow, back ? 0x0a000000 + flow : 0xac100001, 17, 8 + payload, i, 0);
            add_udp(&frame, back ? 53 : 4000, back ? 4000 : 53, payload);
            trace_packet(&trace, SECOND + i, &frame);
        }
        meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_SYSTEMATIC, .sampling_interval = N}, &some);
        packets += some.packets;
        octets += some.octets;
        trace_forget(&trace);
    }
    CHECK_EQUAL(all.packets, packets);
    CHECK_EQUAL(all.octets, octets);
}

static void check_same_flows(const struct found *a, const struct found *b) {
    CHECK_EQUAL(a->records, b->records);
    CHECK_EQUAL(a->packets, b->packets);
    CHECK(memcmp(a->flow_id, b->flow_id, a->records * sizeof(uint64_t)) == 0);
}

static void two_captures_with_other_seeds_and_workers_take_the_same_flows_whole(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    struct capture_options options = {.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 10, .hash_seed = 1};
    meter(&trace, options, &some);
    options.hash_seed = 2;
    options.workers = 1;
    meter(&trace, options, &other);
    check_same_flows(&some, &other);
    CHECK(some.records > 0);
    CHECK_EQUAL((uint64_t)some.records * ROUNDS, some.packets);
    trace_forget(&trace);
}

/* Binomial: of 4,000 flows at 1 in 10 400 are expected, with a standard deviation of 19; octets go with them. */
static void the_estimate_from_sampled_flows_is_within_its_statistical_bounds(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    meter(&trace, (struct capture_options){0}, &all);
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 10}, &some);
    CHECK(some.records > 400 - 3 * 19 && some.records < 400 + 3 * 19);
    double octets = (double)some.octets * 10 / (double)all.octets;
    CHECK(octets > 0.8 && octets < 1.2);
    CHECK_EQUAL(PACKETS, some.stats.metered + some.stats.unsampled);
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_SYSTEMATIC, .sampling_interval = 10}, &some);
    CHECK_EQUAL(PACKETS / 10, some.packets);
    trace_forget(&trace);
}

/* What a smaller interval takes of the flows includes what a larger one takes. */
static void the_flows_of_a_larger_interval_are_among_those_of_a_smaller_one(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS);
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 10}, &all);
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 37}, &some);
    CHECK(some.records > 0 && some.records < all.records);
    for (uint32_t i = 0; i < some.records; i++)
        CHECK(bsearch(&some.flow_id[i], all.flow_id, all.records, sizeof(uint64_t), by_value));
    trace_forget(&trace);
}

/* 200 datagrams of three fragments each, between the same two hosts: only the first one has the ports. */
static void the_fragments_of_a_datagram_are_taken_like_its_first_one(void) {
    struct trace_file trace = trace_new(101);
    for (uint32_t i = 0; i < 600; i++) {
        struct bytes frame = {0};
        uint32_t datagram = i / 3, part = i % 3;
        add_ipv4(&frame, 0x0a000001, 0x0a000002, 17, 16, datagram, part * 2 | (part < 2 ? 0x2000 : 0));
        if (part == 0)
            add_udp(&frame, 1000 + datagram, 53, 8);
        else
            add_zeros(&frame, 16);
        trace_packet(&trace, SECOND + i, &frame);
    }
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 4}, &some);
    CHECK(some.records > 20 && some.records < 80);
    CHECK_EQUAL(3 * some.records, some.packets);
    CHECK_EQUAL(400, some.stats.fragments_matched);
    /* Every second datagram's first fragment is left out; the later ones that are taken know its ports all the same. */
    meter(&trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_SYSTEMATIC, .sampling_interval = 2}, &some);
    CHECK_EQUAL(200, some.records);
    CHECK_EQUAL(400, some.stats.fragments_matched);
    CHECK_EQUAL(0, some.stats.fragments_unmatched);
    trace_forget(&trace);
}

/* 500 inner flows, each of the same two packets, in 10 GRE tunnels that differ by their outer addresses. */
static struct trace_file tunnelled_trace(void) {
    struct trace_file trace = trace_new(101);
    for (uint32_t i = 0; i < 1000; i++) {
        struct bytes frame = {0};
        uint32_t flow = i / 2;
        add_ipv4(&frame, 0xc0000200 + flow % 10, 0xc0000301, GRE, 4 + 28, 0, 0);
        add_be32(&frame, 0x0800);
        add_ipv4(&frame, 0x0a000000 + flow, 0xac100001, 17, 8, 0, 0);
        add_udp(&frame, 4000, 53, 0);
        trace_packet(&trace, SECOND + i, &frame);
    }
    return trace;
}

static bool outer_is_taken(uint32_t tunnel, uint32_t interval) {
    struct packet packet = {.key = {.protocol = GRE, .ip_version = 4}};
    memcpy(packet.key.addr[0], (uint8_t[]){0xc0, 0, 2, (uint8_t)tunnel}, 4);
    memcpy(packet.key.addr[1], (uint8_t[]){0xc0, 0, 3, 1}, 4);
    packet_canonicalise(&packet);
    return sampling_part(&packet.key, interval) == 0;
}

static void both_takes_an_inner_packet_with_its_outer_one_and_inner_by_itself(void) {
    struct trace_file trace = tunnelled_trace();
    uint32_t tunnels = 0;
    for (uint32_t tunnel = 0; tunnel < 10; tunnel++)
        tunnels += outer_is_taken(tunnel, 3);
    CHECK(tunnels > 0 && tunnels < 10);
    struct capture_options options = {.sampling = CAPTURE_SAMPLING_FLOW_HASH, .sampling_interval = 3};
    meter(&trace, options, &some);
    CHECK_EQUAL(tunnels, some.records);
    CHECK_EQUAL(0, some.stats.tunnelled);

    options.tunnel = CAPTURE_TUNNEL_BOTH;
    meter(&trace, options, &some);
    CHECK_EQUAL(tunnels * 51, some.records); /* each with its 50 inner flows */
    CHECK_EQUAL(tunnels * 100, some.stats.metered);
    CHECK_EQUAL(tunnels * 100, some.stats.tunnelled);
    CHECK_EQUAL(some.stats.tunnelled * 28, some.stats.tunnelled_octets);
    CHECK_EQUAL(some.stats.metered_octets + some.stats.tunnelled_octets, some.octets);

    options.tunnel = CAPTURE_TUNNEL_INNER;
    meter(&trace, options, &some);
    CHECK(some.records > 120 && some.records < 215); /* of 500: 167 are expected, standard deviation 10.5 */
    CHECK_EQUAL(2 * some.records, some.packets);
    CHECK_EQUAL(some.stats.metered, some.stats.tunnelled);
    CHECK_EQUAL(some.stats.metered_octets, some.stats.tunnelled_octets);
    CHECK_EQUAL(some.stats.metered_octets, some.octets);
    trace_forget(&trace);
}

static void a_live_flow_says_the_interval_too(void) {
    struct trace_file trace = trace_of_flows(10, 100);
    capture_t *capture = capture_of(
        &trace, (struct capture_options){.sampling = CAPTURE_SAMPLING_SYSTEMATIC, .sampling_interval = 3, .packet_ring_mb = 1});
    struct capture_packet_batch batch;
    struct capture_flow_query query = {.limit = 10};
    struct capture_flow flows[10];
    start(capture);
    CHECK(capture_packets_next(capture, 1000, &batch) > 0); /* frames are delivered whether they are metered or not */
    uint32_t delivered = batch.count;
    int count = capture_flow_get_all(capture, &query, flows, NULL, NULL);
    CHECK(count > 0);
    for (int i = 0; i < count; i++)
        CHECK_EQUAL(3, flows[i].sampling_interval);
    CHECK(delivered > stats_of(capture).metered);
    capture_packets_release(capture);
    capture_destroy(capture);
    trace_forget(&trace);
}

int main(void) {
    RUN(without_sampling_nothing_is_left_out_and_records_say_0);
    RUN(one_in_one_takes_everything_and_says_so);
    RUN(systematic_sampling_counts_every_nth_ip_packet);
    RUN(the_n_captures_that_begin_one_packet_later_make_up_the_whole);
    RUN(two_captures_with_other_seeds_and_workers_take_the_same_flows_whole);
    RUN(the_estimate_from_sampled_flows_is_within_its_statistical_bounds);
    RUN(the_flows_of_a_larger_interval_are_among_those_of_a_smaller_one);
    RUN(the_fragments_of_a_datagram_are_taken_like_its_first_one);
    RUN(both_takes_an_inner_packet_with_its_outer_one_and_inner_by_itself);
    RUN(a_live_flow_says_the_interval_too);
    return 0;
}
