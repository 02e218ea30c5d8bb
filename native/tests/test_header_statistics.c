/* SPDX-License-Identifier: Apache-2.0 */
/* Header fields of flows from frames made by hand: MAC addresses and inner tags of every link type and tunnel, TTLs, flow labels.
 */
#include "check.h"
#include "decode/decode.h"
#include "frames.h"
#include "kept_flows.h"

enum { ETHERNET = 1, PPP = 9, RAW = 101, WIFI = 105, LOOP = 108, SLL = 113, RADIOTAP = 127, PPI = 192, SLL2 = 276 };
enum { UDP = 17 };

static void begin_with(uint32_t statistics, uint64_t active_s) {
    begin_table((struct flow_table_config){.max_flows = 4096, .active_timeout_ns = active_s * SECOND, .statistics = statistics});
}

static void meter(struct packet packet) {
    packet_canonicalise(&packet);
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
}

/* Meters the frame's packet, and the one inside it if `inner`. The frame ends where its allocation ends. */
static void add_frame(struct frame frame, bool inner) {
    struct packet packet, inside;
    uint8_t *exact = malloc(frame.caplen);
    memcpy(exact, frame.data, frame.caplen);
    frame.data = exact;
    memset(&packet, 0xa5, sizeof(packet)); /* what was there before does not show */
    memset(&inside, 0x5a, sizeof(inside));
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &packet));
    if (inner)
        CHECK(decode_tunnelled(&packet, &inside));
    meter(packet);
    if (inner)
        meter(inside);
    free(exact);
}

static void finish(void) {
    while (!flow_table_flush(&table, 3))
        continue;
}

static void add_packet(struct bytes *bytes, uint8_t version) {
    if (version == 4)
        add_ipv4(bytes, 0x0a000001, 0x0a000002, UDP, 8, 1, 0);
    else
        add_ipv6(bytes, 1, 2, UDP, 8);
    add_udp(bytes, 4000, 9, 0);
}

#define HEADER(bytes) .header = (bytes), .length = sizeof(bytes) - 1
#define SNAP          "\xaa\xaa\x03\0\0\0"
#define A1            "\2\0\0\0\0\1"
#define A2            "\2\0\0\0\0\2"
#define A3            "\2\0\0\0\0\3"
#define A4            "\2\0\0\0\0\4"
#define NOBODY        "\0\0\0\0\0\0"

/* A link layer's header before an IPv4 packet, and what is to be seen of it. */
struct link_case {
    const char *header;
    uint32_t length;
    uint16_t link_type;
    const char *src_mac, *dst_mac;
    uint16_t vlan_id, inner_vlan_id;
    uint16_t tci; /* taken off by the kernel, 0: none was */
};

