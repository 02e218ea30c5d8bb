/* SPDX-License-Identifier: Apache-2.0 */
/* Which packets a sampler takes: the hash by its golden vectors, and that the parts of an interval are fair, disjoint and whole.
 */
#include "check.h"
#include "flow/sampling.h"

static struct flow_key key_v4(uint32_t low, uint16_t low_port, uint32_t high, uint16_t high_port, uint8_t protocol) {
    struct flow_key key = {.port = {low_port, high_port}, .protocol = protocol, .ip_version = 4};
    uint32_t address[2] = {htobe32(low), htobe32(high)};
    memcpy(key.addr[0], &address[0], 4);
    memcpy(key.addr[1], &address[1], 4);
    return key;
}

/* 2001:db8::low and 2001:db8::high */
static struct flow_key key_v6(uint8_t low, uint16_t low_port, uint8_t high, uint16_t high_port, uint8_t protocol) {
    struct flow_key key = {.port = {low_port, high_port}, .protocol = protocol, .ip_version = 6};
    for (int end = 0; end < 2; end++) {
        memcpy(key.addr[end], "\x20\x01\x0d\xb8", 4);
        key.addr[end][15] = end ? high : low;
    }
    return key;
}

/* docs/flow-semantics.md has the same ones. */
static void the_hash_is_the_documented_one(void) {
    const struct {
        struct flow_key key;
        uint32_t hash, part_of_100, part_of_1000;
    } golden[] = {
        {key_v4(0xc0000201, 443, 0xc6336402, 50000, 6), 0xdc3179b0, 86, 860},
        {key_v4(0xc0000201, 0, 0xc0000202, 0, 1), 0x2d6dc3c0, 17, 177},
        {key_v4(0x0a000001, 53, 0x0a000001, 53, 17), 0x5748117c, 34, 340},
        {key_v6(1, 443, 2, 50000, 6), 0xacd7bf72, 67, 675},
        {key_v6(1, 0, 2, 0, 58), 0xa67cd7a5, 65, 650},
    };
    for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
        CHECK_EQUAL(golden[i].hash, sampling_hash(&golden[i].key));
        CHECK_EQUAL(golden[i].part_of_100, sampling_part(&golden[i].key, 100));
        CHECK_EQUAL(golden[i].part_of_1000, sampling_part(&golden[i].key, 1000));
    }
}

/* Hosts see one flow with other tags, in other tunnels and from other sides. */
static void the_hash_knows_neither_vlan_nor_tunnel_nor_direction(void) {
    struct flow_key key = key_v4(0xc0000201, 443, 0xc6336402, 50000, 6);
    uint32_t hash = sampling_hash(&key);
    key.vlan_id = 100;
    key.tunnel_type = CAPTURE_TUNNEL_TYPE_VXLAN;
    key.tunnel_id = 7;
    CHECK_EQUAL(hash, sampling_hash(&key));
    struct packet back = {.key = key_v4(0xc6336402, 50000, 0xc0000201, 443, 6)};
    packet_canonicalise(&back);
    CHECK_EQUAL(hash, sampling_hash(&back.key));
    key.protocol = 17;
    CHECK(hash != sampling_hash(&key));
    key = key_v4(0xc0000201, 443, 0xc6336402, 50001, 6);
    CHECK(hash != sampling_hash(&key));
    key = key_v4(0xc0000201, 50000, 0xc6336402, 443, 6);
    CHECK(hash != sampling_hash(&key));
}

/* Keys as networks have them: neighbours in one place or another. */
static struct flow_key neighbour(int kind, uint32_t i) {
    switch (kind) {
    case 0:
        return key_v4(0x0a000000 + i, 4000, 0xac100001, 53, 17);
    case 1:
        return key_v4(0x0a000001, (uint16_t)i, 0xac100001, (uint16_t)(i >> 16), 6);
    case 2:
        return key_v4(0x0a000001, 80, 0xac100000 + i * 256, (uint16_t)i, 6);
    default:
        return key_v6((uint8_t)(i >> 16), (uint16_t)i, 200, 443, 6);
    }
}

