/* SPDX-License-Identifier: Apache-2.0 */
/* TCP statistics from hand-made segments through the flow table: each definition of docs/flow-semantics.md, sequence numbers that
 * wrap, both directions, the handshake's times, FIN and RST by sequence numbers, records that restart; and random segments
 * against a model that remembers every byte. */
#include "check.h"
#include "flow/flow_expiry.h"
#include "flow/flow_table.h"
#include "frames.h"

enum { IDLE_S = 30, KEPT = 256, WINDOW = 65535, CLIENT = 0, SERVER = 1, NO_SCALE = -1 };

#define AT(seconds) ((uint64_t)((seconds)*1e9) + 1700000000ull * SECOND)

struct segment_spec {
    double at;
    uint32_t sequence, ack;
    uint32_t payload;
    uint32_t window; /* 0 here is WINDOW; ZERO announces 0 */
    uint16_t flags;
    int scale; /* of a SYN: shift + 1; 0: no option */
    uint8_t from;
    uint8_t captured; /* bytes of the header; 0: all */
};
enum { ZERO = 0x10000, PSH_ACK = 0x18, FIN_ACK = 0x11, SYN_ACK = 0x12, RST_ACK = 0x14 };

static struct flow_table table;
static struct capture_flow ended[KEPT];
static struct capture_flow_statistics kept[KEPT];
static uint32_t ended_count;

static void keep(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    (void)context;
    CHECK(ended_count < KEPT);
    kept[ended_count] = *statistics;
    ended[ended_count++] = *flow;
}

static void begin_with(uint32_t statistics, uint64_t active_s, uint32_t max_flows) {
    struct flow_table_config config = {.max_flows = max_flows,
                                       .idle_timeout_ns = (uint64_t)IDLE_S * SECOND,
                                       .active_timeout_ns = active_s * SECOND,
                                       .hash_seed = 1,
                                       .hash_mask = UINT64_MAX,
                                       .statistics = statistics,
                                       .emit = keep};
    if (table.records)
        flow_table_destroy(&table);
    CHECK(flow_table_init(&table, &config));
    ended_count = 0;
}

static void begin(void) {
    begin_with(CAPTURE_STATISTICS_TCP, 0, 4096);
}

static void expire_at(double seconds) {
    flow_table_set_time(&table, AT(seconds), 0);
    while (flow_table_expire(&table, 10))
        continue;
}

static void add_flow_segment(uint32_t flow, struct segment_spec spec) {
    struct bytes header = {0};
    uint32_t length = spec.scale ? 24 : 20;
    add_be32(&header, 0); /* the ports are in the key already */
    add_be32(&header, spec.sequence);
    add_be32(&header, spec.ack);
    add_be16(&header, length / 4 << 12 | spec.flags);
    add_be16(&header, spec.window == ZERO ? 0 : spec.window ? spec.window : WINDOW);
    add_be32(&header, 0);
    if (spec.scale)
        add_be32(&header, 1u << 24 | 3 << 16 | 3 << 8 | (uint32_t)(spec.scale - 1));
    struct packet packet = packet_of(flow, spec.from, AT(spec.at));
    packet.key.protocol = 6;
    packet.tcp_flags = spec.flags;
    packet.payload = header.data;
    packet.payload_left = spec.captured ? spec.captured : length;
    packet.payload_wire = length + spec.payload;
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    flow_table_set_time(&table, packet.ts_ns, 1);
}

static void add(struct segment_spec spec) {
    add_flow_segment(1, spec);
}

static void client_sends(uint32_t sequence, uint32_t payload) {
    add((struct segment_spec){.sequence = sequence, .ack = 1, .payload = payload, .flags = PSH_ACK});
}

static struct capture_flow_statistics finish(void) {
    while (!flow_table_flush(&table, 3))
        continue;
    CHECK(ended_count > 0);
    return kept[ended_count - 1];
}

static void data_seen_before_is_a_retransmission(void) {
    begin();
    client_sends(1000, 100);
    client_sends(1100, 100);
    client_sends(1000, 100);
    client_sends(1000, 200); /* both at once */
    client_sends(1050, 10);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(3, statistics.fwd_retransmissions);
    CHECK_EQUAL(0, statistics.fwd_out_of_order);
    CHECK_EQUAL(0, statistics.rev_retransmissions);
}

static void a_segment_with_anything_new_at_its_end_is_no_retransmission(void) {
    begin();
    client_sends(1000, 100);
    client_sends(1050, 100);
    client_sends(1100, 50);
    CHECK_EQUAL(1, finish().fwd_retransmissions);
}

