/* SPDX-License-Identifier: Apache-2.0 */
/* The flow table's meaning as a plain array by flow, for packets whose times never go back: every record that leaves must be the
 * model's, exactly, at a moment and with a reason that the model allows. What differs ends the program. */
#ifndef JARVIS_TABLE_MODEL_H
#define JARVIS_TABLE_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flow/flow_table.h"

enum { TABLE_MODEL_FLOWS = 256 };

struct table_model_record {
    bool live;
    uint8_t forward; /* endpoint of the first packet */
    uint64_t packets[2], octets[2], start_ns, last_ns, first_id, last_id;
};

struct table_model {
    struct flow_table table;
    struct flow_table_config config;
    uint64_t now_ns, packet_id, left, evicted;
    bool flushing;
    struct table_model_record records[TABLE_MODEL_FLOWS];
};

#define TABLE_MODEL_CHECK(condition)                                                                                             \
    do {                                                                                                                         \
        if (!(condition)) {                                                                                                      \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition);                              \
            abort();                                                                                                             \
        }                                                                                                                        \
    } while (0)

/* The reason for which the record is over at this time, 0 while it is not; the timeout that comes first decides. */
static inline uint8_t table_model_over(const struct table_model *model, const struct table_model_record *record,
                                       uint64_t now_ns) {
    uint64_t idle = model->config.idle_timeout_ns ? record->last_ns + model->config.idle_timeout_ns + 1 : UINT64_MAX;
    uint64_t active = model->config.active_timeout_ns ? record->start_ns + model->config.active_timeout_ns : UINT64_MAX;
    uint64_t first = idle <= active ? idle : active;
    return now_ns < first ? 0 : idle <= active ? CAPTURE_FLOW_END_IDLE : CAPTURE_FLOW_END_ACTIVE;
}

static inline void table_model_left(void *context, const struct capture_flow *flow,
                                    const struct capture_flow_statistics *statistics) {
    (void)statistics;
    struct table_model *model = context;
    struct table_model_record *record = &model->records[flow->src_addr[0] == 10 ? flow->src_addr[1] : flow->dst_addr[1]];
    int forward = record->forward;
    TABLE_MODEL_CHECK(record->live);
    TABLE_MODEL_CHECK((flow->src_addr[0] == 10) == (forward == 0));
    TABLE_MODEL_CHECK(flow->fwd_packets == record->packets[forward] && flow->rev_packets == record->packets[!forward]);
    TABLE_MODEL_CHECK(flow->fwd_octets == record->octets[forward] && flow->rev_octets == record->octets[!forward]);
    TABLE_MODEL_CHECK(flow->start_time_ns == record->start_ns && flow->end_time_ns == record->last_ns);
    TABLE_MODEL_CHECK(flow->first_packet_id == record->first_id && flow->last_packet_id == record->last_id);
    uint8_t over = table_model_over(model, record, model->now_ns);
    if (flow->end_reason == CAPTURE_FLOW_END_RESOURCES)
        model->evicted++;
    else
        TABLE_MODEL_CHECK(flow->end_reason == (over ? over : model->flushing ? CAPTURE_FLOW_END_FORCED : 0));
    record->live = false;
    model->left++;
}

/* False: no memory. */
static inline bool table_model_begin(struct table_model *model, const struct flow_table_config *config) {
    memset(model, 0, sizeof(*model));
    model->config = *config;
    model->config.emit = table_model_left;
    model->config.context = model;
    model->now_ns = 1700000000000000000;
    return flow_table_init(&model->table, &model->config);
}

static inline void table_model_add(struct table_model *model, uint8_t flow, uint8_t from, uint32_t octets, uint64_t later_ns) {
    struct table_model_record *record = &model->records[flow];
    model->now_ns += later_ns;
    struct packet packet = {.ts_ns = model->now_ns, .octets = octets, .from = from, .packet_id = ++model->packet_id};
    packet.key = (struct flow_key){.addr = {{10, flow}, {172}}, .port = {5, 53}, .protocol = 17, .ip_version = 4};
    packet.hash = flow_table_hash(&model->table, &packet.key);
    bool over = record->live && table_model_over(model, record, packet.ts_ns);
    flow_table_add(&model->table, &packet);
    TABLE_MODEL_CHECK(!over || !record->live); /* what was over left before the packet was counted */
    if (!record->live)
        *record = (struct table_model_record){
            .live = true, .forward = from, .start_ns = packet.ts_ns, .first_id = packet.packet_id, .last_ns = packet.ts_ns};
    record->packets[from]++;
    record->octets[from] += octets;
    record->last_ns = packet.ts_ns;
    record->last_id = packet.packet_id;
    uint32_t live = 0;
    for (int i = 0; i < TABLE_MODEL_FLOWS; i++)
        live += model->records[i].live;
    TABLE_MODEL_CHECK(live == model->table.live && live <= model->config.max_flows);
}

/* Tells the table the time and lets it look at `budget` flows. With enough of it nothing that was over for 2 s is left. */
static inline void table_model_expire(struct table_model *model, uint32_t budget) {
    flow_table_set_time(&model->table, model->now_ns, 1);
    bool all = flow_table_expire(&model->table, budget) < budget;
    for (int i = 0; all && i < TABLE_MODEL_FLOWS; i++)
        TABLE_MODEL_CHECK(!model->records[i].live || !table_model_over(model, &model->records[i], model->now_ns - 2000000000));
}

static inline void table_model_end(struct table_model *model) {
    model->flushing = true;
    flow_table_set_time(&model->table, model->now_ns, 1);
    while (!flow_table_flush(&model->table, 5))
        continue;
    for (int i = 0; i < TABLE_MODEL_FLOWS; i++)
        TABLE_MODEL_CHECK(!model->records[i].live);
    TABLE_MODEL_CHECK(model->left == model->table.created);
    TABLE_MODEL_CHECK(model->evicted == model->table.ended[CAPTURE_FLOW_END_RESOURCES]);
    flow_table_destroy(&model->table);
}

#endif
