/* SPDX-License-Identifier: Apache-2.0 */
/* The flow table beside a model of it, packet by packet: timeouts, eviction, restarts, with keys that collide and that do not. */
#include "check.h"
#include "table_model.h"

enum { PACKETS = 100000 };

static uint32_t random_below(uint32_t limit) {
    static uint64_t state = 0x2545f4914f6cdd1d;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % limit;
}

static uint64_t random_pause(void) {
    static const uint64_t second = 1000000000;
    switch (random_below(64)) {
    case 0:
        return random_below(40) * second;
    case 1: /* the timeouts, and a nanosecond less and more */
        return (1 + random_below(6)) * second - 1 + random_below(3);
    case 2:
        return random_below(100) ? 0 : 86400 * second;
    default:
        return random_below(20000000);
    }
}

static struct table_model model;

static void run(uint32_t max_flows, uint32_t flows, uint64_t hash_mask, uint64_t idle_s, uint64_t active_s) {
    struct flow_table_config config = {.max_flows = max_flows,
                                       .hash_seed = 1,
                                       .hash_mask = hash_mask,
                                       .idle_timeout_ns = idle_s * 1000000000,
                                       .active_timeout_ns = active_s * 1000000000};
    CHECK(table_model_begin(&model, &config));
    for (int i = 0; i < PACKETS; i++) {
        table_model_add(&model, (uint8_t)random_below(flows), (uint8_t)random_below(2), 20 + random_below(1480), random_pause());
        if (random_below(8) == 0)
            table_model_expire(&model, random_below(300));
    }
    uint64_t created = model.table.created;
    table_model_end(&model);
    CHECK(created > flows || (!idle_s && !active_s));
}

static void every_record_is_the_models_with_any_timeouts(void) {
    for (int timeouts = 0; timeouts < 4; timeouts++)
        run(TABLE_MODEL_FLOWS, TABLE_MODEL_FLOWS, UINT64_MAX, timeouts & 1 ? 3 : 0, timeouts & 2 ? 5 : 0);
    CHECK_EQUAL(0, model.evicted);
}

static void every_record_is_the_models_when_the_table_is_too_small(void) {
    for (int timeouts = 0; timeouts < 4; timeouts++) {
        run(64, TABLE_MODEL_FLOWS, UINT64_MAX, timeouts & 1 ? 3 : 0, timeouts & 2 ? 5 : 0);
        CHECK(model.evicted > 1000);
    }
}

static void every_record_is_the_models_when_all_keys_collide(void) {
    for (int timeouts = 0; timeouts < 4; timeouts++) {
        run(64, 2 * BUCKET_SLOTS, 0, timeouts & 1 ? 3 : 0, timeouts & 2 ? 5 : 0);
        CHECK_EQUAL(0, model.evicted);
        run(64, 3 * BUCKET_SLOTS, 0, timeouts & 1 ? 3 : 0, timeouts & 2 ? 5 : 0);
        CHECK(model.evicted > 1000);
    }
}

int main(void) {
    RUN(every_record_is_the_models_with_any_timeouts);
    RUN(every_record_is_the_models_when_the_table_is_too_small);
    RUN(every_record_is_the_models_when_all_keys_collide);
    return 0;
}
