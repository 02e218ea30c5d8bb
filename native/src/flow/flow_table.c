/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_table.h"

#include "flow/flow_expiry.h"
#include "flow/memory.h"

bool flow_table_init(struct flow_table *table, const struct flow_table_config *config) {
    memset(table, 0, sizeof(*table));
    table->config = *config;
    table->timed = config->idle_timeout_ns || config->active_timeout_ns;
    table->idle_limit_ns = config->idle_timeout_ns ? config->idle_timeout_ns : UINT64_MAX;
    table->active_limit_ns = config->active_timeout_ns ? config->active_timeout_ns : UINT64_MAX;
    table->free_head = WHEEL_NONE;
    hash_seed_expand(&table->seed, config->hash_seed);
    table->records = memory_map((size_t)config->max_flows * sizeof(struct flow_record));
    if (config->merge_interfaces)
        table->second_interface = memory_map((size_t)config->max_flows * sizeof(uint16_t));
    bool index = flow_index_init(&table->index, config->max_flows);
    bool statistics = flow_statistics_init(&table->statistics, config->statistics, config->max_flows);
    bool wheel = timer_wheel_init(&table->wheel, config->max_flows);
    return table->records && index && statistics && wheel && (table->second_interface || !config->merge_interfaces);
}

void flow_table_destroy(struct flow_table *table) {
    memory_unmap(table->records, (size_t)table->config.max_flows * sizeof(struct flow_record));
    table->records = NULL;
    memory_unmap(table->second_interface, (size_t)table->config.max_flows * sizeof(uint16_t));
    table->second_interface = NULL;
    flow_index_destroy(&table->index);
    flow_statistics_destroy(&table->statistics);
    timer_wheel_destroy(&table->wheel);
}

uint64_t flow_table_bytes(const struct flow_table *table) {
    return (uint64_t)table->config.max_flows * (sizeof(struct flow_record) + sizeof(struct wheel_link)) +
           flow_index_bytes(&table->index) +
           (table->second_interface ? (uint64_t)table->config.max_flows * sizeof(uint16_t) : 0) +
           flow_statistics_size(table->config.statistics, table->config.max_flows);
}

/* A free record has no timer, so its wheel link carries the free list. */
static uint32_t record_take(struct flow_table *table) {
    uint32_t number = table->free_head;
    if (number != WHEEL_NONE)
        table->free_head = table->wheel.links[number].next;
    else if (table->high_water < table->config.max_flows)
        number = table->high_water++;
    return number;
}

static void record_give_back(struct flow_table *table, uint32_t number) {
    table->records[number].key.ip_version = 0;
    table->wheel.links[number].next = table->free_head;
    table->free_head = number;
}

void flow_table_export(const struct flow_table *table, const struct flow_record *record, uint8_t end_reason,
                       struct capture_flow *out) {
    flow_record_export(record, end_reason, out);
    out->sampling_interval = table->config.sampling_interval;
    if (table->second_interface)
        out->second_interface_index = table->second_interface[record - table->records];
}

static void emit_record(struct flow_table *table, uint32_t number, uint8_t reason) {
    const struct flow_record *record = &table->records[number];
    struct capture_flow flow;
    struct capture_flow_statistics statistics;
    flow_table_export(table, record, reason, &flow);
    table->ended[reason]++;
    if (table->statistics.kinds)
        flow_statistics_export(&table->statistics, number, record, &statistics);
    table->config.emit(table->config.context, &flow, table->statistics.kinds ? &statistics : NULL);
}

/* Emits a record, if it holds packets. */
static void close_flow(struct flow_table *table, uint32_t number, uint8_t reason) {
    const struct flow_record *record = &table->records[number];
    if (record->state == FLOW_STATE_REMAINDER)
        return;
    emit_record(table, number, reason);
    table->live--;
}

/* Closes a flow and frees its place. The wheel must have let go of it already. */
static void end_flow(struct flow_table *table, uint32_t number, uint8_t reason) {
    close_flow(table, number, reason);
    flow_index_remove(&table->index, flow_table_hash(table, &table->records[number].key), number);
    record_give_back(table, number);
}