enum { KEYS = 200000, KINDS = 4 };

static void every_packet_is_in_exactly_one_of_the_n_parts(void) {
    static const uint32_t intervals[] = {1, 2, 3, 10, 64};
    for (uint32_t mode = CAPTURE_SAMPLING_SYSTEMATIC; mode <= CAPTURE_SAMPLING_FLOW_HASH; mode++) {
        for (int each = 0; each < 5; each++) {
            struct sampler samplers[64];
            for (uint32_t part = 0; part < intervals[each]; part++) {
                sampler_init(&samplers[part], mode, intervals[each]);
                samplers[part].residue = part;
                samplers[part].left = part + 1;
            }
            for (uint32_t i = 0; i < 5000; i++) {
                struct flow_key key = neighbour((int)(i % KINDS), i);
                uint32_t takers = 0;
                for (uint32_t part = 0; part < intervals[each]; part++)
                    takers += sampler_takes(&samplers[part], &key);
                CHECK_EQUAL(1, takers);
            }
        }
    }
}

static void no_sampling_takes_everything(void) {
    struct sampler sampler;
    sampler_init(&sampler, CAPTURE_SAMPLING_NONE, 0);
    for (uint32_t i = 0; i < 1000; i++) {
        struct flow_key key = neighbour(0, i);
        CHECK(sampler_takes(&sampler, &key));
    }
}

static void systematic_sampling_takes_the_first_packet_and_every_nth_after_it(void) {
    struct flow_key key = neighbour(0, 1);
    struct sampler sampler;
    sampler_init(&sampler, CAPTURE_SAMPLING_SYSTEMATIC, 7);
    for (uint32_t i = 0; i < 1000; i++)
        CHECK_EQUAL(i % 7 == 0, sampler_takes(&sampler, &key));
}

/* Fixed seeds: the sums below hold or do not. A distance is uniform on 1..2N-1, of variance ((2N-1)^2 - 1) / 12, so the mean of
 * 100,000 of them lies within four standard errors of N unless the generator is bent. */
static void random_distances_are_n_on_average_and_never_beyond_2n(void) {
    static const uint32_t intervals[] = {2, 3, 10, 400, 65536, SAMPLING_RATE_MOST};
    enum { DISTANCES = 100000 };
    for (uint64_t seed = 0; seed < 4; seed++) {
        for (int each = 0; each < 6; each++) {
            uint64_t n = intervals[each], sum = 0, least = UINT64_MAX, most = 0;
            struct sampler sampler;
            sampler_init_random(&sampler, intervals[each], seed);
            for (int i = 0; i < DISTANCES; i++) {
                uint32_t distance = sampler_distance(&sampler);
                sum += distance;
                least = distance < least ? distance : least;
                most = distance > most ? distance : most;
            }
            CHECK(least >= 1 && most <= 2 * n - 1);
            CHECK(least <= 1 + n / 1000 && most >= 2 * n - 1 - n / 1000);
            double width = 2.0 * (double)n - 1, error = (double)sum - (double)n * DISTANCES;
            CHECK(error * error <= 16 * (width * width - 1) / 12 * DISTANCES);
        }
    }
}

static void random_distances_of_1_take_everything(void) {
    struct sampler sampler;
    sampler_init_random(&sampler, 1, 42);
    for (int i = 0; i < 1000; i++)
        CHECK_EQUAL(0, sampler_next(&sampler, 64));
}

static void random_distances_differ_by_seed_and_repeat_with_it(void) {
    struct sampler first, again, other;
    sampler_init_random(&first, 1000, 7);
    sampler_init_random(&again, 1000, 7);
    sampler_init_random(&other, 1000, 8);
    uint32_t same = 0;
    for (int i = 0; i < 1000; i++) {
        uint32_t distance = sampler_distance(&first);
        CHECK_EQUAL(distance, sampler_distance(&again));
        same += distance == sampler_distance(&other);
    }
    CHECK(same < 10);
}

