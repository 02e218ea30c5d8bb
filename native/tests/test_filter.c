/* SPDX-License-Identifier: Apache-2.0 */
/* BPF expressions on frames and on flow records. */
#include "check.h"
#include "filter.h"

#include <arpa/inet.h>

/* A TCP SYN 10.0.0.1:40000 -> 10.0.0.2:80, from its IP header. */
static const uint8_t ip_packet[40] = {0x45, 0,  0,    40,   0, 1, 0, 0, 64, 6, 0, 0, 10,   0,    0, 1, 10, 0, 0, 2,
                                      0x9c, 64, 0x00, 0x50, 0, 0, 0, 1, 0,  0, 0, 0, 0x50, 0x02, 4, 0, 0,  0, 0, 0};

static struct frame ethernet(uint8_t *room, int tag) {
    memset(room, 0, 128);
    uint8_t *at = room + 12;
    if (tag >= 0) {
        memcpy(at, (const uint8_t[]){0x81, 0, (uint8_t)(tag >> 8), (uint8_t)tag}, 4);
        at += 4;
    }
    memcpy(at, (const uint8_t[]){8, 0}, 2);
    memcpy(at + 2, ip_packet, sizeof ip_packet);
    uint32_t length = (uint32_t)(at + 2 + sizeof ip_packet - room);
    return (struct frame){.data = room, .caplen = length, .wirelen = length, .link_type = 1};
}

static bool frame_matches(const char *expression, const struct frame *frame) {
    struct frame_filter *filter;
    struct capture_error_info error = {0};
    int code = frame_filter_compile(expression, 0, &filter, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    bool first = frame_filter_match(filter, frame);
    CHECK_EQUAL(first, frame_filter_match(filter, frame)); /* the second time from the cache */
    frame_filter_free(filter);
    return first;
}

static void an_empty_expression_matches_everything(void) {
    struct frame_filter *filter = (void *)1;
    CHECK_EQUAL(CAPTURE_OK, frame_filter_compile(NULL, 0, &filter, NULL));
    CHECK(filter == NULL);
    CHECK_EQUAL(CAPTURE_OK, frame_filter_compile("", 0, &filter, NULL));
    CHECK(filter == NULL);
    CHECK(frame_filter_match(NULL, &(struct frame){0}));
    frame_filter_free(NULL);
}

static void frames_are_matched_by_address_port_and_length(void) {
    uint8_t room[128];
    struct frame frame = ethernet(room, -1);
    CHECK(frame_matches("tcp and dst port 80 and src host 10.0.0.1", &frame));
    CHECK(!frame_matches("udp", &frame));
    CHECK(!frame_matches("src port 80", &frame));
    CHECK(!frame_matches("greater 100", &frame));
    frame.wirelen = 1500;
    CHECK(frame_matches("greater 100", &frame));
}

static void a_tag_taken_off_by_the_kernel_filters_like_one_in_the_frame(void) {
    uint8_t inside_room[128], stripped_room[128];
    struct frame inside = ethernet(inside_room, 5), stripped = ethernet(stripped_room, -1);
    stripped.flags = FRAME_VLAN;
    stripped.vlan_tci = 5;
    const char *yes[] = {"vlan 5 and tcp", "vlan", "vlan and port 80", "not ip", "ether[12:2] = 0x8100", "len = 58"};
    const char *no[] = {"vlan 6", "tcp", "vlan 5 and udp", "len = 54"};
    for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++) {
        CHECK(frame_matches(yes[i], &inside));
        CHECK(frame_matches(yes[i], &stripped));
    }
    for (size_t i = 0; i < sizeof no / sizeof no[0]; i++) {
        CHECK(!frame_matches(no[i], &inside));
        CHECK(!frame_matches(no[i], &stripped));
    }
}