static void set_timer(struct flow_table *table, uint32_t number) {
    if (table->timed)
        timer_wheel_insert(&table->wheel, number, flow_deadline(&table->config, &table->records[number], NULL));
}

static void reset_timer(struct flow_table *table, uint32_t number) {
    if (!table->timed)
        return;
    timer_wheel_remove(&table->wheel, number);
    set_timer(table, number);
}

/* A place in the index. */
struct flow_place {
    uint32_t bucket;
    int slot;
};

/* Who leaves to make room for a key: the flow of its bucket that was not used for long. Should that be empty, its second one
 * gives one, or the nearest bucket that can; a table that is full has one a few steps away. */
static struct flow_place choose_victim(const struct flow_table *table, uint64_t hash) {
    const struct flow_index *index = &table->index;
    uint32_t bucket = flow_index_first(index, hash);
    int slot = flow_bucket_victim(&index->buckets[bucket]);
    if (__builtin_expect(slot >= 0, 1))
        return (struct flow_place){bucket, slot};
    uint32_t other = flow_index_other(index, bucket, flow_index_tag(hash));
    while ((slot = flow_bucket_victim(&index->buckets[other])) < 0)
        other = ++bucket & index->mask;
    return (struct flow_place){other, slot};
}

static uint32_t record_at(const struct flow_table *table, struct flow_place place) {
    return table->index.buckets[place.bucket].record[place.slot];
}

static void note_interface(struct flow_table *table, uint32_t number, const struct packet *packet) {
    uint16_t *second = &table->second_interface[number];
    if (packet->interface_index != table->records[number].interface_index && *second == 0)
        *second = packet->interface_index;
}

static inline void count_packet(struct flow_table *table, uint32_t number, const struct packet *packet) {
    struct flow_record *record = &table->records[number];
    struct flow_way *way = &record->way[packet->from];
    way->packets++;
    way->octets += packet->octets;
    record->tcp_flags[packet->from] |= packet->tcp_flags;
    record->last_packet_id = packet->packet_id;
    if (__builtin_expect(table->second_interface != NULL, 0))
        note_interface(table, number, packet);
    if (packet->ts_ns >= record->last_ns) {
        record->last_ns = packet->ts_ns;
    } else {
        table->time_regressions++;
        if (packet->ts_ns < record->start_ns) {
            record->start_ns = packet->ts_ns;
            reset_timer(table, number);
        }
    }
    bool believed = true;
    if (__builtin_expect(table->statistics.kinds != 0, 0))
        believed = flow_statistics_count(&table->statistics, number, record, packet);
    if (__builtin_expect((packet->tcp_flags & (TCP_FIN | TCP_RST)) != 0, 0) && believed && flow_follow_tcp(record, packet))
        reset_timer(table, number);
}

static void begin_record(struct flow_table *table, uint32_t number, const struct packet *packet, bool carry) {
    flow_record_start(&table->records[number], packet);
    if (table->second_interface)
        table->second_interface[number] = 0;
    if (__builtin_expect(table->statistics.kinds != 0, 0))
        flow_statistics_begin(&table->statistics, number, carry);
    table->created++;
    table->live++;
}

static void index_flow(struct flow_table *table, uint64_t hash, uint32_t number) {
    if (flow_index_insert(&table->index, hash, number))
        return;
    /* Both buckets are full, of a table that is not: the first one's victim leaves. */
    int slot = choose_victim(table, hash).slot;
    uint32_t victim = table->index.buckets[flow_index_first(&table->index, hash)].record[slot];
    if (table->timed)
        timer_wheel_remove(&table->wheel, victim);
    close_flow(table, victim, CAPTURE_FLOW_END_RESOURCES);
    flow_index_replace(&table->index, hash, slot, number);
    record_give_back(table, victim);
}

