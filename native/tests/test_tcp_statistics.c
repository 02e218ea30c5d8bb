/* SPDX-License-Identifier: Apache-2.0 */
/* TCP statistics, counting: retransmissions, out-of-order and zero windows as docs/flow-semantics.md defines them, sequence
 * numbers that wrap, both directions, headers that are cut; and random segments against a model that remembers every byte. */
#include "tcp_segments.h"

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
    RUN(a_cut_header_is_safe_and_its_flags_hold);
    RUN(cut_options_are_safe);
    RUN(later_fragments_change_nothing);
    RUN(random_segments_are_judged_as_by_one_who_remembers_every_byte);
    return 0;
}
