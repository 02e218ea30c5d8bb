/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by name: a port that DPDK has (PCI address, --vdev of dpdk_eal_args), or "net_DRIVER0,argument=value...", which is
 * added. */
#include "device.h"

#include "eal.h"
#include "error.h"

#include <ctype.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <stdio.h>
#include <string.h>

const char *dpdk_device_name(const char *interface) {
    return strncmp(interface, "dpdk:", 5) == 0 ? interface + 5 : interface;
}

/* [DDDD:]BB:DD.F in hexadecimal */
static bool is_pci_address(const char *name, size_t length) {
    unsigned domain, bus, device, function;
    int used = 0;
    if (length > 32 || !isxdigit((unsigned char)name[0]))
        return false;
    if (sscanf(name, "%8x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &used) == 4 && (size_t)used == length)
        return true;
    used = 0;
    return sscanf(name, "%2x:%2x.%1x%n", &bus, &device, &function, &used) == 3 && (size_t)used == length;
}

static bool is_virtual(const char *name) {
    return strncmp(name, "net_", 4) == 0;
}

bool dpdk_is_device_name(const char *name) {
    return is_virtual(name) || is_pci_address(name, strcspn(name, ","));
}

static void describe(struct dpdk_port *port, const struct rte_eth_dev_info *info) {
    snprintf(port->bus, sizeof port->bus, "%s", info->device ? rte_bus_name(rte_dev_bus(info->device)) : "");
    snprintf(port->driver, sizeof port->driver, "%s", info->driver_name ? info->driver_name : "");
    port->interface_index =
        (uint16_t)(info->if_index ? (info->if_index < UINT16_MAX ? info->if_index : UINT16_MAX) : port->id + 1u);
    port->nombuf_loses = strcmp(port->driver, "net_pcap") == 0;
}

/* Names of the ports there are, for a message. */
static void list_ports(char *text, size_t size) {
    uint16_t id;
    size_t used = 0;
    snprintf(text, size, "none");
    RTE_ETH_FOREACH_DEV(id) {
        char name[RTE_ETH_NAME_MAX_LEN];
        if (rte_eth_dev_get_name_by_port(id, name) == 0 && used < size)
            used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", name);
    }
}

static int add_device(const char *interface, const char *arguments, struct dpdk_port *port, struct capture_error_info *error) {
    char said[160];
    uint64_t mark = eal_log_mark();
    snprintf(port->bus, sizeof port->bus, "%s", is_virtual(port->name) ? "vdev" : "pci");
    int result = rte_eal_hotplug_add(port->bus, port->name, arguments);
    if (result == 0 && rte_eth_dev_get_port_by_name(port->name, &port->id) == 0) {
        port->added = true;
        return CAPTURE_OK;
    }
    if (result == 0)
        rte_eal_hotplug_remove(port->bus, port->name);
    eal_log_since(mark, said, sizeof said);
    return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface", "DPDK cannot use the device \"%.80s\": %s%s", interface,
                        result == 0 ? "it has no Ethernet port" : rte_strerror(result < 0 ? -result : result), said);
}

int dpdk_device_find(const char *interface, struct dpdk_port *port, struct capture_error_info *error) {
    const char *name = dpdk_device_name(interface);
    size_t length = strcspn(name, ",");
    if (length == 0 || length >= sizeof port->name)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface", "interface is \"%.80s\": a device's name has 1 to %zu bytes",
                            interface, sizeof port->name - 1);
    memcpy(port->name, name, length);
    port->name[length] = '\0';
    const char *arguments = name[length] == ',' ? name + length + 1 : "";
    int code = CAPTURE_OK;
    if (rte_eth_dev_get_port_by_name(port->name, &port->id) == 0) {
        if (arguments[0] != '\0')
            return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                                "interface is \"%.80s\": DPDK has the device %s already, accepted is its name without arguments",
                                interface, port->name);
    } else if (dpdk_is_device_name(port->name)) {
        code = add_device(interface, arguments, port, error);
    } else {
        char ports[96];
        list_ports(ports, sizeof ports);
        return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface",
                            "DPDK has no device \"%.40s\": accepted are a PCI address, net_DRIVER0,argument=value,... and its "
                            "ports (%s)",
                            interface, ports);
    }
    struct rte_eth_dev_info info;
    if (code == CAPTURE_OK && rte_eth_dev_info_get(port->id, &info) != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "interface", "DPDK does not describe the device %s", port->name);
    if (code == CAPTURE_OK)
        describe(port, &info);
    return code;
}

void dpdk_device_remove(const struct dpdk_port *port) {
    /* A device that does not go stays in DPDK, stopped: a later capture of it finds it there. */
    (void)rte_eal_hotplug_remove(port->bus, port->name);
}
