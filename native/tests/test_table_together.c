/* SPDX-License-Identifier: Apache-2.0 */
/* All that lies beside a record at once: statistics of every kind, a second interface, TCP's remainders, in a table that is too
 * small, with timeouts, times that go back and keys that collide. Every flow has a payload and an interface pattern of its own,
 * so that what a record inherits from whoever had its place before shows. */
#include "check.h"
#include "flow/flow_table.h"
#include "frames.h"

enum { FLOWS = 192, PACKETS = 200000, SMALL = 64, TCP = 6, HEADER = 20, FIN = 1, SYN = 2, ACK = 16 };

static struct flow_table table;
static uint32_t next_sequence[FLOWS][2];
static uint64_t sent_packets, sent_octets, left_packets, left_octets, left_records, left_retransmissions, left_second;
static uint64_t now_ns;

static uint32_t random_below(uint32_t limit) {
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % limit;
}

static uint32_t payload_of(uint32_t flow, uint32_t from) {
    return 10 + 3 * flow + from;
}

/* Odd flows are TCP, every other one of which crosses two interfaces. */
static bool is_tcp(uint32_t flow) {
    return flow & 1;
}

static bool crosses(uint32_t flow) {
    return flow & 2;
}

static void check_sizes(const struct capture_spread *spread, uint64_t packets, uint32_t payload) {
    CHECK_EQUAL(packets ? payload : 0, spread->min);
    CHECK_EQUAL(packets ? payload : 0, spread->max);
    CHECK(spread->mean == (packets ? payload : 0) && spread->stddev == 0);
}

static void check_intervals(const struct capture_spread *spread, const struct capture_flow *flow, uint64_t packets) {
    uint64_t lasted = flow->end_time_ns - flow->start_time_ns;
    CHECK(spread->min <= spread->max && spread->max <= lasted);
    CHECK(packets > 1 || (spread->max == 0 && spread->mean == 0));
    CHECK((double)spread->min <= spread->mean && spread->mean <= (double)spread->max);
}

static void check_interfaces(const struct capture_flow *record, uint32_t flow) {
    uint64_t packets = record->fwd_packets + record->rev_packets;
    CHECK(record->interface_index == 1 || (record->interface_index == 2 && crosses(flow)));
    /* one that crosses changes the interface with every packet */
    CHECK_EQUAL(crosses(flow) && packets > 1 ? 3 - record->interface_index : 0, record->second_interface_index);
    left_second += record->second_interface_index != 0;
}

static void left(void *context, const struct capture_flow *record, const struct capture_flow_statistics *statistics) {
    (void)context;
    bool forward_is_low = record->src_addr[0] == 10;
    uint32_t flow = record->src_port == 53 ? record->dst_port : record->src_port, from = !forward_is_low;
    check_sizes(&statistics->fwd_payload, record->fwd_packets, payload_of(flow, from));
    check_sizes(&statistics->rev_payload, record->rev_packets, payload_of(flow, !from));
    check_intervals(&statistics->fwd_interval, record, record->fwd_packets);
    check_intervals(&statistics->rev_interval, record, record->rev_packets);
    check_interfaces(record, flow);
    CHECK(is_tcp(flow) || (statistics->fwd_zero_windows == 0 && statistics->syn_to_synack_ns == 0));
    left_retransmissions += statistics->fwd_retransmissions + statistics->rev_retransmissions + statistics->fwd_out_of_order +
                            statistics->rev_out_of_order;
    left_packets += record->fwd_packets + record->rev_packets;
    left_octets += record->fwd_octets + record->rev_octets;
    left_records++;
}

static void begin(uint32_t max_flows, uint64_t hash_mask, uint64_t idle_s, uint64_t active_s) {
    struct flow_table_config config = {.max_flows = max_flows,
                                       .idle_timeout_ns = idle_s * SECOND,
                                       .active_timeout_ns = active_s * SECOND,
                                       .hash_seed = 7,
                                       .hash_mask = hash_mask,
                                       .merge_interfaces = true,
                                       .statistics = STATISTICS_ALL,
                                       .emit = left};
    CHECK(flow_table_init(&table, &config));
    memset(next_sequence, 0, sizeof next_sequence);
    sent_packets = sent_octets = left_packets = left_octets = left_records = left_retransmissions = left_second = 0;
    now_ns = 1700000000ull * SECOND;
}

