/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder on frames made by hand: every link layer, every extension header, every length of a cut frame. */
#include "check.h"
#include "decode/decode.h"
#include "frames.h"

static struct packet packet;

static enum decode_result decode(const struct bytes *bytes, uint16_t link_type) {
    struct frame frame = frame_of(bytes, link_type);
    /* Where the frame ends the allocation ends: ASan sees one byte too many. */
    uint8_t *exact = malloc(bytes->length ? bytes->length : 1);
    memcpy(exact, bytes->data, bytes->length);
    frame.data = exact;
    enum decode_result result = decode_frame(&frame, &packet);
    free(exact);
    return result;
}

static void add_tcp_v4(struct bytes *bytes) {
    add_ipv4(bytes, 0x0a000001, 0x0a000002, 6, 20, 1, 0);
    add_tcp(bytes, 4000, 80, 0x12);
}

static void add_udp_v6(struct bytes *bytes) {
    add_ipv6(bytes, 1, 2, 17, 8);
    add_udp(bytes, 4000, 53, 0);
}

static void check_tcp_v4(enum decode_result result, uint16_t vlan_id) {
    CHECK_EQUAL(DECODE_IP, result);
    CHECK_EQUAL(4, packet.key.ip_version);
    CHECK_EQUAL(6, packet.key.protocol);
    CHECK(memcmp(packet.key.addr[0], "\x0a\0\0\1\0\0\0\0\0\0\0\0\0\0\0", 16) == 0);
    CHECK(memcmp(packet.key.addr[1], "\x0a\0\0\2\0\0\0\0\0\0\0\0\0\0\0", 16) == 0);
    CHECK_EQUAL(4000, packet.key.port[0]);
    CHECK_EQUAL(80, packet.key.port[1]);
    CHECK_EQUAL(vlan_id, packet.key.vlan_id);
    CHECK_EQUAL(40, packet.octets);
    CHECK_EQUAL(0x12, packet.tcp_flags);
    CHECK_EQUAL(46, packet.dscp);
    CHECK_EQUAL(7, packet.ts_ns);
    CHECK_EQUAL(3, packet.interface_index);
}

static void check_udp_v6(enum decode_result result) {
    CHECK_EQUAL(DECODE_IP, result);
    CHECK_EQUAL(6, packet.key.ip_version);
    CHECK_EQUAL(17, packet.key.protocol);
    CHECK_EQUAL(4000, packet.key.port[0]);
    CHECK_EQUAL(53, packet.key.port[1]);
    CHECK_EQUAL(48, packet.octets);
    CHECK_EQUAL(46, packet.dscp);
    CHECK_EQUAL(2, packet.key.addr[1][15]);
}

static void an_ethernet_frame_gives_key_octets_flags_and_dscp(void) {
    struct bytes b = {0};
    add_ethernet(&b, 0x0800);
    add_tcp_v4(&b);
    check_tcp_v4(decode(&b, 1), 0);
    b.length = 0;
    add_ethernet(&b, 0x86dd);
    add_udp_v6(&b);
    check_udp_v6(decode(&b, 1));
}

static void the_outermost_vlan_tag_counts_whatever_its_ethertype(void) {
    static const uint16_t types[] = {0x8100, 0x88a8, 0x9100};
    for (int i = 0; i < 3; i++) {
        struct bytes b = {0};
        add_ethernet(&b, types[i]);
        add_be16(&b, 0xe000 | 100);
        add_be16(&b, 0x8100);
        add_be16(&b, 200);
        add_be16(&b, 0x0800);
        add_tcp_v4(&b);
        check_tcp_v4(decode(&b, 1), 100);
    }
}

static void a_tag_taken_off_by_the_kernel_is_the_outermost(void) {
    struct bytes b = {0};
    add_ethernet(&b, 0x8100);
    add_be16(&b, 200);
    add_be16(&b, 0x0800);
    add_tcp_v4(&b);
    struct frame frame = frame_of(&b, 1);
    frame.flags = FRAME_VLAN;
    frame.vlan_tci = 0x2000 | 100;
    check_tcp_v4(decode_frame(&frame, &packet), 100);
}

