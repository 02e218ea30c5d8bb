/* SPDX-License-Identifier: Apache-2.0 */
/* Range checks and defaults of struct capture_config. */
#include "config.h"

#include "error.h"

#include <limits.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

int capture_config_check_interface(const struct capture_config *config, const char *interface, struct capture_error_info *error) {
    if (!interface)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface", "interface is missing: accepted is the name of one");
    /* A device of a backend's own library (zc:eth0, pcap:FILE, eth0@2, net_pcap0,rx_pcap=FILE) is for that one to judge. */
    size_t most = !config->backend && !strpbrk(interface, ":@,") ? IFNAMSIZ
                  : config->interfaces                           ? CAPTURE_INTERFACE_NAME_MAX
                                                                 : PATH_MAX;
    size_t length = strnlen(interface, most);
    if (length == 0 || length >= most)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                            "interface is \"%.32s\": accepted is a name of 1 to %zu bytes", interface, most - 1);
    return CAPTURE_OK;
}

static int check_interfaces(const struct capture_config *config, struct capture_error_info *error) {
    if (!config->interfaces || config->interface_count == 0 || config->interface_count > CAPTURE_INTERFACES_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface_count",
                            "interface_count is %u with interfaces %s: accepted are 1 to %d names", config->interface_count,
                            config->interfaces ? "set" : "missing", CAPTURE_INTERFACES_MAX);
    for (uint32_t i = 0; i < config->interface_count; i++) {
        if (!config->interfaces[i])
            return capture_fail(error, CAPTURE_ERR_INVALID, "interfaces", "interfaces[%u] is missing: accepted is a name", i);
        int code = capture_config_check_interface(config, config->interfaces[i], error);
        if (code != CAPTURE_OK)
            return code;
        for (uint32_t before = 0; before < i; before++)
            if (strcmp(config->interfaces[before], config->interfaces[i]) == 0)
                return capture_fail(error, CAPTURE_ERR_INVALID, "interfaces",
                                    "interfaces[%u] and interfaces[%u] are both %.64s: accepted is each name once", before, i,
                                    config->interfaces[i]);
    }
    return CAPTURE_OK;
}

static int check_files(const struct capture_config *config, struct capture_error_info *error) {
    if (!config->files || config->file_count == 0)
        return capture_fail(error, CAPTURE_ERR_INVALID, "file_count",
                            "file_count is %u with files %s: accepted is 1 or more paths", config->file_count,
                            config->files ? "set" : "missing");
    for (uint32_t i = 0; i < config->file_count; i++)
        if (!config->files[i] || config->files[i][0] == '\0')
            return capture_fail(error, CAPTURE_ERR_INVALID, "files", "files[%u] is empty: accepted is the path of a capture file",
                                i);
    return CAPTURE_OK;
}

static int check_source(const struct capture_config *config, struct capture_error_info *error) {
    bool has_files = config->files || config->file_count, several = config->interfaces || config->interface_count;
    if (!config->interface && !has_files && !several)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                            "interface, interfaces and files are all missing: exactly one is needed");
    if (config->interface && has_files)
        return capture_fail(error, CAPTURE_ERR_INVALID, "interface",
                            "interface is %s and %u files are given too: exactly one of interface and files is accepted",
                            config->interface, config->file_count);
    if (several && (config->interface || has_files))
        return capture_fail(error, CAPTURE_ERR_INVALID, "interfaces",
                            "%u interfaces are given and %s too: exactly one of interface, interfaces and files is accepted",
                            config->interface_count, config->interface ? "interface" : "files");
    if (several)
        return check_interfaces(config, error);
    return config->interface ? capture_config_check_interface(config, config->interface, error) : check_files(config, error);
}

static int check_workers(const struct capture_config *config, struct capture_error_info *error) {
    if (config->workers > CONFIG_WORKERS_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "workers",
                            "workers is %u: accepted are 0 (frames are processed inside poll) to %d", config->workers,
                            CONFIG_WORKERS_MAX);
    if (!config->worker_cpus && config->worker_cpu_count)
        return capture_fail(error, CAPTURE_ERR_INVALID, "worker_cpus", "worker_cpus is missing but worker_cpu_count is %u",
                            config->worker_cpu_count);
    if (!config->worker_cpus)
        return CAPTURE_OK;
    if (config->worker_cpu_count != config->workers)
        return capture_fail(error, CAPTURE_ERR_INVALID, "worker_cpu_count",
                            "worker_cpu_count is %u: accepted is one CPU for each worker (%u)", config->worker_cpu_count,
                            config->workers);
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    for (uint32_t i = 0; i < config->worker_cpu_count; i++)
        if (config->worker_cpus[i] < 0 || config->worker_cpus[i] >= cpus)
            return capture_fail(error, CAPTURE_ERR_INVALID, "worker_cpus",
                                "worker_cpus[%u] is %d: this machine has the CPUs 0 to %ld", i, config->worker_cpus[i], cpus - 1);
    return CAPTURE_OK;
}

