/* SPDX-License-Identifier: Apache-2.0 */
/* Which information elements flow records of NetFlow v9 and IPFIX have, and where each takes its value from: one table. */
#ifndef JARVIS_EXPORT_ELEMENTS_H
#define JARVIS_EXPORT_ELEMENTS_H

#include "jarvis_capture.h"

enum {
    ENTERPRISE_REVERSE = 29305, /* RFC 5103, 6.1: the element's value of the reverse direction */
    ENTERPRISE_CERT = 6871,     /* YAF's elements, documented in libfixbuf's cert_ipfix.xml; 0x4000 in the number: reverse */
    ENTERPRISE_NTOP = 35632,    /* nProbe's; in NetFlow v9 their number + NTOP_NETFLOW9_BASE */
    NTOP_NETFLOW9_BASE = 57472,
    CERT_REVERSE = 0x4000,
    ELEMENTS_MAX = 128 /* fields that a record has at most: elements.c holds it against the table */
};

/* How a value becomes bytes; what the value is read from is a field of one of the structures of enum element_base. */
enum element_value {
    VALUE_COPY4, /* as they lie there: addresses */
    VALUE_COPY6,
    VALUE_COPY16,
    VALUE_U8, /* integers, host order there */
    VALUE_U16,
    VALUE_U32,
    VALUE_U64,
    VALUE_U16_AS_U8,    /* its low 8 bits */
    VALUE_U16_AS_U32,   /* widened */
    VALUE_U64_AS_U16,   /* at most 65,535 */
    VALUE_MILLISECONDS, /* uint64_t ns since 1970 -> ms since 1970 (RFC 7011, 6.1.8) */
    VALUE_NTP_MICRO,    /* -> NTP's 64 bits, the low 11 of them 0 (6.1.9) */
    VALUE_NTP_NANO,     /* -> NTP's 64 bits (6.1.10) */
    VALUE_HALF_MS,      /* uint64_t ns -> half of it in ms, 32 bits */
    VALUE_MEAN_MS,      /* double ns -> ms, 64 bits */
    VALUE_DSCP_AS_TOS,  /* uint8_t DSCP -> its place in the octet */
    VALUE_ICMP,         /* type * 256 + code, in a field of its own. These take the whole flow, the offset says nothing */
    VALUE_ICMP_REPLY,   /* of the reverse direction */
    VALUE_PORT_OR_ICMP, /* destination port, for ICMP type * 256 + code */
    VALUE_PORT_OR_ICMP_REPLY,
    VALUE_DIRECTION,   /* biflowDirection */
    VALUE_APPLICATION, /* applicationId of 4 bytes */
    VALUE_SEGMENT,     /* layer2SegmentId */
    VALUE_PAYLOAD,     /* payload octets of the forward direction */
    VALUE_PAYLOAD_REVERSE
};

enum element_base {
    BASE_FLOW,              /* struct capture_flow */
    BASE_STATISTICS,        /* struct capture_flow_statistics */
    BASE_SOURCE_ROUTE,      /* struct capture_route of src_addr */
    BASE_DESTINATION_ROUTE, /* and of dst_addr */
    BASES
};

/* What an element needs to be in a record; all of these must hold. */
enum element_need {
    NEEDS_IPV4 = 1,
    NEEDS_IPV6 = 2,
    NEEDS_IPFIX = 4,
    NEEDS_NETFLOW9 = 8,
    NEEDS_BIFLOW = 16,
    NEEDS_MILLISECONDS = 32,
    NEEDS_MICROSECONDS = 64,
    NEEDS_NANOSECONDS = 128,
    NEEDS_ROUTES = 256,
    NEEDS_TCP = 512,
    NEEDS_SIZES = 1024,
    NEEDS_INTERVALS = 2048,
    NEEDS_HEADERS = 4096
};

struct element_source {
    uint8_t value; /* enum element_value */
    uint8_t base;  /* enum element_base */
    uint16_t offset;
};

struct export_element {
    const char *name;
    uint32_t enterprise; /* 0: IANA's registry */
    uint16_t number;
    uint8_t length;  /* bytes */
    uint8_t profile; /* enum capture_export_profile, the first that has it */
    uint16_t needs;  /* enum element_need, or'ed */
    bool flow_key;
    uint32_t reverse_enterprise; /* with biflow a second field for the reverse direction, 0: none */
    uint16_t reverse_number;
    struct element_source forward; /* of a record of the flow's forward direction, and of a biflow */
    struct element_source reverse; /* of a record of its reverse direction, and of a biflow's second field */
};

/* In the order in which records have them. */
extern const struct export_element export_elements[];
extern const uint32_t export_element_count;

#endif