/* The table is full: a flow leaves, and its record becomes the new one's. So does its place on the wheel, which is not later than
 * when the flow that left would have ended: a packet after its last one makes a flow that ends no earlier. */
static void replace_flow(struct flow_table *table, const struct packet *packet) {
    struct flow_place place = choose_victim(table, packet->hash);
    uint32_t number = record_at(table, place);
    bool in_order = packet->ts_ns > table->records[number].last_ns;
    close_flow(table, number, CAPTURE_FLOW_END_RESOURCES);
    if (__builtin_expect(place.bucket == flow_index_first(&table->index, packet->hash), 1)) {
        flow_index_replace(&table->index, packet->hash, place.slot, number);
    } else {
        flow_index_remove(&table->index, flow_table_hash(table, &table->records[number].key), number);
        flow_index_insert(&table->index, packet->hash, number);
    }
    begin_record(table, number, packet, false);
    if (!in_order)
        reset_timer(table, number);
    count_packet(table, number, packet);
}

static void add_flow(struct flow_table *table, const struct packet *packet) {
    uint32_t number = record_take(table);
    if (number == WHEEL_NONE) {
        replace_flow(table, packet);
        return;
    }
    index_flow(table, packet->hash, number);
    begin_record(table, number, packet, false);
    set_timer(table, number);
    count_packet(table, number, packet);
}

/* The flow's record has ended, the key stays where it is: only the record begins anew. */
static void restart_flow(struct flow_table *table, uint32_t number, const struct packet *packet, uint8_t reason) {
    struct flow_record *record = &table->records[number];
    bool remainder = record->state == FLOW_STATE_REMAINDER, carry = flow_leaves_remainder(&table->config, record, reason);
    uint8_t fin_from = record->fin_from;
    if (!remainder) {
        emit_record(table, number, reason);
        table->live--;
    }
    /* A connection that opens anew has nothing to do with the one that was closing. */
    carry = (carry || (remainder && reason == CAPTURE_FLOW_END_NONE)) && !(packet->tcp_flags & TCP_SYN);
    timer_wheel_remove(&table->wheel, number);
    begin_record(table, number, packet, carry);
    set_timer(table, number);
    if (carry && fin_from) {
        record->fin_from = fin_from;
        record->state = CAPTURE_FLOW_STATE_CLOSING;
    }
    count_packet(table, number, packet);
}

static inline uint64_t key_difference(const struct flow_key *a, const struct flow_key *b, int number) {
    return flow_key_word(a, number) ^ flow_key_word(b, number);
}

static inline bool key_equal(const struct flow_key *a, const struct flow_key *b) {
    return (key_difference(a, b, 0) | key_difference(a, b, 1) | key_difference(a, b, 2) | key_difference(a, b, 3) |
            key_difference(a, b, 4) | key_difference(a, b, 5)) == 0;
}

static inline uint32_t find_in_bucket(const struct flow_table *table, uint32_t number, uint16_t tag, const struct flow_key *key) {
    struct flow_bucket *bucket = &table->index.buckets[number];
    for (uint32_t match = flow_bucket_match(bucket, tag); match; match &= match - 1) {
        int slot = __builtin_ctz(match);
        uint32_t record = bucket->record[slot];
        if (key_equal(&table->records[record].key, key)) {
            flow_bucket_note_use(bucket, slot);
            return record;
        }
    }
    return WHEEL_NONE;
}

static inline uint32_t find_flow(const struct flow_table *table, const struct flow_key *key, uint64_t hash) {
    uint16_t tag = flow_index_tag(hash);
    uint32_t first = flow_index_first(&table->index, hash);
    uint32_t number = find_in_bucket(table, first, tag, key);
    if (__builtin_expect(number == WHEEL_NONE && table->index.buckets[first].overflow, 0))
        number = find_in_bucket(table, flow_index_other(&table->index, first, tag), tag, key);
    return number;
}

