/* SPDX-License-Identifier: Apache-2.0 */
/* LINKTYPE_* and DLT_* values, where they differ. */
#include "link_type.h"

#include <pcap/dlt.h>

static const struct {
    uint16_t link_type;
    int dlt;
} pairs[] = {
    {100, DLT_ATM_RFC1483}, {LINK_RAW_IP, DLT_RAW}, {102, DLT_SLIP_BSDOS}, {103, DLT_PPP_BSDOS}, {106, DLT_ATM_CLIP},
};

enum { PAIRS = sizeof pairs / sizeof pairs[0], DLT_RAW_OPENBSD = 14 };

uint16_t link_type_from_dlt(int dlt) {
    if (dlt == DLT_RAW_OPENBSD)
        return LINK_RAW_IP;
    for (int i = 0; i < PAIRS; i++)
        if (pairs[i].dlt == dlt)
            return pairs[i].link_type;
    return (uint16_t)dlt;
}

uint32_t link_type_frame_limit(uint16_t link_type) {
    switch (link_type) {
    case DLT_DBUS:
    case DLT_USB_LINUX:
    case DLT_USB_LINUX_MMAPPED:
    case DLT_USBPCAP:
        return 128u << 20;
    case DLT_EBHSCR:
        return 8u << 20;
    default:
        return 256u << 10;
    }
}
