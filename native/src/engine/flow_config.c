/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/flow_config.h"

#include "error.h"
#include "flow/flow_statistics.h"
#include "flow/sampling.h"

enum {
    MAX_FLOWS_DEFAULT = 1048576,
    MAX_FLOWS_LEAST = 4096,
    MAX_FLOWS_MOST = 16777216,
    LOG_RECORDS_DEFAULT = 65536,
    LOG_RECORDS_LEAST = 1024,
    LOG_RECORDS_MOST = 16777216,
    FRAGMENT_SLOTS_DEFAULT = 8192,
    FRAGMENT_SLOTS_LEAST = 256,
    FRAGMENT_SLOTS_MOST = 1048576,
};

#define TIMEOUT_LEAST_NS 1000000000ull
#define TIMEOUT_MOST_NS  (24 * 3600 * 1000000000ull)

static int resolve_max_flows(uint32_t *value, struct capture_error_info *error) {
    if (*value == 0)
        *value = MAX_FLOWS_DEFAULT;
    if (*value >= MAX_FLOWS_LEAST && *value <= MAX_FLOWS_MOST)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, "max_flows", "max_flows is %u: accepted are 0 (%d) and %d to %d", *value,
                        MAX_FLOWS_DEFAULT, MAX_FLOWS_LEAST, MAX_FLOWS_MOST);
}

static int resolve_power(const char *field, uint32_t *value, uint32_t standard, uint32_t least, uint32_t most,
                         struct capture_error_info *error) {
    if (*value == 0)
        *value = standard;
    if (*value >= least && *value <= most && (*value & (*value - 1)) == 0)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, field, "%s is %u: accepted are 0 (%u) and powers of two from %u to %u", field,
                        *value, standard, least, most);
}

static int check_timeout(const char *field, uint64_t value, struct capture_error_info *error) {
    if (value == 0 || (value >= TIMEOUT_LEAST_NS && value <= TIMEOUT_MOST_NS))
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, field, "%s is %llu: accepted are 0 (never) and %llu (1 s) to %llu (24 h)",
                        field, (unsigned long long)value, TIMEOUT_LEAST_NS, TIMEOUT_MOST_NS);
}

static int check_sampling(const struct capture_flow_config *config, struct capture_error_info *error) {
    if (config->sampling > CAPTURE_SAMPLING_FLOW_HASH)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling",
                            "sampling is %u: accepted are 0 (none), 1 (systematic) and 2 (flow-hash)", config->sampling);
    if (config->sampling == CAPTURE_SAMPLING_NONE && config->sampling_interval)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_interval",
                            "sampling_interval is %u and sampling is 0 (none): accepted is 0", config->sampling_interval);
    if (config->sampling != CAPTURE_SAMPLING_NONE &&
        (config->sampling_interval < 1 || config->sampling_interval > SAMPLING_INTERVAL_MOST))
        return capture_fail(error, CAPTURE_ERR_INVALID, "sampling_interval",
                            "sampling_interval is %u and sampling is %u (%s): accepted are 1 to %d", config->sampling_interval,
                            config->sampling, config->sampling == CAPTURE_SAMPLING_SYSTEMATIC ? "systematic" : "flow-hash",
                            SAMPLING_INTERVAL_MOST);
    return CAPTURE_OK;
}

static int check_tunnel(uint32_t value, struct capture_error_info *error) {
    if (value <= CAPTURE_TUNNEL_BOTH)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, "tunnel", "tunnel is %u: accepted are 0 (outer), 1 (inner) and 2 (both)",
                        value);
}

static int check_mirror_timestamps(const struct capture_flow_config *config, struct capture_error_info *error) {
    if (!config->mirror_timestamps || config->tunnel != CAPTURE_TUNNEL_OUTER)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, "mirror_timestamps",
                        "mirror_timestamps is true and tunnel is 0 (outer): accepted with tunnel 1 (inner) and 2 (both)");
}

static int check_statistics(uint32_t value, struct capture_error_info *error) {
    if ((value & ~(uint32_t)STATISTICS_ALL) == 0)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, "statistics",
                        "statistics is %u: accepted are 0 (none) and sums of 1 (tcp), 2 (sizes), 4 (intervals) and 8 (headers)",
                        value);
}

int capture_flow_config_resolve(const struct capture_flow_config *config, struct capture_flow_config *out,
                                struct capture_error_info *error) {
    if (config->struct_size != sizeof(*config))
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size",
                            "struct_size is %u: accepted is %zu, the size this library was built with", config->struct_size,
                            sizeof(*config));
    *out = *config;
    int result = resolve_max_flows(&out->max_flows, error);
    if (result == CAPTURE_OK)
        result = check_timeout("idle_timeout_ns", out->idle_timeout_ns, error);
    if (result == CAPTURE_OK)
        result = check_timeout("active_timeout_ns", out->active_timeout_ns, error);
    if (result == CAPTURE_OK)
        result = resolve_power("log_records", &out->log_records, LOG_RECORDS_DEFAULT, LOG_RECORDS_LEAST, LOG_RECORDS_MOST, error);
    if (result == CAPTURE_OK)
        result = resolve_power("fragment_slots", &out->fragment_slots, FRAGMENT_SLOTS_DEFAULT, FRAGMENT_SLOTS_LEAST,
                               FRAGMENT_SLOTS_MOST, error);
    if (result == CAPTURE_OK)
        result = check_tunnel(out->tunnel, error);
    if (result == CAPTURE_OK)
        result = check_sampling(out, error);
    if (result == CAPTURE_OK)
        result = check_mirror_timestamps(out, error);
    if (result == CAPTURE_OK)
        result = check_statistics(out->statistics, error);
    return result;
}
