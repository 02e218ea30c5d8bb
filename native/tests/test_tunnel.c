/* SPDX-License-Identifier: Apache-2.0 */
/* Tunnels made by hand: every header with its options, cut at every length, one in another, and what only looks like one. */
#include "check.h"
#include "decode/decode.h"
#include "frames.h"
#include "jarvis_capture.h"

enum { RAW_LINK = 101, GRE = 47, UDP = 17 };

static struct packet outer, inner;

/* What stands between the outer IP header, or the UDP header behind it, and the inner packet. */
struct tunnel {
    const char *header;
    uint32_t length;
    uint32_t id;
    uint16_t vlan_id;
    uint16_t port; /* UDP destination, 0: none */
    uint8_t protocol;
    uint8_t type;
    uint8_t version; /* of the inner packet */
};

#define HEADER(bytes) .header = (bytes), .length = sizeof(bytes) - 1
#define MACS          "\2\0\0\0\0\1\2\0\0\0\0\2"

static const struct tunnel tunnels[] = {
    {HEADER("\0\0\x08\0"), .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .version = 4},
    {HEADER("\0\0\x86\xdd"), .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .version = 6},
    {HEADER("\x20\0\x08\0\1\2\3\4"), .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .id = 0x01020304, .version = 4},
    {HEADER("\xb0\0\x08\0\xaa\xaa\0\0\1\2\3\4\0\0\0\7"), /* checksum, key, sequence */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .id = 0x01020304, .version = 4},
    {HEADER("\0\0\x88\x47\0\1\0\x40\0\1\1\x40"), /* MPLS in GRE */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .version = 4},
    {HEADER("\x20\0\x65\x58\0\0\7\0" MACS "\x81\0\0\x0c\x08\0"), /* Ethernet in GRE, VLAN 12 */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .id = 0x700, .vlan_id = 12, .version = 4},
    {HEADER("\x30\1\x88\x0b\0\x20\x98\x50\0\0\0\1\xff\3\0\x21"), /* PPTP: sequence */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .id = 0x9850, .version = 4},
    {HEADER("\x30\x81\x88\x0b\0\x20\x98\x50\0\0\0\1\0\0\0\1\x57"), /* PPTP: acknowledgment, PPP's protocol in one byte */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_GRE, .id = 0x9850, .version = 6},
    {HEADER("\0\0\x88\xbe" MACS "\x08\0"), .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .version = 4},
    {HEADER("\x10\0\x88\xbe\0\0\0\1\x10\x64\x08\x7b\0\0\0\0" MACS "\x08\0"), /* type II: VLAN 100, session 123 */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 123, .vlan_id = 100, .version = 4},
    {HEADER("\x10\0\x88\xbe\0\0\0\1\x10\x64\x1b\xff\0\0\0\0" MACS "\x81\0\0\x63\x08\0"), /* the header's VLAN is the outermost */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 1023, .vlan_id = 100, .version = 4},
    {HEADER("\x10\0\x88\xbe\0\0\0\1\x10\0\0\1\0\0\0\0" MACS "\x81\0\0\x63\x86\xdd"), /* none in the header: the frame's */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 1, .vlan_id = 99, .version = 6},
    {HEADER("\x10\0\x22\xeb\0\0\0\1\x20\x65\x20\x05\1\2\3\4\0\0\0\0" MACS "\x08\0"), /* type III */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 5, .vlan_id = 101, .version = 4},
    {HEADER("\x10\0\x22\xeb\0\0\0\1\x20\x65\0\x05\1\2\3\4\0\0\x80\x01\1\2\3\4\5\6\7\x08" MACS "\x08\0"), /* with its subheader */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 5, .vlan_id = 101, .version = 4},
    {HEADER("\x10\0\x22\xeb\0\0\0\1\x20\0\0\x06\1\2\3\4\0\0\x08\0"), /* frame type 2: IP */
     .protocol = GRE, .type = CAPTURE_TUNNEL_TYPE_ERSPAN, .id = 6, .version = 6},
    {HEADER("\x08\0\0\0\0\x12\x34\0" MACS "\x08\0"), .protocol = UDP, .port = 4789, .type = CAPTURE_TUNNEL_TYPE_VXLAN,
     .id = 0x1234, .version = 4},
    {HEADER("\x08\0\0\0\xff\xff\xff\0" MACS "\x81\0\x0f\xff\x86\xdd"), .protocol = UDP, .port = 8472,
     .type = CAPTURE_TUNNEL_TYPE_VXLAN, .id = 0xffffff, .vlan_id = 4095, .version = 6},
    {HEADER("\0\0\x65\x58\0\0\x09\0" MACS "\x08\0"), .protocol = UDP, .port = 6081, .type = CAPTURE_TUNNEL_TYPE_GENEVE, .id = 9,
     .version = 4},
    {HEADER("\2\x40\x86\xdd\0\0\x09\0\1\2\3\1\4\5\6\7"), /* 8 bytes of options; bare IPv6 */
     .protocol = UDP, .port = 6081, .type = CAPTURE_TUNNEL_TYPE_GENEVE, .id = 9, .version = 6},
    {HEADER("\x30\xff\0\x28\xde\xad\xbe\xef"), .protocol = UDP, .port = 2152, .type = CAPTURE_TUNNEL_TYPE_GTP_U, .id = 0xdeadbeef,
     .version = 4},
    {HEADER("\x32\xff\0\x2c\0\0\0\1\0\x07\0\x85"), /* sequence number; the extension type does not count without its flag */
     .protocol = UDP, .port = 2152, .type = CAPTURE_TUNNEL_TYPE_GTP_U, .id = 1, .version = 6},
    {HEADER("\x34\xff\0\x34\0\0\0\2\0\0\0\x85\1\0\x09\xc0\2\0\0\0\0\0\0\0"), /* two extension headers: 4 and 8 bytes */
     .protocol = UDP, .port = 2152, .type = CAPTURE_TUNNEL_TYPE_GTP_U, .id = 2, .version = 4},
    {HEADER(""), .protocol = 4, .type = CAPTURE_TUNNEL_TYPE_IP_IN_IP, .version = 4},
    {HEADER(""), .protocol = 41, .type = CAPTURE_TUNNEL_TYPE_IP_IN_IP, .version = 6},
    {HEADER(""), .protocol = UDP, .port = 3544, .type = CAPTURE_TUNNEL_TYPE_TEREDO, .version = 6},
    {HEADER("\0\1\2\3ididi12345678c\0\0\xff\xff\xff\xff\xff\xff"), /* authentication (2 + 3 bytes), then origin */
     .protocol = UDP, .port = 3544, .type = CAPTURE_TUNNEL_TYPE_TEREDO, .version = 6},
    {HEADER("\0\2\0\7\0\x08\xff\3\0\x21"), .protocol = UDP, .port = 1701, .type = CAPTURE_TUNNEL_TYPE_L2TP, .id = 0x00070008,
     .version = 4},
    {HEADER("\x4a\2\0\x40\0\7\0\x08\0\1\0\2\0\3xyz\0\x57"), /* length, sequence, offset 3 */
     .protocol = UDP, .port = 1701, .type = CAPTURE_TUNNEL_TYPE_L2TP, .id = 0x00070008, .version = 6},
};

