/* SPDX-License-Identifier: Apache-2.0 */
#include "export/text.h"

#include <stdbool.h>

static const char digit_pairs[] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354"
    "555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
static const char hex_digits[] = "0123456789abcdef";

char *text_unsigned(char *out, uint64_t value) {
    char reversed[20];
    char *at = reversed + sizeof(reversed);
    while (value >= 100) {
        at -= 2;
        memcpy(at, &digit_pairs[value % 100 * 2], 2);
        value /= 100;
    }
    if (value >= 10) {
        at -= 2;
        memcpy(at, &digit_pairs[value * 2], 2);
    } else {
        *--at = (char)('0' + value);
    }
    return text_copy(out, at, (size_t)(reversed + sizeof(reversed) - at));
}

char *text_fixed(char *out, double value) {
    enum { PLACES = 1000 };
    uint64_t whole = value < 0x1p64 ? (uint64_t)value : UINT64_MAX;
    uint32_t rest = value < 0x1p53 ? (uint32_t)((value - (double)whole) * PLACES + 0.5) : 0;
    if (rest == PLACES) {
        whole++;
        rest = 0;
    }
    out = text_unsigned(out, whole);
    *out++ = '.';
    for (uint32_t unit = PLACES / 10; unit; unit /= 10)
        *out++ = (char)('0' + rest / unit % 10);
    return out;
}

char *text_hex64(char *out, uint64_t value) {
    for (int shift = 60; shift >= 0; shift -= 4)
        *out++ = hex_digits[value >> shift & 15];
    return out;
}

char *text_mac(char *out, const uint8_t *mac) {
    static const uint8_t none[6];
    if (memcmp(mac, none, sizeof(none)) == 0)
        return out;
    for (int i = 0; i < 6; i++) {
        if (i)
            *out++ = ':';
        *out++ = hex_digits[mac[i] >> 4];
        *out++ = hex_digits[mac[i] & 15];
    }
    return out;
}

static char *text_ipv4(char *out, const uint8_t *addr) {
    for (int i = 0; i < 4; i++) {
        if (i)
            *out++ = '.';
        out = text_unsigned(out, addr[i]);
    }
    return out;
}

static char *text_group(char *out, uint16_t group) {
    int shift = group >= 0x1000 ? 12 : group >= 0x100 ? 8 : group >= 0x10 ? 4 : 0;
    for (; shift >= 0; shift -= 4)
        *out++ = hex_digits[group >> shift & 15];
    return out;
}

/* RFC 5952 4.2: the longest run of at least two zero groups is "::", the first of equals. *length 0: none. */
static int longest_zero_run(const uint16_t groups[8], int *length) {
    int best = -1;
    *length = 0;
    for (int i = 0; i < 8; i++) {
        int run = 0;
        while (i + run < 8 && groups[i + run] == 0)
            run++;
        if (run >= 2 && run > *length) {
            best = i;
            *length = run;
        }
        i += run;
    }
    return best;
}

static char *text_ipv6(char *out, const uint8_t *addr) {
    uint16_t groups[8];
    for (int i = 0; i < 8; i++)
        groups[i] = (uint16_t)(addr[2 * i] << 8 | addr[2 * i + 1]);
    int length;
    int start = longest_zero_run(groups, &length);
    /* As inet_ntop: IPv4-mapped and (deprecated) IPv4-compatible addresses end in dotted decimal. */
    bool embedded = start == 0 && (length == 6 || (length == 5 && groups[5] == 0xffff) || (length == 7 && groups[7] != 1));
    for (int i = 0; i < 8;) {
        if (i == start) {
            *out++ = ':';
            i += length;
            if (i == 8)
                *out++ = ':';
            continue;
        }
        if (i)
            *out++ = ':';
        if (embedded && i == 6)
            return text_ipv4(out, addr + 12);
        out = text_group(out, groups[i++]);
    }
    return out;
}

char *text_address(char *out, const uint8_t *addr, uint8_t ip_version) {
    return ip_version == 4 ? text_ipv4(out, addr) : text_ipv6(out, addr);
}