/* The next segment of a direction, always in order: no flow sends a number twice, whatever becomes of its record. */
static void add(uint32_t flow, uint32_t from, uint16_t flags) {
    static uint8_t interface[FLOWS];
    struct bytes header = {0};
    uint32_t payload = payload_of(flow, from), *sequence = &next_sequence[flow][from];
    add_be32(&header, 0);
    add_be32(&header, *sequence + flow * 1000003);
    add_be32(&header, next_sequence[flow][!from] + flow * 1000003);
    add_be16(&header, HEADER / 4 << 12 | flags);
    add_be16(&header, 65535);
    add_be32(&header, 0);
    *sequence += payload + ((flags & (FIN | SYN)) != 0);
    interface[flow] = crosses(flow) ? 3 - (interface[flow] ? interface[flow] : 1) : 1;
    struct packet packet = {.ts_ns = now_ns,
                            .octets = 20 + HEADER + payload,
                            .from = (uint8_t)from,
                            .interface_index = interface[flow],
                            .tcp_flags = is_tcp(flow) ? flags : 0,
                            .payload = header.data,
                            .payload_left = HEADER,
                            .payload_wire = (is_tcp(flow) ? HEADER : 8) + payload,
                            .ip = some_ip_header};
    packet.key = (struct flow_key){
        .addr = {{10}, {172}}, .port = {(uint16_t)flow, 53}, .protocol = is_tcp(flow) ? TCP : 17, .ip_version = 4};
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    sent_packets++;
    sent_octets += packet.octets;
}

static uint64_t random_pause(void) {
    switch (random_below(100)) {
    case 0:
        return (1ull + random_below(6)) * SECOND;
    case 1:
        return random_below(50) ? 0 : 40ull * SECOND;
    default:
        return random_below(10000000);
    }
}

/* back: sometimes the time goes back by more than the idle timeout. */
static void run(uint32_t flows, bool back) {
    for (uint32_t i = 0; i < PACKETS; i++) {
        uint16_t flags = random_below(50) ? ACK : ACK | FIN;
        now_ns += random_pause();
        if (back && random_below(2000) == 0)
            now_ns -= 20ull * SECOND;
        add(random_below(flows), random_below(2), flags);
        if (i % 16 == 0) {
            flow_table_set_time(&table, now_ns, 16);
            flow_table_expire(&table, random_below(100));
        }
        CHECK(table.live <= table.config.max_flows);
    }
    while (!flow_table_flush(&table, 7))
        continue;
    CHECK_EQUAL(sent_packets, left_packets);
    CHECK_EQUAL(sent_octets, left_octets);
    CHECK_EQUAL(table.created, left_records);
    CHECK_EQUAL(0, table.live);
    CHECK_EQUAL(0, left_retransmissions);
    CHECK(left_second > 0);
    flow_table_destroy(&table);
}

static void what_lies_beside_a_record_is_its_own_in_a_table_with_room(void) {
    begin(4096, UINT64_MAX, 3, 5);
    run(FLOWS, false);
    CHECK_EQUAL(0, table.ended[CAPTURE_FLOW_END_RESOURCES]);
}

static void what_lies_beside_a_record_is_its_own_when_others_are_evicted(void) {
    static const uint64_t timeouts[][2] = {{3, 5}, {0, 2}, {5, 0}, {30, 1}, {0, 0}};
    for (uint32_t i = 0; i < sizeof timeouts / sizeof timeouts[0]; i++) {
        begin(SMALL, UINT64_MAX, timeouts[i][0], timeouts[i][1]);
        run(FLOWS, false);
        CHECK(table.ended[CAPTURE_FLOW_END_RESOURCES] > 1000);
    }
}

static void what_lies_beside_a_record_is_its_own_when_all_keys_collide(void) {
    begin(SMALL, 0, 3, 5);
    run(2 * BUCKET_SLOTS + 4, false);
    CHECK(table.ended[CAPTURE_FLOW_END_RESOURCES] > 1000);
}

static void what_lies_beside_a_record_is_its_own_when_the_time_goes_back(void) {
    begin(SMALL, UINT64_MAX, 3, 5);
    run(FLOWS, true);
    CHECK(table.ended[CAPTURE_FLOW_END_FORCED] > SMALL);
    begin(4096, UINT64_MAX, 3, 1);
    run(FLOWS, true);
}

int main(void) {
    RUN(what_lies_beside_a_record_is_its_own_in_a_table_with_room);
    RUN(what_lies_beside_a_record_is_its_own_when_others_are_evicted);
    RUN(what_lies_beside_a_record_is_its_own_when_all_keys_collide);
    RUN(what_lies_beside_a_record_is_its_own_when_the_time_goes_back);
    return 0;
}