enum { TUNNELS = sizeof(tunnels) / sizeof(tunnels[0]) };

static void add_inner(struct bytes *bytes, uint8_t version) {
    if (version == 4)
        add_ipv4(bytes, 0x0a000001, 0x0a000002, 6, 20, 1, 0);
    else
        add_ipv6(bytes, 1, 2, 6, 20);
    add_tcp(bytes, 4000, 80, 0x12);
}

/* Puts what is in `bytes` into a tunnel and an IP packet of this version. */
static void wrap(struct bytes *bytes, const struct tunnel *tunnel, uint8_t version) {
    struct bytes carried = *bytes;
    uint32_t payload = (tunnel->port ? 8 : 0) + tunnel->length + carried.length;
    bytes->length = 0;
    if (version == 4)
        add_ipv4(bytes, 0xc0000201, 0xc0000202, tunnel->protocol, payload, 1, 0);
    else
        add_ipv6(bytes, 0x11, 0x12, tunnel->protocol, payload);
    if (tunnel->port) {
        add_udp(bytes, 50000, tunnel->port, 0);
        bytes->data[bytes->length - 4] = (uint8_t)(payload >> 8);
        bytes->data[bytes->length - 3] = (uint8_t)payload;
    }
    add_bytes(bytes, tunnel->header, tunnel->length);
    add_bytes(bytes, carried.data, carried.length);
}

