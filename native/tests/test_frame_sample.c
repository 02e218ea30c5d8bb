/* SPDX-License-Identifier: Apache-2.0 */
/* What of a frame a sample holds: by link type, with its VLAN tag back, and its lengths as sFlow counts them. */
#include "check.h"
#include "export/frame_sample.h"
#include "frames.h"
#include "link_type.h"

static struct frame_sample sample_of(const struct bytes *bytes, uint16_t link_type, uint16_t flags, uint16_t vlan_tci,
                                     uint32_t most) {
    struct frame frame = {.data = bytes->data,
                          .caplen = bytes->length,
                          .wirelen = bytes->length,
                          .link_type = link_type,
                          .flags = flags,
                          .vlan_tci = vlan_tci};
    struct frame_sample sample = {0};
    frame_sample_take(&sample, &frame, most);
    return sample;
}

static void add_packet(struct bytes *bytes) {
    add_ipv4(bytes, 0x0a000001, 0x0a000002, 17, 8 + 200, 1, 0);
    add_udp(bytes, 4000, 53, 200);
}

enum { PACKET = 228 };

static void an_ethernet_frame_is_counted_with_its_fcs(void) {
    struct bytes frame = {0};
    add_ethernet(&frame, ETHERTYPE_IPV4);
    add_packet(&frame);
    struct frame_sample sample = sample_of(&frame, LINK_ETHERNET, 0, 0, 128);
    CHECK_EQUAL(SFLOW_ETHERNET, sample.protocol);
    CHECK_EQUAL(14 + PACKET + 4, sample.frame_length);
    CHECK_EQUAL(4, sample.stripped);
    CHECK_EQUAL(128, sample.header_length);
    CHECK(memcmp(frame.data, sample.header, 128) == 0);
}

static void a_tag_that_the_kernel_took_off_is_back_in_its_place(void) {
    struct bytes frame = {0};
    add_ethernet(&frame, ETHERTYPE_IPV4);
    add_packet(&frame);
    for (uint32_t most = SAMPLE_HEADER_LEAST; most <= SAMPLE_HEADER_MOST; most *= 2) {
        struct frame_sample sample = sample_of(&frame, LINK_ETHERNET, FRAME_VLAN, 0x6064, most);
        CHECK_EQUAL(14 + PACKET + 4 + 4, sample.frame_length);
        CHECK_EQUAL(4, sample.stripped);
        CHECK_EQUAL(most < 14 + PACKET + 4 ? most : 14 + PACKET + 4, sample.header_length);
        CHECK(memcmp(frame.data, sample.header, 12) == 0);
        CHECK(memcmp("\x81\x00\x60\x64\x08\x00", sample.header + 12, 6) == 0);
        CHECK(memcmp(frame.data + 14, sample.header + 18, sample.header_length - 18u) == 0);
    }
}

/* Frames of a few bytes: nothing is read that is not there. */
static void short_frames_of_every_link_type_are_sampled_as_far_as_they_go(void) {
    static const uint16_t link_types[] = {0, 1, 9, 12, 14, 50, 51, 101, 105, 108, 113, 127, 192, 228, 229, 276, 147};
    for (uint32_t length = 0; length < 48; length++) {
        uint8_t *data = malloc(length ? length : 1); /* so that ASan sees a read behind it */
        CHECK(data != NULL);
        memset(data, 0x45, length);
        for (size_t i = 0; i < sizeof(link_types) / sizeof(link_types[0]); i++) {
            for (uint16_t flags = 0; flags <= FRAME_VLAN; flags++) {
                struct frame frame = {
                    .data = data, .caplen = length, .wirelen = length, .link_type = link_types[i], .flags = flags, .vlan_tci = 1};
                struct frame_sample sample = {0};
                frame_sample_take(&sample, &frame, 64);
                CHECK(sample.header_length <= 64 && sample.header_length <= length + 4u);
                CHECK(sample.stripped + sample.header_length <= sample.frame_length);
            }
        }
        free(data);
    }
}