static void what_fills_a_gap_is_out_of_order_and_again_a_retransmission(void) {
    begin();
    client_sends(1000, 100);
    client_sends(1200, 100);
    client_sends(1300, 100);
    client_sends(1100, 50);
    client_sends(1150, 50);
    client_sends(1100, 100);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(2, statistics.fwd_out_of_order);
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
}

static void a_gap_is_cut_by_what_falls_into_its_middle(void) {
    begin();
    client_sends(1000, 100);
    client_sends(1400, 100);
    client_sends(1200, 100); /* leaves 1100..1200 and 1300..1400 */
    client_sends(1210, 50);
    client_sends(1150, 100); /* some of it is new */
    client_sends(1300, 100);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(3, statistics.fwd_out_of_order);
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
}

static void of_more_gaps_than_are_remembered_the_oldest_is_forgotten(void) {
    begin();
    for (uint32_t i = 0; i <= TCP_GAPS + 1; i++)
        client_sends(1000 + 200 * i, 100);
    client_sends(1100, 100); /* the first gap: forgotten */
    for (uint32_t i = 1; i <= TCP_GAPS; i++)
        client_sends(1100 + 200 * i, 100);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
    CHECK_EQUAL(TCP_GAPS, statistics.fwd_out_of_order);
}

static void a_gap_that_the_receiver_has_acknowledged_was_lost_to_the_capture_only(void) {
    begin();
    client_sends(1000, 100);
    client_sends(1200, 100);
    add((struct segment_spec){.from = SERVER, .sequence = 1, .ack = 1300, .flags = TCP_ACK});
    client_sends(1100, 100);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(0, statistics.fwd_out_of_order);
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
}

static void sequence_numbers_wrap_around(void) {
    begin();
    client_sends(UINT32_MAX - 149, 100); /* ..2^32-50 */
    client_sends(50, 100);               /* a gap over the wrap: 2^32-50..50 */
    client_sends(UINT32_MAX - 49, 100);
    client_sends(UINT32_MAX - 49, 100);
    client_sends(150, 100);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(1, statistics.fwd_out_of_order);
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
}

static void a_gap_is_forgotten_when_the_largest_window_lies_behind_it(void) {
    for (uint32_t mib = 1023; mib <= 1024; mib++) {
        begin();
        client_sends(0, 100);
        for (uint32_t i = 0; i < mib; i++) /* 100..200 is not sent */
            client_sends(200 + (i << 20), 1 << 20);
        client_sends(100, 100);
        struct capture_flow_statistics statistics = finish();
        CHECK_EQUAL(mib == 1023, statistics.fwd_out_of_order);
        CHECK_EQUAL(mib == 1024, statistics.fwd_retransmissions);
    }
}

static void the_directions_are_apart_and_forward_is_the_first_senders(void) {
    begin();
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 1, .payload = 10, .flags = PSH_ACK});
    client_sends(1000, 100);
    client_sends(1000, 100);
    client_sends(1000, 100);
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 1, .payload = 10, .flags = PSH_ACK, .window = ZERO});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
    CHECK_EQUAL(2, statistics.rev_retransmissions);
    CHECK_EQUAL(1, statistics.fwd_zero_windows);
    CHECK_EQUAL(0, statistics.rev_zero_windows);
}

static void syn_and_fin_count_as_one_and_pure_acks_as_nothing(void) {
    begin();
    add((struct segment_spec){.sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.sequence = 99, .flags = TCP_SYN});
    client_sends(100, 0);
    client_sends(100, 0);
    client_sends(100, 10);
    add((struct segment_spec){.sequence = 110, .ack = 1, .flags = FIN_ACK});
    add((struct segment_spec){.sequence = 110, .ack = 1, .flags = FIN_ACK});
    client_sends(111, 0);
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(2, statistics.fwd_retransmissions); /* of the SYN and of the FIN */
    CHECK_EQUAL(0, statistics.fwd_out_of_order);
}

static void a_keepalive_is_no_retransmission_but_one_byte_again_is(void) {
    begin();
    client_sends(1000, 1);
    client_sends(1000, 1); /* not acknowledged: sent again */
    add((struct segment_spec){.from = SERVER, .sequence = 1, .ack = 1001, .flags = TCP_ACK});
    client_sends(1000, 1);
    client_sends(1000, 0);
    CHECK_EQUAL(1, finish().fwd_retransmissions);
}