/* The first `length` bytes of a raw IP frame. Where they end the allocation ends: ASan sees one byte too many. */
static enum decode_result look_inside(const struct bytes *bytes, uint32_t length, bool *tunnelled) {
    struct frame frame = frame_of(bytes, RAW_LINK);
    uint8_t *exact = malloc(length ? length : 1);
    memcpy(exact, bytes->data, length);
    frame.data = exact;
    frame.caplen = length;
    enum decode_result result = decode_frame(&frame, &outer);
    *tunnelled = result == DECODE_IP && decode_tunnelled(&outer, &inner);
    free(exact);
    return result;
}

static bool is_tunnelled(const struct bytes *bytes) {
    bool tunnelled;
    CHECK_EQUAL(DECODE_IP, look_inside(bytes, bytes->length, &tunnelled));
    return tunnelled;
}

static void check_inner(const struct tunnel *tunnel) {
    CHECK_EQUAL(tunnel->type, inner.key.tunnel_type);
    CHECK_EQUAL(tunnel->id, inner.key.tunnel_id);
    CHECK_EQUAL(tunnel->vlan_id, inner.key.vlan_id);
    CHECK_EQUAL(tunnel->version, inner.key.ip_version);
    CHECK_EQUAL(6, inner.key.protocol);
    CHECK_EQUAL(tunnel->version == 4 ? 40 : 60, inner.octets);
    CHECK_EQUAL(2, inner.key.addr[1][tunnel->version == 4 ? 3 : 15]);
    CHECK_EQUAL(46, inner.dscp);
    CHECK_EQUAL(7, inner.ts_ns);
    CHECK_EQUAL(3, inner.interface_index);
}

/* Every header at every captured length, in both IP versions: nothing is read past the end, and the inner packet is there as soon
 * as its IP header is. */
static void every_tunnel_is_looked_into_from_its_inner_header_on(void) {
    for (int i = 0; i < 2 * TUNNELS; i++) {
        const struct tunnel *tunnel = &tunnels[i / 2];
        uint8_t version = i % 2 ? 6 : 4;
        struct bytes b = {0};
        add_inner(&b, tunnel->version);
        wrap(&b, tunnel, version);
        uint32_t transport_at = b.length - 20;
        for (uint32_t length = 0; length <= b.length; length++) {
            bool tunnelled;
            enum decode_result result = look_inside(&b, length, &tunnelled);
            CHECK_EQUAL(length < (version == 4 ? 20 : 40) ? DECODE_MALFORMED : DECODE_IP, result);
            CHECK_EQUAL(length >= transport_at, tunnelled);
            if (!tunnelled)
                continue;
            check_inner(tunnel);
            CHECK_EQUAL(length >= transport_at + 4 ? 4000 : 0, inner.key.port[0]);
            CHECK_EQUAL(length >= transport_at + 14 ? 0x12 : 0, inner.tcp_flags);
            CHECK_EQUAL(0, outer.key.tunnel_type);
            CHECK_EQUAL(b.length, outer.octets);
        }
    }
}

static const struct tunnel *tunnel_of(uint8_t type) {
    const struct tunnel *tunnel = tunnels;
    while (tunnel->type != type)
        tunnel++;
    return tunnel;
}

/* Byte `at` behind the outer IP header set to `value`: no tunnel any more. */
static void check_not_entered(uint8_t type, uint32_t at, uint8_t value) {
    struct bytes b = {0};
    const struct tunnel *tunnel = tunnel_of(type);
    add_inner(&b, tunnel->version);
    wrap(&b, tunnel, 4);
    CHECK(is_tunnelled(&b));
    b.data[20 + at] = value;
    CHECK(!is_tunnelled(&b));
}

