/* SPDX-License-Identifier: Apache-2.0 */
/* L2TPv3: what it carries is found behind every cookie and sublayer, and nothing is entered that only might be it. */
#include "check.h"
#include "decode/decode.h"
#include "frames.h"
#include "jarvis_capture.h"

enum { RAW_LINK = 101, UDP = 17, L2TP = 115, SESSION = 0x8badf00d };

enum content { BARE_V4, BARE_V6, ETHERNET_V4, ETHERNET_V6, TAGGED_V4, CONTENTS };

static struct packet outer, inner;

static uint32_t random_state;

static uint32_t random_word(void) {
    random_state = random_state * 1664525 + 1013904223;
    return random_state ^ random_state >> 15;
}

static void add_random(struct bytes *b, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        add_u8(b, random_word() >> 8);
}

static void set_checksum(uint8_t *header) {
    uint32_t sum = 0;
    header[10] = header[11] = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    header[10] = (uint8_t)(sum >> 8);
    header[11] = (uint8_t)sum;
}

static void add_inner(struct bytes *b, bool version_6) {
    uint32_t at = b->length;
    if (version_6) {
        add_ipv6(b, 1, 2, 6, 20);
    } else {
        add_ipv4(b, 0x0a000001, 0x0a000002, 6, 20, 1, 0);
        set_checksum(b->data + at);
    }
    add_tcp(b, 4000, 80, 0x12);
}

static void add_macs(struct bytes *b, uint32_t type) {
    add_bytes(b, "\2\0\0\0\0\1\2\0\0\0\0\2", 12);
    add_be16(b, type);
}

static void add_content(struct bytes *b, enum content content) {
    switch (content) {
    case ETHERNET_V4:
        add_macs(b, 0x0800);
        break;
    case ETHERNET_V6:
        add_macs(b, 0x86dd);
        break;
    case TAGGED_V4:
        add_macs(b, 0x88a8);
        add_be32(b, 0x00078100);
        add_be32(b, 0x00090800);
        break;
    default:
        break;
    }
    add_inner(b, content == BARE_V6 || content == ETHERNET_V6);
}

/* The carrier's headers up to and with the session id, for `payload` bytes behind it. */
static void add_carrier(struct bytes *b, uint8_t version, bool udp, uint32_t payload) {
    uint32_t length = (udp ? 12 : 0) + 4 + payload;
    if (version == 4)
        add_ipv4(b, 0xc0000201, 0xc0000202, udp ? UDP : L2TP, length, 1, 0);
    else
        add_ipv6(b, 0x11, 0x12, udp ? UDP : L2TP, length);
    if (udp) {
        add_udp(b, 1701, 1701, 0);
        add_be32(b, 0x00030000);
    }
    add_be32(b, SESSION);
}

/* The first `length` bytes; where they end the allocation ends: ASan sees one byte too many. */
static bool enters(const struct bytes *b, uint32_t length) {
    struct frame frame = frame_of(b, RAW_LINK);
    uint8_t *exact = malloc(length);
    memcpy(exact, b->data, length);
    frame.data = exact;
    frame.caplen = length;
    bool entered = decode_frame(&frame, &outer) == DECODE_IP && decode_tunnelled(&outer, &inner);
    free(exact);
    return entered;
}

static struct bytes packet_with(uint8_t version, bool udp, uint32_t before, const struct bytes *content) {
    struct bytes b = {0};
    add_carrier(&b, version, udp, before + content->length);
    add_random(&b, before);
    add_bytes(&b, content->data, content->length);
    return b;
}

static void check_inner(enum content content) {
    bool version_6 = content == BARE_V6 || content == ETHERNET_V6;
    CHECK_EQUAL(CAPTURE_TUNNEL_TYPE_L2TP_V3, inner.key.tunnel_type);
    CHECK_EQUAL(SESSION, inner.key.tunnel_id);
    CHECK_EQUAL(version_6 ? 6 : 4, inner.key.ip_version);
    CHECK_EQUAL(content == TAGGED_V4 ? 7 : 0, inner.key.vlan_id);
    CHECK_EQUAL(version_6 ? 60 : 40, inner.octets);
    CHECK_EQUAL(6, inner.key.protocol);
}