/* The common case of flow_ended_before, without its detours: in order, not closed, within both timeouts. */
static inline bool surely_goes_on(const struct flow_table *table, const struct flow_record *record, const struct packet *packet) {
    return packet->ts_ns >= record->last_ns && packet->ts_ns - record->last_ns <= table->idle_limit_ns &&
           packet->ts_ns - record->start_ns < table->active_limit_ns &&
           (record->state < CAPTURE_FLOW_STATE_CLOSED || !table->timed);
}

void flow_table_add(struct flow_table *table, const struct packet *packet) {
    uint32_t number = find_flow(table, &packet->key, packet->hash);
    if (number == WHEEL_NONE) {
        add_flow(table, packet);
        return;
    }
    struct flow_record *record = &table->records[number];
    if (__builtin_expect(surely_goes_on(table, record, packet), 1)) {
        count_packet(table, number, packet);
        return;
    }
    uint8_t reason = flow_ended_before(&table->config, record, packet);
    if (reason == CAPTURE_FLOW_END_NONE && record->state != FLOW_STATE_REMAINDER)
        count_packet(table, number, packet);
    else
        restart_flow(table, number, packet, reason);
}

/* Puts every live flow where it belongs on a wheel that was turned back. */
static void rebase_wheel(struct flow_table *table) {
    timer_wheel_reset(&table->wheel, table->now_ns);
    for (uint32_t number = 0; number < table->high_water; number++) {
        if (table->records[number].key.ip_version)
            set_timer(table, number);
    }
}

/* Time may step back by any amount (clocks are set, traces are joined). Small steps are ignored; after a large one the wheel is
 * turned back, at most once per as many packets as there are records, so that no trace can make that the main work. */
void flow_table_set_time(struct flow_table *table, uint64_t now_ns, uint32_t packets) {
    table->rebase_after -= packets < table->rebase_after ? packets : table->rebase_after;
    if (now_ns >= table->now_ns) {
        table->now_ns = now_ns;
        return;
    }
    uint64_t tolerated = table->config.idle_timeout_ns ? table->config.idle_timeout_ns : table->config.active_timeout_ns;
    if (!table->timed || table->now_ns - now_ns <= tolerated || table->rebase_after)
        return;
    table->now_ns = now_ns;
    table->rebase_after = table->high_water;
    rebase_wheel(table);
}

/* The active timeout ends the record of a connection whose next record must know what this one saw. */
static void leave_remainder(struct flow_table *table, uint32_t number) {
    struct flow_record *record = &table->records[number];
    emit_record(table, number, CAPTURE_FLOW_END_ACTIVE);
    table->live--;
    record->state = FLOW_STATE_REMAINDER;
    set_timer(table, number);
}

uint32_t flow_table_expire(struct flow_table *table, uint32_t budget) {
    uint32_t looked = 0;
    while (table->timed && looked < budget) {
        uint32_t number = timer_wheel_pop(&table->wheel, table->now_ns);
        if (number == WHEEL_NONE)
            break;
        looked++;
        uint8_t reason = flow_ended_by(&table->config, &table->records[number], table->now_ns);
        if (reason && flow_leaves_remainder(&table->config, &table->records[number], reason))
            leave_remainder(table, number);
        else if (reason)
            end_flow(table, number, reason);
        else
            set_timer(table, number);
    }
    return looked;
}

bool flow_table_flush(struct flow_table *table, uint32_t budget) {
    for (; table->live && budget; table->flush_at++) {
        struct flow_record *record = &table->records[table->flush_at];
        if (!record->key.ip_version || record->state == FLOW_STATE_REMAINDER)
            continue;
        uint8_t reason = table->timed ? flow_ended_by(&table->config, record, table->now_ns) : CAPTURE_FLOW_END_NONE;
        if (!reason)
            reason = record->state == CAPTURE_FLOW_STATE_CLOSED ? CAPTURE_FLOW_END_DETECTED : CAPTURE_FLOW_END_FORCED;
        /* Neither index nor wheel is kept: nothing is looked up or timed any more. */
        emit_record(table, table->flush_at, reason);
        record->key.ip_version = 0;
        table->live--;
        budget--;
    }
    return table->live == 0;
}
