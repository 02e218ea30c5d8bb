/* SPDX-License-Identifier: Apache-2.0 */
/* Flow keys chosen against FNV-1a: IPv4 UDP keys whose public flow ids (docs/flow-semantics.md) all end in the same 24 bits. A
 * table that took its bucket from them would put every one of these flows into one bucket.
 *
 * No search: the low 24 bits of FNV-1a depend on the low 24 bits of its state alone, and a step is undone by multiplying with the
 * inverse of its prime. Back from the wanted end over the last two bytes (the higher port) lead 2^16 states, put into a table;
 * forward over the bytes before, one of 256 hits it. Used by the tests and by bench/flood.c. */
#ifndef JARVIS_CHOSEN_KEYS_H
#define JARVIS_CHOSEN_KEYS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { CHOSEN_BITS = 24, CHOSEN_MASK = (1 << CHOSEN_BITS) - 1, CHOSEN_END = 0x5eed1e };

struct chosen_key { /* host order; the lower address is the one that sends */
    uint32_t low_address, high_address;
    uint16_t low_port, high_port;
};

struct chosen_keys {
    uint16_t *port;   /* by state before the last two bytes: the port that leads to the end ... */
    uint8_t *reaches; /* ... where there is one */
    uint32_t sender;  /* what the next key is tried with */
    uint32_t suffix;
};

static inline uint32_t chosen_step(uint32_t state, uint32_t byte) {
    return (state ^ byte) * 0x1b3u & CHOSEN_MASK; /* the prime is 2^40 + 0x1b3 */
}

static inline uint32_t chosen_step_back(uint32_t state, uint32_t byte) {
    uint32_t inverse = 0x1b3u; /* of an odd number modulo 2^32, by Newton's iteration */
    for (int i = 0; i < 5; i++)
        inverse *= 2 - 0x1b3u * inverse;
    return (state * inverse ^ byte) & CHOSEN_MASK;
}

static inline bool chosen_keys_begin(struct chosen_keys *keys) {
    *keys = (struct chosen_keys){.port = malloc(sizeof(uint16_t) << CHOSEN_BITS), .reaches = calloc(1, 1 << CHOSEN_BITS)};
    if (!keys->port || !keys->reaches)
        return false;
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        uint32_t state = chosen_step_back(chosen_step_back(CHOSEN_END, port & 0xff), port >> 8);
        keys->reaches[state] = 1;
        keys->port[state] = (uint16_t)port;
    }
    return true;
}

static inline void chosen_keys_end(struct chosen_keys *keys) {
    free(keys->port);
    free(keys->reaches);
}

/* The state after everything but the last two bytes of the address and the port. */
static inline uint32_t chosen_prefix(const struct chosen_key *key) {
    uint8_t bytes[] = {4,
                       17,
                       0,
                       0,
                       key->low_address >> 24,
                       key->low_address >> 16,
                       key->low_address >> 8,
                       key->low_address,
                       key->low_port >> 8,
                       key->low_port,
                       key->high_address >> 24,
                       key->high_address >> 16};
    uint32_t state = 0xcbf29ce484222325u & CHOSEN_MASK;
    for (uint32_t i = 0; i < sizeof(bytes); i++)
        state = chosen_step(state, bytes[i]);
    return state;
}

/* The next key: never the same twice, a few thousand senders for a million. */
static inline struct chosen_key chosen_keys_next(struct chosen_keys *keys) {
    for (;; keys->sender++, keys->suffix = 0) {
        struct chosen_key key = {.low_address = 0x0a000000u + keys->sender, .low_port = 4000, .high_address = 0xac100000u};
        uint32_t prefix = chosen_prefix(&key);
        while (keys->suffix <= UINT16_MAX) {
            uint32_t suffix = keys->suffix++;
            uint32_t state = chosen_step(chosen_step(prefix, suffix >> 8), suffix & 0xff);
            if (keys->reaches[state]) {
                key.high_address |= suffix;
                key.high_port = keys->port[state];
                return key;
            }
        }
    }
}

#endif