static void a_pseudo_header_is_left_out_and_counted_as_stripped(void) {
    static const struct {
        uint16_t link_type;
        uint32_t skipped;
        const char *bytes;
    } cases[] = {
        {LINK_LINUX_SLL, 16, "\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00"},
        {LINK_LINUX_SLL, 20, "\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x81\x00\x00\x05\x08\x00"},
        {LINK_LINUX_SLL2, 20, "\x08\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00"},
        {LINK_NULL, 4, "\x02\x00\x00\x00"},
        {LINK_LOOP, 4, "\x00\x00\x00\x02"},
        {LINK_RAW_IP, 0, ""},
        {LINK_IPV4, 0, ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes frame = {0};
        add_bytes(&frame, cases[i].bytes, cases[i].skipped);
        add_packet(&frame);
        struct frame_sample sample = sample_of(&frame, cases[i].link_type, 0, 0, 100);
        CHECK_EQUAL(SFLOW_IPV4, sample.protocol);
        CHECK_EQUAL(cases[i].skipped, sample.stripped);
        CHECK_EQUAL(cases[i].skipped + PACKET, sample.frame_length);
        CHECK_EQUAL(100, sample.header_length);
        CHECK(memcmp(frame.data + cases[i].skipped, sample.header, 100) == 0);
    }
}

static void each_link_layer_has_sflows_number_or_none(void) {
    static const struct {
        uint16_t link_type;
        uint32_t length, skipped;
        const char *bytes;
        uint32_t protocol;
    } cases[] = {
        {LINK_PPP, 4, 0, "\xff\x03\x00\x21", SFLOW_PPP},
        {LINK_PPP_HDLC, 4, 0, "\xff\x03\x00\x21", SFLOW_PPP},
        {LINK_PPP_ETHER, 8, 6, "\x11\x00\x00\x01\x00\x02\x00\x21", SFLOW_PPP},
        {LINK_IEEE802_11, 4, 0, "\x08\x00\x00\x00", SFLOW_IEEE80211},
        {LINK_IEEE802_11_RADIOTAP, 12, 8, "\x00\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00", SFLOW_IEEE80211},
        {LINK_PPI, 12, 8, "\x00\x00\x08\x00\x69\x00\x00\x00\x08\x00\x00\x00", SFLOW_IEEE80211},
        {LINK_PPI, 12, 0, "\x00\x00\x08\x00\x01\x00\x00\x00\x08\x00\x00\x00", SFLOW_NO_PROTOCOL},
        {LINK_RAW_IP, 4, 0, "\x60\x00\x00\x00", SFLOW_IPV6},
        {LINK_RAW_IP, 4, 0, "\x10\x00\x00\x00", SFLOW_NO_PROTOCOL},
        {LINK_LINUX_SLL, 16, 16, "\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x88\x47", SFLOW_MPLS},
        {LINK_LINUX_SLL, 16, 16, "\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x08\x06", SFLOW_NO_PROTOCOL},
        {147, 4, 0, "\x00\x00\x00\x00", SFLOW_NO_PROTOCOL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes frame = {0};
        add_bytes(&frame, cases[i].bytes, cases[i].length);
        struct frame_sample sample = sample_of(&frame, cases[i].link_type, 0, 0, 64);
        CHECK_EQUAL(cases[i].protocol, sample.protocol);
        CHECK_EQUAL(cases[i].skipped, sample.stripped);
        CHECK_EQUAL(cases[i].length, sample.frame_length);
    }
}

static void a_cut_frame_keeps_its_length_on_the_wire(void) {
    struct bytes frame = {0};
    add_ethernet(&frame, ETHERTYPE_IPV4);
    add_packet(&frame);
    struct frame cut = {.data = frame.data, .caplen = 60, .wirelen = 9000, .link_type = LINK_ETHERNET, .flags = FRAME_TRUNCATED};
    struct frame_sample sample = {0};
    frame_sample_take(&sample, &cut, 128);
    CHECK_EQUAL(9004, sample.frame_length);
    CHECK_EQUAL(60, sample.header_length);
}

int main(void) {
    RUN(an_ethernet_frame_is_counted_with_its_fcs);
    RUN(a_tag_that_the_kernel_took_off_is_back_in_its_place);
    RUN(short_frames_of_every_link_type_are_sampled_as_far_as_they_go);
    RUN(a_pseudo_header_is_left_out_and_counted_as_stripped);
    RUN(each_link_layer_has_sflows_number_or_none);
    RUN(a_cut_frame_keeps_its_length_on_the_wire);
    return 0;
}