static void what_does_not_fit_its_header_is_left_as_what_carries_it(void) {
    check_not_entered(CAPTURE_TUNNEL_TYPE_GRE, 0, 0x40);         /* routing */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GRE, 1, 2);            /* version 2 */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GRE, 1, 1);            /* version 1 without PPP */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GRE, 2, 0);            /* no Ethertype */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GRE, 4, 0x65);         /* inner IP of another version */
    check_not_entered(CAPTURE_TUNNEL_TYPE_VXLAN, 8, 0);          /* no valid VNI */
    check_not_entered(CAPTURE_TUNNEL_TYPE_VXLAN, 8 + 8 + 13, 6); /* ARP inside */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GENEVE, 8, 0x40);      /* version 1 */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GENEVE, 8, 0x3f);      /* options beyond the end */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GTP_U, 8, 0x50);       /* version 2 */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GTP_U, 8, 0x20);       /* GTP' */
    check_not_entered(CAPTURE_TUNNEL_TYPE_GTP_U, 9, 1);          /* echo request */
    check_not_entered(CAPTURE_TUNNEL_TYPE_TEREDO, 8, 0x45);      /* IPv4 inside */
    check_not_entered(CAPTURE_TUNNEL_TYPE_L2TP, 8, 0x80);        /* control message */
    check_not_entered(CAPTURE_TUNNEL_TYPE_L2TP, 9, 3);           /* version 3 */
    check_not_entered(CAPTURE_TUNNEL_TYPE_L2TP, 8, 0x02);        /* an offset beyond the end */
    check_not_entered(CAPTURE_TUNNEL_TYPE_IP_IN_IP, 3, 19);      /* an inner length below the header's */
    check_not_entered(CAPTURE_TUNNEL_TYPE_VXLAN, 2, 0);          /* another port */
}

static void an_erspan_header_of_another_version_is_refused(void) {
    for (int i = 0; i < TUNNELS; i++) {
        const struct tunnel *tunnel = &tunnels[i];
        if (tunnel->type != CAPTURE_TUNNEL_TYPE_ERSPAN || tunnel->header[0] == 0)
            continue;
        struct bytes b = {0};
        add_inner(&b, tunnel->version);
        wrap(&b, tunnel, 4);
        b.data[28] ^= 0x70;
        CHECK(!is_tunnelled(&b));
    }
}

static void gtp_extension_headers_without_end_are_refused(void) {
    static const char endless[] = "\x34\xff\0\x34\0\0\0\2\0\0\0\x85";
    struct tunnel tunnel = {.header = endless, .length = sizeof(endless) - 1, .protocol = UDP, .port = 2152};
    struct bytes b = {0};
    for (int i = 0; i < 100; i++)
        add_be32(&b, 0x01000085);
    add_inner(&b, 4);
    wrap(&b, &tunnel, 4);
    CHECK(!is_tunnelled(&b));
    b.data[20 + 8 + 12] = 0; /* a header of no length */
    CHECK(!is_tunnelled(&b));
}

static void answers_of_teredo_and_l2tp_come_from_the_port(void) {
    static const uint16_t ports[] = {3544, 1701, 4789, 6081, 2152};
    for (int i = 0; i < 5; i++) {
        const struct tunnel *tunnel = tunnels;
        while (tunnel->port != ports[i])
            tunnel++;
        struct bytes b = {0};
        add_inner(&b, tunnel->version);
        wrap(&b, tunnel, 4);
        b.data[20] = b.data[22], b.data[21] = b.data[23];
        b.data[22] = b.data[23] = 99;
        CHECK_EQUAL(i < 2, is_tunnelled(&b));
    }
}

