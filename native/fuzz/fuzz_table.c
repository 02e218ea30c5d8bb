/* SPDX-License-Identifier: Apache-2.0 */
/* The flow table on arbitrary packets of few flows, a table of 16 to 64 records with and without colliding keys, with and without
 * statistics. With times that jump every packet and every octet leaves in exactly one record; with times that go on every record
 * is the model's. */
#include <stdlib.h>
#include <string.h>

#include "flow/flow_table.h"
#include "table_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t packets_out, octets_out, records_out;

static bool spread_is_sound(const struct capture_spread *spread) {
    return spread->min <= spread->max && spread->mean >= 0 && spread->mean <= (double)spread->max && spread->stddev >= 0 &&
           spread->stddev <= (double)spread->max;
}

static bool headers_are_sound(const struct capture_headers *headers, uint64_t packets) {
    return headers->min_ttl <= headers->max_ttl && (packets || headers->max_ttl == 0);
}

static void count_record(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    (void)context;
    if (statistics && !(spread_is_sound(&statistics->fwd_payload) && spread_is_sound(&statistics->rev_payload) &&
                        spread_is_sound(&statistics->fwd_interval) && spread_is_sound(&statistics->rev_interval)))
        abort();
    if (statistics && !(headers_are_sound(&statistics->fwd_headers, flow->fwd_packets) &&
                        headers_are_sound(&statistics->rev_headers, flow->rev_packets)))
        abort();
    if (flow->fwd_packets == 0 || flow->end_time_ns < flow->start_time_ns || flow->end_reason < 1 || flow->end_reason > 5)
        abort();
    packets_out += flow->fwd_packets + flow->rev_packets;
    octets_out += flow->fwd_octets + flow->rev_octets;
    records_out++;
}

static uint64_t time_after(uint64_t now, uint8_t step) {
    static const uint64_t second = 1000000000;
    if (step < 200)
        return now + step * 100000000ull;
    if (step < 230)
        return now > (step - 200) * 7 * second ? now - (step - 200) * 7 * second : 0;
    return step == 255 ? UINT64_MAX - 3 : now + (step - 229) * 3600 * second;
}

static void follow_model(struct flow_table_config config, const uint8_t *data, size_t size) {
    static struct table_model model;
    config.idle_timeout_ns /= 10; /* so that a few steps reach it */
    config.statistics = 0;        /* its packets have no transport header */
    if (!table_model_begin(&model, &config))
        return;
    for (; size >= 4; data += 4, size -= 4) {
        table_model_add(&model, data[0], data[3] >> 7, 20u + data[2], data[1] * (data[3] & 1 ? 100000000ull : 1ull));
        if (data[3] & 2)
            table_model_expire(&model, data[2]);
    }
    table_model_end(&model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct flow_table table;
    uint64_t packets = 0, octets = 0, now = 1700000000000000000;
    if (size < 2)
        return 0;
    struct flow_table_config config = {
        .max_flows = 16u << data[0] % 3,
        .idle_timeout_ns = data[0] & 16 ? 30000000000 : 0,
        .active_timeout_ns = data[0] & 32 ? 300000000000 : 0,
        .hash_seed = data[1],
        .hash_mask = data[0] & 64    ? 0
                     : data[0] & 128 ? 0xffff000000000007
                                     : UINT64_MAX,
        .statistics = data[1] & 1 ? STATISTICS_ALL : 0,
        .emit = count_record,
    };
    if (data[0] & 8) {
        follow_model(config, data + 2, size - 2);
        return 0;
    }
    packets_out = octets_out = records_out = 0;
    if (!flow_table_init(&table, &config))
        return 0;
    for (data += 2, size -= 2; size >= 4; data += 4, size -= 4) {
        now = time_after(now, data[1]);
        struct packet packet = {.ts_ns = now, .octets = 20u + data[2], .from = data[3] >> 7, .tcp_flags = data[3] & 0x1f};
        packet.key.ip_version = 4;
        packet.key.addr[0][3] = data[0];
        packet.key.protocol = 6;
        uint8_t header[24] = {[6] = data[2], [7] = data[1], [10] = data[3], [11] = data[2], [12] = data[1], [14] = data[2] & 3};
        uint8_t ip[20] = {[0] = 0x45, [8] = data[3]}, macs[12] = {[5] = data[1], [11] = data[2]};
        packet.ip = ip;
        packet.link = data[3] & 1 ? macs : NULL;
        packet.payload = header;
        packet.payload_left = data[3] % (sizeof(header) + 1);
        packet.payload_wire = data[2] * 8;
        memcpy(header + 20, data, 4);
        packet.hash = flow_table_hash(&table, &packet.key);
        flow_table_prefetch_bucket(&table, packet.hash);
        flow_table_prefetch_record(&table, packet.hash);
        flow_table_add(&table, &packet);
        flow_table_set_time(&table, now, 1);
        flow_table_expire(&table, data[2] % 8);
        packets++;
        octets += packet.octets;
        if (table.live > config.max_flows || table.created != records_out + table.live)
            abort();
    }
    while (!flow_table_flush(&table, 5))
        continue;
    if (packets != packets_out || octets != octets_out || records_out != table.created)
        abort();
    flow_table_destroy(&table);
    return 0;
}
