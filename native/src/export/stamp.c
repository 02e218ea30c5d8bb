/* SPDX-License-Identifier: Apache-2.0 */
/* Sequence numbers and export times, written into finished messages as they leave (capture_export_stamp), or counted for messages
 * that never will (capture_export_skip).
 *
 *   protocol   header                    sequence rises by             source
 *   NetFlow v5 24 bytes, uptime + time   flow records of a message     Cisco, NetFlow Export Datagram Format, version 5
 *   NetFlow v9 20 bytes, uptime + time   1 a message                   RFC 3954, 5.1
 *   IPFIX      16 bytes, time            data records of a message     RFC 7011, 3.1
 *   sFlow v5   28 or 40 bytes, uptime    1 a datagram                  sflow.org, sFlow Version 5, sample_datagram_v5
 *
 * All are modulo 2^32 and big-endian, as are the times: seconds since the Unix epoch, and milliseconds of sysUptime. */
#include <endian.h>
#include <string.h>

#include "jarvis_capture.h"

enum {
    NS_PER_MS = 1000000,
    NS_PER_S = 1000000000,
    V5_HEADER = 24,
    V9_HEADER = 20,
    IPFIX_HEADER = 16,
    SFLOW_IPV4 = 1, /* address_type of sFlow's agent address */
    SFLOW_IPV6 = 2,
    SFLOW_ADDRESS = 8,       /* where that address begins */
    SFLOW_AFTER_ADDRESS = 16 /* sub-agent id, sequence, uptime, number of samples */
};

static void put32(uint8_t *at, uint64_t value) {
    uint32_t big = htobe32((uint32_t)value);
    memcpy(at, &big, sizeof(big));
}

static uint32_t get32(const uint8_t *at) {
    uint32_t big;
    memcpy(&big, at, sizeof(big));
    return be32toh(big);
}

/* Milliseconds since the system started; 0 for an instant before it (a clock that was set back). */
static uint64_t uptime_ms(const struct capture_export_session *session, uint64_t now_ns) {
    return now_ns > session->system_init_ns ? (now_ns - session->system_init_ns) / NS_PER_MS : 0;
}

/* First and Last of a v5 record count from base_ns, and a collector reckons base_ns as export time - sysUptime. So the export
 * time is held within what 32 bits of milliseconds after base_ns can say: the records' times stay right whatever the clock does.
 */
static void stamp_v5(const struct capture_export_session *session, uint64_t now_ns, uint8_t *at,
                     const struct capture_export_message *message) {
    uint64_t base = message->base_ns;
    uint64_t last = base + (uint64_t)UINT32_MAX * NS_PER_MS;
    uint64_t time = session->trace_time && message->newest_ns ? message->newest_ns : now_ns;
    time = time < base ? base : time > last ? last : time;
    put32(at + 4, (time - base) / NS_PER_MS);
    put32(at + 8, time / NS_PER_S);
    put32(at + 12, time % NS_PER_S);
    put32(at + 16, session->sequence);
}

static void stamp_v9(const struct capture_export_session *session, uint64_t now_ns, uint8_t *at) {
    put32(at + 4, uptime_ms(session, now_ns));
    put32(at + 8, now_ns / NS_PER_S);
    put32(at + 12, session->sequence);
}

static void stamp_ipfix(const struct capture_export_session *session, uint64_t now_ns, uint8_t *at) {
    put32(at + 4, now_ns / NS_PER_S);
    put32(at + 8, session->sequence);
}

/* The room that the exporter left decides whether the address is one of 4 bytes or of 16; an IPv4 address fills the larger as
 * ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). Whether it fits was looked at before. */
static void stamp_sflow(const struct capture_export_session *session, uint64_t now_ns, uint8_t *at) {
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    uint8_t *address = at + SFLOW_ADDRESS;
    uint32_t room = get32(at + 4) == SFLOW_IPV4 ? 4 : 16;
    if (session->agent_address_length < room) {
        memcpy(address, mapped, sizeof(mapped));
        memcpy(address + sizeof(mapped), session->agent_address, 4);
    } else {
        memcpy(address, session->agent_address, room);
    }
    uint8_t *behind = address + room;
    put32(behind + 4, session->sequence);
    put32(behind + 8, uptime_ms(session, now_ns));
}

static bool sflow_fits(const struct capture_export_session *session, const uint8_t *at, uint32_t length) {
    if (length < SFLOW_ADDRESS + 4 + SFLOW_AFTER_ADDRESS)
        return false;
    switch (get32(at + 4)) {
    case SFLOW_IPV4:
        return session->agent_address_length == 4;
    case SFLOW_IPV6:
        return length >= SFLOW_ADDRESS + 16 + SFLOW_AFTER_ADDRESS &&
               (session->agent_address_length == 4 || session->agent_address_length == 16);
    default:
        return false;
    }
}

static bool holds_header(const struct capture_export_session *session, const uint8_t *block,
                         const struct capture_export_message *message) {
    switch (session->protocol) {
    case CAPTURE_EXPORT_NETFLOW_V5:
        return message->length >= V5_HEADER;
    case CAPTURE_EXPORT_NETFLOW_V9:
        return message->length >= V9_HEADER;
    case CAPTURE_EXPORT_IPFIX:
        return message->length >= IPFIX_HEADER;
    default:
        return sflow_fits(session, block + message->offset, message->length);
    }
}

static bool is_session(const struct capture_export_session *session) {
    return session != NULL && session->struct_size == sizeof(*session) && session->protocol >= CAPTURE_EXPORT_NETFLOW_V5 &&
           session->protocol <= CAPTURE_EXPORT_SFLOW_V5;
}

/* How much the sequence rises with a message. */
static uint32_t step(uint32_t protocol, const struct capture_export_message *message) {
    bool counts_records = protocol == CAPTURE_EXPORT_NETFLOW_V5 || protocol == CAPTURE_EXPORT_IPFIX;
    return counts_records ? message->records : 1;
}

CAPTURE_API int capture_export_stamp(struct capture_export_session *session, uint64_t now_ns, uint8_t *block,
                                     const struct capture_export_message *messages, uint32_t count) {
    if (!is_session(session) || (count != 0 && (block == NULL || messages == NULL)))
        return CAPTURE_ERR_INVALID;
    for (uint32_t i = 0; i < count; i++) { /* all or none, so that a refusal leaves the sequence as it was */
        if (!holds_header(session, block, &messages[i]))
            return CAPTURE_ERR_INVALID;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *at = block + messages[i].offset;
        if (session->protocol == CAPTURE_EXPORT_NETFLOW_V5)
            stamp_v5(session, now_ns, at, &messages[i]);
        else if (session->protocol == CAPTURE_EXPORT_NETFLOW_V9)
            stamp_v9(session, now_ns, at);
        else if (session->protocol == CAPTURE_EXPORT_IPFIX)
            stamp_ipfix(session, now_ns, at);
        else
            stamp_sflow(session, now_ns, at);
        session->sequence += step(session->protocol, &messages[i]);
    }
    return CAPTURE_OK;
}

CAPTURE_API int capture_export_skip(struct capture_export_session *session, const struct capture_export_message *messages,
                                    uint32_t count) {
    if (!is_session(session) || (count != 0 && messages == NULL))
        return CAPTURE_ERR_INVALID;
    for (uint32_t i = 0; i < count; i++)
        session->sequence += step(session->protocol, &messages[i]);
    return CAPTURE_OK;
}
