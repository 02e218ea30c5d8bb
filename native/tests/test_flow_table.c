/* SPDX-License-Identifier: Apache-2.0 */
/* The table against a plain model: random packets, all keys colliding, full table, exactness at full load. */
#include <time.h>

#include "check.h"
#include "chosen_keys.h"
#include "flow/flow_table.h"
#include "frames.h"

enum { MODEL_FLOWS = 6000 };

struct model_flow {
    uint64_t packets[2];
    uint64_t octets[2];
    uint32_t created;
    uint32_t ended;
};

static struct model_flow model[MODEL_FLOWS];
static struct model_flow seen[MODEL_FLOWS]; /* what the emitted records add up to, by flow */
static uint64_t emitted, emitted_full;

static uint32_t flow_number(const struct capture_flow *flow) {
    bool forward = flow->src_addr[0] == 10;
    const uint8_t *low = forward ? flow->src_addr : flow->dst_addr;
    uint32_t number = (uint32_t)(forward ? flow->src_port : flow->dst_port) << 24;
    memcpy(&number, low + 1, 3);
    return number;
}

static void collect(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    (void)context;
    CHECK(!statistics);
    struct model_flow *total = &seen[flow_number(flow)];
    bool forward = flow->src_addr[0] == 10;
    total->packets[0] += forward ? flow->fwd_packets : flow->rev_packets;
    total->packets[1] += forward ? flow->rev_packets : flow->fwd_packets;
    total->octets[0] += forward ? flow->fwd_octets : flow->rev_octets;
    total->octets[1] += forward ? flow->rev_octets : flow->fwd_octets;
    total->ended++;
    emitted++;
    emitted_full += flow->end_reason == CAPTURE_FLOW_END_RESOURCES;
    CHECK(flow->fwd_packets > 0);
    CHECK(flow->end_time_ns >= flow->start_time_ns);
}

static struct flow_table new_table(uint32_t max_flows, uint64_t hash_mask) {
    struct flow_table table;
    struct flow_table_config config = {.max_flows = max_flows, .hash_seed = 42, .hash_mask = hash_mask, .emit = collect};
    memset(model, 0, sizeof(model));
    memset(seen, 0, sizeof(seen));
    emitted = emitted_full = 0;
    CHECK(flow_table_init(&table, &config));
    return table;
}

static void add(struct flow_table *table, uint32_t flow, uint8_t from, uint64_t ts_ns, uint32_t octets) {
    struct packet packet = packet_of(flow, from, ts_ns);
    packet.octets = octets;
    packet.hash = flow_table_hash(table, &packet.key);
    flow_table_add(table, &packet);
    model[flow].packets[from]++;
    model[flow].octets[from] += octets;
}

