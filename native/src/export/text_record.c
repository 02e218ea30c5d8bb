/* SPDX-License-Identifier: Apache-2.0 */
/* Records as JSON and CSV lines: one table of columns serves both and the header line, so they cannot drift apart; each kind of
 * statistics is a group of columns behind. */
#include "export/text.h"

#include <stdbool.h>
#include <stddef.h>

enum column_kind {
    COLUMN_SOURCE,
    COLUMN_DESTINATION,
    COLUMN_ID,
    COLUMN_U8,
    COLUMN_U16,
    COLUMN_U32,
    COLUMN_U64,
    COLUMN_DOUBLE,
    COLUMN_MAC,
    COLUMN_TCP_FLAGS
};

struct column {
    const char *json; /* what stands before the value: separator, key, colon */
    uint8_t json_length;
    uint8_t kind;
    uint16_t offset; /* of the field in struct capture_flow, or in struct capture_flow_statistics */
};

#define COLUMN_LIST(X)                                                                                                           \
    X("{", "src_addr", COLUMN_SOURCE, src_addr)                                                                                  \
    X(",", "dst_addr", COLUMN_DESTINATION, dst_addr)                                                                             \
    X(",", "src_port", COLUMN_U16, src_port)                                                                                     \
    X(",", "dst_port", COLUMN_U16, dst_port)                                                                                     \
    X(",", "ip_protocol", COLUMN_U8, ip_protocol)                                                                                \
    X(",", "vlan_id", COLUMN_U16, vlan_id)                                                                                       \
    X(",", "fwd_packets", COLUMN_U64, fwd_packets)                                                                               \
    X(",", "fwd_octets", COLUMN_U64, fwd_octets)                                                                                 \
    X(",", "rev_packets", COLUMN_U64, rev_packets)                                                                               \
    X(",", "rev_octets", COLUMN_U64, rev_octets)                                                                                 \
    X(",", "start_time_unix_ns", COLUMN_U64, start_time_ns)                                                                      \
    X(",", "end_time_unix_ns", COLUMN_U64, end_time_ns)                                                                          \
    X(",", "tcp_flags", COLUMN_TCP_FLAGS, fwd_tcp_flags)                                                                         \
    X(",", "end_reason", COLUMN_U8, end_reason)                                                                                  \
    X(",", "flow_id", COLUMN_ID, flow_id)                                                                                        \
    X(",", "fwd_tcp_flags", COLUMN_U16, fwd_tcp_flags)                                                                           \
    X(",", "rev_tcp_flags", COLUMN_U16, rev_tcp_flags)                                                                           \
    X(",", "state", COLUMN_U8, state)                                                                                            \
    X(",", "interface_index", COLUMN_U16, interface_index)                                                                       \
    X(",", "icmp_type", COLUMN_U8, icmp_type)                                                                                    \
    X(",", "icmp_code", COLUMN_U8, icmp_code)                                                                                    \
    X(",", "dscp", COLUMN_U8, dscp)                                                                                              \
    X(",", "first_packet_id", COLUMN_U64, first_packet_id)                                                                       \
    X(",", "last_packet_id", COLUMN_U64, last_packet_id)                                                                         \
    X(",", "tunnel_id", COLUMN_U32, tunnel_id)                                                                                   \
    X(",", "tunnel_type", COLUMN_U8, tunnel_type)                                                                                \
    X(",", "second_interface_index", COLUMN_U16, second_interface_index)                                                         \
    X(",", "sampling_interval", COLUMN_U32, sampling_interval)

#define COLUMN_LIST_TCP(X)                                                                                                       \
    X(",", "fwd_retransmissions", COLUMN_U32, fwd_retransmissions)                                                               \
    X(",", "rev_retransmissions", COLUMN_U32, rev_retransmissions)                                                               \
    X(",", "fwd_out_of_order", COLUMN_U32, fwd_out_of_order)                                                                     \
    X(",", "rev_out_of_order", COLUMN_U32, rev_out_of_order)                                                                     \
    X(",", "fwd_zero_windows", COLUMN_U32, fwd_zero_windows)                                                                     \
    X(",", "rev_zero_windows", COLUMN_U32, rev_zero_windows)                                                                     \
    X(",", "syn_to_synack_ns", COLUMN_U64, syn_to_synack_ns)                                                                     \
    X(",", "synack_to_ack_ns", COLUMN_U64, synack_to_ack_ns)

