/* SPDX-License-Identifier: Apache-2.0 */
/* The protobuf writer against bytes that protobuf's own runtime made of the same messages. */
#include "check.h"
#include "export/flow_batch.h"

enum {
    GOLDEN_RECORDS_AT = 24, /* in the golden bytes: behind shard, sequences, base time and token */
};
enum { BASE = 1700000000000000001 };

/* FlowBatch.SerializeToString() of the two flows below. */
static const char golden[] =
    "\x08\x03\x10\xac\x02\x18\xae\x02\x21\x01\x00\x2a\x36\xfe\x9c\x97\x17\x2a\x05\x74\x6f\x6b\x65\x6e\x32\x46\x09\xef"
    "\xcd\xab\x89\x67\x45\x23\x01\x18\x82\xa8\xd6\xb9\x07\x22\x04\x0a\x00\x00\x01\x2a\x04\xc0\xa8\xff\xfe\x30\xa0\x1f"
    "\x38\xbb\x03\x40\x06\x48\x03\x50\xb4\x01\x58\x02\x60\x9f\x8d\x06\x68\x02\x70\x12\x78\x04\x80\x01\x07\x88\x01\x02"
    "\x90\x01\x01\xa0\x01\x2e\xa8\x01\x01\xb0\x01\x64\x32\x7a\x09\x10\x32\x54\x76\x98\xba\xdc\xfe\x10\x09\x18\x09\x22"
    "\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x2a\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00"
    "\x00\x00\x00\x00\x00\x00\x02\x40\x3a\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x50\xff\xff\xff\xff\xff\xff\xff"
    "\xff\xff\x01\x78\x01\x88\x01\x01\x90\x01\xff\xff\x03\x98\x01\x80\x80\x02\xa8\x01\xff\xff\xff\xff\xff\xff\xff\xff"
    "\xff\x01\xb0\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\xc0\x01\x80\xd0\xac\xf3\x0e\xc8\x01\x05";

static void make_flows(struct capture_flow flows[2]) {
    flows[0] = (struct capture_flow){.flow_id = 0x0123456789abcdef,
                                     .src_addr = {10, 0, 0, 1},
                                     .dst_addr = {192, 168, 255, 254},
                                     .src_port = 4000,
                                     .dst_port = 443,
                                     .ip_version = 4,
                                     .ip_protocol = 6,
                                     .vlan_id = 7,
                                     .fwd_packets = 3,
                                     .fwd_octets = 180,
                                     .rev_packets = 2,
                                     .rev_octets = 99999,
                                     .start_time_ns = BASE,
                                     .end_time_ns = BASE + 1000000001,
                                     .first_packet_id = 1,
                                     .last_packet_id = 100,
                                     .fwd_tcp_flags = 0x02,
                                     .rev_tcp_flags = 0x12,
                                     .interface_index = 1,
                                     .dscp = 46,
                                     .state = 2,
                                     .end_reason = 4};
    flows[1] = (struct capture_flow){.flow_id = 0xfedcba9876543210,
                                     .src_addr = {0x20, 1, 0xd, 0xb8, [15] = 1},
                                     .dst_addr = {0x20, 1, 0xd, 0xb8, [15] = 2},
                                     .ip_version = 6,
                                     .ip_protocol = 58,
                                     .fwd_packets = UINT64_MAX,
                                     .fwd_octets = UINT64_MAX,
                                     .start_time_ns = BASE - 5,
                                     .end_time_ns = BASE - 5,
                                     .first_packet_id = UINT64_MAX,
                                     .last_packet_id = UINT64_MAX,
                                     .interface_index = 65535,
                                     .icmp_type = 128,
                                     .state = 1,
                                     .end_reason = 1,
                                     .tunnel_type = 5,
                                     .tunnel_id = 4000000000};
}

static void the_bytes_of_a_batch_are_those_of_protobuf(void) {
    struct capture_flow flows[2];
    uint8_t out[1024];
    make_flows(flows);
    struct flow_batch_head head = {.shard = 3,
                                   .first_sequence = 300,
                                   .next_sequence = 302,
                                   .base_time_ns = BASE,
                                   .token = (const uint8_t *)"token",
                                   .token_length = 5};
    uint8_t *end = flow_batch_head(out, &head);
    end = flow_batch_record(end, &flows[0], NULL, BASE);
    end = flow_batch_record(end, &flows[1], NULL, BASE);
    CHECK_EQUAL(sizeof(golden) - 1, end - out);
    CHECK(memcmp(golden, out, sizeof(golden) - 1) == 0);
}