static const struct link_case links[] = {
    {HEADER(A1 A2 "\x08\0"), ETHERNET, A2, A1, 0, 0, 0},
    {HEADER(A1 A2 "\x81\0\x60\7\x08\0"), ETHERNET, A2, A1, 7, 0, 0},
    {HEADER(A1 A2 "\x88\xa8\x60\7\x81\0\xef\xff\x08\0"), ETHERNET, A2, A1, 7, 4095, 0},
    {HEADER(A1 A2 "\x91\0\0\7\x88\xa8\0\x08\x81\0\0\x09\x08\0"), ETHERNET, A2, A1, 7, 8, 0}, /* of three the second */
    {HEADER(A1 A2 "\x88\xa8\0\0\x81\0\0\x09\x08\0"), ETHERNET, A2, A1, 0, 9, 0},             /* a priority tag is a tag */
    {HEADER(A1 A2 "\x81\0\0\x09\x81\0\0\0\x81\0\0\x08\x08\0"), ETHERNET, A2, A1, 9, 0, 0},   /* the second one too */
    {HEADER(A1 A2 "\x08\0"), ETHERNET, A2, A1, 7, 0, 0x6007},
    {HEADER(A1 A2 "\x81\0\0\x09\x08\0"), ETHERNET, A2, A1, 7, 9, 0x6007},
    {HEADER(A1 A2 "\x81\0\0\x09\x81\0\0\x0a\x08\0"), ETHERNET, A2, A1, 7, 9, 0x6007},
    {HEADER(A1 A2 "\0\x24" SNAP "\x08\0"), ETHERNET, A2, A1, 0, 0, 0},
    {HEADER(A1 A2 "\x88\x47\0\1\1\x40"), ETHERNET, A2, A1, 0, 0, 0},                                   /* MPLS */
    {HEADER(A1 A2 "\x81\0\0\7\x81\0\0\x08\x88\x64\x11\0\0\7\0\x1e\0\x21"), ETHERNET, A2, A1, 7, 8, 0}, /* PPPoE */
    {HEADER("\0\0\0\1\0\6" A1 "\xee\xee\x08\0"), SLL, A1, NOBODY, 0, 0, 0},
    {HEADER("\0\0\0\1\0\6" A1 "\xee\xee\x81\0\0\x09\x08\0"), SLL, A1, NOBODY, 7, 9, 7},
    {HEADER("\0\0\2\0\0\0\1\2\3\4\5\6\7\x08\x08\0"), SLL, NOBODY, NOBODY, 0, 0, 0},   /* no address */
    {HEADER("\0\0\3\x0a\0\4\xc0\0\2\1\0\0\0\0\x08\0"), SLL, NOBODY, NOBODY, 0, 0, 0}, /* an IPv4 address */
    {HEADER("\x08\0\0\0\0\0\0\3\0\1\4\6" A1 "\0\0"), SLL2, A1, NOBODY, 0, 0, 0},
    {HEADER("\x88\xa8\0\0\0\0\0\3\0\1\4\6" A1 "\0\0\0\7\x81\0\0\x08\x08\0"), SLL2, A1, NOBODY, 7, 8, 0},
    {HEADER("\x08\0\0\0\0\0\0\3\0\x20\4\x08\1\2\3\4\5\6\7\x08"), SLL2, NOBODY, NOBODY, 0, 0, 0}, /* InfiniBand's */
    {HEADER("\x08\0\0\0" A1 A2 A3 "\x10\0" SNAP "\x08\0"), WIFI, A2, A1, 0, 0, 0},
    {HEADER("\x08\1\0\0" A1 A2 A3 "\x10\0" SNAP "\x08\0"), WIFI, A2, A3, 0, 0, 0},
    {HEADER("\x08\2\0\0" A1 A2 A3 "\x10\0" SNAP "\x08\0"), WIFI, A3, A1, 0, 0, 0},
    {HEADER("\x08\3\0\0" A1 A2 A3 "\x10\0" A4 SNAP "\x08\0"), WIFI, A4, A3, 0, 0, 0},
    {HEADER("\x88\2\0\0" A1 A2 A3 "\x10\0\x80\0" A3 A4 "\0\x24" SNAP "\x08\0"), WIFI, A4, A3, 0, 0, 0}, /* A-MSDU */
    {HEADER("\x08\2\0\0" A1 A2 A3 "\x10\0" SNAP "\x81\0\0\7\x81\0\0\x08\x08\0"), WIFI, A3, A1, 7, 8, 0},
    {HEADER("\0\0\x0a\0\2\0\0\0\x20\0\x88\2\0\0" A1 A2 A3 "\x10\0\0\0\0\0" SNAP "\x08\0"), RADIOTAP, A3, A1, 0, 0, 0},
    {HEADER("\0\0\x08\0\x69\0\0\0\x08\1\0\0" A1 A2 A3 "\x10\0" SNAP "\x08\0"), PPI, A2, A3, 0, 0, 0},
    {HEADER("\xff\3\0\x21"), PPP, NOBODY, NOBODY, 0, 0, 0},
    {HEADER("\0\0\0\2"), LOOP, NOBODY, NOBODY, 0, 0, 0},
    {HEADER(""), RAW, NOBODY, NOBODY, 0, 0, 0},
};

static void check_link(const struct capture_headers *headers, const char *src_mac, const char *dst_mac, uint16_t inner_vlan_id) {
    CHECK(memcmp(src_mac, headers->src_mac, 6) == 0);
    CHECK(memcmp(dst_mac, headers->dst_mac, 6) == 0);
    CHECK_EQUAL(inner_vlan_id, headers->inner_vlan_id);
    CHECK_EQUAL(0, headers->reserved);
}

static void every_link_layer_gives_its_addresses_and_its_second_tag(void) {
    static const struct capture_headers none;
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
        struct bytes b = {0};
        add_bytes(&b, links[i].header, links[i].length);
        add_packet(&b, 4);
        struct frame frame = frame_of(&b, links[i].link_type);
        frame.vlan_tci = links[i].tci;
        frame.flags = links[i].tci ? FRAME_VLAN : 0;
        begin_with(CAPTURE_STATISTICS_HEADERS, 0);
        add_frame(frame, false);
        finish();
        CHECK_EQUAL(links[i].vlan_id, ended[0].vlan_id);
        check_link(&kept[0].fwd_headers, links[i].src_mac, links[i].dst_mac, links[i].inner_vlan_id);
        CHECK_EQUAL(64, kept[0].fwd_headers.max_ttl);
        CHECK(memcmp(&none, &kept[0].rev_headers, sizeof(none)) == 0);
    }
}