static uint32_t next_random(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static void add_random(struct flow_table *table, uint32_t flows, uint32_t packets) {
    for (uint32_t i = 0; i < packets; i++)
        add(table, next_random() % flows, (uint8_t)(next_random() & 1), SECOND + i, 20 + next_random() % 1480);
}

static void check_totals(void) {
    for (uint32_t flow = 0; flow < MODEL_FLOWS; flow++) {
        for (int from = 0; from < 2; from++) {
            CHECK_EQUAL(model[flow].packets[from], seen[flow].packets[from]);
            CHECK_EQUAL(model[flow].octets[from], seen[flow].octets[from]);
        }
    }
}

static void finish(struct flow_table *table) {
    while (!flow_table_flush(table, 100))
        continue;
    check_totals();
    CHECK_EQUAL(table->created, emitted);
    CHECK_EQUAL(table->ended[CAPTURE_FLOW_END_RESOURCES], emitted_full);
    uint64_t ended = 0;
    for (int reason = 0; reason < 6; reason++)
        ended += table->ended[reason];
    CHECK_EQUAL(emitted, ended);
    flow_table_destroy(table);
}

static void random_packets_add_up_as_in_the_model(void) {
    struct flow_table table = new_table(MODEL_FLOWS, UINT64_MAX);
    add_random(&table, MODEL_FLOWS, 200000);
    CHECK_EQUAL(MODEL_FLOWS, table.live);
    finish(&table);
    CHECK_EQUAL(0, emitted_full);
    for (uint32_t flow = 0; flow < MODEL_FLOWS; flow++)
        CHECK_EQUAL(1, seen[flow].ended);
}

static void keys_that_all_collide_are_kept_apart(void) {
    struct flow_table table = new_table(MODEL_FLOWS, 0);
    add_random(&table, 2 * BUCKET_SLOTS, 10000);
    CHECK_EQUAL(2 * BUCKET_SLOTS, table.live);
    finish(&table);
    CHECK_EQUAL(0, emitted_full);
}

static void colliding_keys_beyond_two_buckets_leave_counted(void) {
    struct flow_table table = new_table(MODEL_FLOWS, 0);
    add_random(&table, 100, 10000);
    CHECK_EQUAL(2 * BUCKET_SLOTS, table.live);
    CHECK(table.ended[CAPTURE_FLOW_END_RESOURCES] > 1000);
    finish(&table);
}

static void a_full_table_loses_nothing_and_merges_nothing(void) {
    struct flow_table table = new_table(512, UINT64_MAX);
    add_random(&table, MODEL_FLOWS, 200000);
    CHECK_EQUAL(512, table.live);
    CHECK(table.ended[CAPTURE_FLOW_END_RESOURCES] > 100000);
    finish(&table);
}

static void as_many_live_flows_as_configured_never_evict(void) {
    static const uint32_t sizes[] = {4096, 5000, 65536, 349525 /* the densest index: two thirds */, 1000003};
    for (int i = 0; i < 5; i++) {
        struct flow_table table;
        struct flow_table_config config = {.max_flows = sizes[i], .hash_seed = 7, .hash_mask = UINT64_MAX, .emit = collect};
        CHECK(flow_table_init(&table, &config));
        for (int round = 0; round < 2; round++) {
            for (uint32_t flow = 0; flow < sizes[i]; flow++) {
                struct packet packet = packet_of(flow, 0, SECOND + flow);
                packet.hash = flow_table_hash(&table, &packet.key);
                flow_table_add(&table, &packet);
            }
        }
        CHECK_EQUAL(sizes[i], table.live);
        CHECK_EQUAL(sizes[i], table.created);
        CHECK_EQUAL(0, table.ended[CAPTURE_FLOW_END_RESOURCES]);
        flow_table_destroy(&table);
    }
}

static void the_largest_table_is_ready_at_once_and_no_size_takes_more_than_160_bytes_a_flow(void) {
    static const uint32_t sizes[] = {4096, 4097, 1000000, 1048576, 1048577, 1398102, 10000000, 16777216};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct flow_table table;
        struct flow_table_config config = {.max_flows = sizes[i], .hash_mask = UINT64_MAX, .emit = collect};
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        CHECK(flow_table_init(&table, &config));
        clock_gettime(CLOCK_MONOTONIC, &after);
        CHECK(after.tv_sec - before.tv_sec < 2);
        CHECK(flow_table_bytes(&table) <= 160ull * sizes[i]);
        flow_table_destroy(&table);
    }
}

static void a_flow_that_was_found_again_outlives_those_that_were_not(void) {
    struct flow_table table = new_table(64, 0); /* all in one bucket, and its second one */
    for (uint32_t flow = 0; flow < 16; flow++)
        add(&table, flow, 0, SECOND + flow, 40);
    add(&table, 0, 1, SECOND + 100, 40);
    for (uint32_t flow = 16; flow < 23; flow++) { /* the seven others of the bucket leave, in their order */
        add(&table, flow, 0, SECOND + 100 + flow, 40);
        CHECK_EQUAL(flow - 15, emitted_full);
        CHECK_EQUAL(1, seen[flow - 15].ended);
    }
    CHECK_EQUAL(0, seen[0].ended);
    add(&table, 23, 0, SECOND + 200, 40); /* its second chance is over */
    add(&table, 24, 0, SECOND + 201, 40);
    CHECK_EQUAL(1, seen[0].ended);
    finish(&table);
}

