/* SPDX-License-Identifier: Apache-2.0 */
/* TCP statistics, connections: the handshake's times, FIN and RST by sequence numbers, and records that restart or are evicted.
 */
#include "tcp_segments.h"

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

int main(void) {
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
    RUN(sequence_numbers_are_followed_over_the_active_timeout);
    RUN(a_remainder_leaves_without_a_record);
    RUN(an_idle_flow_that_comes_back_begins_anew);
    RUN(an_evicted_flow_takes_its_statistics_along_and_leaves_none_behind);
    return 0;
}