#define COLUMN_SPREAD(X, name, unit)                                                                                             \
    X(",", #name "_min" unit, COLUMN_U64, name.min)                                                                              \
    X(",", #name "_max" unit, COLUMN_U64, name.max)                                                                              \
    X(",", #name "_mean" unit, COLUMN_DOUBLE, name.mean)                                                                         \
    X(",", #name "_stddev" unit, COLUMN_DOUBLE, name.stddev)

#define COLUMN_LIST_SIZES(X)     COLUMN_SPREAD(X, fwd_payload, "") COLUMN_SPREAD(X, rev_payload, "")
#define COLUMN_LIST_INTERVALS(X) COLUMN_SPREAD(X, fwd_interval, "_ns") COLUMN_SPREAD(X, rev_interval, "_ns")

#define COLUMN_LIST_HEADERS(X)                                                                                                   \
    X(",", "fwd_src_mac", COLUMN_MAC, fwd_headers.src_mac)                                                                       \
    X(",", "fwd_dst_mac", COLUMN_MAC, fwd_headers.dst_mac)                                                                       \
    X(",", "rev_src_mac", COLUMN_MAC, rev_headers.src_mac)                                                                       \
    X(",", "rev_dst_mac", COLUMN_MAC, rev_headers.dst_mac)                                                                       \
    X(",", "fwd_inner_vlan_id", COLUMN_U16, fwd_headers.inner_vlan_id)                                                           \
    X(",", "rev_inner_vlan_id", COLUMN_U16, rev_headers.inner_vlan_id)                                                           \
    X(",", "fwd_min_ttl", COLUMN_U8, fwd_headers.min_ttl)                                                                        \
    X(",", "fwd_max_ttl", COLUMN_U8, fwd_headers.max_ttl)                                                                        \
    X(",", "rev_min_ttl", COLUMN_U8, rev_headers.min_ttl)                                                                        \
    X(",", "rev_max_ttl", COLUMN_U8, rev_headers.max_ttl)                                                                        \
    X(",", "fwd_flow_label", COLUMN_U32, fwd_headers.flow_label)                                                                 \
    X(",", "rev_flow_label", COLUMN_U32, rev_headers.flow_label)

#define COLUMN_ROW(structure, separator, name, kind, field)                                                                      \
    {separator "\"" name "\":", sizeof(separator "\"" name "\":") - 1, kind, offsetof(structure, field)},
#define FLOW_ROW(...)       COLUMN_ROW(struct capture_flow, __VA_ARGS__)
#define STATISTICS_ROW(...) COLUMN_ROW(struct capture_flow_statistics, __VA_ARGS__)
static const struct column flow_columns[] = {COLUMN_LIST(FLOW_ROW)};
static const struct column tcp_columns[] = {COLUMN_LIST_TCP(STATISTICS_ROW)};
static const struct column size_columns[] = {COLUMN_LIST_SIZES(STATISTICS_ROW)};
static const struct column interval_columns[] = {COLUMN_LIST_INTERVALS(STATISTICS_ROW)};
static const struct column header_columns[] = {COLUMN_LIST_HEADERS(STATISTICS_ROW)};

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
static const struct column_group {
    uint32_t kind; /* enum capture_statistics */
    const struct column *columns;
    int count;
} statistics_groups[] = {
    {CAPTURE_STATISTICS_TCP, tcp_columns, COUNT(tcp_columns)},
    {CAPTURE_STATISTICS_SIZES, size_columns, COUNT(size_columns)},
    {CAPTURE_STATISTICS_INTERVALS, interval_columns, COUNT(interval_columns)},
    {CAPTURE_STATISTICS_HEADERS, header_columns, COUNT(header_columns)},
};

#define COLUMN_HEADER(separator, name, kind, field) "," name
#define HEADER_FLOW                                 COLUMN_LIST(COLUMN_HEADER) /* with one comma too many in front */
#define HEADER_TCP                                  COLUMN_LIST_TCP(COLUMN_HEADER)
#define HEADER_SIZES                                COLUMN_LIST_SIZES(COLUMN_HEADER)
#define HEADER_INTERVALS                            COLUMN_LIST_INTERVALS(COLUMN_HEADER)
#define HEADER_HEADERS                              COLUMN_LIST_HEADERS(COLUMN_HEADER)
#define HEADERS_WITH(last)                                                                                                       \
    HEADER_FLOW last "\n", HEADER_FLOW HEADER_TCP last "\n", HEADER_FLOW HEADER_SIZES last "\n",                                 \
        HEADER_FLOW HEADER_TCP HEADER_SIZES last "\n", HEADER_FLOW HEADER_INTERVALS last "\n",                                   \
        HEADER_FLOW HEADER_TCP HEADER_INTERVALS last "\n", HEADER_FLOW HEADER_SIZES HEADER_INTERVALS last "\n",                  \
        HEADER_FLOW HEADER_TCP HEADER_SIZES HEADER_INTERVALS last "\n"
static const char *const csv_headers[] = {HEADERS_WITH(""), HEADERS_WITH(HEADER_HEADERS)}; /* by enum capture_statistics */

const char *capture_csv_header(uint32_t statistics) {
    return statistics < COUNT(csv_headers) ? csv_headers[statistics] + 1 : NULL;
}

static uint64_t column_number(const char *field, uint8_t kind) {
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    switch (kind) {
    case COLUMN_U8:
        return *(const uint8_t *)field;
    case COLUMN_U16:
        memcpy(&u16, field, sizeof(u16));
        return u16;
    case COLUMN_U32:
        memcpy(&u32, field, sizeof(u32));
        return u32;
    default:
        memcpy(&u64, field, sizeof(u64));
        return u64;
    }
}

/* quote: '"' around what is text in JSON, or 0. */
static char *statistics_value(char *out, const struct capture_flow_statistics *statistics, const struct column *column,
                              char quote) {
    const char *field = (const char *)statistics + column->offset;
    double value;
    switch (column->kind) {
    case COLUMN_DOUBLE:
        memcpy(&value, field, sizeof(value));
        return text_fixed(out, value);
    case COLUMN_MAC:
        if (quote)
            *out++ = quote;
        out = text_mac(out, (const uint8_t *)field);
        if (quote)
            *out++ = quote;
        return out;
    default:
        return text_unsigned(out, column_number(field, column->kind));
    }
}

/* quote: as above. */
static char *flow_value(char *out, const struct capture_flow *flow, const struct column *column, char quote) {
    if (column->kind == COLUMN_TCP_FLAGS)
        return text_unsigned(out, flow->fwd_tcp_flags | flow->rev_tcp_flags);
    if (column->kind > COLUMN_ID)
        return text_unsigned(out, column_number((const char *)flow + column->offset, column->kind));
    if (quote)
        *out++ = quote;
    if (column->kind == COLUMN_ID)
        out = text_hex64(out, flow->flow_id);
    else
        out = text_address(out, column->kind == COLUMN_SOURCE ? flow->src_addr : flow->dst_addr, flow->ip_version);
    if (quote)
        *out++ = quote;
    return out;
}

/* json: with the keys; else each value after a comma. */
static char *statistics_values(char *out, const struct text_record *record, bool json) {
    for (int group = 0; group < COUNT(statistics_groups); group++) {
        if (!(record->kinds & statistics_groups[group].kind))
            continue;
        const struct column *columns = statistics_groups[group].columns;
        for (int i = 0; i < statistics_groups[group].count; i++) {
            out = json ? text_copy(out, columns[i].json, columns[i].json_length) : TEXT_LITERAL(out, ",");
            out = statistics_value(out, record->statistics, &columns[i], json ? '"' : 0);
        }
    }
    return out;
}

char *text_json_line(char *out, const struct text_record *record) {
    for (int i = 0; i < COUNT(flow_columns); i++) {
        out = text_copy(out, flow_columns[i].json, flow_columns[i].json_length);
        out = flow_value(out, record->flow, &flow_columns[i], '"');
    }
    if (record->kinds)
        out = statistics_values(out, record, true);
    return TEXT_LITERAL(out, "}\n");
}

char *text_csv_line(char *out, const struct text_record *record) {
    for (int i = 0; i < COUNT(flow_columns); i++) {
        if (i)
            *out++ = ',';
        out = flow_value(out, record->flow, &flow_columns[i], 0);
    }
    if (record->kinds)
        out = statistics_values(out, record, false);
    *out++ = '\n';
    return out;
}