static void a_bucket_of_flows_that_were_all_found_again_still_gives_one(void) {
    struct flow_table table = new_table(16, 0);
    for (uint32_t flow = 0; flow < 16; flow++) {
        add(&table, flow, 0, SECOND + flow, 40);
        add(&table, flow, 1, SECOND + flow, 40);
    }
    add(&table, 16, 0, SECOND + 100, 40);
    add(&table, 17, 0, SECOND + 101, 40);
    CHECK_EQUAL(2, emitted_full);
    CHECK_EQUAL(1, seen[0].ended);
    CHECK_EQUAL(1, seen[1].ended);
    finish(&table);
}

static uint64_t ended_by(struct flow_table *table, uint64_t now_ns) {
    flow_table_set_time(table, now_ns, 1);
    while (flow_table_expire(table, 1024) == 1024)
        continue;
    return table->ended[CAPTURE_FLOW_END_IDLE];
}

/* It takes the other's record and timer over: neither must it end with it, nor later than it would have. */
static void a_flow_in_the_place_of_an_evicted_one_ends_at_its_own_time(void) {
    enum { FLOWS = 64, LATE = 2 * FLOWS };
    struct flow_table table;
    struct flow_table_config config = {
        .max_flows = FLOWS, .idle_timeout_ns = 10ull * SECOND, .hash_seed = 42, .hash_mask = UINT64_MAX, .emit = collect};
    memset(model, 0, sizeof(model));
    memset(seen, 0, sizeof(seen));
    CHECK(flow_table_init(&table, &config));
    for (uint32_t flow = 0; flow < 2 * FLOWS; flow++)
        add(&table, flow, 0, (flow < FLOWS ? 1 : 5) * (uint64_t)SECOND + flow, 40);
    add(&table, LATE, 0, SECOND / 2, 40); /* older than the flow that it replaces */
    CHECK_EQUAL(FLOWS + 1, table.ended[CAPTURE_FLOW_END_RESOURCES]);
    uint32_t old = 0; /* in buckets where others left */
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        old += seen[flow].ended == 0;
    CHECK(old < FLOWS / 2);
    CHECK_EQUAL(0, ended_by(&table, 10ull * SECOND));
    CHECK_EQUAL(1, ended_by(&table, 11ull * SECOND));
    CHECK_EQUAL(1, seen[LATE].ended);
    CHECK_EQUAL(1 + old, ended_by(&table, 14ull * SECOND));
    CHECK_EQUAL(FLOWS, ended_by(&table, 16ull * SECOND));
    CHECK_EQUAL(0, table.live);
    flow_table_destroy(&table);
}

enum { CHOSEN_KEYS = 1 << 17, CHOSEN_BUCKETS = CHOSEN_KEYS / 4 };

/* Pearson's statistic of the keys' number in each bucket, against an even spread; about CHOSEN_BUCKETS for a random one. */
static double unevenness(const uint32_t *counts) {
    double sum = 0, expected = (double)CHOSEN_KEYS / CHOSEN_BUCKETS;
    for (uint32_t i = 0; i < CHOSEN_BUCKETS; i++)
        sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    return sum;
}

static void keys_chosen_against_fnv1a_spread_over_the_buckets_like_any_others(void) {
    static uint32_t counts[CHOSEN_BUCKETS], counts_of_ids[CHOSEN_BUCKETS];
    struct chosen_keys maker;
    struct hash_seed seed;
    hash_seed_expand(&seed, 42);
    CHECK(chosen_keys_begin(&maker));
    for (uint32_t i = 0; i < CHOSEN_KEYS; i++) {
        struct chosen_key chosen = chosen_keys_next(&maker);
        struct flow_key key = {.port = {chosen.low_port, chosen.high_port}, .protocol = 17, .ip_version = 4};
        uint32_t low = htobe32(chosen.low_address), high = htobe32(chosen.high_address);
        memcpy(key.addr[0], &low, 4);
        memcpy(key.addr[1], &high, 4);
        CHECK_EQUAL(CHOSEN_END, flow_key_id(&key) & CHOSEN_MASK);
        counts_of_ids[flow_key_id(&key) % CHOSEN_BUCKETS]++;
        counts[flow_key_hash(&key, &seed) % CHOSEN_BUCKETS]++;
    }
    chosen_keys_end(&maker);
    CHECK_EQUAL(CHOSEN_KEYS, counts_of_ids[CHOSEN_END % CHOSEN_BUCKETS]); /* so they are chosen well */
    /* five standard deviations, of sqrt(2 * buckets) each */
    CHECK(unevenness(counts) > CHOSEN_BUCKETS - 1280 && unevenness(counts) < CHOSEN_BUCKETS + 1280);
}