static int check_sizes(const struct capture_config *config, struct capture_error_info *error) {
    if (config->snaplen != 0 && (config->snaplen < 64 || config->snaplen > CONFIG_SNAPLEN_DEFAULT))
        return capture_fail(error, CAPTURE_ERR_INVALID, "snaplen", "snaplen is %u: accepted are 0 (%d) and 64 to %d",
                            config->snaplen, CONFIG_SNAPLEN_DEFAULT, CONFIG_SNAPLEN_DEFAULT);
    if (config->buffer_size_mb != 0 && (config->buffer_size_mb < 64 || config->buffer_size_mb > 8192))
        return capture_fail(error, CAPTURE_ERR_INVALID, "buffer_size_mb",
                            "buffer_size_mb is %u: accepted are 0 (%d) and 64 to 8192", config->buffer_size_mb,
                            CONFIG_BUFFER_MB_DEFAULT);
    if (config->packet_ring_mb > 8192)
        return capture_fail(error, CAPTURE_ERR_INVALID, "packet_ring_mb", "packet_ring_mb is %u: accepted are 0 (off) to 8192",
                            config->packet_ring_mb);
    return CAPTURE_OK;
}

static int check_busy_poll(const struct capture_config *config, struct capture_error_info *error) {
    if (config->busy_poll_us > CONFIG_BUSY_POLL_US_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "busy_poll_us", "busy_poll_us is %u: accepted are 0 (off) to %d",
                            config->busy_poll_us, CONFIG_BUSY_POLL_US_MAX);
    if (config->files && config->busy_poll_us)
        return capture_fail(error, CAPTURE_ERR_INVALID, "busy_poll_us",
                            "busy_poll_us is %u: files have no driver to poll, accepted is 0", config->busy_poll_us);
    return CAPTURE_OK;
}

static int check_timestamp_source(const struct capture_config *config, struct capture_error_info *error) {
    static const char *const names[] = {"default", "kernel", "hardware", "ptp", "ntp"};
    if (config->timestamp_source > CAPTURE_TIMESTAMP_NTP)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is %u: accepted are 0 (default), 1 (kernel), 2 (hardware), 3 (ptp) and 4 (ntp)",
                            config->timestamp_source);
    if (config->files && config->timestamp_source != CAPTURE_TIMESTAMP_DEFAULT)
        return capture_fail(error, CAPTURE_ERR_INVALID, "timestamp_source",
                            "timestamp_source is %u (%s): files carry their own timestamps, accepted is 0 (default)",
                            config->timestamp_source, names[config->timestamp_source]);
    return CAPTURE_OK;
}

static int check_eal_args(const struct capture_config *config, struct capture_error_info *error) {
    if (!config->dpdk_eal_args && config->dpdk_eal_arg_count)
        return capture_fail(error, CAPTURE_ERR_INVALID, "dpdk_eal_args", "dpdk_eal_args is missing but dpdk_eal_arg_count is %u",
                            config->dpdk_eal_arg_count);
    for (uint32_t i = 0; i < config->dpdk_eal_arg_count; i++)
        if (!config->dpdk_eal_args[i] || config->dpdk_eal_args[i][0] == '\0')
            return capture_fail(error, CAPTURE_ERR_INVALID, "dpdk_eal_args",
                                "dpdk_eal_args[%u] is empty: accepted is an argument of DPDK's EAL, such as --no-huge", i);
    return CAPTURE_OK;
}

int capture_config_validate(const struct capture_config *config, struct capture_error_info *error) {
    if (!config)
        return capture_fail(error, CAPTURE_ERR_INVALID, "config", "config is NULL");
    if (config->struct_size != sizeof *config)
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size", "struct_size is %u: accepted is %zu", config->struct_size,
                            sizeof *config);
    int code = check_source(config, error);
    if (code == CAPTURE_OK)
        code = check_sizes(config, error);
    if (code == CAPTURE_OK)
        code = check_workers(config, error);
    if (code == CAPTURE_OK)
        code = check_timestamp_source(config, error);
    if (code == CAPTURE_OK)
        code = check_busy_poll(config, error);
    if (code == CAPTURE_OK)
        code = check_eal_args(config, error);
    return code;
}

uint32_t capture_config_snaplen(const struct capture_config *config) {
    return config->snaplen ? config->snaplen : CONFIG_SNAPLEN_DEFAULT;
}

uint32_t capture_config_buffer_mb(const struct capture_config *config) {
    return config->buffer_size_mb ? config->buffer_size_mb : CONFIG_BUFFER_MB_DEFAULT;
}