static void an_encoded_list_has_the_same_records_without_sequence_and_token(void) {
    struct capture_flow flows[2];
    uint8_t out[2 * FLOW_BATCH_RECORD_MAX];
    make_flows(flows);
    int64_t length = capture_flow_encode(flows, NULL, 2, out, sizeof(out));
    CHECK_EQUAL(0x21, out[0]); /* base_time_unix_ns, fixed64 */
    size_t records = sizeof(golden) - 1 - GOLDEN_RECORDS_AT;
    CHECK_EQUAL(9 + records, length);
    CHECK(memcmp(golden + GOLDEN_RECORDS_AT, out + 9, records) == 0);
    CHECK_EQUAL(0, capture_flow_encode(NULL, NULL, 0, out, 0));
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_flow_encode(flows, NULL, 2, out, 2 * FLOW_BATCH_RECORD_MAX - 1));
}

static void the_longest_record_fits_its_bound(void) {
    struct capture_flow flow;
    uint8_t out[512];
    memset(&flow, 0xff, sizeof(flow));
    flow.ip_version = 6;
    flow.start_time_ns = 0;
    flow.end_time_ns = (uint64_t)1 << 63;
    CHECK(flow_batch_record(out, &flow, NULL, 1) - out <= FLOW_BATCH_RECORD_MAX - 9);
}

/* Fields 28, 51, 52 and 63 by hand; that the others are what protobuf reads is tested where protobuf is. */
static void statistics_are_the_last_fields_and_absent_when_0(void) {
    struct capture_flow flow = {.ip_version = 4};
    struct capture_flow_statistics statistics = {.fwd_retransmissions = 300,
                                                 .rev_interval = {.stddev = 1},
                                                 .fwd_headers = {.src_mac = {[5] = 9}},
                                                 .rev_headers = {.flow_label = 0xfffff}};
    static const uint8_t expected[] = {0xe0, 0x01, 0xac, 0x02, 0x99, 0x03, 0, 0, 0, 0,    0,    0,    0xf0, 0x3f,
                                       0xa2, 0x03, 6,    0,    0,    0,    0, 0, 9, 0xf8, 0x03, 0xff, 0xff, 0x3f};
    uint8_t plain[64], out[64];
    size_t length = (size_t)(flow_batch_record(plain, &flow, NULL, 0) - plain);
    CHECK_EQUAL(length + sizeof(expected), flow_batch_record(out, &flow, &statistics, 0) - out);
    CHECK(memcmp(plain + 2, out + 2, length - 2) == 0);
    CHECK(memcmp(expected, out + length, sizeof(expected)) == 0);
    CHECK_EQUAL(length, flow_batch_record(out, &flow, &(struct capture_flow_statistics){0}, 0) - out);
}

static void the_longest_record_with_statistics_fits_its_bound(void) {
    struct capture_flow flow;
    struct capture_flow_statistics statistics;
    uint8_t out[1024];
    memset(&flow, 0xff, sizeof(flow));
    memset(&statistics, 0xff, sizeof(statistics));
    flow.ip_version = 6;
    flow.start_time_ns = 0;
    flow.end_time_ns = (uint64_t)1 << 63;
    CHECK(flow_batch_record(out, &flow, &statistics, 1) - out <= FLOW_BATCH_STATISTICS_MAX - 9);
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_flow_encode(&flow, &statistics, 1, out, FLOW_BATCH_STATISTICS_MAX - 1));
    CHECK(capture_flow_encode(&flow, &statistics, 1, out, FLOW_BATCH_STATISTICS_MAX) > 0);
}

static void the_longest_head_fits_its_bound(void) {
    uint8_t token[FLOW_BATCH_TOKEN_MAX] = {0}, out[2 * FLOW_BATCH_HEAD_MAX];
    struct flow_batch_head head = {UINT32_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, token, sizeof(token)};
    uint8_t *end = flow_batch_head(out, &head);
    CHECK((end - out) + (flow_batch_response(out, UINT64_MAX) - out) <= FLOW_BATCH_HEAD_MAX);
}

static void an_empty_record_is_empty_but_for_its_addresses(void) {
    struct capture_flow flow = {.ip_version = 4};
    uint8_t out[64];
    CHECK_EQUAL(2 + 12, flow_batch_record(out, &flow, NULL, 0) - out);
}

int main(void) {
    RUN(the_bytes_of_a_batch_are_those_of_protobuf);
    RUN(an_encoded_list_has_the_same_records_without_sequence_and_token);
    RUN(the_longest_record_fits_its_bound);
    RUN(statistics_are_the_last_fields_and_absent_when_0);
    RUN(the_longest_record_with_statistics_fits_its_bound);
    RUN(the_longest_head_fits_its_bound);
    RUN(an_empty_record_is_empty_but_for_its_addresses);
    return 0;
}