static void more_tags_than_the_limit_are_malformed(void) {
    for (int tags = 15; tags <= 18; tags++) {
        struct bytes b = {0};
        add_ethernet(&b, 0x8100);
        for (int i = 1; i < tags; i++) {
            add_be16(&b, 1);
            add_be16(&b, 0x8100);
        }
        add_be16(&b, 1);
        add_be16(&b, 0x0800);
        add_tcp_v4(&b);
        CHECK_EQUAL(tags <= DECODE_MAX_TAGS ? DECODE_IP : DECODE_MALFORMED, decode(&b, 1));
    }
}

static void mpls_labels_are_skipped_to_the_bottom_of_the_stack(void) {
    for (int labels = 1; labels <= 3; labels++) {
        struct bytes b = {0};
        add_ethernet(&b, 0x8847);
        for (int i = 1; i <= labels; i++)
            add_be32(&b, 0x00010040u | (uint32_t)(i == labels) << 8);
        add_tcp_v4(&b);
        check_tcp_v4(decode(&b, 1), 0);
    }
    struct bytes pseudowire = {0};
    add_ethernet(&pseudowire, 0x8848);
    add_be32(&pseudowire, 0x00010140);
    add_zeros(&pseudowire, 40);
    CHECK_EQUAL(DECODE_NON_IP, decode(&pseudowire, 1));
}

static void snap_carries_ip_and_other_llc_does_not(void) {
    struct bytes b = {0};
    add_ethernet(&b, 48);
    add_bytes(&b, "\xaa\xaa\x03\0\0\0\x08\0", 8);
    add_tcp_v4(&b);
    check_tcp_v4(decode(&b, 1), 0);
    b.data[14] = 0x42; /* spanning tree */
    CHECK_EQUAL(DECODE_NON_IP, decode(&b, 1));
}

static void cooked_captures_of_both_versions_are_read(void) {
    struct bytes v1 = {0}, v2 = {0};
    add_zeros(&v1, 14);
    add_be16(&v1, 0x0800);
    add_tcp_v4(&v1);
    check_tcp_v4(decode(&v1, 113), 0);
    add_be16(&v2, 0x86dd);
    add_zeros(&v2, 18);
    add_udp_v6(&v2);
    check_udp_v6(decode(&v2, 276));
    v1.data[14] = 0, v1.data[15] = 0x0c; /* CAN */
    CHECK_EQUAL(DECODE_NON_IP, decode(&v1, 113));
}

static void raw_ip_of_every_link_type_is_read(void) {
    static const uint16_t types[] = {12, 14, 101, 228, 229};
    for (int i = 0; i < 5; i++) {
        struct bytes v4 = {0}, v6 = {0};
        add_tcp_v4(&v4);
        check_tcp_v4(decode(&v4, types[i]), 0);
        add_udp_v6(&v6);
        check_udp_v6(decode(&v6, types[i]));
    }
}

static void loopback_families_are_read_in_both_byte_orders(void) {
    static const uint8_t v6_families[] = {10, 24, 28, 30};
    struct bytes b = {0};
    add_be32(&b, 2);
    add_tcp_v4(&b);
    check_tcp_v4(decode(&b, 0), 0);
    check_tcp_v4(decode(&b, 108), 0);
    b.length = 0;
    add_be32(&b, 0x02000000);
    add_tcp_v4(&b);
    check_tcp_v4(decode(&b, 0), 0);
    for (int i = 0; i < 4; i++) {
        b.length = 0;
        add_be32(&b, i % 2 ? v6_families[i] : (uint32_t)v6_families[i] << 24);
        add_udp_v6(&b);
        check_udp_v6(decode(&b, 0));
    }
    b.data[3] = 99, b.data[0] = 0;
    CHECK_EQUAL(DECODE_NON_IP, decode(&b, 0));
}

