/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a PF_RING device name stands for. PF_RING's calls do not tell the link type of its frames, so it is found out here: of a
 * capture file from its header, of a network interface from its type; everything else is Ethernet.
 */
#include "pfring_device.h"

#include "afpacket.h"
#include "error.h"
#include "interface.h"
#include "link_type.h"

#include <ctype.h>
#include <net/if.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MODULE_NAME_MAX = 15, DEVICE_NAME_MAX = 127, LINK_LINUX_COOKED = 113 };

bool pfring_device_has_module(const char *name) {
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_");
    return islower((unsigned char)name[0]) && length <= MODULE_NAME_MAX && name[length] == ':';
}

static int not_a_device(const char *name, struct capture_error_info *error) {
    return capture_fail(
        error, CAPTURE_ERR_INVALID, "interface",
        "interface is \"%.24s\": with backend pfring accepted are eth0, eth0@2 (queue), zc:eth0, zc:99@0 (cluster), "
        "pcap:FILE, pcap:eth0 and other MODULE:DEVICE",
        name);
}

/* Only pcap: takes a path. PF_RING looks for "pcap" anywhere in the name, so "xpcap:/a/file" would be one too. */
static bool is_device_name(const char *name) {
    for (const char *at = name; *at; at++)
        if (iscntrl((unsigned char)*at))
            return false;
    if (strncmp(name, "pcap:", 5) == 0)
        return name[5] != '\0';
    const char *colon = strchr(name, ':');
    if (colon && (!pfring_device_has_module(name) || colon[1] == '\0' || strstr(name, "pcap")))
        return false;
    return name[0] != '\0' && strlen(name) <= DEVICE_NAME_MAX && !strpbrk(name, "/ ");
}

static int find_interface(struct pfring_device *device, const char *name, size_t length) {
    if (length == 0 || length >= sizeof device->interface)
        return 0;
    memcpy(device->interface, name, length);
    device->interface[length] = '\0';
    device->index = (int)if_nametoindex(device->interface);
    if (device->index == 0)
        device->interface[0] = '\0';
    return device->index;
}

static int find_link_type(struct pfring_device *device, const char *name, struct capture_error_info *error) {
    device->link_type = LINK_ETHERNET;
    int hardware, type;
    if (device->index == 0)
        return CAPTURE_OK;
    int code = interface_look(device->interface, &hardware, error);
    if (code != CAPTURE_OK)
        return code;
    type = afpacket_link_type(hardware);
    if (type < 0)
        return capture_fail(error, CAPTURE_ERR_BACKEND, "interface",
                            "interface %.60s: PF_RING does not tell the link type of interface %s (ARPHRD %d)", name,
                            device->interface, hardware);
    device->link_type = (uint16_t)type;
    return CAPTURE_OK;
}

static int examine_file(struct pfring_device *device, const char *path, struct capture_error_info *error) {
    char message[PCAP_ERRBUF_SIZE] = "";
    pcap_t *file = pcap_open_offline(path, message);
    if (!file)
        return capture_fail(error, CAPTURE_ERR_FILE, "interface", "interface pcap:%.100s: %.100s", path, message);
    device->module = PFRING_PCAP_FILE;
    device->link_type = link_type_from_dlt(pcap_datalink(file));
    pcap_close(file);
    return CAPTURE_OK;
}

/* PF_RING tries it as a file first. */
static int examine_pcap(struct pfring_device *device, const char *name, struct capture_error_info *error) {
    const char *rest = name + strlen("pcap:");
    struct stat status;
    if (stat(rest, &status) == 0 && S_ISREG(status.st_mode))
        return examine_file(device, rest, error);
    device->module = PFRING_PCAP_LIVE;
    device->link_type = LINK_LINUX_COOKED;
    if (strcmp(rest, "any") == 0)
        return CAPTURE_OK;
    if (!find_interface(device, rest, strlen(rest)))
        return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface",
                            "interface is %.100s: there is neither a regular file nor a network interface of that name", name);
    return find_link_type(device, name, error);
}

/* Every one of "eth0,eth1@3" must be there; they are taken for alike. */
static int examine_kernel(struct pfring_device *device, const char *name, struct capture_error_info *error) {
    bool many = strchr(name, ',') != NULL;
    device->module = PFRING_KERNEL;
    for (const char *at = name; at; at = strchr(at, ',')) {
        at += at != name;
        size_t length = strcspn(at, ","), queue = strcspn(at, ",@");
        if (!find_interface(device, at, length) && !find_interface(device, at, queue) && strcmp(name, "any") != 0)
            return capture_fail(error, CAPTURE_ERR_NO_INTERFACE, "interface", "interface %.*s does not exist", (int)queue, at);
    }
    int code = find_link_type(device, name, error);
    if (many)
        device->index = 0; /* each frame says which */
    return code;
}

int pfring_device_examine(const char *name, struct pfring_device *device, struct capture_error_info *error) {
    *device = (struct pfring_device){.module = PFRING_OTHER, .link_type = LINK_ETHERNET};
    if (!is_device_name(name))
        return not_a_device(name, error);
    if (strncmp(name, "pcap:", 5) == 0)
        return examine_pcap(device, name, error);
    if (!pfring_device_has_module(name))
        return examine_kernel(device, name, error);
    const char *rest = strchr(name, ':') + 1;
    find_interface(device, rest, strcspn(rest, "@"));
    if (strncmp(name, "zc:", 3) == 0)
        device->module = PFRING_ZERO_COPY;
    return CAPTURE_OK;
}