static void resets_announce_no_window_and_have_no_sequence(void) {
    begin();
    client_sends(1000, 100);
    add((struct segment_spec){.sequence = 1000, .ack = 1, .flags = TCP_ACK, .window = ZERO});
    add((struct segment_spec){.sequence = 1000, .flags = TCP_RST, .window = ZERO, .payload = 20});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(1, statistics.fwd_zero_windows);
    CHECK_EQUAL(0, statistics.fwd_retransmissions);
}

static void handshake(double at, int client_scale, int server_scale) {
    add((struct segment_spec){.at = at, .sequence = 99, .flags = TCP_SYN, .scale = client_scale + 1});
    add((struct segment_spec){
        .at = at + 0.25, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK, .scale = server_scale + 1});
    add((struct segment_spec){.at = at + 0.375, .sequence = 100, .ack = 500, .flags = TCP_ACK});
}

static void the_handshake_gives_both_sides_of_the_round_trip(void) {
    begin();
    handshake(1, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.at = 3, .sequence = 100, .ack = 500, .flags = TCP_ACK});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(250000000, statistics.syn_to_synack_ns);
    CHECK_EQUAL(125000000, statistics.synack_to_ack_ns);
}

static void a_repeated_syn_or_synack_is_what_the_answer_is_measured_from(void) {
    begin();
    add((struct segment_spec){.at = 1, .sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.at = 2, .sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.at = 2.5, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK});
    add((struct segment_spec){.at = 3.5, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK});
    add((struct segment_spec){.at = 3.75, .sequence = 100, .ack = 500, .payload = 5, .flags = PSH_ACK});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(500000000, statistics.syn_to_synack_ns);
    CHECK_EQUAL(250000000, statistics.synack_to_ack_ns);
    CHECK_EQUAL(1, statistics.fwd_retransmissions);
    CHECK_EQUAL(1, statistics.rev_retransmissions);
}

static void without_its_syn_a_flow_has_no_round_trip_time(void) {
    begin();
    add((struct segment_spec){.at = 1, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK});
    add((struct segment_spec){.at = 2, .sequence = 100, .ack = 500, .flags = TCP_ACK});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(0, statistics.syn_to_synack_ns);
    CHECK_EQUAL(0, statistics.synack_to_ack_ns);
}

static void an_answer_to_another_syn_is_not_measured(void) {
    begin();
    add((struct segment_spec){.at = 1, .sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.at = 2, .from = SERVER, .sequence = 499, .ack = 4711, .flags = SYN_ACK});
    add((struct segment_spec){.at = 3, .sequence = 100, .ack = 500, .flags = TCP_ACK});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(0, statistics.syn_to_synack_ns);
    CHECK_EQUAL(0, statistics.synack_to_ack_ns);
}

static void a_clock_that_steps_back_gives_no_negative_round_trip(void) {
    begin();
    add((struct segment_spec){.at = 2, .sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.at = 1, .from = SERVER, .sequence = 499, .ack = 100, .flags = SYN_ACK});
    CHECK_EQUAL(0, finish().syn_to_synack_ns);
}

static void a_syn_with_another_number_opens_another_connection(void) {
    begin_with(CAPTURE_STATISTICS_TCP, 0, 4096);
    handshake(1, NO_SCALE, NO_SCALE);
    client_sends(100, 50);
    add((struct segment_spec){.at = 5, .sequence = 50, .flags = TCP_SYN});
    add((struct segment_spec){.at = 5.5, .from = SERVER, .sequence = 7, .ack = 51, .flags = SYN_ACK});
    client_sends(51, 50); /* overlaps what the first connection sent */
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(0, statistics.fwd_retransmissions);
    CHECK_EQUAL(500000000, statistics.syn_to_synack_ns);
}

static void an_answer_with_another_number_begins_anew_for_its_side(void) {
    begin();
    add((struct segment_spec){.at = 1, .from = SERVER, .sequence = 5000, .ack = 1, .payload = 100, .flags = PSH_ACK});
    add((struct segment_spec){.at = 2, .sequence = 99, .flags = TCP_SYN}); /* of the client nothing was seen before */
    add((struct segment_spec){.at = 3, .from = SERVER, .sequence = 5050, .ack = 100, .flags = SYN_ACK});
    struct capture_flow_statistics statistics = finish();
    CHECK_EQUAL(0, statistics.fwd_retransmissions);
    CHECK_EQUAL(SECOND, statistics.syn_to_synack_ns);
}

