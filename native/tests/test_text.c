/* SPDX-License-Identifier: Apache-2.0 */
/* JSON and CSV lines, numbers, and addresses against inet_ntop. */
#include <arpa/inet.h>

#include "check.h"
#include "export/columns.h"
#include "export/text.h"

static struct capture_flow sample(void) {
    return (struct capture_flow){.flow_id = 0xab,
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
                                 .start_time_ns = 1700000000000000001,
                                 .end_time_ns = 1700000001000000002,
                                 .first_packet_id = 1,
                                 .last_packet_id = 100,
                                 .fwd_tcp_flags = 0x02,
                                 .rev_tcp_flags = 0x12,
                                 .interface_index = 1,
                                 .icmp_type = 8,
                                 .icmp_code = 9,
                                 .dscp = 46,
                                 .state = 2,
                                 .end_reason = 4,
                                 .tunnel_type = 5,
                                 .second_interface_index = 9,
                                 .sampling_interval = 100,
                                 .tunnel_id = 4294967295};
}

static void a_json_line_has_the_documented_keys_in_order(void) {
    struct capture_flow flow = sample();
    char line[TEXT_RECORD_MAX + 1];
    *text_json_line(line, &(struct text_record){.flow = &flow}) = 0;
    CHECK_TEXT(
        "{\"src_addr\":\"10.0.0.1\",\"dst_addr\":\"192.168.255.254\",\"src_port\":4000,\"dst_port\":443,\"ip_protocol\":6,"
        "\"vlan_id\":7,\"fwd_packets\":3,\"fwd_octets\":180,\"rev_packets\":2,\"rev_octets\":99999,"
        "\"start_time_unix_ns\":1700000000000000001,\"end_time_unix_ns\":1700000001000000002,\"tcp_flags\":18,\"end_reason\":4,"
        "\"flow_id\":\"00000000000000ab\",\"fwd_tcp_flags\":2,\"rev_tcp_flags\":18,\"state\":2,\"interface_index\":1,"
        "\"icmp_type\":8,\"icmp_code\":9,\"dscp\":46,\"first_packet_id\":1,\"last_packet_id\":100,\"tunnel_id\":4294967295,"
        "\"tunnel_type\":5,\"second_interface_index\":9,\"sampling_interval\":100}\n",
        line);
}

static void a_csv_line_has_the_headers_columns(void) {
    struct capture_flow flow = sample();
    char line[TEXT_RECORD_MAX + 1];
    *text_csv_line(line, &(struct text_record){.flow = &flow}) = 0;
    CHECK_TEXT(
        "src_addr,dst_addr,src_port,dst_port,ip_protocol,vlan_id,fwd_packets,fwd_octets,rev_packets,rev_octets,"
        "start_time_unix_ns,end_time_unix_ns,tcp_flags,end_reason,flow_id,fwd_tcp_flags,rev_tcp_flags,state,interface_index,"
        "icmp_type,icmp_code,dscp,first_packet_id,last_packet_id,tunnel_id,tunnel_type,second_interface_index,sampling_"
        "interval\n",
        capture_csv_header(0));
    CHECK_TEXT(
        "10.0.0.1,192.168.255.254,4000,443,6,7,3,180,2,99999,1700000000000000001,1700000001000000002,18,4,00000000000000ab,"
        "2,18,2,1,8,9,46,1,100,4294967295,5,9,100\n",
        line);
}

static void the_longest_record_fits_its_bound(void) {
    struct capture_flow flow;
    char line[4096];
    memset(&flow, 0xff, sizeof(flow));
    flow.ip_version = 6;
    CHECK(text_json_line(line, &(struct text_record){.flow = &flow}) - line <= TEXT_RECORD_MAX);
    CHECK(text_csv_line(line, &(struct text_record){.flow = &flow}) - line <= TEXT_RECORD_MAX);
}

static void the_longest_record_with_statistics_fits_its_bound(void) {
    struct capture_flow flow;
    struct capture_flow_statistics statistics;
    struct capture_spread widest = {UINT64_MAX, UINT64_MAX, 0x1p64, 0x1p64};
    char line[8192];
    memset(&flow, 0xff, sizeof(flow));
    memset(&statistics, 0xff, sizeof(statistics));
    flow.ip_version = 6;
    statistics.fwd_payload = statistics.rev_payload = statistics.fwd_interval = statistics.rev_interval = widest;
    struct text_record record = {.flow = &flow, .statistics = &statistics, .kinds = 15};
    CHECK(text_json_line(line, &record) - line <= TEXT_STATISTICS_MAX);
    CHECK(text_csv_line(line, &record) - line <= TEXT_STATISTICS_MAX);
}