static void a_stripped_frame_too_short_for_a_tag_is_not_read_past(void) {
    uint8_t *room = calloc(1, 8); /* on the heap: the sanitizer sees one byte too many */
    struct frame frame = {.data = room, .caplen = 8, .wirelen = 8, .link_type = 1, .flags = FRAME_VLAN, .vlan_tci = 5};
    CHECK(!frame_matches("vlan 5", &frame));
    free(room);
}

static void one_filter_serves_many_link_types(void) {
    struct frame_filter *filter;
    uint8_t room[128];
    struct frame frame = ethernet(room, -1);
    struct frame raw = {.data = ip_packet, .caplen = sizeof ip_packet, .wirelen = sizeof ip_packet, .link_type = 101};
    CHECK_EQUAL(CAPTURE_OK, frame_filter_compile("tcp port 80", 0, &filter, NULL));
    for (uint16_t other = 104; other < 130; other++) { /* more link types than the cache has places */
        struct frame foreign = raw;
        foreign.link_type = other;
        frame_filter_match(filter, &foreign);
        CHECK(frame_filter_match(filter, &frame));
        CHECK(frame_filter_match(filter, &raw));
    }
    frame_filter_free(filter);
}

static void an_expression_without_meaning_on_a_link_type_matches_none_of_its_frames(void) {
    struct frame raw = {.data = ip_packet, .caplen = sizeof ip_packet, .wirelen = sizeof ip_packet, .link_type = 101};
    CHECK(!frame_matches("ether host 00:00:00:00:00:00", &raw));
    CHECK(frame_matches("ip", &raw));
}

static void bsd_loopback_frames_match_with_the_address_families_of_every_bsd(void) {
    for (uint32_t family = 0; family < 40; family++) {
        uint8_t data[44] = {(uint8_t)family, 0, 0, 0, 0x60, [10] = 6};
        struct frame frame = {.data = data, .caplen = sizeof data, .wirelen = sizeof data, .link_type = 0};
        CHECK_EQUAL(family == 24 || family == 28 || family == 30,
                    frame_matches("ip6", &frame)); /* Net/OpenBSD, FreeBSD, Darwin */
        CHECK_EQUAL(family == 2, frame_matches("ip", &frame));
    }
}

static void a_damaged_frame_passes_any_filter_so_that_it_is_counted_as_malformed(void) {
    struct frame damaged = {.data = ip_packet, .link_type = 0, .flags = FRAME_DAMAGED};
    CHECK(frame_matches("udp", &damaged));
}

static void a_bad_expression_is_refused_with_libpcaps_message(void) {
    struct frame_filter *filter;
    struct flow_filter *flow_filter;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_FILTER, frame_filter_compile("tcp prot 80", 0, &filter, &error));
    CHECK_TEXT("filter", error.field);
    CHECK(strstr(error.message, "\"tcp prot 80\"") != NULL);
    CHECK(strstr(error.message, "syntax error") != NULL);
    CHECK_EQUAL(CAPTURE_ERR_FILTER, flow_filter_compile("port 70000", &flow_filter, &error));
    CHECK(strstr(error.message, "70000") != NULL);
    CHECK_EQUAL(CAPTURE_ERR_FILTER, capture_check_filter("((", &error));
    CHECK_EQUAL(CAPTURE_OK, capture_check_filter("tcp", &error));
    CHECK_EQUAL(CAPTURE_OK, capture_check_filter(NULL, NULL));
}

static struct capture_flow flow(const char *from, uint16_t from_port, const char *to, uint16_t to_port, uint8_t protocol) {
    struct capture_flow made = {.ip_protocol = protocol, .src_port = from_port, .dst_port = to_port};
    made.ip_version = strchr(from, ':') ? 6 : 4;
    int family = made.ip_version == 6 ? AF_INET6 : AF_INET;
    CHECK_EQUAL(1, inet_pton(family, from, made.src_addr));
    CHECK_EQUAL(1, inet_pton(family, to, made.dst_addr));
    return made;
}