/* What stands between the outer IPv4 header, or the UDP header behind it, and the inner packet. */
struct tunnel_case {
    const char *header;
    uint32_t length;
    uint8_t protocol;
    uint16_t port; /* UDP destination, 0: none */
    const char *src_mac, *dst_mac;
    uint16_t inner_vlan_id;
};

static const struct tunnel_case tunnels[] = {
    {HEADER("\x08\0\0\0\0\0\7\0" A3 A4 "\x08\0"), UDP, 4789, A4, A3, 0},
    {HEADER("\x08\0\0\0\0\0\7\0" A3 A4 "\x88\xa8\0\x0b\x81\0\0\x0c\x08\0"), UDP, 4789, A4, A3, 12},
    {HEADER("\0\0\x65\x58\0\0\x09\0" A3 A4 "\x08\0"), UDP, 6081, A4, A3, 0},
    {HEADER("\0\0\x08\0\0\0\x09\0"), UDP, 6081, NOBODY, NOBODY, 0}, /* GENEVE with bare IP */
    {HEADER("\0\0\x65\x58" A3 A4 "\x08\0"), 47, 0, A4, A3, 0},
    {HEADER("\0\0\x08\0"), 47, 0, NOBODY, NOBODY, 0},
    {HEADER("\0\0\x88\xbe" A3 A4 "\x08\0"), 47, 0, A4, A3, 0},                                                   /* ERSPAN I */
    {HEADER("\x10\0\x88\xbe\0\0\0\1\x10\x64\x08\x7b\0\0\0\0" A3 A4 "\x81\0\0\x0c\x08\0"), 47, 0, A4, A3, 12},    /* II */
    {HEADER("\x10\0\x22\xeb\0\0\0\1\x20\0\0\x05\1\2\3\4\0\0\0\0" A3 A4 "\x81\0\0\x0c\x08\0"), 47, 0, A4, A3, 0}, /* III */
    {HEADER("\x10\0\x22\xeb\0\0\0\1\x20\x65\0\x06\1\2\3\4\0\0\x08\0"), 47, 0, NOBODY, NOBODY, 0},                /* III, IP */
    {HEADER("\x30\xff\0\x1c\0\0\0\7"), UDP, 2152, NOBODY, NOBODY, 0},
    {HEADER("\0\2\0\7\0\x08\xff\3\0\x21"), UDP, 1701, NOBODY, NOBODY, 0},
    {HEADER(""), 4, 0, NOBODY, NOBODY, 0},
};

/* On Ethernet, with two tags. */
static void an_inner_flow_has_the_addresses_and_tags_inside(void) {
    for (size_t i = 0; i < sizeof(tunnels) / sizeof(tunnels[0]); i++) {
        const struct tunnel_case *tunnel = &tunnels[i];
        struct bytes b = {0};
        add_bytes(&b, A1 A2 "\x88\xa8\0\x0d\x81\0\0\x0e\x08\0", 22);
        add_ipv4(&b, 0xc0000201, 0xc0000202, tunnel->protocol, (tunnel->port ? 8 : 0) + tunnel->length + 28, 1, 0);
        b.data[22 + 8] = 250; /* TTL */
        if (tunnel->port)
            add_udp(&b, 50000, tunnel->port, 0);
        add_bytes(&b, tunnel->header, tunnel->length);
        add_packet(&b, 4);
        begin_with(CAPTURE_STATISTICS_HEADERS, 0);
        add_frame(frame_of(&b, ETHERNET), true);
        finish();
        CHECK_EQUAL(2, ended_count);
        int inside = ended[1].tunnel_type != 0;
        check_link(&kept[!inside].fwd_headers, A2, A1, 14);
        CHECK_EQUAL(250, kept[!inside].fwd_headers.min_ttl);
        check_link(&kept[inside].fwd_headers, tunnel->src_mac, tunnel->dst_mac, tunnel->inner_vlan_id);
        CHECK_EQUAL(64, kept[inside].fwd_headers.min_ttl);
    }
}