static struct capture_flow_statistics sample_statistics(void) {
    return (struct capture_flow_statistics){
        .fwd_retransmissions = 1,
        .rev_retransmissions = 2,
        .fwd_out_of_order = 3,
        .rev_out_of_order = 4,
        .fwd_zero_windows = 5,
        .rev_zero_windows = 6,
        .syn_to_synack_ns = 7,
        .synack_to_ack_ns = 8,
        .fwd_payload = {9, 10, 9.5, 0.25},
        .rev_payload = {11, 12, 11.0625, 13.9996},
        .fwd_interval = {14, 15, 14.5, 16},
        .rev_interval = {17, 18, 17.5, 19},
        .fwd_headers = {{2, 0, 0, 0xab, 0, 1}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 20, 21, 22, 0xfffff, 0},
        .rev_headers = {.dst_mac = {0, 0, 0, 0, 0, 1}, .max_ttl = 255}};
}

static void each_kind_of_statistics_adds_its_keys_and_columns(void) {
    static const struct {
        const char *keys, *header, *values;
    } parts[] = {
        {",\"fwd_retransmissions\":1,\"rev_retransmissions\":2,\"fwd_out_of_order\":3,\"rev_out_of_order\":4,"
         "\"fwd_zero_windows\":5,\"rev_zero_windows\":6,\"syn_to_synack_ns\":7,\"synack_to_ack_ns\":8",
         ",fwd_retransmissions,rev_retransmissions,fwd_out_of_order,rev_out_of_order,fwd_zero_windows,rev_zero_windows,"
         "syn_to_synack_ns,synack_to_ack_ns",
         ",1,2,3,4,5,6,7,8"},
        {",\"fwd_payload_min\":9,\"fwd_payload_max\":10,\"fwd_payload_mean\":9.500,\"fwd_payload_stddev\":0.250,"
         "\"rev_payload_min\":11,\"rev_payload_max\":12,\"rev_payload_mean\":11.063,\"rev_payload_stddev\":14.000",
         ",fwd_payload_min,fwd_payload_max,fwd_payload_mean,fwd_payload_stddev,rev_payload_min,rev_payload_max,"
         "rev_payload_mean,rev_payload_stddev",
         ",9,10,9.500,0.250,11,12,11.063,14.000"},
        {",\"fwd_interval_min_ns\":14,\"fwd_interval_max_ns\":15,\"fwd_interval_mean_ns\":14.500,"
         "\"fwd_interval_stddev_ns\":16.000,\"rev_interval_min_ns\":17,\"rev_interval_max_ns\":18,"
         "\"rev_interval_mean_ns\":17.500,\"rev_interval_stddev_ns\":19.000",
         ",fwd_interval_min_ns,fwd_interval_max_ns,fwd_interval_mean_ns,fwd_interval_stddev_ns,rev_interval_min_ns,"
         "rev_interval_max_ns,rev_interval_mean_ns,rev_interval_stddev_ns",
         ",14,15,14.500,16.000,17,18,17.500,19.000"},
        {",\"fwd_src_mac\":\"02:00:00:ab:00:01\",\"fwd_dst_mac\":\"ff:ff:ff:ff:ff:ff\",\"rev_src_mac\":\"\","
         "\"rev_dst_mac\":\"00:00:00:00:00:01\",\"fwd_inner_vlan_id\":20,\"rev_inner_vlan_id\":0,\"fwd_min_ttl\":21,"
         "\"fwd_max_ttl\":22,\"rev_min_ttl\":0,\"rev_max_ttl\":255,\"fwd_flow_label\":1048575,\"rev_flow_label\":0",
         ",fwd_src_mac,fwd_dst_mac,rev_src_mac,rev_dst_mac,fwd_inner_vlan_id,rev_inner_vlan_id,fwd_min_ttl,fwd_max_ttl,"
         "rev_min_ttl,rev_max_ttl,fwd_flow_label,rev_flow_label",
         ",02:00:00:ab:00:01,ff:ff:ff:ff:ff:ff,,00:00:00:00:00:01,20,0,21,22,0,255,1048575,0"},
    };
    struct capture_flow flow = sample();
    struct capture_flow_statistics statistics = sample_statistics();
    for (uint32_t kinds = 0; kinds < 16; kinds++) {
        struct text_record plain = {.flow = &flow}, record = {.flow = &flow, .statistics = &statistics, .kinds = kinds};
        char line[TEXT_STATISTICS_MAX + 1], json[4096] = "", header[4096] = "", csv[4096] = "";
        *(text_json_line(json, &plain) - 2) = 0;
        *(text_csv_line(csv, &plain) - 1) = 0;
        strcpy(header, capture_csv_header(0));
        header[strlen(header) - 1] = 0;
        for (uint32_t kind = 0; kind < 4; kind++) {
            strcat(json, kinds >> kind & 1 ? parts[kind].keys : "");
            strcat(header, kinds >> kind & 1 ? parts[kind].header : "");
            strcat(csv, kinds >> kind & 1 ? parts[kind].values : "");
        }
        *text_json_line(line, &record) = 0;
        CHECK_TEXT(strcat(json, "}\n"), line);
        *text_csv_line(line, &record) = 0;
        CHECK_TEXT(strcat(csv, "\n"), line);
        CHECK_TEXT(strcat(header, "\n"), capture_csv_header(kinds));
    }
    CHECK(capture_csv_header(16) == NULL);
}

