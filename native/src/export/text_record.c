/* SPDX-License-Identifier: Apache-2.0 */
/* Records as JSON and CSV lines: one table of columns serves both and the header line, so they cannot drift apart. */
#include "export/text.h"

#include <stddef.h>

enum column_kind { COLUMN_SOURCE, COLUMN_DESTINATION, COLUMN_U8, COLUMN_U16, COLUMN_U32, COLUMN_U64, COLUMN_TCP_FLAGS, COLUMN_ID };

struct column {
    const char *json; /* what stands before the value: separator, key, colon */
    uint8_t json_length;
    uint8_t kind;
    uint16_t offset; /* of the field in struct capture_flow */
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

#define COLUMN_ROW(separator, name, kind, field)                                                                                 \
    {separator "\"" name "\":", sizeof(separator "\"" name "\":") - 1, kind, offsetof(struct capture_flow, field)},
static const struct column columns[] = {COLUMN_LIST(COLUMN_ROW)};
enum { COLUMN_COUNT = sizeof(columns) / sizeof(columns[0]) };

#define COLUMN_HEADER(separator, name, kind, field) "," name
static const char csv_header[] = COLUMN_LIST(COLUMN_HEADER) "\n"; /* after one comma too many */

const char *capture_csv_header(void) {
    return csv_header + 1;
}

static uint64_t column_number(const struct capture_flow *flow, const struct column *column) {
    const char *field = (const char *)flow + column->offset;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    switch (column->kind) {
    case COLUMN_U8:
        return *(const uint8_t *)field;
    case COLUMN_U16:
        memcpy(&u16, field, sizeof(u16));
        return u16;
    case COLUMN_U32:
        memcpy(&u32, field, sizeof(u32));
        return u32;
    case COLUMN_TCP_FLAGS:
        return flow->fwd_tcp_flags | flow->rev_tcp_flags;
    default:
        memcpy(&u64, field, sizeof(u64));
        return u64;
    }
}

/* quote: '"' around what is text in JSON, or 0. */
static char *column_value(char *out, const struct capture_flow *flow, const struct column *column, char quote) {
    if (column->kind != COLUMN_ID && column->kind > COLUMN_DESTINATION)
        return text_unsigned(out, column_number(flow, column));
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

char *text_json_line(char *out, const struct capture_flow *flow) {
    for (int i = 0; i < COLUMN_COUNT; i++) {
        out = text_copy(out, columns[i].json, columns[i].json_length);
        out = column_value(out, flow, &columns[i], '"');
    }
    return TEXT_LITERAL(out, "}\n");
}

char *text_csv_line(char *out, const struct capture_flow *flow) {
    for (int i = 0; i < COLUMN_COUNT; i++) {
        if (i)
            *out++ = ',';
        out = column_value(out, flow, &columns[i], 0);
    }
    *out++ = '\n';
    return out;
}