static void other_protocols_and_link_types_are_not_ip(void) {
    struct bytes b = {0};
    add_ethernet(&b, 0x0806);
    add_zeros(&b, 28);
    CHECK_EQUAL(DECODE_NON_IP, decode(&b, 1));
    CHECK_EQUAL(DECODE_NON_IP, decode(&b, 189)); /* USB */
}

static void ipv4_options_are_skipped(void) {
    struct bytes b = {0};
    add_be16(&b, 0x4800); /* 8 words: 12 bytes of options */
    add_be16(&b, 52);
    add_be32(&b, 0);
    add_be16(&b, 0x4006);
    add_be16(&b, 0);
    add_be32(&b, 1);
    add_be32(&b, 2);
    add_zeros(&b, 12);
    add_tcp(&b, 5, 6, 2);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(5, packet.key.port[0]);
    CHECK_EQUAL(2, packet.tcp_flags);
    CHECK_EQUAL(52, packet.octets);
}

static void every_extension_header_is_walked_to_the_transport(void) {
    static const uint8_t types[] = {0, 43, 60, 135, 139, 140, 51, 44};
    for (uint32_t i = 0; i < sizeof(types); i++) {
        struct bytes b = {0};
        uint32_t words = types[i] == 44 ? 1 : 2; /* of 8 bytes; the fragment header has no length field */
        add_ipv6(&b, 1, 2, types[i], 16 + words * 8 + 8);
        add_u8(&b, types[i] == 60 ? 43 : 60);
        add_u8(&b, types[i] == 51 ? words * 2 - 2 : types[i] == 44 ? 0 : words - 1);
        add_zeros(&b, words * 8 - 2);
        add_u8(&b, 17);
        add_u8(&b, 1);
        add_zeros(&b, 14);
        add_udp(&b, 4000, 53, 0);
        CHECK_EQUAL(DECODE_IP, decode(&b, 101));
        CHECK_EQUAL(17, packet.key.protocol);
        CHECK_EQUAL(4000, packet.key.port[0]);
        CHECK_EQUAL(53, packet.key.port[1]);
        CHECK_EQUAL(PACKET_WHOLE, packet.fragment);
    }
}

static void esp_and_no_next_header_end_the_chain(void) {
    static const uint8_t ends[] = {50, 59};
    for (int i = 0; i < 2; i++) {
        struct bytes b = {0};
        add_ipv6(&b, 1, 2, 0, 16);
        add_u8(&b, ends[i]);
        add_zeros(&b, 15);
        CHECK_EQUAL(DECODE_IP, decode(&b, 101));
        CHECK_EQUAL(ends[i], packet.key.protocol);
        CHECK_EQUAL(0, packet.key.port[0]);
    }
}

static void an_endless_chain_of_extension_headers_is_cut_at_the_limit(void) {
    struct bytes b = {0};
    add_ipv6(&b, 1, 2, 60, 8 * 100);
    for (int i = 0; i < 99; i++) {
        add_u8(&b, 60);
        add_zeros(&b, 7);
    }
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(60, packet.key.protocol);
}

static void icmp_type_and_code_are_kept_out_of_the_key(void) {
    struct bytes v4 = {0}, v6 = {0};
    add_ipv4(&v4, 1, 2, 1, 8, 0, 0);
    add_be16(&v4, 0x0301);
    add_zeros(&v4, 6);
    CHECK_EQUAL(DECODE_IP, decode(&v4, 101));
    CHECK_EQUAL(3, packet.icmp_type);
    CHECK_EQUAL(1, packet.icmp_code);
    CHECK_EQUAL(0, packet.key.port[0] | packet.key.port[1]);
    add_ipv6(&v6, 1, 2, 58, 8);
    add_be16(&v6, 0x8002);
    add_zeros(&v6, 6);
    CHECK_EQUAL(DECODE_IP, decode(&v6, 101));
    CHECK_EQUAL(128, packet.icmp_type);
    CHECK_EQUAL(2, packet.icmp_code);
}