static void numbers_with_places_are_rounded(void) {
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0.000"},
                 {0.0004, "0.000"},
                 {0.0006, "0.001"},
                 {1.9996, "2.000"},
                 {1e15 + 0.5, "1000000000000000.500"},
                 {0x1p63, "9223372036854775808.000"},
                 {0x1p64, "18446744073709551615.000"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[32];
        *text_fixed(text, cases[i].value) = 0;
        CHECK_TEXT(cases[i].text, text);
    }
}

static void columns_of_statistics_hold_their_values_or_0(void) {
    struct capture_flow flow = sample();
    struct capture_flow_statistics statistics = sample_statistics();
    uint32_t zero_windows[2] = {99, 99};
    double mean[2] = {99, 99};
    uint8_t mac[12];
    uint32_t label[2] = {99, 99};
    memset(mac, 99, sizeof(mac));
    struct capture_flow_columns columns = {
        .rev_zero_windows = zero_windows, .fwd_interval_mean_ns = mean, .fwd_src_mac = mac, .fwd_flow_label = label};
    columns_put(&columns, 0, &flow, &statistics);
    columns_put(&columns, 1, &flow, NULL);
    CHECK_EQUAL(6, zero_windows[0]);
    CHECK(mean[0] == 14.5);
    CHECK_EQUAL(0, zero_windows[1]);
    CHECK(mean[1] == 0);
    CHECK(memcmp(mac, "\2\0\0\xab\0\1\0\0\0\0\0\0", 12) == 0);
    CHECK_EQUAL(0xfffff, label[0]);
    CHECK_EQUAL(0, label[1]);
}

static void numbers_of_every_length_are_written(void) {
    char text[32], expected[32];
    for (uint64_t value = 1, step = 0; step < 20; step++, value *= 10) {
        for (int offset = -1; offset <= 1; offset++) {
            *text_unsigned(text, value + (uint64_t)offset) = 0;
            snprintf(expected, sizeof(expected), "%" PRIu64, value + (uint64_t)offset);
            CHECK_TEXT(expected, text);
        }
    }
    *text_unsigned(text, UINT64_MAX) = 0;
    CHECK_TEXT("18446744073709551615", text);
}

static void check_address(const uint8_t *addr, uint8_t version) {
    char text[TEXT_ADDRESS_MAX + 8], expected[64];
    *text_address(text, addr, version) = 0;
    inet_ntop(version == 4 ? AF_INET : AF_INET6, addr, expected, sizeof(expected));
    CHECK_TEXT(expected, text);
}

/* Every pattern of zero groups, with small and large ones, is what inet_ntop writes. */
static void addresses_are_written_as_inet_ntop_writes_them(void) {
    static const uint16_t values[] = {1, 0xffff, 0x0abc, 0x00ff, 0x1000};
    uint8_t addr[16];
    for (int value = 0; value < 5; value++) {
        for (int pattern = 0; pattern < 256; pattern++) {
            for (int group = 0; group < 8; group++) {
                uint16_t word = pattern >> group & 1 ? values[(value + group) % 5] : 0;
                addr[2 * group] = (uint8_t)(word >> 8);
                addr[2 * group + 1] = (uint8_t)word;
            }
            check_address(addr, 6);
            check_address(addr, 4);
        }
    }
    uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 200};
    check_address(mapped, 6);
}

static void columns_hold_the_records_values(void) {
    struct capture_flow flow = sample();
    uint8_t src[32] = {0};
    uint64_t octets[2] = {0};
    uint32_t tunnel_id[2] = {0};
    int64_t start[2] = {0};
    struct capture_flow_columns columns = {.src_addr = src, .rev_octets = octets, .start_time_ns = start, .tunnel_id = tunnel_id};
    columns_put(&columns, 1, &flow, NULL);
    CHECK(memcmp(src + 16, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\1", 16) == 0);
    CHECK_EQUAL(0, src[15]);
    CHECK_EQUAL(99999, octets[1]);
    CHECK_EQUAL(4294967295, tunnel_id[1]);
    CHECK_EQUAL(1700000000000000001, start[1]);
}

int main(void) {
    RUN(a_json_line_has_the_documented_keys_in_order);
    RUN(a_csv_line_has_the_headers_columns);
    RUN(the_longest_record_fits_its_bound);
    RUN(the_longest_record_with_statistics_fits_its_bound);
    RUN(each_kind_of_statistics_adds_its_keys_and_columns);
    RUN(numbers_with_places_are_rounded);
    RUN(columns_of_statistics_hold_their_values_or_0);
    RUN(numbers_of_every_length_are_written);
    RUN(addresses_are_written_as_inet_ntop_writes_them);
    RUN(columns_hold_the_records_values);
    return 0;
}
