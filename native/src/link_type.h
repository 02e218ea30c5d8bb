/* SPDX-License-Identifier: Apache-2.0 */
/* Link types: files carry LINKTYPE_* values, libpcap's functions take the platform's DLT_* values; a few differ. */
#ifndef JARVIS_LINK_TYPE_H
#define JARVIS_LINK_TYPE_H

#include <stdint.h>

/* https://www.tcpdump.org/linktypes.html */
enum link_type { LINK_ETHERNET = 1, LINK_RAW_IP = 101 };

/* DLT_* of this platform to LINKTYPE_*. Also makes LINKTYPE_RAW of the DLT_RAW values 12 and 14 that some writers put into files.
 */
uint16_t link_type_from_dlt(int dlt);

/* Longest frame that is believed of this link type, bytes: a record that claims more is damaged (limits as in libpcap). */
uint32_t link_type_frame_limit(uint16_t link_type);

#endif