static void sctp_has_ports_and_gre_has_none(void) {
    struct bytes b = {0};
    add_ipv4(&b, 1, 2, 132, 12, 0, 0);
    add_be32(&b, 0x0b590b5a);
    add_zeros(&b, 8);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(2905, packet.key.port[0]);
    b.data[9] = 47;
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(0, packet.key.port[0] | packet.key.port[1]);
}

static void an_offloaded_length_of_zero_means_the_frame(void) {
    struct bytes b = {0};
    add_ethernet(&b, 0x0800);
    add_tcp_v4(&b);
    b.data[16] = b.data[17] = 0;
    struct frame frame = frame_of(&b, 1);
    frame.wirelen = 9014;
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &packet));
    CHECK_EQUAL(9000, packet.octets);
    CHECK_EQUAL(80, packet.key.port[1]);
    b.length = 0;
    add_ethernet(&b, 0x86dd);
    add_udp_v6(&b);
    b.data[18] = b.data[19] = 0;
    frame = frame_of(&b, 1);
    frame.wirelen = 9014;
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &packet));
    CHECK_EQUAL(9000, packet.octets);
}

static void a_jumbogram_says_its_length_itself(void) {
    struct bytes b = {0};
    add_ipv6(&b, 1, 2, 0, 0);
    add_be32(&b, 0x1100c204);
    add_be32(&b, 100000);
    add_udp(&b, 1, 2, 0);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(100040, packet.octets);
    CHECK_EQUAL(2, packet.key.port[1]);
}

static void inconsistent_ip_headers_are_malformed(void) {
    struct bytes b = {0};
    add_tcp_v4(&b);
    struct bytes bad = b;
    bad.data[0] = 0x44; /* header of 16 bytes */
    CHECK_EQUAL(DECODE_MALFORMED, decode(&bad, 101));
    bad = b;
    bad.data[3] = 19; /* total length below the header's */
    CHECK_EQUAL(DECODE_MALFORMED, decode(&bad, 101));
    bad = b;
    bad.data[0] = 0x55;
    CHECK_EQUAL(DECODE_MALFORMED, decode(&bad, 101));
    bad = b;
    bad.data[0] = 0x4f; /* options that were not captured */
    CHECK_EQUAL(DECODE_MALFORMED, decode(&bad, 101));
}