static uint8_t state_now(void) {
    return table.records[0].state;
}

static void a_reset_outside_the_window_does_not_close(void) {
    begin();
    handshake(0, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 100, .flags = TCP_ACK, .window = 1000});
    add((struct segment_spec){.sequence = 100 + WINDOW + 1, .flags = TCP_RST}); /* the SYN-ACK announced WINDOW */
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.sequence = 99, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.sequence = 100 + WINDOW, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
    expire_at(3);
    CHECK_EQUAL(CAPTURE_FLOW_END_DETECTED, ended[0].end_reason);
}

static void without_tcp_statistics_the_flags_alone_decide(void) {
    begin_with(CAPTURE_STATISTICS_SIZES | CAPTURE_STATISTICS_INTERVALS, 0, 4096);
    handshake(0, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.sequence = 99, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void the_window_is_scaled_when_both_sides_said_so(void) {
    for (int client_scale = NO_SCALE; client_scale <= 2; client_scale += 3) {
        begin();
        handshake(0, client_scale, 3);
        add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 100, .flags = TCP_ACK});
        add((struct segment_spec){.sequence = 100 + 8 * WINDOW + 1, .flags = TCP_RST});
        CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
        add((struct segment_spec){.sequence = 100 + 8 * WINDOW, .flags = TCP_RST});
        CHECK_EQUAL(client_scale == NO_SCALE ? CAPTURE_FLOW_STATE_ACTIVE : CAPTURE_FLOW_STATE_CLOSED, state_now());
    }
}

