/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers, addresses and whole records as text. Each writer returns the byte after its last; the caller has checked the room. */
#ifndef JARVIS_TEXT_H
#define JARVIS_TEXT_H

#include <stdint.h>
#include <string.h>

#include "jarvis_capture.h"

enum {
    TEXT_ADDRESS_MAX = 40,      /* "ffff:...:ffff" 39, and one spare */
    TEXT_RECORD_MAX = 1024,     /* one record as a JSON or CSV line */
    TEXT_STATISTICS_MAX = 2560, /* the same with statistics */
};

char *text_unsigned(char *out, uint64_t value);

/* Decimal with three places, rounded; not negative, not above 2^64. The locale has no say in it. */
char *text_fixed(char *out, double value);

/* Six pairs of lower-case hexadecimal digits with colons; nothing when all are 0: there is no address. */
char *text_mac(char *out, const uint8_t *mac);

/* 16 lower-case hexadecimal digits. */
char *text_hex64(char *out, uint64_t value);

/* Dotted decimal, or RFC 5952 (with ::ffff:a.b.c.d for IPv4-mapped ones, as inet_ntop does). addr: 4 or 16 bytes in network
 * order. */
char *text_address(char *out, const uint8_t *addr, uint8_t ip_version);

static inline char *text_copy(char *out, const char *text, size_t length) {
    memcpy(out, text, length);
    return out + length;
}

/* A literal, without its terminator. */
#define TEXT_LITERAL(out, literal) text_copy((out), (literal), sizeof(literal) - 1)

/* A record and its statistics, of which `kinds` (enum capture_statistics, or'ed) are written; 0: they may be NULL. */
struct text_record {
    const struct capture_flow *flow;
    const struct capture_flow_statistics *statistics;
    uint32_t kinds;
};

/* One JSON object and a newline. */
char *text_json_line(char *out, const struct text_record *record);

/* The same values in the same order, comma-separated, and a newline (RFC 4180; no value needs quotes). */
char *text_csv_line(char *out, const struct text_record *record);

#endif
