/* SPDX-License-Identifier: Apache-2.0 */
/* From a device's name to DPDK's port number. */
#ifndef JARVIS_DPDK_DEVICE_H
#define JARVIS_DPDK_DEVICE_H

#include "port.h"

/* Is it a name that this backend takes without "dpdk:" before it: a PCI address, or a virtual device "net_DRIVER..."? Any thread.
 */
bool dpdk_is_device_name(const char *name);

/* Finds or adds the device of `interface`; fills id, name, bus, driver and added. Under the lock of port.c. */
int dpdk_device_find(const char *interface, struct dpdk_port *port, struct capture_error_info *error);

/* Takes a device that was added out of DPDK again. */
void dpdk_device_remove(const struct dpdk_port *port);

#endif