static void forward_is_the_direction_of_the_first_packet(void) {
    struct flow_table table = new_table(64, UINT64_MAX);
    struct packet packet = packet_of(3, 1, SECOND);
    packet.hash = flow_table_hash(&table, &packet.key);
    flow_table_add(&table, &packet);
    struct capture_flow flow;
    flow_record_export(&table.records[0], 0, &flow);
    CHECK_EQUAL(172, flow.src_addr[0]);
    CHECK_EQUAL(53, flow.src_port);
    CHECK_EQUAL(1, flow.fwd_packets);
    CHECK_EQUAL(0, flow.rev_packets);
    flow_table_destroy(&table);
}

/* Values made with an independent implementation of FNV-1a 64 over the documented bytes. */
static void flow_ids_are_fnv1a_of_the_canonical_key(void) {
    struct flow_key v4 = {.addr = {{10, 30, 29, 3}, {178, 237, 24, 249}}, .port = {63357, 443}, .protocol = 6, .ip_version = 4};
    CHECK(flow_key_id(&v4) == 0x9b20e74336939cddu);
    struct flow_key v6 = {.addr = {{0x20, 1, 0xd, 0xb8, [15] = 1}, {0x20, 1, 0xd, 0xb8, [15] = 2}},
                          .port = {53, 40000},
                          .vlan_id = 100,
                          .protocol = 17,
                          .ip_version = 6};
    CHECK(flow_key_id(&v6) == 0xca512f1671febca6u);
    v4.tunnel_type = CAPTURE_TUNNEL_TYPE_GTP_U;
    v4.tunnel_id = 0xdeadbeef;
    CHECK(flow_key_id(&v4) == 0x234d80dca7805342u);
}

static void the_hash_depends_on_its_seed_and_on_every_byte(void) {
    struct hash_seed a, b;
    hash_seed_expand(&a, 1);
    hash_seed_expand(&b, 2);
    struct packet packet = packet_of(1, 0, 0);
    uint64_t hash = flow_key_hash(&packet.key, &a);
    CHECK(hash != flow_key_hash(&packet.key, &b));
    for (size_t byte = 0; byte < sizeof(packet.key); byte++) {
        struct flow_key other = packet.key;
        ((uint8_t *)&other)[byte] ^= 1;
        CHECK(hash != flow_key_hash(&other, &a));
    }
}

int main(void) {
    RUN(random_packets_add_up_as_in_the_model);
    RUN(keys_that_all_collide_are_kept_apart);
    RUN(colliding_keys_beyond_two_buckets_leave_counted);
    RUN(a_full_table_loses_nothing_and_merges_nothing);
    RUN(as_many_live_flows_as_configured_never_evict);
    RUN(the_largest_table_is_ready_at_once_and_no_size_takes_more_than_160_bytes_a_flow);
    RUN(a_flow_that_was_found_again_outlives_those_that_were_not);
    RUN(a_bucket_of_flows_that_were_all_found_again_still_gives_one);
    RUN(a_flow_in_the_place_of_an_evicted_one_ends_at_its_own_time);
    RUN(keys_chosen_against_fnv1a_spread_over_the_buckets_like_any_others);
    RUN(forward_is_the_direction_of_the_first_packet);
    RUN(flow_ids_are_fnv1a_of_the_canonical_key);
    RUN(the_hash_depends_on_its_seed_and_on_every_byte);
    return 0;
}