static void without_the_syns_the_window_may_be_of_the_largest_scale(void) {
    begin();
    client_sends(100, 10);
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 110, .flags = TCP_ACK});
    add((struct segment_spec){.sequence = 110 + (WINDOW << 14) + 1, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.sequence = 110 + (WINDOW << 14), .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void a_refused_connection_closes_when_its_syn_is_acknowledged(void) {
    begin();
    add((struct segment_spec){.sequence = 99, .flags = TCP_SYN});
    add((struct segment_spec){.from = SERVER, .ack = 99, .flags = RST_ACK});
    add((struct segment_spec){.from = SERVER, .ack = 101, .flags = RST_ACK});
    add((struct segment_spec){.from = SERVER, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.from = SERVER, .ack = 100, .flags = RST_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void what_is_not_known_of_the_receiver_makes_no_reset_wrong(void) {
    begin();
    client_sends(1000, 10);
    add((struct segment_spec){.sequence = 77, .flags = TCP_RST});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void fins_of_both_sides_close_and_one_outside_the_window_does_not_count(void) {
    begin();
    handshake(0, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.sequence = 100 + WINDOW + 1, .ack = 500, .flags = FIN_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.sequence = 100, .ack = 500, .payload = 20, .flags = FIN_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, state_now());
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 121, .flags = TCP_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSING, state_now()); /* half closed: the server may go on */
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 121, .flags = FIN_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void a_fin_that_was_acknowledged_before_it_was_seen_counts(void) {
    begin();
    handshake(0, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.from = SERVER, .sequence = 500, .ack = 101, .flags = FIN_ACK});
    add((struct segment_spec){.sequence = 100, .ack = 501, .flags = FIN_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
}

static void a_cut_header_is_safe_and_its_flags_hold(void) {
    begin();
    handshake(0, NO_SCALE, NO_SCALE);
    for (uint8_t captured = 1; captured < 16; captured++)
        add((struct segment_spec){
            .sequence = 1, .ack = 1, .payload = 9, .flags = captured < 14 ? 0 : PSH_ACK, .captured = captured});
    add((struct segment_spec){.sequence = 1, .flags = TCP_RST, .captured = 14});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_CLOSED, state_now());
    CHECK_EQUAL(0, finish().fwd_retransmissions);
}

static void cut_options_are_safe(void) {
    for (uint8_t captured = 20; captured < 24; captured++) {
        begin();
        add((struct segment_spec){.sequence = 99, .flags = TCP_SYN, .scale = 3, .captured = captured});
        CHECK_EQUAL(1, table.live);
    }
}

static void later_fragments_change_nothing(void) {
    begin();
    client_sends(1000, 100);
    struct packet packet = packet_of(1, CLIENT, AT(0));
    packet.key.protocol = 6;
    packet.fragment = PACKET_FRAGMENT_LATER;
    packet.payload = NULL;
    packet.payload_left = UINT32_MAX;
    packet.payload_wire = 100;
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    client_sends(1000, 100);
    CHECK_EQUAL(1, finish().fwd_retransmissions);
    CHECK_EQUAL(3, ended[0].fwd_packets);
}

/* One connection with a gap, a retransmission of each side and a handshake; whether the table looks at the active timeout itself
 * or the next packet does makes no difference. */
static void records_cut_by_the_active_timeout_add_up(bool table_looks) {
    begin_with(CAPTURE_STATISTICS_TCP, 10, 4096);
    handshake(1, NO_SCALE, NO_SCALE);
    add((struct segment_spec){.at = 2, .sequence = 100, .ack = 500, .payload = 100, .flags = PSH_ACK});
    add((struct segment_spec){.at = 3, .sequence = 300, .ack = 500, .payload = 100, .flags = PSH_ACK});
    add((struct segment_spec){.at = 4, .sequence = 300, .ack = 500, .payload = 100, .flags = PSH_ACK});
    if (table_looks) {
        expire_at(11.5);
        CHECK_EQUAL(1, ended_count);
        CHECK_EQUAL(0, table.live);
    }
    add((struct segment_spec){.at = 12, .sequence = 200, .ack = 500, .payload = 100, .flags = PSH_ACK});
    add((struct segment_spec){.at = 13, .sequence = 100, .ack = 500, .payload = 100, .flags = PSH_ACK});
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    add((struct segment_spec){.at = 14, .sequence = 99, .flags = TCP_RST}); /* the window is known still */
    CHECK_EQUAL(CAPTURE_FLOW_STATE_ACTIVE, state_now());
    finish();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(CAPTURE_FLOW_END_ACTIVE, ended[0].end_reason);
    CHECK_EQUAL(250000000, kept[0].syn_to_synack_ns);
    CHECK_EQUAL(0, kept[1].syn_to_synack_ns);
    CHECK_EQUAL(1, kept[0].fwd_retransmissions);
    CHECK_EQUAL(0, kept[0].fwd_out_of_order);
    CHECK_EQUAL(1, kept[1].fwd_retransmissions);
    CHECK_EQUAL(1, kept[1].fwd_out_of_order);
}

static void sequence_numbers_are_followed_over_the_active_timeout(void) {
    records_cut_by_the_active_timeout_add_up(false);
    records_cut_by_the_active_timeout_add_up(true);
}

static void a_remainder_leaves_without_a_record(void) {
    begin_with(CAPTURE_STATISTICS_TCP, 10, 4096);
    handshake(1, NO_SCALE, NO_SCALE);
    expire_at(11);
    CHECK_EQUAL(1, ended_count);
    expire_at(50);
    CHECK_EQUAL(1, ended_count);
    CHECK(flow_table_flush(&table, 1));
    CHECK_EQUAL(1, ended_count);
    CHECK_EQUAL(0, table.records[0].key.ip_version);
}

static void an_idle_flow_that_comes_back_begins_anew(void) {
    begin();
    client_sends(1000, 100);
    add((struct segment_spec){.at = IDLE_S + 1, .sequence = 1000, .ack = 1, .payload = 100, .flags = PSH_ACK});
    finish();
    CHECK_EQUAL(2, ended_count);
    CHECK_EQUAL(0, kept[1].fwd_retransmissions);
}

static void an_evicted_flow_takes_its_statistics_along_and_leaves_none_behind(void) {
    begin_with(CAPTURE_STATISTICS_TCP, 0, 16);
    for (uint32_t flow = 0; flow < 64; flow++) {
        for (uint32_t i = 0; i <= flow % 5; i++)
            add_flow_segment(flow, (struct segment_spec){.at = flow, .sequence = 7, .ack = 1, .payload = 5, .flags = PSH_ACK});
    }
    finish();
    CHECK_EQUAL(64, ended_count);
    CHECK_EQUAL(48, table.ended[CAPTURE_FLOW_END_RESOURCES]);
    for (uint32_t i = 0; i < ended_count; i++)
        CHECK_EQUAL(ended[i].fwd_packets - 1, kept[i].fwd_retransmissions);
}

static uint32_t next_random(void) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* Every byte that was sent, in a space small enough to be held whole. */
enum { SPACE = 4096 };
struct byte_model {
    uint8_t seen[SPACE];
    uint32_t next, retransmissions, out_of_order;
};

static uint32_t model_gaps(const struct byte_model *model) {
    uint32_t gaps = 0;
    for (uint32_t i = 1; i < model->next; i++)
        gaps += !model->seen[i] && model->seen[i - 1];
    return gaps;
}

static void model_count(struct byte_model *model, uint32_t start, uint32_t length) {
    uint32_t fresh = 0;
    for (uint32_t i = start; i < start + length; i++) {
        fresh += !model->seen[i];
        model->seen[i] = 1;
    }
    if (start + length > model->next)
        model->next = start + length;
    else if (fresh)
        model->out_of_order++;
    else
        model->retransmissions++;
}

static void random_segments_are_judged_as_by_one_who_remembers_every_byte(void) {
    uint32_t compared = 0, found = 0;
    for (uint32_t round = 0; round < 2000; round++) {
        struct byte_model model = {.seen = {1}, .next = 1};
        uint32_t base = round % 2 ? next_random() : 0u - next_random() % SPACE, most_gaps = 0;
        begin();
        client_sends(base, 1);
        for (int i = 0; i < 60 && model.next + 300 < SPACE; i++) {
            uint32_t back = next_random() % 400, length = 1 + next_random() % 100;
            uint32_t start = model.next + next_random() % 120 > back ? model.next + next_random() % 120 - back : 1;
            if (start < 1 || start > model.next + 120)
                start = model.next;
            client_sends(base + start, length);
            model_count(&model, start, length);
            uint32_t gaps = model_gaps(&model);
            most_gaps = gaps > most_gaps ? gaps : most_gaps;
        }
        struct capture_flow_statistics statistics = finish();
        if (most_gaps > TCP_GAPS)
            continue;
        compared++;
        found += model.retransmissions > 0 && model.out_of_order > 0;
        CHECK_EQUAL(model.retransmissions, statistics.fwd_retransmissions);
        CHECK_EQUAL(model.out_of_order, statistics.fwd_out_of_order);
    }
    CHECK(compared > 200 && found > 100);
}

int main(void) {
    RUN(data_seen_before_is_a_retransmission);
    RUN(a_segment_with_anything_new_at_its_end_is_no_retransmission);
    RUN(what_fills_a_gap_is_out_of_order_and_again_a_retransmission);
    RUN(a_gap_is_cut_by_what_falls_into_its_middle);
    RUN(of_more_gaps_than_are_remembered_the_oldest_is_forgotten);
    RUN(a_gap_that_the_receiver_has_acknowledged_was_lost_to_the_capture_only);
    RUN(sequence_numbers_wrap_around);
    RUN(a_gap_is_forgotten_when_the_largest_window_lies_behind_it);
    RUN(the_directions_are_apart_and_forward_is_the_first_senders);
    RUN(syn_and_fin_count_as_one_and_pure_acks_as_nothing);
    RUN(a_keepalive_is_no_retransmission_but_one_byte_again_is);
    RUN(resets_announce_no_window_and_have_no_sequence);
    RUN(the_handshake_gives_both_sides_of_the_round_trip);
    RUN(a_repeated_syn_or_synack_is_what_the_answer_is_measured_from);
    RUN(without_its_syn_a_flow_has_no_round_trip_time);
    RUN(an_answer_to_another_syn_is_not_measured);
    RUN(a_clock_that_steps_back_gives_no_negative_round_trip);
    RUN(a_syn_with_another_number_opens_another_connection);
    RUN(an_answer_with_another_number_begins_anew_for_its_side);
    RUN(a_reset_outside_the_window_does_not_close);
    RUN(without_tcp_statistics_the_flags_alone_decide);
    RUN(the_window_is_scaled_when_both_sides_said_so);
    RUN(without_the_syns_the_window_may_be_of_the_largest_scale);
    RUN(a_refused_connection_closes_when_its_syn_is_acknowledged);
    RUN(what_is_not_known_of_the_receiver_makes_no_reset_wrong);
    RUN(fins_of_both_sides_close_and_one_outside_the_window_does_not_count);
    RUN(a_fin_that_was_acknowledged_before_it_was_seen_counts);
    RUN(a_cut_header_is_safe_and_its_flags_hold);
    RUN(cut_options_are_safe);
    RUN(later_fragments_change_nothing);
    RUN(sequence_numbers_are_followed_over_the_active_timeout);
    RUN(a_remainder_leaves_without_a_record);
    RUN(an_idle_flow_that_comes_back_begins_anew);
    RUN(an_evicted_flow_takes_its_statistics_along_and_leaves_none_behind);
    RUN(random_segments_are_judged_as_by_one_who_remembers_every_byte);
    return 0;
}