static bool flow_matches(const char *expression, const struct capture_flow *record) {
    struct flow_filter *filter;
    struct capture_error_info error = {0};
    int code = flow_filter_compile(expression, &filter, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    bool result = flow_filter_match(filter, record);
    flow_filter_free(filter);
    return result;
}

static void flows_match_in_either_direction(void) {
    struct capture_flow record = flow("10.1.2.3", 40000, "192.0.2.9", 443, 6);
    CHECK(flow_matches("tcp and dst port 443", &record));
    CHECK(flow_matches("tcp and src port 443", &record));
    CHECK(flow_matches("src host 192.0.2.9 and dst host 10.1.2.3", &record));
    CHECK(flow_matches("net 10.1.0.0/16", &record));
    CHECK(!flow_matches("src host 192.0.2.9 and src port 40000", &record)); /* no direction has both */
    CHECK(!flow_matches("udp", &record));
    CHECK(!flow_matches("vlan", &record));
    CHECK(!flow_matches("ip6", &record));
    CHECK(flow_matches("", &record));
}

static void flows_match_by_vlan_ip_version_protocol_and_dscp(void) {
    struct capture_flow record = flow("2001:db8::1", 53, "2001:db8::2", 5353, 17);
    CHECK(flow_matches("ip6 and udp port 53", &record));
    CHECK(flow_matches("host 2001:db8::2", &record));
    record.vlan_id = 100;
    CHECK(flow_matches("vlan 100 and udp port 5353", &record));
    CHECK(!flow_matches("vlan 101", &record));
    CHECK(!flow_matches("udp port 53", &record)); /* as on frames: behind a tag only with `vlan` */
    record = flow("10.0.0.1", 0, "10.0.0.2", 0, 47);
    record.dscp = 46;
    CHECK(flow_matches("ip proto 47", &record));
    CHECK(flow_matches("ip[1] >> 2 = 46", &record));
    record = flow("10.0.0.1", 1, "10.0.0.2", 2, 132);
    CHECK(flow_matches("sctp dst port 2", &record));
}

static void flows_match_by_icmp_type_and_tcp_flags(void) {
    struct capture_flow record = flow("10.0.0.1", 0, "10.0.0.2", 0, 1);
    record.icmp_type = 8;
    CHECK(flow_matches("icmp[icmptype] = icmp-echo", &record));
    CHECK(!flow_matches("icmp[icmptype] = icmp-unreach", &record));
    record = flow("2001:db8::1", 0, "2001:db8::2", 0, 58);
    record.icmp_type = 128;
    CHECK(flow_matches("icmp6 and ip6[40] = 128", &record));
    record = flow("10.0.0.1", 1, "10.0.0.2", 2, 6);
    record.fwd_tcp_flags = 0x02;
    record.rev_tcp_flags = 0x14;
    CHECK(flow_matches("tcp[tcpflags] & tcp-rst != 0", &record));
    CHECK(flow_matches("tcp[tcpflags] & tcp-syn != 0", &record));
    CHECK(!flow_matches("tcp[tcpflags] & tcp-fin != 0", &record));
}

int main(void) {
    RUN(an_empty_expression_matches_everything);
    RUN(frames_are_matched_by_address_port_and_length);
    RUN(a_tag_taken_off_by_the_kernel_filters_like_one_in_the_frame);
    RUN(a_stripped_frame_too_short_for_a_tag_is_not_read_past);
    RUN(one_filter_serves_many_link_types);
    RUN(an_expression_without_meaning_on_a_link_type_matches_none_of_its_frames);
    RUN(bsd_loopback_frames_match_with_the_address_families_of_every_bsd);
    RUN(a_damaged_frame_passes_any_filter_so_that_it_is_counted_as_malformed);
    RUN(a_bad_expression_is_refused_with_libpcaps_message);
    RUN(flows_match_in_either_direction);
    RUN(flows_match_by_vlan_ip_version_protocol_and_dscp);
    RUN(flows_match_by_icmp_type_and_tcp_flags);
    return 0;
}
