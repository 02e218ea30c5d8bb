/* SPDX-License-Identifier: Apache-2.0 */
/* Frames and packets made by hand for the decoder's, the table's and the engine's tests. */
#ifndef JARVIS_TEST_FRAMES_H
#define JARVIS_TEST_FRAMES_H

#include <stdint.h>
#include <string.h>

#include "decode/packet.h"
#include "frame.h"

enum { SECOND = 1000000000 };

struct bytes {
    uint8_t data[2048];
    uint32_t length;
};

static inline void add_bytes(struct bytes *bytes, const void *more, uint32_t length) {
    memcpy(bytes->data + bytes->length, more, length);
    bytes->length += length;
}

static inline void add_u8(struct bytes *bytes, uint32_t value) {
    bytes->data[bytes->length++] = (uint8_t)value;
}

static inline void add_be16(struct bytes *bytes, uint32_t value) {
    add_u8(bytes, value >> 8);
    add_u8(bytes, value);
}

static inline void add_be32(struct bytes *bytes, uint32_t value) {
    add_be16(bytes, value >> 16);
    add_be16(bytes, value);
}

static inline void add_zeros(struct bytes *bytes, uint32_t count) {
    memset(bytes->data + bytes->length, 0, count);
    bytes->length += count;
}

static inline void add_ethernet(struct bytes *bytes, uint32_t ethertype) {
    add_zeros(bytes, 12);
    add_be16(bytes, ethertype);
}

/* IPv4 header without options; fragment: the flags and offset field. */
static inline void add_ipv4(struct bytes *bytes, uint32_t src, uint32_t dst, uint8_t protocol, uint32_t payload, uint32_t id,
                            uint32_t fragment) {
    add_be16(bytes, 0x45b8); /* DSCP 46 */
    add_be16(bytes, 20 + payload);
    add_be16(bytes, id);
    add_be16(bytes, fragment);
    add_u8(bytes, 64);
    add_u8(bytes, protocol);
    add_be16(bytes, 0);
    add_be32(bytes, src);
    add_be32(bytes, dst);
}

/* 2001:db8::<src> to 2001:db8::<dst> */
static inline void add_ipv6(struct bytes *bytes, uint32_t src, uint32_t dst, uint8_t next, uint32_t payload) {
    add_be32(bytes, 0x6b800000); /* DSCP 46 */
    add_be16(bytes, payload);
    add_u8(bytes, next);
    add_u8(bytes, 64);
    for (int end = 0; end < 2; end++) {
        add_be32(bytes, 0x20010db8);
        add_zeros(bytes, 8);
        add_be32(bytes, end ? dst : src);
    }
}

static inline void add_tcp(struct bytes *bytes, uint32_t src, uint32_t dst, uint32_t flags) {
    add_be16(bytes, src);
    add_be16(bytes, dst);
    add_be32(bytes, 1);
    add_be32(bytes, 1);
    add_be16(bytes, 0x5000 | flags);
    add_zeros(bytes, 6);
}

static inline void add_udp(struct bytes *bytes, uint32_t src, uint32_t dst, uint32_t payload) {
    add_be16(bytes, src);
    add_be16(bytes, dst);
    add_be16(bytes, 8 + payload);
    add_be16(bytes, 0);
    add_zeros(bytes, payload);
}

static inline struct frame frame_of(const struct bytes *bytes, uint16_t link_type) {
    return (struct frame){.data = bytes->data,
                          .caplen = bytes->length,
                          .wirelen = bytes->length,
                          .link_type = link_type,
                          .ts_ns = 7,
                          .interface_index = 3};
}

/* What an IP header of packets without a frame may be: version 4 or 6, the length of either. */
static const uint8_t some_ip_header[40] = {0x45};

/* A canonical UDP packet of flow number `flow`, from endpoint `from`; hash is not set. */
static inline struct packet packet_of(uint32_t flow, uint8_t from, uint64_t ts_ns) {
    struct packet packet = {.ts_ns = ts_ns, .octets = 100, .from = from, .interface_index = 1, .ip = some_ip_header};
    packet.key.ip_version = 4;
    packet.key.protocol = 17;
    packet.key.addr[0][0] = 10;
    memcpy(&packet.key.addr[0][1], &flow, 3);
    packet.key.addr[1][0] = 172;
    packet.key.port[0] = (uint16_t)(flow >> 24);
    packet.key.port[1] = 53;
    return packet;
}

#endif