static void ethernet_padding_is_not_transport(void) {
    struct bytes b = {0};
    add_ethernet(&b, 0x0800);
    add_ipv4(&b, 1, 2, 17, 2, 0, 0);
    add_be16(&b, 4000);
    add_bytes(&b, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    CHECK_EQUAL(DECODE_IP, decode(&b, 1));
    CHECK_EQUAL(22, packet.octets);
    CHECK_EQUAL(0, packet.key.port[0] | packet.key.port[1]);
}

static void fragments_are_told_apart(void) {
    struct bytes b = {0};
    add_ipv4(&b, 1, 2, 17, 8, 0xabcd, 0x2000);
    add_udp(&b, 9, 8, 0);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(PACKET_FRAGMENT_FIRST, packet.fragment);
    CHECK_EQUAL(9, packet.key.port[0]);
    CHECK_EQUAL(0xabcd, packet.fragment_id);
    b.data[7] = 1;
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(PACKET_FRAGMENT_LATER, packet.fragment);
    CHECK_EQUAL(0, packet.key.port[0]);
    b.length = 0;
    add_ipv6(&b, 1, 2, 44, 16);
    add_be32(&b, 0x11000008); /* offset 1 */
    add_be32(&b, 0x12345678);
    add_udp(&b, 9, 8, 0);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    CHECK_EQUAL(PACKET_FRAGMENT_LATER, packet.fragment);
    CHECK_EQUAL(0x12345678, packet.fragment_id);
    CHECK_EQUAL(17, packet.key.protocol);
    CHECK_EQUAL(0, packet.key.port[0]);
}

/* Every frame of the set at every captured length: malformed until the IP header is whole, then IP, with ports from 4 bytes on.
 */
static void a_frame_cut_anywhere_is_never_read_past_its_end(void) {
    for (int kind = 0; kind < 4; kind++) {
        struct bytes b = {0};
        if (kind == 1)
            add_be32(&b, 2);
        else if (kind == 0 || kind == 2)
            add_ethernet(&b, kind ? 0x8100 : 0x0800);
        if (kind == 2) {
            add_be16(&b, 5);
            add_be16(&b, 0x8847);
            add_be32(&b, 0x00010040);
            add_be32(&b, 0x00010140);
        }
        uint32_t ip_at = b.length, ip_length = kind == 3 ? 40 : 20;
        if (kind == 3)
            add_udp_v6(&b);
        else
            add_tcp_v4(&b);
        for (uint32_t length = 0; length <= b.length; length++) {
            struct frame frame = frame_of(&b, kind == 1 ? 0 : kind == 3 ? 101 : 1);
            uint8_t *exact = malloc(length ? length : 1);
            memcpy(exact, b.data, length);
            frame.data = exact;
            frame.caplen = length;
            enum decode_result result = decode_frame(&frame, &packet);
            free(exact);
            CHECK_EQUAL(length < ip_at + ip_length ? DECODE_MALFORMED : DECODE_IP, result);
            if (result == DECODE_IP)
                CHECK_EQUAL(length >= ip_at + ip_length + 4 ? 4000 : 0, packet.key.port[0]);
        }
    }
}

static void canonical_order_puts_the_lower_endpoint_first(void) {
    struct bytes b = {0};
    add_ipv4(&b, 0x0a000002, 0x0a000001, 17, 8, 0, 0);
    add_udp(&b, 1, 2, 0);
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    packet_canonicalise(&packet);
    CHECK_EQUAL(1, packet.from);
    CHECK_EQUAL(1, packet.key.addr[0][3]);
    CHECK_EQUAL(2, packet.key.port[0]);
    b.data[15] = 1; /* equal addresses: the ports decide */
    CHECK_EQUAL(DECODE_IP, decode(&b, 101));
    packet_canonicalise(&packet);
    CHECK_EQUAL(0, packet.from);
    CHECK_EQUAL(1, packet.key.port[0]);
}

int main(void) {
    RUN(an_ethernet_frame_gives_key_octets_flags_and_dscp);
    RUN(the_outermost_vlan_tag_counts_whatever_its_ethertype);
    RUN(a_tag_taken_off_by_the_kernel_is_the_outermost);
    RUN(more_tags_than_the_limit_are_malformed);
    RUN(mpls_labels_are_skipped_to_the_bottom_of_the_stack);
    RUN(snap_carries_ip_and_other_llc_does_not);
    RUN(cooked_captures_of_both_versions_are_read);
    RUN(raw_ip_of_every_link_type_is_read);
    RUN(loopback_families_are_read_in_both_byte_orders);
    RUN(other_protocols_and_link_types_are_not_ip);
    RUN(ipv4_options_are_skipped);
    RUN(every_extension_header_is_walked_to_the_transport);
    RUN(esp_and_no_next_header_end_the_chain);
    RUN(an_endless_chain_of_extension_headers_is_cut_at_the_limit);
    RUN(icmp_type_and_code_are_kept_out_of_the_key);
    RUN(sctp_has_ports_and_gre_has_none);
    RUN(an_offloaded_length_of_zero_means_the_frame);
    RUN(a_jumbogram_says_its_length_itself);
    RUN(inconsistent_ip_headers_are_malformed);
    RUN(ethernet_padding_is_not_transport);
    RUN(fragments_are_told_apart);
    RUN(a_frame_cut_anywhere_is_never_read_past_its_end);
    RUN(canonical_order_puts_the_lower_endpoint_first);
    return 0;
}
