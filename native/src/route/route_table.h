/* SPDX-License-Identifier: Apache-2.0 */
/* Longest-prefix match over prefixes that do not change: collected in a list, built once, looked up by any number of threads.
 *
 * The table holds disjoint ranges instead of prefixes: each begins where the longest prefix changes and lasts until the next. A
 * lookup is a binary search among the ranges of the address's first 16 bits. A million prefixes take at most two million ranges
 * of 13 bytes (IPv4) or 21 (IPv6). */
#ifndef JARVIS_ROUTE_TABLE_H
#define JARVIS_ROUTE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ROUTE_IPV4_BITS = 32, ROUTE_IPV6_BITS = 128 };

struct route_prefix {
    uint64_t high, low; /* the address, its first bit the highest of `high`; bits beyond the prefix are 0 */
    uint32_t value;     /* what a lookup gives; 0: nothing is known there, though a shorter prefix may say something */
    uint32_t metric;    /* of equal prefixes the one with the lowest metric counts, then the first added */
    uint32_t order;
    uint8_t length; /* bits, 0..128 */
};

/* Zero-initialise. */
struct route_list {
    struct route_prefix *prefixes;
    uint32_t count, capacity;
};

struct route_table;

/* address: `bits` / 8 bytes in network order; length: 0..bits; bits beyond it are ignored. False: no memory (or 2^31 prefixes).
 */
bool route_list_add(struct route_list *list, const uint8_t *address, uint8_t bits, uint8_t length, uint32_t metric,
                    uint32_t value);

/* Frees what the list holds and empties it. */
void route_list_clear(struct route_list *list);

/* A table of the list's prefixes, which must all be of one family (`bits`); the list is put in order. NULL: no memory. */
struct route_table *route_table_build(struct route_list *list, uint8_t bits);
void route_table_free(struct route_table *table);

/* The value of the longest prefix that holds the address (of the table's family), and that prefix's length in *length; 0 when
 * there is none. Any thread. */
uint32_t route_table_lookup(const struct route_table *table, const uint8_t *address, uint8_t *length);

#endif
