/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/flow_statistics.h"

#include <math.h>

#include "decode/transport.h"
#include "flow/memory.h"

enum {
    TCP_HEADER_LEAST = 20,
    UDP_HEADER = 8,
    SCTP_HEADER = 12, /* the chunks are its payload */
    ICMP_HEADER = 8,  /* RFC 792, and the same for RFC 4443 */
};

static uint64_t array_bytes(uint32_t kinds, uint32_t kind, uint32_t flows, size_t size) {
    return kinds & kind ? (uint64_t)flows * size : 0;
}

static uint64_t tcp_bytes(uint32_t kinds, uint32_t flows) {
    return array_bytes(kinds, CAPTURE_STATISTICS_TCP, flows, sizeof(struct tcp_statistics));
}

static uint64_t sizes_bytes(uint32_t kinds, uint32_t flows) {
    return array_bytes(kinds, CAPTURE_STATISTICS_SIZES, flows, sizeof(struct size_statistics));
}

static uint64_t intervals_bytes(uint32_t kinds, uint32_t flows) {
    return array_bytes(kinds, CAPTURE_STATISTICS_INTERVALS, flows, sizeof(struct interval_statistics));
}

static uint64_t headers_bytes(uint32_t kinds, uint32_t flows) {
    return array_bytes(kinds, CAPTURE_STATISTICS_HEADERS, flows, sizeof(struct header_statistics));
}

uint64_t flow_statistics_size(uint32_t kinds, uint32_t flows) {
    return tcp_bytes(kinds, flows) + sizes_bytes(kinds, flows) + intervals_bytes(kinds, flows) + headers_bytes(kinds, flows);
}

/* *array stays NULL when there is nothing to keep. */
static bool map_array(void **array, uint64_t bytes) {
    *array = bytes ? memory_map(bytes) : NULL;
    return *array || !bytes;
}

bool flow_statistics_init(struct flow_statistics *statistics, uint32_t kinds, uint32_t flows) {
    void *tcp, *sizes, *intervals, *headers;
    bool mapped = map_array(&tcp, tcp_bytes(kinds, flows));
    mapped = map_array(&sizes, sizes_bytes(kinds, flows)) && mapped;
    mapped = map_array(&intervals, intervals_bytes(kinds, flows)) && mapped;
    mapped = map_array(&headers, headers_bytes(kinds, flows)) && mapped;
    *statistics = (struct flow_statistics){
        .kinds = kinds, .flows = flows, .tcp = tcp, .sizes = sizes, .intervals = intervals, .headers = headers};
    return mapped;
}

void flow_statistics_destroy(struct flow_statistics *statistics) {
    memory_unmap(statistics->tcp, tcp_bytes(statistics->kinds, statistics->flows));
    memory_unmap(statistics->sizes, sizes_bytes(statistics->kinds, statistics->flows));
    memory_unmap(statistics->intervals, intervals_bytes(statistics->kinds, statistics->flows));
    memory_unmap(statistics->headers, headers_bytes(statistics->kinds, statistics->flows));
    *statistics = (struct flow_statistics){0};
}

void flow_statistics_begin(struct flow_statistics *statistics, uint32_t number, bool carry) {
    if (statistics->tcp && carry)
        tcp_statistics_carry(&statistics->tcp[number]);
    else if (statistics->tcp)
        statistics->tcp[number] = (struct tcp_statistics){0};
    if (statistics->sizes)
        statistics->sizes[number] = (struct size_statistics){0};
    if (statistics->intervals)
        statistics->intervals[number] = (struct interval_statistics){0};
    if (statistics->headers)
        statistics->headers[number] = (struct header_statistics){0};
}

/* Of a TCP header whose length was not captured, the least; one that contradicts itself has nothing behind it. */
static uint32_t transport_header(const struct packet *packet) {
    switch (packet->key.protocol) {
    case IP_PROTOCOL_TCP:
        if (packet->payload_left <= 12)
            return TCP_HEADER_LEAST;
        return packet->payload[12] >> 4 >= 5 ? (packet->payload[12] >> 4) * 4u : UINT32_MAX;
    case IP_PROTOCOL_UDP:
        return UDP_HEADER;
    case IP_PROTOCOL_SCTP:
        return SCTP_HEADER;
    case IP_PROTOCOL_ICMP:
        return packet->key.ip_version == 4 ? ICMP_HEADER : 0;
    case IP_PROTOCOL_ICMPV6:
        return packet->key.ip_version == 6 ? ICMP_HEADER : 0;
    default:
        return 0;
    }
}

/* Bytes on the wire; a later fragment is all payload. */
static uint32_t transport_payload(const struct packet *packet) {
    uint32_t header = packet->fragment == PACKET_FRAGMENT_LATER ? 0 : transport_header(packet);
    return packet->payload_wire > header ? packet->payload_wire - header : 0;
}

