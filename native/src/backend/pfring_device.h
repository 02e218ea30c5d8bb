/* SPDX-License-Identifier: Apache-2.0 */
/* Device names as PF_RING takes them, which need not be names of network interfaces. */
#ifndef JARVIS_PFRING_DEVICE_H
#define JARVIS_PFRING_DEVICE_H

#include "jarvis_capture.h"

enum pfring_module {
    PFRING_KERNEL,    /* eth0, eth0@2 (queue), eth0,eth1: the kernel module pf_ring */
    PFRING_ZERO_COPY, /* zc:eth0, zc:99@0 (queue of a cluster): past the kernel */
    PFRING_PCAP_FILE, /* pcap:FILE */
    PFRING_PCAP_LIVE, /* pcap:eth0: libpcap */
    PFRING_OTHER,     /* MODULE:DEVICE */
};

struct pfring_device {
    enum pfring_module module;
    char interface[16]; /* the network interface behind it as far as there is one, else "" */
    int index;          /* its number, else 0 */
    uint16_t link_type; /* LINKTYPE_* of its frames */
};

/* Does the name say by a module ("zc:eth0") that it is PF_RING's? */
bool pfring_device_has_module(const char *name);

/* What the name stands for here. CAPTURE_OK; CAPTURE_ERR_INVALID: it is not a device name; CAPTURE_ERR_NO_INTERFACE,
 * CAPTURE_ERR_FILE, CAPTURE_ERR_BACKEND (frames of a link type that PF_RING does not tell). Any thread. */
int pfring_device_examine(const char *name, struct pfring_device *device, struct capture_error_info *error);

#endif
