/* SPDX-License-Identifier: Apache-2.0 */
/* The table of information elements. Numbers and lengths: IANA's registry "IP Flow Information Export (IPFIX) Entities"
 * (https://www.iana.org/assignments/ipfix; the basic ones are RFC 5102's and RFC 7012's), which NetFlow v9 shares below 128
 * (RFC 3954, 8) and where collectors know the rest too. What another document defines is said at its row.
 *
 * Adding, removing or reordering rows changes the content of templates: raise LAYOUT_REVISION in layout.h. */
#include "export/elements.h"

#define MINIMAL CAPTURE_EXPORT_MINIMAL
#define DEFAULT CAPTURE_EXPORT_DEFAULT
#define FULL    CAPTURE_EXPORT_FULL

#define FLOW(value, field)                                                                                                       \
    { VALUE_##value, BASE_FLOW, offsetof(struct capture_flow, field) }
#define STATISTICS(value, field)                                                                                                 \
    { VALUE_##value, BASE_STATISTICS, offsetof(struct capture_flow_statistics, field) }
#define SOURCE_ROUTE(value, field)                                                                                               \
    { VALUE_##value, BASE_SOURCE_ROUTE, offsetof(struct capture_route, field) }
#define DESTINATION_ROUTE(value, field)                                                                                          \
    { VALUE_##value, BASE_DESTINATION_ROUTE, offsetof(struct capture_route, field) }
#define WHOLE_FLOW(value)                                                                                                        \
    { VALUE_##value, BASE_FLOW, 0 }
#define KEY                     true
#define NO_KEY                  false
#define REVERSIBLE(number)      ENTERPRISE_REVERSE, number
#define REVERSIBLE_CERT(number) ENTERPRISE_CERT, CERT_REVERSE | (number)
#define ONE_WAY                 0, 0
/* Rows without `reverse`: the same for both directions. */
#define BOTH(source) source, source

const struct export_element export_elements[] = {
    /* Flow keys. The reverse direction's source is the forward one's destination. */
    {"sourceIPv4Address", 0, 8, 4, MINIMAL, NEEDS_IPV4, KEY, ONE_WAY, FLOW(COPY4, src_addr), FLOW(COPY4, dst_addr)},
    {"destinationIPv4Address", 0, 12, 4, MINIMAL, NEEDS_IPV4, KEY, ONE_WAY, FLOW(COPY4, dst_addr), FLOW(COPY4, src_addr)},
    {"sourceIPv6Address", 0, 27, 16, MINIMAL, NEEDS_IPV6, KEY, ONE_WAY, FLOW(COPY16, src_addr), FLOW(COPY16, dst_addr)},
    {"destinationIPv6Address", 0, 28, 16, MINIMAL, NEEDS_IPV6, KEY, ONE_WAY, FLOW(COPY16, dst_addr), FLOW(COPY16, src_addr)},
    {"sourceTransportPort", 0, 7, 2, MINIMAL, 0, KEY, ONE_WAY, FLOW(U16, src_port), FLOW(U16, dst_port)},
    {"destinationTransportPort", 0, 11, 2, MINIMAL, NEEDS_IPFIX, KEY, ONE_WAY, FLOW(U16, dst_port), FLOW(U16, src_port)},
    /* Collectors of NetFlow read ICMP's type and code from here, as routers have written them since version 5. */
    {"destinationTransportPort", 0, 11, 2, MINIMAL, NEEDS_NETFLOW9, KEY, ONE_WAY, WHOLE_FLOW(PORT_OR_ICMP),
     WHOLE_FLOW(PORT_OR_ICMP_REPLY)},
    {"protocolIdentifier", 0, 4, 1, MINIMAL, 0, KEY, ONE_WAY, BOTH(FLOW(U8, ip_protocol))},
    {"ipVersion", 0, 60, 1, DEFAULT, 0, KEY, ONE_WAY, BOTH(FLOW(U8, ip_version))},
    {"vlanId", 0, 58, 2, DEFAULT, 0, KEY, ONE_WAY, BOTH(FLOW(U16, vlan_id))},

    {"packetDeltaCount", 0, 2, 8, MINIMAL, 0, NO_KEY, REVERSIBLE(2), FLOW(U64, fwd_packets), FLOW(U64, rev_packets)},
    {"octetDeltaCount", 0, 1, 8, MINIMAL, 0, NO_KEY, REVERSIBLE(1), FLOW(U64, fwd_octets), FLOW(U64, rev_octets)},

    {"flowStartMilliseconds", 0, 152, 8, MINIMAL, NEEDS_MILLISECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(MILLISECONDS, start_time_ns))},
    {"flowEndMilliseconds", 0, 153, 8, MINIMAL, NEEDS_MILLISECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(MILLISECONDS, end_time_ns))},
    {"flowStartMicroseconds", 0, 154, 8, MINIMAL, NEEDS_MICROSECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(NTP_MICRO, start_time_ns))},
    {"flowEndMicroseconds", 0, 155, 8, MINIMAL, NEEDS_MICROSECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(NTP_MICRO, end_time_ns))},
    {"flowStartNanoseconds", 0, 156, 8, MINIMAL, NEEDS_NANOSECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(NTP_NANO, start_time_ns))},
    {"flowEndNanoseconds", 0, 157, 8, MINIMAL, NEEDS_NANOSECONDS, NO_KEY, ONE_WAY, BOTH(FLOW(NTP_NANO, end_time_ns))},

    /* RFC 5103, 6.3 */
    {"biflowDirection", 0, 239, 1, MINIMAL, NEEDS_BIFLOW, NO_KEY, ONE_WAY, BOTH(WHOLE_FLOW(DIRECTION))},

    /* 16 bits: RFC 7125; 8 in NetFlow v9 (RFC 3954, 8). */
    {"tcpControlBits", 0, 6, 2, DEFAULT, NEEDS_IPFIX, NO_KEY, REVERSIBLE(6), FLOW(U16, fwd_tcp_flags), FLOW(U16, rev_tcp_flags)},
    {"tcpControlBits", 0, 6, 1, DEFAULT, NEEDS_NETFLOW9, NO_KEY, ONE_WAY, FLOW(U16_AS_U8, fwd_tcp_flags),
     FLOW(U16_AS_U8, rev_tcp_flags)},
    {"ingressInterface", 0, 10, 4, DEFAULT, 0, NO_KEY, ONE_WAY, BOTH(FLOW(U16_AS_U32, interface_index))},
    {"egressInterface", 0, 14, 4, DEFAULT, 0, NO_KEY, ONE_WAY, BOTH(FLOW(U16_AS_U32, second_interface_index))},
    {"ipClassOfService", 0, 5, 1, DEFAULT, 0, NO_KEY, ONE_WAY, BOTH(FLOW(DSCP_AS_TOS, dscp))},
    {"icmpTypeCodeIPv4", 0, 32, 2, DEFAULT, NEEDS_IPV4, NO_KEY, ONE_WAY, WHOLE_FLOW(ICMP), WHOLE_FLOW(ICMP_REPLY)},
    /* Version 9's field 32 is of both versions (RFC 3954, 8: ICMP_TYPE). */
    {"icmpTypeCodeIPv4", 0, 32, 2, DEFAULT, NEEDS_IPV6 | NEEDS_NETFLOW9, NO_KEY, ONE_WAY, WHOLE_FLOW(ICMP),
     WHOLE_FLOW(ICMP_REPLY)},
    {"icmpTypeCodeIPv6", 0, 139, 2, DEFAULT, NEEDS_IPV6, NO_KEY, ONE_WAY, WHOLE_FLOW(ICMP), WHOLE_FLOW(ICMP_REPLY)},
    {"flowEndReason", 0, 136, 1, DEFAULT, 0, NO_KEY, ONE_WAY, BOTH(FLOW(U8, end_reason))},
    {"flowId", 0, 148, 8, DEFAULT, 0, NO_KEY, ONE_WAY, BOTH(FLOW(U64, flow_id))},

    /* The outermost tag (802.1ad: the service VLAN) and the one behind it. */
    {"dot1qVlanId", 0, 243, 2, FULL, 0, NO_KEY, ONE_WAY, BOTH(FLOW(U16, vlan_id))},
    {"dot1qCustomerVlanId", 0, 245, 2, FULL, NEEDS_HEADERS, NO_KEY, ONE_WAY, STATISTICS(U16, fwd_headers.inner_vlan_id),
     STATISTICS(U16, rev_headers.inner_vlan_id)},
    {"sourceMacAddress", 0, 56, 6, FULL, NEEDS_HEADERS, NO_KEY, REVERSIBLE(56), STATISTICS(COPY6, fwd_headers.src_mac),
     STATISTICS(COPY6, rev_headers.src_mac)},
    {"destinationMacAddress", 0, 80, 6, FULL, NEEDS_HEADERS, NO_KEY, REVERSIBLE(80), STATISTICS(COPY6, fwd_headers.dst_mac),
     STATISTICS(COPY6, rev_headers.dst_mac)},
    {"minimumTTL", 0, 52, 1, FULL, NEEDS_HEADERS, NO_KEY, REVERSIBLE(52), STATISTICS(U8, fwd_headers.min_ttl),
     STATISTICS(U8, rev_headers.min_ttl)},
    {"maximumTTL", 0, 53, 1, FULL, NEEDS_HEADERS, NO_KEY, REVERSIBLE(53), STATISTICS(U8, fwd_headers.max_ttl),
     STATISTICS(U8, rev_headers.max_ttl)},
    {"flowLabelIPv6", 0, 31, 4, FULL, NEEDS_HEADERS | NEEDS_IPV6, NO_KEY, REVERSIBLE(31), STATISTICS(U32, fwd_headers.flow_label),
     STATISTICS(U32, rev_headers.flow_label)},

    /* RFC 6759: the engine in one byte, the selector in three. */
    {"applicationId", 0, 95, 4, FULL, 0, NO_KEY, ONE_WAY, BOTH(WHOLE_FLOW(APPLICATION))},
    /* The encapsulation in the most significant byte, the segment in the least ones; IANA lists VXLAN and NVGRE. */
    {"layer2SegmentId", 0, 351, 8, FULL, 0, KEY, ONE_WAY, BOTH(WHOLE_FLOW(SEGMENT))},

    /* As the routes have them: of the address' network, and the next hop towards the destination. */
    {"ipNextHopIPv4Address", 0, 15, 4, FULL, NEEDS_ROUTES | NEEDS_IPV4, NO_KEY, ONE_WAY, DESTINATION_ROUTE(COPY4, next_hop),
     SOURCE_ROUTE(COPY4, next_hop)},
    {"ipNextHopIPv6Address", 0, 62, 16, FULL, NEEDS_ROUTES | NEEDS_IPV6, NO_KEY, ONE_WAY, DESTINATION_ROUTE(COPY16, next_hop),
     SOURCE_ROUTE(COPY16, next_hop)},
    {"sourceIPv4PrefixLength", 0, 9, 1, FULL, NEEDS_ROUTES | NEEDS_IPV4, NO_KEY, ONE_WAY, SOURCE_ROUTE(U8, prefix_length),
     DESTINATION_ROUTE(U8, prefix_length)},
    {"destinationIPv4PrefixLength", 0, 13, 1, FULL, NEEDS_ROUTES | NEEDS_IPV4, NO_KEY, ONE_WAY,
     DESTINATION_ROUTE(U8, prefix_length), SOURCE_ROUTE(U8, prefix_length)},
    {"sourceIPv6PrefixLength", 0, 29, 1, FULL, NEEDS_ROUTES | NEEDS_IPV6, NO_KEY, ONE_WAY, SOURCE_ROUTE(U8, prefix_length),
     DESTINATION_ROUTE(U8, prefix_length)},
    {"destinationIPv6PrefixLength", 0, 30, 1, FULL, NEEDS_ROUTES | NEEDS_IPV6, NO_KEY, ONE_WAY,
     DESTINATION_ROUTE(U8, prefix_length), SOURCE_ROUTE(U8, prefix_length)},
    {"bgpSourceAsNumber", 0, 16, 4, FULL, NEEDS_ROUTES, NO_KEY, ONE_WAY, SOURCE_ROUTE(U32, as_number),
     DESTINATION_ROUTE(U32, as_number)},
    {"bgpDestinationAsNumber", 0, 17, 4, FULL, NEEDS_ROUTES, NO_KEY, ONE_WAY, DESTINATION_ROUTE(U32, as_number),
     SOURCE_ROUTE(U32, as_number)},

    /* IANA's registry has no elements for the following: nProbe's, in IPFIX and in NetFlow v9's own space, a pair for biflows. */
    {"RETRANSMITTED_IN_PKTS", ENTERPRISE_NTOP, 109, 4, FULL, NEEDS_TCP, NO_KEY, ENTERPRISE_NTOP, 110,
     STATISTICS(U32, fwd_retransmissions), STATISTICS(U32, rev_retransmissions)},
    {"OOORDER_IN_PKTS", ENTERPRISE_NTOP, 111, 4, FULL, NEEDS_TCP, NO_KEY, ENTERPRISE_NTOP, 112, STATISTICS(U32, fwd_out_of_order),
     STATISTICS(U32, rev_out_of_order)},
    {"CLIENT_NW_LATENCY_MS", ENTERPRISE_NTOP, 123, 4, FULL, NEEDS_TCP, NO_KEY, ONE_WAY,
     BOTH(STATISTICS(HALF_MS, synack_to_ack_ns))},
    {"SERVER_NW_LATENCY_MS", ENTERPRISE_NTOP, 124, 4, FULL, NEEDS_TCP, NO_KEY, ONE_WAY,
     BOTH(STATISTICS(HALF_MS, syn_to_synack_ns))},

    /* And YAF's, which NetFlow v9 has no room for. */
    {"dataByteCount", ENTERPRISE_CERT, 502, 8, FULL, NEEDS_SIZES | NEEDS_IPFIX, NO_KEY, REVERSIBLE_CERT(502),
     STATISTICS(PAYLOAD, fwd_payload), STATISTICS(PAYLOAD_REVERSE, rev_payload)},
    {"maxPacketSize", ENTERPRISE_CERT, 506, 2, FULL, NEEDS_SIZES | NEEDS_IPFIX, NO_KEY, REVERSIBLE_CERT(506),
     STATISTICS(U64_AS_U16, fwd_payload.max), STATISTICS(U64_AS_U16, rev_payload.max)},
    {"averageInterarrivalTime", ENTERPRISE_CERT, 503, 8, FULL, NEEDS_INTERVALS | NEEDS_IPFIX, NO_KEY, REVERSIBLE_CERT(503),
     STATISTICS(MEAN_MS, fwd_interval.mean), STATISTICS(MEAN_MS, rev_interval.mean)},
};

enum { ELEMENTS = sizeof(export_elements) / sizeof(export_elements[0]) };
_Static_assert(2 * ELEMENTS <= ELEMENTS_MAX, "a row is one field of a layout, or two: raise ELEMENTS_MAX");

const uint32_t export_element_count = ELEMENTS;
