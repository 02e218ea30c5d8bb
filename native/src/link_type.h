/* SPDX-License-Identifier: Apache-2.0 */
/* Link types and Ethertypes by number: files carry LINKTYPE_* values, libpcap's functions take the platform's DLT_* values; a few
 * differ. */
#ifndef JARVIS_LINK_TYPE_H
#define JARVIS_LINK_TYPE_H

#include <stdint.h>

/* https://www.tcpdump.org/linktypes.html */
enum link_type {
    LINK_NULL = 0,
    LINK_ETHERNET = 1,
    LINK_PPP = 9,
    LINK_DLT_RAW = 12, /* DLT_RAW on most systems; found in files in spite of LINKTYPE_RAW */
    LINK_DLT_RAW_OPENBSD = 14,
    LINK_PPP_HDLC = 50,
    LINK_PPP_ETHER = 51,
    LINK_RAW_IP = 101,
    LINK_IEEE802_11 = 105,
    LINK_LOOP = 108,
    LINK_LINUX_SLL = 113,
    LINK_IEEE802_11_RADIOTAP = 127,
    LINK_PPI = 192,
    LINK_IPV4 = 228,
    LINK_IPV6 = 229,
    LINK_LINUX_SLL2 = 276,
};

enum ethertype {
    ETHERTYPE_MAX_LENGTH = 1500, /* up to here the field is an IEEE 802.3 length */
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_MPLS = 0x8847,
    ETHERTYPE_MPLS_UPSTREAM = 0x8848, /* RFC 5332 */
    ETHERTYPE_PPPOE_SESSION = 0x8864,
    ETHERTYPE_SERVICE_VLAN = 0x88a8,
    ETHERTYPE_QINQ = 0x9100, /* before 802.1ad */
};

/* DLT_* of this platform to LINKTYPE_*. Also makes LINKTYPE_RAW of the DLT_RAW values 12 and 14 that some writers put into files.
 */
uint16_t link_type_from_dlt(int dlt);

/* Longest frame that is believed of this link type, bytes: a record that claims more is damaged (limits as in libpcap). */
uint32_t link_type_frame_limit(uint16_t link_type);

#endif
