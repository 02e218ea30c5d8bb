/* SPDX-License-Identifier: Apache-2.0 */
/* The longest-prefix table against a linear model: every lookup gives what looking at all prefixes gives. */
#include "check.h"
#include "route/route_table.h"

#include <time.h>

enum { PREFIXES = 300, LOOKUPS = 4000, ROUNDS = 60, MILLION = 1000000 };

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint64_t random_64(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

struct model {
    uint8_t address[16];
    uint8_t length;
    uint32_t metric, value;
};

static bool holds(const struct model *prefix, const uint8_t *address) {
    for (int bit = 0; bit < prefix->length; bit++)
        if ((prefix->address[bit / 8] ^ address[bit / 8]) & (0x80 >> bit % 8))
            return false;
    return true;
}

static const struct model *find(const struct model *prefixes, uint32_t count, const uint8_t *address) {
    const struct model *best = NULL;
    for (uint32_t i = 0; i < count; i++)
        if (holds(&prefixes[i], address) && (!best || prefixes[i].length > best->length ||
                                             (prefixes[i].length == best->length && prefixes[i].metric < best->metric)))
            best = &prefixes[i];
    return best;
}

/* Addresses that share leading bits, so that prefixes nest and touch; now and then the first and the last of all. */
static void random_address(uint8_t *address, uint8_t bits) {
    uint64_t kind = random_64();
    memset(address, kind % 16 == 1 ? 0xff : 0, 16);
    for (int byte = 0; byte < bits / 8 && kind % 16 > 1; byte++)
        address[byte] = kind % 16 < 12 ? (uint8_t)(random_64() & 1 ? 0xff : 0x80 & random_64()) : (uint8_t)random_64();
}

static void compare_round(uint8_t bits, uint32_t count) {
    struct model prefixes[PREFIXES] = {0};
    struct route_list list = {0};
    for (uint32_t i = 0; i < count; i++) {
        struct model *prefix = &prefixes[i];
        random_address(prefix->address, bits);
        prefix->length = (uint8_t)(random_64() % (bits + 1u));
        prefix->metric = (uint32_t)(random_64() % 3);
        prefix->value = random_64() % 8 ? i + 1 : 0;
        CHECK(route_list_add(&list, prefix->address, bits, prefix->length, prefix->metric, prefix->value));
    }
    struct route_table *table = route_table_build(&list, bits);
    CHECK(table);
    route_list_clear(&list);
    for (int i = 0; i < LOOKUPS / 10; i++) {
        uint8_t address[16], length = 255;
        random_address(address, bits);
        const struct model *expected = find(prefixes, count, address);
        CHECK_EQUAL(expected ? expected->value : 0, route_table_lookup(table, address, &length));
        CHECK_EQUAL(expected ? expected->length : 0, length);
    }
    route_table_free(table);
}

static void a_lookup_gives_what_looking_at_all_prefixes_gives(void) {
    for (int round = 0; round < ROUNDS; round++) {
        compare_round(ROUTE_IPV4_BITS, (uint32_t)(random_64() % PREFIXES));
        compare_round(ROUTE_IPV6_BITS, (uint32_t)(random_64() % PREFIXES));
    }
}

static void an_empty_table_knows_nothing(void) {
    struct route_list list = {0};
    const uint8_t address[16] = {192, 0, 2, 1};
    for (uint8_t bits = ROUTE_IPV4_BITS; bits != 0; bits = bits == ROUTE_IPV4_BITS ? ROUTE_IPV6_BITS : 0) {
        struct route_table *table = route_table_build(&list, bits);
        uint8_t length = 9;
        CHECK_EQUAL(0, route_table_lookup(table, address, &length));
        CHECK_EQUAL(0, length);
        route_table_free(table);
    }
}

static void the_default_route_and_the_last_address_are_found(void) {
    struct route_list list = {0};
    const uint8_t any[4] = {0}, last[4] = {255, 255, 255, 255}, near[4] = {255, 255, 255, 254};
    CHECK(route_list_add(&list, any, ROUTE_IPV4_BITS, 0, 5, 1));
    CHECK(route_list_add(&list, last, ROUTE_IPV4_BITS, 32, 0, 2));
    struct route_table *table = route_table_build(&list, ROUTE_IPV4_BITS);
    uint8_t length;
    CHECK_EQUAL(2, route_table_lookup(table, last, &length));
    CHECK_EQUAL(32, length);
    CHECK_EQUAL(1, route_table_lookup(table, near, &length));
    CHECK_EQUAL(0, length);
    route_list_clear(&list);
    route_table_free(table);
}

/* As many as a router of the default-free zone has; the figures are for people. */
static void a_million_prefixes_are_held(void) {
    struct route_list list = {0};
    struct timespec times[3];
    uint8_t(*addresses)[4] = calloc(MILLION, 4);
    CHECK(addresses);
    for (uint32_t i = 0; i < MILLION; i++) {
        uint32_t value = i * 2654435761u; /* odd: every i another address */
        memcpy(addresses[i], &value, 4);
        CHECK(route_list_add(&list, addresses[i], ROUTE_IPV4_BITS, 32, 0, i + 1));
    }
    clock_gettime(CLOCK_MONOTONIC, &times[0]);
    struct route_table *table = route_table_build(&list, ROUTE_IPV4_BITS);
    CHECK(table);
    clock_gettime(CLOCK_MONOTONIC, &times[1]);
    uint8_t length;
    for (uint32_t i = 0; i < MILLION; i++)
        CHECK_EQUAL(i + 1, route_table_lookup(table, addresses[i], &length));
    clock_gettime(CLOCK_MONOTONIC, &times[2]);
    for (int step = 0; step < 2; step++)
        printf("# %s: %.0f ms\n", step ? "a million lookups" : "a million prefixes made a table",
               (double)(times[step + 1].tv_sec - times[step].tv_sec) * 1e3 +
                   (double)(times[step + 1].tv_nsec - times[step].tv_nsec) / 1e6);
    route_list_clear(&list);
    route_table_free(table);
    free(addresses);
}

int main(void) {
    RUN(a_lookup_gives_what_looking_at_all_prefixes_gives);
    RUN(an_empty_table_knows_nothing);
    RUN(the_default_route_and_the_last_address_are_found);
    RUN(a_million_prefixes_are_held);
    return 0;
}