/* Whatever the batches, the same packets are taken. */
static void a_batch_is_passed_over_as_its_packets_one_by_one(void) {
    struct sampler whole, single;
    sampler_init_random(&whole, 10, 3);
    sampler_init_random(&single, 10, 3);
    uint64_t at = 0;
    for (uint32_t batch = 0; batch < 5000; batch++) {
        uint32_t left = batch % 65;
        while (left > 0) {
            uint32_t before = sampler_next(&whole, left);
            for (uint32_t i = 0; i < before; i++, at++)
                CHECK_EQUAL(1, sampler_next(&single, 1));
            left -= before;
            if (left == 0)
                break;
            CHECK_EQUAL(0, sampler_next(&single, 1));
            at++;
            left--;
        }
    }
    CHECK(at > 100000);
}

static void a_flow_taken_at_a_larger_interval_is_taken_at_every_smaller_one(void) {
    static const uint32_t intervals[] = {2, 3, 10, 100, 101, 1000, SAMPLING_INTERVAL_MOST};
    for (uint32_t i = 0; i < KEYS; i++) {
        struct flow_key key = neighbour((int)(i % KINDS), i);
        for (int each = 1; each < 7; each++)
            CHECK(sampling_part(&key, intervals[each]) != 0 || sampling_part(&key, intervals[each - 1]) == 0);
    }
}

/* Pearson's chi-squared over 100 parts: 99 degrees of freedom, mean 99, standard deviation 14. Far above: some parts are
 * preferred; far below: neighbours are spread by a rule. Fixed input, so this holds or does not. */
static void the_parts_are_as_even_as_chance_would_make_them(void) {
    for (int kind = 0; kind < KINDS; kind++) {
        uint32_t parts[100] = {0};
        for (uint32_t i = 0; i < KEYS; i++) {
            struct flow_key key = neighbour(kind, i);
            parts[sampling_part(&key, 100)]++;
        }
        double expected = KEYS / 100.0, sum = 0;
        for (int part = 0; part < 100; part++)
            sum += (parts[part] - expected) * (parts[part] - expected) / expected;
        CHECK(sum > 99 - 4 * 14 && sum < 99 + 4 * 14);
    }
}

/* Neighbours are independent: of pairs of consecutive keys 1 in 100 is taken with both at 1 in 10. */
static void neighbouring_keys_are_taken_independently(void) {
    for (int kind = 0; kind < KINDS; kind++) {
        uint32_t pairs = 0;
        for (uint32_t i = 0; i < KEYS; i++) {
            struct flow_key key = neighbour(kind, 2 * i), next = neighbour(kind, 2 * i + 1);
            pairs += sampling_part(&key, 10) == 0 && sampling_part(&next, 10) == 0;
        }
        CHECK(pairs > 2000 - 4 * 45 && pairs < 2000 + 4 * 45); /* binomial: standard deviation 44.5 */
    }
}

int main(void) {
    RUN(the_hash_is_the_documented_one);
    RUN(the_hash_knows_neither_vlan_nor_tunnel_nor_direction);
    RUN(every_packet_is_in_exactly_one_of_the_n_parts);
    RUN(no_sampling_takes_everything);
    RUN(systematic_sampling_takes_the_first_packet_and_every_nth_after_it);
    RUN(random_distances_are_n_on_average_and_never_beyond_2n);
    RUN(random_distances_of_1_take_everything);
    RUN(random_distances_differ_by_seed_and_repeat_with_it);
    RUN(a_batch_is_passed_over_as_its_packets_one_by_one);
    RUN(a_flow_taken_at_a_larger_interval_is_taken_at_every_smaller_one);
    RUN(the_parts_are_as_even_as_chance_would_make_them);
    RUN(neighbouring_keys_are_taken_independently);
    return 0;
}