/* Cookies of 0, 4 and 8 bytes, each with and without a sublayer: 0, 4, 8 and 12 bytes of anything. */
static void what_it_carries_is_found_behind_every_cookie_and_sublayer(void) {
    random_state = 7;
    for (int i = 0; i < CONTENTS * 4 * 2 * 2; i++) {
        enum content content = (enum content)(i % CONTENTS);
        uint32_t before = i / CONTENTS % 4 * 4;
        struct bytes carried = {0};
        add_content(&carried, content);
        struct bytes b = packet_with(i / (CONTENTS * 4) % 2 ? 6 : 4, i / (CONTENTS * 8), before, &carried);
        for (uint32_t length = 40; length <= b.length; length++) {
            CHECK_EQUAL(length >= b.length - 20, enters(&b, length)); /* from the inner IP header's last byte on */
            if (length >= b.length - 20)
                check_inner(content);
        }
    }
}

/* A flow's packets are as long as they are: TCP acknowledgments in Ethernet are filled up. */
static void a_short_ethernet_frame_may_be_filled_up_and_a_long_one_not(void) {
    for (uint32_t filling = 0; filling <= 8; filling++) {
        struct bytes carried = {0};
        add_content(&carried, ETHERNET_V4); /* 54 bytes */
        add_zeros(&carried, filling);
        struct bytes b = packet_with(4, true, 4, &carried);
        CHECK_EQUAL(filling <= 6, enters(&b, b.length));
        carried.length = 0;
        add_content(&carried, TAGGED_V4); /* 62 bytes, 68 with its tags put in after it was filled up */
        add_zeros(&carried, filling);
        b = packet_with(4, false, 8, &carried);
        CHECK_EQUAL(filling <= 6, enters(&b, b.length));
        carried.length = 0;
        add_content(&carried, BARE_V4);
        add_zeros(&carried, filling);
        b = packet_with(4, true, 4, &carried);
        CHECK_EQUAL(filling == 0, enters(&b, b.length));
    }
}

/* A tag may be read as the end of a longer cookie's frame without one: what is in it is the same, and the tag is believed. */
static void a_tagged_frame_keeps_its_tag(void) {
    for (uint32_t before = 0; before <= 12; before += 4) {
        for (uint32_t last = 0; last < 4; last++) {
            struct bytes carried = {0};
            add_macs(&carried, 0x8100);
            carried.data[10] = (uint8_t)last; /* even: what begins 4 bytes further on has a unicast source too */
            add_be32(&carried, 0x00070800);
            add_inner(&carried, false);
            struct bytes b = packet_with(4, true, before, &carried);
            CHECK(enters(&b, b.length));
            CHECK_EQUAL(7, inner.key.vlan_id);
        }
    }
}

static void control_messages_are_not_data(void) {
    for (uint32_t before = 0; before <= 12; before += 4) {
        struct bytes carried = {0};
        add_content(&carried, ETHERNET_V4);
        struct bytes over_udp = packet_with(4, true, before, &carried), over_ip = packet_with(4, false, before, &carried);
        CHECK(enters(&over_udp, over_udp.length) && enters(&over_ip, over_ip.length));
        over_udp.data[28] |= 0x80;
        memset(over_ip.data + 20, 0, 4);
        CHECK(!enters(&over_udp, over_udp.length));
        CHECK(!enters(&over_ip, over_ip.length));
        over_udp.data[28] = 0;
        over_udp.data[29] = 4; /* another version */
        CHECK(!enters(&over_udp, over_udp.length));
    }
}

/* Byte `at` of what is carried set to `value`: it does not fit any more. `sum`: with the IPv4 checksum made right again. */
static void check_unfit(enum content content, uint32_t at, uint8_t value, bool sum) {
    struct bytes carried = {0};
    add_content(&carried, content);
    carried.data[at] = value;
    if (sum)
        set_checksum(carried.data + carried.length - 40);
    for (uint32_t before = 0; before <= 12; before += 4) {
        struct bytes b = packet_with(4, before & 4, before, &carried);
        CHECK(!enters(&b, b.length));
    }
}

