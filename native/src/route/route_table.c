/* SPDX-License-Identifier: Apache-2.0 */
#include "route/route_table.h"

#include <stdlib.h>
#include <string.h>

enum { INDEX_BITS = 16, INDEX_SIZE = 1 << INDEX_BITS, NESTING_MAX = ROUTE_IPV6_BITS + 1, FIRST_CAPACITY = 64 };

struct key {
    uint64_t high, low;
};

/* Range i is of the addresses from its key to the one before the next range's. The first one begins at address 0. */
struct route_table {
    uint64_t *high;
    uint64_t *low; /* NULL: IPv4, whose 32 bits are the upper ones of `high` */
    uint32_t *values;
    uint8_t *lengths;
    uint32_t count;
    uint8_t bits;
    uint32_t first[INDEX_SIZE + 1]; /* the ranges that begin below these 16 leading bits */
};

static uint64_t load_64(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return __builtin_bswap64(value);
}

static struct key key_of(const uint8_t *address, uint8_t bits) {
    if (bits == ROUTE_IPV6_BITS)
        return (struct key){load_64(address), load_64(address + 8)};
    uint32_t value;
    memcpy(&value, address, sizeof value);
    return (struct key){(uint64_t)__builtin_bswap32(value) << 32, 0};
}

/* The bits that a prefix of this length covers. */
static struct key mask_of(uint8_t length) {
    return (struct key){
        .high = length == 0    ? 0
                : length >= 64 ? UINT64_MAX
                               : UINT64_MAX << (64 - length),
        .low = length <= 64    ? 0
               : length == 128 ? UINT64_MAX
                               : UINT64_MAX << (128 - length),
    };
}

static int compare_keys(uint64_t high, uint64_t low, uint64_t other_high, uint64_t other_low) {
    if (high != other_high)
        return high < other_high ? -1 : 1;
    return low == other_low ? 0 : low < other_low ? -1 : 1;
}

bool route_list_add(struct route_list *list, const uint8_t *address, uint8_t bits, uint8_t length, uint32_t metric,
                    uint32_t value) {
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : FIRST_CAPACITY;
        struct route_prefix *prefixes =
            capacity > INT32_MAX ? NULL : reallocarray(list->prefixes, capacity, sizeof *list->prefixes);
        if (!prefixes)
            return false;
        list->prefixes = prefixes;
        list->capacity = capacity;
    }
    struct key key = key_of(address, bits), mask = mask_of(length);
    list->prefixes[list->count] = (struct route_prefix){.high = key.high & mask.high,
                                                        .low = key.low & mask.low,
                                                        .value = value,
                                                        .metric = metric,
                                                        .order = list->count,
                                                        .length = length};
    list->count++;
    return true;
}

void route_list_clear(struct route_list *list) {
    free(list->prefixes);
    *list = (struct route_list){0};
}

/* By address, a shorter prefix before the longer ones within it, equal ones by metric. */
static int compare_prefixes(const void *left, const void *right) {
    const struct route_prefix *a = left, *b = right;
    int by_key = compare_keys(a->high, a->low, b->high, b->low);
    if (by_key != 0)
        return by_key;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    if (a->metric != b->metric)
        return a->metric < b->metric ? -1 : 1;
    return a->order < b->order ? -1 : 1;
}

/* A range begins at `start`; one that begins there already is taken over. */
static void begin_range(struct route_table *table, struct key start, uint32_t value, uint8_t length) {
    uint32_t last = table->count - 1;
    if (compare_keys(table->high[last], table->low ? table->low[last] : 0, start.high, start.low) != 0)
        last = table->count++;
    table->high[last] = start.high;
    if (table->low)
        table->low[last] = start.low;
    table->values[last] = value;
    table->lengths[last] = length;
}

/* The address behind the prefix's last one; false where that is beyond all addresses. */
static bool end_of(const struct route_prefix *prefix, struct key *end) {
    struct key mask = mask_of(prefix->length);
    end->low = (prefix->low | ~mask.low) + 1;
    end->high = (prefix->high | ~mask.high) + (end->low == 0);
    return end->low != 0 || end->high != 0;
}

/* Ends prefixes that begin before `start` and do not reach it, the innermost first: what holds them goes on behind each. */
static uint32_t end_prefixes(struct route_table *table, const struct route_prefix *const *open, uint32_t depth,
                             const struct route_prefix *next) {
    while (depth > 0) {
        const struct route_prefix *inner = open[depth - 1];
        struct key end;
        bool has_end = end_of(inner, &end);
        if (next && (!has_end || compare_keys(next->high, next->low, end.high, end.low) < 0))
            break;
        depth--;
        if (has_end)
            begin_range(table, end, depth ? open[depth - 1]->value : 0, depth ? open[depth - 1]->length : 0);
    }
    return depth;
}

static void fill_ranges(struct route_table *table, const struct route_list *list) {
    const struct route_prefix *open[NESTING_MAX]; /* each holds the next; equal ones are there once */
    uint32_t depth = 0;
    table->count = 1;
    table->high[0] = 0;
    table->values[0] = table->lengths[0] = 0;
    if (table->low)
        table->low[0] = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        const struct route_prefix *prefix = &list->prefixes[i], *before = i ? prefix - 1 : NULL;
        if (before && before->length == prefix->length && before->high == prefix->high && before->low == prefix->low)
            continue;
        depth = end_prefixes(table, open, depth, prefix);
        open[depth++] = prefix;
        begin_range(table, (struct key){prefix->high, prefix->low}, prefix->value, prefix->length);
    }
    end_prefixes(table, open, depth, NULL);
}

static void fill_index(struct route_table *table) {
    uint32_t range = 0;
    for (uint32_t lead = 0; lead < INDEX_SIZE; lead++) {
        while (range < table->count && table->high[range] >> (64 - INDEX_BITS) < lead)
            range++;
        table->first[lead] = range;
    }
    table->first[INDEX_SIZE] = table->count;
}

struct route_table *route_table_build(struct route_list *list, uint8_t bits) {
    if (list->count > 1)
        qsort(list->prefixes, list->count, sizeof *list->prefixes, compare_prefixes);
    size_t most = (size_t)list->count * 2 + 1;
    struct route_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    table->bits = bits;
    table->high = calloc(most, sizeof *table->high);
    table->low = bits == ROUTE_IPV6_BITS ? calloc(most, sizeof *table->low) : NULL;
    table->values = calloc(most, sizeof *table->values);
    table->lengths = calloc(most, sizeof *table->lengths);
    if (!table->high || (bits == ROUTE_IPV6_BITS && !table->low) || !table->values || !table->lengths) {
        route_table_free(table);
        return NULL;
    }
    fill_ranges(table, list);
    fill_index(table);
    return table;
}

void route_table_free(struct route_table *table) {
    if (!table)
        return;
    free(table->high);
    free(table->low);
    free(table->values);
    free(table->lengths);
    free(table);
}

uint32_t route_table_lookup(const struct route_table *table, const uint8_t *address, uint8_t *length) {
    struct key key = key_of(address, table->bits);
    uint32_t lead = (uint32_t)(key.high >> (64 - INDEX_BITS));
    uint32_t low = table->first[lead], high = table->first[lead + 1];
    while (low < high) { /* the first range that begins behind the address */
        uint32_t middle = low + (high - low) / 2;
        if (compare_keys(table->high[middle], table->low ? table->low[middle] : 0, key.high, key.low) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    uint32_t range = low - 1; /* range 0 begins at address 0: there is one */
    *length = table->lengths[range];
    return table->values[range];
}
