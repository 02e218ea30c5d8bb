/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/sampling.h"

#include "flow/flow_hash.h"

/* The first 384 bits of pi's fraction: numbers that nobody chose. */
static const uint64_t PI[6] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0,
                               0x082efa98ec4e6c89, 0x452821e638d01377, 0xbe5466cf34e90c6c};

void sampler_init(struct sampler *sampler, uint32_t mode, uint32_t interval) {
    *sampler = (struct sampler){.mode = mode, .interval = mode == CAPTURE_SAMPLING_NONE ? 1 : interval, .left = 1};
}

void sampler_init_random(struct sampler *sampler, uint32_t interval, uint64_t seed) {
    *sampler = (struct sampler){.mode = SAMPLING_RANDOM, .interval = interval, .random = seed};
    sampler->left = sampler_distance(sampler);
}

/* splitmix64: every state is good, so is every seed. */
static uint64_t next_random(uint64_t *state) {
    uint64_t value = *state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

uint32_t sampler_distance(struct sampler *sampler) {
    if (sampler->mode != SAMPLING_RANDOM)
        return sampler->interval;
    uint64_t distances = 2 * (uint64_t)sampler->interval - 1; /* below 2^25: the product keeps 32 random bits */
    return (uint32_t)((next_random(&sampler->random) >> 32) * distances >> 32) + 1;
}

static uint64_t address_half(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return be64toh(value);
}

uint32_t sampling_hash(const struct flow_key *key) {
    const uint8_t *low = key->addr[0], *high = key->addr[1];
    uint64_t rest = (uint64_t)key->port[0] << 48 | (uint64_t)key->port[1] << 32 | (uint64_t)key->ip_version << 8 | key->protocol;
    uint64_t a = hash_fold(address_half(low) ^ PI[0], address_half(low + 8) ^ PI[1]);
    uint64_t b = hash_fold(address_half(high) ^ PI[2], address_half(high + 8) ^ PI[3]);
    uint64_t hash = hash_fold(a ^ rest ^ PI[4], b ^ PI[5]);
    /* splitmix64's last step: without it ports that follow each other would be taken at regular distances. */
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((hash ^ hash >> 31) >> 32);
}