static void the_innermost_of_four_nested_tunnels_is_found_and_no_deeper_one(void) {
    const struct tunnel *vxlan = tunnel_of(CAPTURE_TUNNEL_TYPE_VXLAN), *gre = &tunnels[2];
    for (int depth = 1; depth <= 6; depth++) {
        struct bytes b = {0};
        add_inner(&b, 4);
        for (int level = 0; level < depth; level++)
            wrap(&b, level % 2 ? gre : vxlan, 4);
        CHECK(is_tunnelled(&b));
        bool bottom = depth <= DECODE_MAX_TUNNELS;
        CHECK_EQUAL(bottom ? 6 : depth == 5 ? UDP : GRE, inner.key.protocol);
        CHECK_EQUAL(depth == 6   ? CAPTURE_TUNNEL_TYPE_VXLAN
                    : depth == 5 ? CAPTURE_TUNNEL_TYPE_GRE
                                 : CAPTURE_TUNNEL_TYPE_VXLAN,
                    inner.key.tunnel_type);
        CHECK_EQUAL(bottom ? 40 : inner.octets, inner.octets);
    }
}

static void a_broken_inner_packet_leaves_the_last_good_one(void) {
    struct bytes b = {0};
    add_inner(&b, 4);
    b.data[0] = 0x44;
    wrap(&b, tunnel_of(CAPTURE_TUNNEL_TYPE_VXLAN), 4);
    wrap(&b, &tunnels[2], 4);
    CHECK(is_tunnelled(&b));
    CHECK_EQUAL(UDP, inner.key.protocol);
    CHECK_EQUAL(4789, inner.key.port[1]);
    CHECK_EQUAL(CAPTURE_TUNNEL_TYPE_GRE, inner.key.tunnel_type);
}

static void only_the_first_fragment_of_a_carrier_is_looked_into(void) {
    struct bytes b = {0};
    add_inner(&b, 4);
    wrap(&b, tunnel_of(CAPTURE_TUNNEL_TYPE_GRE), 4);
    b.data[6] = 0x20; /* more fragments */
    CHECK(is_tunnelled(&b));
    CHECK_EQUAL(PACKET_WHOLE, inner.fragment);
    CHECK_EQUAL(PACKET_FRAGMENT_FIRST, outer.fragment);
    b.data[7] = 1; /* offset 8 */
    CHECK(!is_tunnelled(&b));
}

static void an_inner_fragment_keeps_its_own_identity(void) {
    struct bytes b = {0};
    add_ipv4(&b, 1, 2, 17, 8, 0x1234, 0x2001);
    add_zeros(&b, 8);
    wrap(&b, tunnel_of(CAPTURE_TUNNEL_TYPE_IP_IN_IP), 4);
    CHECK(is_tunnelled(&b));
    CHECK_EQUAL(PACKET_FRAGMENT_LATER, inner.fragment);
    CHECK_EQUAL(0x1234, inner.fragment_id);
    CHECK_EQUAL(PACKET_WHOLE, outer.fragment);
}

/* Captures with segmentation offload: both lengths are still 0. */
static void an_offloaded_inner_length_means_the_rest_of_the_frame(void) {
    struct bytes b = {0};
    add_inner(&b, 4);
    b.data[2] = b.data[3] = 0;
    wrap(&b, tunnel_of(CAPTURE_TUNNEL_TYPE_VXLAN), 4);
    b.data[2] = b.data[3] = 0;
    struct frame frame = frame_of(&b, RAW_LINK);
    frame.wirelen = 5050;
    CHECK_EQUAL(DECODE_IP, decode_frame(&frame, &outer));
    CHECK(decode_tunnelled(&outer, &inner));
    CHECK_EQUAL(5050, outer.octets);
    CHECK_EQUAL(5000, inner.octets);
}

int main(void) {
    RUN(every_tunnel_is_looked_into_from_its_inner_header_on);
    RUN(what_does_not_fit_its_header_is_left_as_what_carries_it);
    RUN(an_erspan_header_of_another_version_is_refused);
    RUN(gtp_extension_headers_without_end_are_refused);
    RUN(answers_of_teredo_and_l2tp_come_from_the_port);
    RUN(the_innermost_of_four_nested_tunnels_is_found_and_no_deeper_one);
    RUN(a_broken_inner_packet_leaves_the_last_good_one);
    RUN(only_the_first_fragment_of_a_carrier_is_looked_into);
    RUN(an_inner_fragment_keeps_its_own_identity);
    RUN(an_offloaded_inner_length_means_the_rest_of_the_frame);
    return 0;
}
