/* SPDX-License-Identifier: Apache-2.0 */
/* The flow table of one worker: index, records, timer wheel. Single-threaded; never allocates after init.
 *
 * Per batch the worker calls, for all packets, flow_table_prefetch_bucket, then flow_table_prefetch_record, then flow_table_add:
 * each pass finds its memory in the cache. Every record that is created leaves exactly once, through `emit`. */
#ifndef JARVIS_FLOW_TABLE_H
#define JARVIS_FLOW_TABLE_H

#include "flow/flow_hash.h"
#include "flow/flow_index.h"
#include "flow/flow_record.h"
#include "flow/flow_statistics.h"
#include "flow/timer_wheel.h"
#include "prefetch.h"

#define FLOW_LINGER_NS 2000000000u /* a closed TCP flow still counts late packets for so long */

struct flow_table_config {
    uint32_t max_flows;
    uint64_t idle_timeout_ns;   /* 0: never */
    uint64_t active_timeout_ns; /* 0: never */
    uint64_t hash_seed;
    uint32_t sampling_interval; /* what records say of it, see struct capture_flow */
    uint64_t hash_mask;         /* ANDed to every hash; 0 in tests makes all keys collide, otherwise UINT64_MAX */
    bool merge_interfaces;      /* packets of one flow come from several interfaces: note a second one */
    uint32_t statistics;        /* enum capture_statistics, or'ed */
    /* A finished record; statistics is NULL when none are kept. */
    void (*emit)(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics);
    void *context;
};

struct flow_table {
    struct flow_table_config config;
    struct flow_index index;
    struct flow_record *records;
    uint16_t *second_interface; /* by record: another interface that saw the flow; NULL unless merge_interfaces */
    struct flow_statistics statistics;
    struct timer_wheel wheel;
    struct hash_seed seed;
    uint64_t idle_limit_ns; /* the timeouts, with UINT64_MAX for never */
    uint64_t active_limit_ns;
    bool timed;            /* some timeout is set, so flows are on the wheel */
    uint64_t now_ns;       /* packet time: the newest packet seen */
    uint64_t rebase_after; /* packets left before the wheel may be turned back again */
    uint32_t free_head;    /* freed records, chained through their idle wheel links; WHEEL_NONE: none */
    uint32_t high_water;   /* records from here on were never used */
    uint32_t live;
    uint32_t flush_at; /* flow_table_flush: where it stands */
    uint64_t created;
    uint64_t ended[6]; /* by enum capture_flow_end_reason */
    uint64_t time_regressions;
};

/* False: no memory; destroy must still be called. */
bool flow_table_init(struct flow_table *table, const struct flow_table_config *config);
void flow_table_destroy(struct flow_table *table);
uint64_t flow_table_bytes(const struct flow_table *table);

static inline uint64_t flow_table_hash(const struct flow_table *table, const struct flow_key *key) {
    return flow_key_hash(key, &table->seed) & table->config.hash_mask;
}

static inline void flow_table_prefetch_bucket(const struct flow_table *table, uint64_t hash) {
    prefetch_line(&table->index.buckets[flow_index_first(&table->index, hash)]);
}

/* Both lines of the records that may be it. */
static inline void flow_table_prefetch_record(const struct flow_table *table, uint64_t hash) {
    uint32_t first = flow_index_first(&table->index, hash);
    uint16_t tag = flow_index_tag(hash);
    const struct flow_bucket *bucket = &table->index.buckets[first];
    uint32_t match = flow_bucket_match(bucket, tag);
    if (__builtin_expect(match == 0 && table->live == table->config.max_flows, 0)) {
        int victim = flow_bucket_victim(bucket); /* a new flow, in a full table: in a flood it is every packet that ends one */
        match = victim < 0 ? 0 : 1u << victim;
    }
    for (; match; match &= match - 1) {
        const char *record = (const char *)&table->records[bucket->record[__builtin_ctz(match)]];
        prefetch_line(record);
        prefetch_line(record + 64);
    }
    if (__builtin_expect(bucket->overflow != 0, 0))
        prefetch_line(&table->index.buckets[flow_index_other(&table->index, first, tag)]);
}

/* The statistics of the records that may be it; when there are none to keep, not worth calling. */
static inline void flow_table_prefetch_statistics(const struct flow_table *table, uint64_t hash) {
    const struct flow_bucket *bucket = &table->index.buckets[flow_index_first(&table->index, hash)];
    for (uint32_t match = flow_bucket_match(bucket, flow_index_tag(hash)); match; match &= match - 1)
        flow_statistics_prefetch(&table->statistics, bucket->record[__builtin_ctz(match)]);
}

/* Counts a canonical packet with its hash. Emits at most two records: the flow that ended, the one that had to make room. */
void flow_table_add(struct flow_table *table, const struct packet *packet);

/* Tells the table the packet time (the newest of a batch, or the wall clock's on a quiet link), before flow_table_expire. */
void flow_table_set_time(struct flow_table *table, uint64_t now_ns, uint32_t packets);

/* Ends at most `budget` flows whose time has come; returns how many flows it looked at (budget: there may be more). */
uint32_t flow_table_expire(struct flow_table *table, uint32_t budget);

/* Ends at most `budget` flows, whatever their time: reason 4, or what had come true by now. False while there are more.
 * The end of the table: from the first call on no packet may be added. */
bool flow_table_flush(struct flow_table *table, uint32_t budget);

/* flow_record_export, with what the table keeps beside the record. */
void flow_table_export(const struct flow_table *table, const struct flow_record *record, uint8_t end_reason,
                       struct capture_flow *out);

#endif
