/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder's whole state: where it stands, what may be read there, and what was there on the wire. */
#ifndef JARVIS_CURSOR_H
#define JARVIS_CURSOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "decode/decode.h"

struct cursor {
    const uint8_t *at;
    uint32_t left; /* bytes captured from `at` on */
    uint32_t wire; /* bytes the frame had on the wire from `at` on; never less than left */
};

static inline uint16_t load_be16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return __builtin_bswap16(value);
}

static inline uint32_t load_be32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return __builtin_bswap32(value);
}

/* The caller has checked that `bytes` are left. */
static inline void cursor_skip(struct cursor *cursor, uint32_t bytes) {
    cursor->at += bytes;
    cursor->left -= bytes;
    cursor->wire -= bytes;
}

static inline uint16_t load_le16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

/* The layers, each from its first byte on. vlan_id, ts_ns and interface_index of the packet are already set.
 * tagged: vlan_id is the outermost tag already, taken off the frame by the kernel or told by a mirror's header. */
enum decode_result decode_ipv4(struct cursor cursor, struct packet *packet);
enum decode_result decode_ipv6(struct cursor cursor, struct packet *packet);
enum decode_result decode_raw(struct cursor cursor, struct packet *packet); /* IPv4 or IPv6, as its first nibble says */
enum decode_result decode_ethernet(struct cursor cursor, bool tagged, struct packet *packet);
enum decode_result decode_ethertype(struct cursor cursor, uint16_t type, bool tagged, struct packet *packet);
enum decode_result decode_ppp(struct cursor cursor, struct packet *packet);
enum decode_result decode_pppoe(struct cursor cursor, struct packet *packet);
enum decode_result decode_wifi(struct cursor cursor, struct packet *packet);
enum decode_result decode_radiotap(struct cursor cursor, struct packet *packet);
enum decode_result decode_ppi(struct cursor cursor, struct packet *packet);

#endif