/* One IPv4 packet between 10.0.0.1 and 10.0.0.2 at `seconds`. */
static void add_ipv4_at(uint64_t seconds, bool forward, uint8_t ttl, uint8_t mac) {
    struct bytes b = {0};
    add_bytes(&b, forward ? A1 A2 "\x08\0" : A2 A1 "\x08\0", 14);
    b.data[11] = mac;
    add_ipv4(&b, forward ? 0x0a000001 : 0x0a000002, forward ? 0x0a000002 : 0x0a000001, UDP, 8, 1, 0);
    b.data[14 + 8] = ttl;
    add_udp(&b, forward ? 4000 : 9, forward ? 9 : 4000, 0);
    struct frame frame = frame_of(&b, ETHERNET);
    frame.ts_ns = seconds * SECOND;
    add_frame(frame, false);
}

static void ttls_are_of_all_packets_and_addresses_of_the_first(void) {
    begin_with(CAPTURE_STATISTICS_HEADERS, 0);
    add_ipv4_at(1, true, 64, 2);
    add_ipv4_at(2, false, 255, 3);
    add_ipv4_at(3, true, 63, 4);
    add_ipv4_at(4, true, 66, 5);
    add_ipv4_at(5, false, 0, 6);
    finish();
    CHECK_EQUAL(1, ended_count);
    check_link(&kept[0].fwd_headers, A2, A1, 0);
    check_link(&kept[0].rev_headers, A3, A2, 0);
    CHECK_EQUAL(63, kept[0].fwd_headers.min_ttl);
    CHECK_EQUAL(66, kept[0].fwd_headers.max_ttl);
    CHECK_EQUAL(0, kept[0].rev_headers.min_ttl);
    CHECK_EQUAL(255, kept[0].rev_headers.max_ttl);
    CHECK_EQUAL(0, kept[0].fwd_headers.flow_label);
}

static void a_record_after_the_active_timeout_begins_with_its_own_first_packets(void) {
    static const struct capture_headers none;
    begin_with(CAPTURE_STATISTICS_HEADERS, 10);
    add_ipv4_at(1, true, 64, 2);
    add_ipv4_at(2, false, 255, 3);
    add_ipv4_at(12, true, 1, 4);
    add_ipv4_at(13, true, 2, 5);
    finish();
    CHECK_EQUAL(2, ended_count);
    check_link(&kept[1].fwd_headers, A4, A1, 0);
    CHECK_EQUAL(1, kept[1].fwd_headers.min_ttl);
    CHECK_EQUAL(2, kept[1].fwd_headers.max_ttl);
    CHECK(memcmp(&none, &kept[1].rev_headers, sizeof(none)) == 0);
}

static void hop_limit_and_flow_label_are_those_of_ipv6(void) {
    begin_with(STATISTICS_ALL, 0);
    for (int number = 0; number < 2; number++) {
        struct bytes b = {0};
        add_packet(&b, 6);
        b.data[1] |= number ? 5 : 0xa; /* behind the traffic class */
        b.data[2] = 0xbc;
        b.data[3] = 0xde;
        b.data[7] = number ? 1 : 255;
        add_frame(frame_of(&b, RAW), false);
    }
    finish();
    CHECK_EQUAL(0xabcde, kept[0].fwd_headers.flow_label);
    CHECK_EQUAL(1, kept[0].fwd_headers.min_ttl);
    CHECK_EQUAL(255, kept[0].fwd_headers.max_ttl);
    CHECK_EQUAL(0, kept[0].rev_headers.flow_label);
    CHECK_EQUAL(46, ended[0].dscp);
}

static void later_fragments_count_with_their_headers(void) {
    begin_with(CAPTURE_STATISTICS_HEADERS, 0);
    struct bytes b = {0};
    add_bytes(&b, A1 A2 "\x08\0", 14);
    add_ipv4(&b, 0x0a000001, 0x0a000002, UDP, 8, 1, 100);
    add_zeros(&b, 8);
    add_frame(frame_of(&b, ETHERNET), false);
    finish();
    check_link(&kept[0].fwd_headers, A2, A1, 0);
    CHECK_EQUAL(64, kept[0].fwd_headers.min_ttl);
}

int main(void) {
    RUN(every_link_layer_gives_its_addresses_and_its_second_tag);
    RUN(an_inner_flow_has_the_addresses_and_tags_inside);
    RUN(ttls_are_of_all_packets_and_addresses_of_the_first);
    RUN(a_record_after_the_active_timeout_begins_with_its_own_first_packets);
    RUN(hop_limit_and_flow_label_are_those_of_ipv6);
    RUN(later_fragments_count_with_their_headers);
    return 0;
}