/* Times from a broken clock may overflow what ten thousand years would not: the sums then stay at their greatest. */
static void add_square(unsigned __int128 *sum, uint64_t value) {
    if (__builtin_add_overflow(*sum, (unsigned __int128)value * value, sum))
        *sum = ~(unsigned __int128)0;
}

static void count_size(struct size_sums *sums, uint32_t size, bool first) {
    if (first || size < sums->min)
        sums->min = size;
    if (size > sums->max)
        sums->max = size;
    sums->sum += size;
    add_square(&sums->squares, size);
}

static void count_interval(struct interval_sums *sums, uint64_t ts_ns, uint64_t packets) {
    uint64_t interval = ts_ns > sums->last_ns ? ts_ns - sums->last_ns : 0;
    sums->last_ns = ts_ns;
    if (packets == 1)
        return;
    if (packets == 2 || interval < sums->min)
        sums->min = interval;
    if (interval > sums->max)
        sums->max = interval;
    if (__builtin_add_overflow(sums->sum, interval, &sums->sum))
        sums->sum = UINT64_MAX;
    add_square(&sums->squares, interval);
}

bool flow_statistics_count(struct flow_statistics *statistics, uint32_t number, const struct flow_record *record,
                           const struct packet *packet) {
    uint64_t packets = record->way[packet->from].packets;
    uint32_t payload = transport_payload(packet);
    if (statistics->sizes)
        count_size(&statistics->sizes[number].side[packet->from], payload, packets == 1);
    if (statistics->intervals)
        count_interval(&statistics->intervals[number].side[packet->from], packet->ts_ns, packets);
    if (statistics->headers)
        header_statistics_count(&statistics->headers[number], packet, packets == 1);
    if (!statistics->tcp || packet->key.protocol != IP_PROTOCOL_TCP)
        return true;
    return tcp_statistics_count(&statistics->tcp[number], packet, payload);
}

/* The variance is (squares - sum^2 / count) / count. Everything up to the last division is exact, so nothing cancels. */
static struct capture_spread spread_of(uint64_t min, uint64_t max, uint64_t sum, unsigned __int128 squares, uint64_t count) {
    struct capture_spread spread = {.min = min, .max = max};
    if (count == 0)
        return spread;
    unsigned __int128 square = (unsigned __int128)sum * sum, mean_squares = square / count;
    double rest = (double)(uint64_t)(square % count) / (double)count;
    double deviations = squares > mean_squares ? (double)(squares - mean_squares) - rest : 0;
    spread.mean = (double)sum / (double)count;
    spread.stddev = deviations > 0 ? sqrt(deviations / (double)count) : 0;
    return spread;
}

static void export_tcp(const struct tcp_statistics *tcp, int source, struct capture_flow_statistics *out) {
    const struct tcp_side *forward = &tcp->side[source], *reverse = &tcp->side[!source];
    out->fwd_retransmissions = forward->retransmissions;
    out->rev_retransmissions = reverse->retransmissions;
    out->fwd_out_of_order = forward->out_of_order;
    out->rev_out_of_order = reverse->out_of_order;
    out->fwd_zero_windows = forward->zero_windows;
    out->rev_zero_windows = reverse->zero_windows;
    out->syn_to_synack_ns = tcp->syn_to_synack_ns;
    out->synack_to_ack_ns = tcp->synack_to_ack_ns;
}

static struct capture_spread size_spread(const struct size_sums *sums, uint64_t packets) {
    return spread_of(sums->min, sums->max, sums->sum, sums->squares, packets);
}

static struct capture_spread interval_spread(const struct interval_sums *sums, uint64_t packets) {
    return spread_of(sums->min, sums->max, sums->sum, sums->squares, packets ? packets - 1 : 0);
}

void flow_statistics_export(const struct flow_statistics *statistics, uint32_t number, const struct flow_record *record,
                            struct capture_flow_statistics *out) {
    int source = record->forward;
    uint64_t forward = record->way[source].packets, reverse = record->way[!source].packets;
    memset(out, 0, sizeof(*out));
    if (statistics->tcp)
        export_tcp(&statistics->tcp[number], source, out);
    if (statistics->sizes) {
        out->fwd_payload = size_spread(&statistics->sizes[number].side[source], forward);
        out->rev_payload = size_spread(&statistics->sizes[number].side[!source], reverse);
    }
    if (statistics->intervals) {
        out->fwd_interval = interval_spread(&statistics->intervals[number].side[source], forward);
        out->rev_interval = interval_spread(&statistics->intervals[number].side[!source], reverse);
    }
    if (statistics->headers) {
        out->fwd_headers = statistics->headers[number].side[source];
        out->rev_headers = statistics->headers[number].side[!source];
    }
}