static void a_header_that_does_not_fit_in_everything_is_not_entered(void) {
    check_unfit(BARE_V4, 10, 0x55, false);  /* checksum */
    check_unfit(BARE_V4, 0, 0x55, true);    /* version */
    check_unfit(BARE_V4, 0, 0x44, true);    /* header length */
    check_unfit(BARE_V4, 3, 41, true);      /* longer than the packet */
    check_unfit(BARE_V4, 3, 39, true);      /* shorter */
    check_unfit(BARE_V4, 8, 0, true);       /* hop limit */
    check_unfit(BARE_V4, 12, 224, true);    /* source */
    check_unfit(BARE_V6, 0, 0x50, false);   /* version */
    check_unfit(BARE_V6, 5, 21, false);     /* length */
    check_unfit(BARE_V6, 6, 200, false);    /* next header */
    check_unfit(BARE_V6, 7, 0, false);      /* hop limit */
    check_unfit(BARE_V6, 8, 0xff, false);   /* source */
    check_unfit(BARE_V6, 24, 0x80, false);  /* destination */
    check_unfit(ETHERNET_V4, 6, 3, false);  /* source MAC address of a group */
    check_unfit(ETHERNET_V4, 13, 6, false); /* ARP */
    check_unfit(ETHERNET_V4, 24, 0x55, false);
    check_unfit(TAGGED_V4, 21, 6, false); /* ARP behind its tags */
}

/* IPv6 whose addresses happen to be an Ethernet frame with IPv4, 4 bytes further on: both fit, so neither is taken. */
static void where_two_places_fit_nothing_is_entered(void) {
    struct bytes carried = {0};
    add_content(&carried, BARE_V6);
    uint8_t *ethernet = carried.data + 4, *ip = ethernet + 14;
    struct bytes before = packet_with(4, true, 0, &carried);
    CHECK(enters(&before, before.length));
    ethernet[6] = 0x0c; /* no group */
    memcpy(ethernet + 12, "\x08\0", 2);
    uint8_t header[20] = {0x45, 0, 0, (uint8_t)(carried.length - 18), 0, 0, 0x20, 1, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};
    set_checksum(header);
    memcpy(ip, header, sizeof(header));
    struct bytes both = packet_with(4, true, 0, &carried);
    CHECK(!enters(&both, both.length));
    both.data[both.length - carried.length + 4 + 14 + 11] ^= 1; /* the IPv4 checksum: only IPv6 is left */
    CHECK(enters(&both, both.length));
    CHECK_EQUAL(6, inner.key.ip_version);
}

/* Encrypted and unknown contents: 300,000 packets of bytes drawn from a fixed generator. */
static void bytes_by_chance_are_never_entered(void) {
    random_state = 1;
    for (int i = 0; i < 300000; i++) {
        struct bytes b = {0};
        uint32_t payload = random_word() % 200;
        add_carrier(&b, 4, i & 1, payload);
        add_random(&b, payload);
        CHECK(!enters(&b, b.length));
    }
}

static void a_tunnel_in_its_frames_is_entered_too(void) {
    struct bytes innermost = {0}, carried = {0};
    add_inner(&innermost, true);
    add_macs(&carried, 0x0800);
    add_ipv4(&carried, 0x0a000001, 0x0a000002, 41, innermost.length, 0, 0);
    set_checksum(carried.data + 14);
    add_bytes(&carried, innermost.data, innermost.length);
    struct bytes b = packet_with(6, true, 8, &carried);
    CHECK(enters(&b, b.length));
    CHECK_EQUAL(6, inner.key.ip_version);
    CHECK_EQUAL(CAPTURE_TUNNEL_TYPE_IP_IN_IP, inner.key.tunnel_type);
}

int main(void) {
    RUN(what_it_carries_is_found_behind_every_cookie_and_sublayer);
    RUN(a_short_ethernet_frame_may_be_filled_up_and_a_long_one_not);
    RUN(a_tagged_frame_keeps_its_tag);
    RUN(control_messages_are_not_data);
    RUN(a_header_that_does_not_fit_in_everything_is_not_entered);
    RUN(where_two_places_fit_nothing_is_entered);
    RUN(bytes_by_chance_are_never_entered);
    RUN(a_tunnel_in_its_frames_is_entered_too);
    return 0;
}
