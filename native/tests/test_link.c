/* SPDX-License-Identifier: Apache-2.0 */
/* PPP, PPPoE and Wi-Fi frames made by hand, each cut at every length. */
#include "check.h"
#include "decode/decode.h"
#include "frames.h"

enum { ETHERNET = 1, PPP = 9, PPP_HDLC = 50, PPP_ETHER = 51, WIFI = 105, RADIOTAP = 127, PPI = 192 };

static struct packet packet;

static enum decode_result decode_cut(const struct bytes *bytes, uint32_t length, uint16_t link_type) {
    struct frame frame = frame_of(bytes, link_type);
    /* Where the frame ends the allocation ends: ASan sees one byte too many. */
    uint8_t *exact = malloc(length ? length : 1);
    memcpy(exact, bytes->data, length);
    frame.data = exact;
    frame.caplen = length;
    enum decode_result result = decode_frame(&frame, &packet);
    free(exact);
    return result;
}

static enum decode_result decode(const struct bytes *bytes, uint16_t link_type) {
    return decode_cut(bytes, bytes->length, link_type);
}

static void add_packet(struct bytes *bytes, uint8_t version) {
    if (version == 4)
        add_ipv4(bytes, 0x0a000001, 0x0a000002, 6, 20, 1, 0);
    else
        add_ipv6(bytes, 1, 2, 6, 20);
    add_tcp(bytes, 4000, 80, 0x12);
}

#define HEADER(bytes) .header = (bytes), .length = sizeof(bytes) - 1
#define SNAP          "\xaa\xaa\x03\0\0\0" /* LLC and SNAP */
#define ADDRESSES     "\2\0\0\0\0\1\2\0\0\0\0\2\2\0\0\0\0\3"

/* A link layer's header in front of IP, and the VLAN that it tells. */
struct link_case {
    const char *header;
    uint32_t length;
    uint16_t link_type;
    uint16_t vlan_id;
    uint8_t version;
};

static const struct link_case links[] = {
    {HEADER("\xff\3\0\x21"), PPP, 0, 4},
    {HEADER("\0\x57"), PPP, 0, 6},
    {HEADER("\x21"), PPP, 0, 4}, /* the protocol in one byte */
    {HEADER("\xff\3\0\x57"), PPP_HDLC, 0, 6},
    {HEADER("\xff\3\2\x81\0\1\1\x40"), PPP, 0, 4}, /* MPLS */
    {HEADER("\x11\0\0\7\0\x2a\0\x21"), PPP_ETHER, 0, 4},
    {HEADER("\2\0\0\0\0\1\2\0\0\0\0\2\x88\x64\x11\0\0\7\0\x2a\0\x21"), ETHERNET, 0, 4},
    {HEADER("\2\0\0\0\0\1\2\0\0\0\0\2\x81\0\0\7\x88\x64\x11\0\0\7\0\x3e\0\x57"), ETHERNET, 7, 6},
    {HEADER("\x08\1\0\0" ADDRESSES "\x10\0" SNAP "\x08\0"), WIFI, 0, 4},               /* to the access point */
    {HEADER("\x08\3\0\0" ADDRESSES "\x10\0\2\0\0\0\0\4" SNAP "\x86\xdd"), WIFI, 0, 6}, /* four addresses */
    {HEADER("\x88\2\0\0" ADDRESSES "\x10\0\0\0" SNAP "\x08\0"), WIFI, 0, 4},           /* QoS */
    {HEADER("\x88\x82\0\0" ADDRESSES "\x10\0\0\0\1\2\3\4" SNAP "\x08\0"), WIFI, 0, 4}, /* QoS, HT control */
    {HEADER("\x88\2\0\0" ADDRESSES "\x10\0\x80\0"
            "\2\0\0\0\0\1\2\0\0\0\0\2\0\x30" SNAP "\x08\0"),
     WIFI, 0, 4}, /* A-MSDU */
    {HEADER("\x08\2\0\0" ADDRESSES "\x10\0" SNAP "\x81\0\0\x09\x08\0"), WIFI, 9, 4},
    {HEADER("\0\0\x08\0\0\0\0\0\x08\2\0\0" ADDRESSES "\x10\0" SNAP "\x08\0"), RADIOTAP, 0, 4},
    {HEADER("\0\0\x0a\0\2\0\0\0\x20\0\x88\2\0\0" ADDRESSES "\x10\0\0\0\0\0" SNAP "\x08\0"), RADIOTAP, 0, 4}, /* padded */
    {HEADER("\0\0\x19\0\3\0\0\x80\0\0\0\0\0\0\0\0\1\2\3\4\5\6\7\x08\x20\x88\2\0\0" ADDRESSES "\x10\0\0\0\0\0" SNAP "\x86\xdd"),
     RADIOTAP, 0, 6}, /* two words of present bits, a time before the flags */
    {HEADER("\0\0\x08\0\x69\0\0\0\x08\2\0\0" ADDRESSES "\x10\0" SNAP "\x08\0"), PPI, 0, 4},
};

enum { LINKS = sizeof(links) / sizeof(links[0]) };

static void every_link_layer_is_passed_to_its_ip_packet(void) {
    for (int i = 0; i < LINKS; i++) {
        struct bytes b = {0};
        add_bytes(&b, links[i].header, links[i].length);
        add_packet(&b, links[i].version);
        for (uint32_t length = 0; length <= b.length; length++) {
            enum decode_result result = decode_cut(&b, length, links[i].link_type);
            if (length < b.length - 20) {
                CHECK(result != DECODE_IP);
                continue;
            }
            CHECK_EQUAL(DECODE_IP, result);
            CHECK_EQUAL(links[i].version, packet.key.ip_version);
            CHECK_EQUAL(links[i].vlan_id, packet.key.vlan_id);
            CHECK_EQUAL(links[i].version == 4 ? 40 : 60, packet.octets);
            CHECK_EQUAL(length >= b.length - 16 ? 80 : 0, packet.key.port[1]);
            CHECK_EQUAL(0, packet.key.tunnel_type);
        }
    }
}

/* Byte `at` of a link layer's header set to `value`. */
static void check_changed(int link, uint32_t at, uint8_t value, enum decode_result expected) {
    struct bytes b = {0};
    add_bytes(&b, links[link].header, links[link].length);
    add_packet(&b, links[link].version);
    CHECK_EQUAL(DECODE_IP, decode(&b, links[link].link_type));
    b.data[at] = value;
    CHECK_EQUAL(expected, decode(&b, links[link].link_type));
}

static int link_of(uint16_t link_type) {
    int link = 0;
    while (links[link].link_type != link_type)
        link++;
    return link;
}

static void ppp_control_and_pppoe_discovery_are_not_ip(void) {
    check_changed(link_of(PPP), 2, 0xc0, DECODE_NON_IP);       /* LCP */
    check_changed(link_of(PPP_ETHER), 0, 0x21, DECODE_NON_IP); /* version 2 */
    check_changed(link_of(PPP_ETHER), 1, 0x09, DECODE_NON_IP); /* a discovery code */
    check_changed(link_of(PPP), 4, 0x65, DECODE_MALFORMED);
}

static void wifi_frames_without_readable_data_are_not_ip(void) {
    int wifi = link_of(WIFI);
    check_changed(wifi, 0, 0x80, DECODE_NON_IP);  /* a beacon */
    check_changed(wifi, 0, 0x48, DECODE_NON_IP);  /* no data */
    check_changed(wifi, 1, 0x41, DECODE_NON_IP);  /* encrypted */
    check_changed(wifi, 22, 0x11, DECODE_NON_IP); /* a later fragment */
    check_changed(wifi, 24, 0x42, DECODE_NON_IP); /* LLC without SNAP */
}

static void a_capture_header_that_contradicts_itself_is_malformed(void) {
    int radiotap = link_of(RADIOTAP), ppi = link_of(PPI);
    check_changed(radiotap, 0, 1, DECODE_MALFORMED);    /* version */
    check_changed(radiotap, 2, 7, DECODE_MALFORMED);    /* shorter than itself */
    check_changed(radiotap, 3, 0xff, DECODE_MALFORMED); /* longer than the frame */
    check_changed(ppi, 2, 7, DECODE_MALFORMED);
    check_changed(ppi, 3, 0xff, DECODE_MALFORMED);
    check_changed(ppi, 4, 1, DECODE_NON_IP);
}

static void endless_words_of_present_bits_end_with_the_radiotap_header(void) {
    struct bytes b = {0};
    add_be32(&b, 0x0000f803); /* 1,016 bytes */
    for (int i = 0; i < 253; i++)
        add_be32(&b, 0xffffffff);
    add_bytes(&b, links[link_of(WIFI)].header, links[link_of(WIFI)].length);
    add_packet(&b, 4);
    CHECK_EQUAL(DECODE_IP, decode(&b, RADIOTAP));
}

int main(void) {
    RUN(every_link_layer_is_passed_to_its_ip_packet);
    RUN(ppp_control_and_pppoe_discovery_are_not_ip);
    RUN(wifi_frames_without_readable_data_are_not_ip);
    RUN(a_capture_header_that_contradicts_itself_is_malformed);
    RUN(endless_words_of_present_bits_end_with_the_radiotap_header);
    return 0;
}
