/* SPDX-License-Identifier: Apache-2.0 */
/* Checks and completes the EAL's arguments. Options and their values: DPDK 22.11, "EAL parameters" (Linux). */
#include "eal_args.h"

#include "config.h"
#include "error.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum option_value { NO_VALUE, NEEDS_VALUE, MAY_HAVE_VALUE };

/* Which completion an option makes needless. */
enum option_choice {
    CHOOSES_CPUS = 1,
    CHOOSES_TELEMETRY = 2,
    CHOOSES_MEMORY = 4,
    CHOOSES_SIZE = 8,
    CHOOSES_FILES = 16,
    NO_HUGE = 32
};

struct option {
    const char *name; /* one letter: short */
    enum option_value value;
    unsigned choices;
};

static const struct option options[] = {
    {"a", NEEDS_VALUE, 0},
    {"b", NEEDS_VALUE, 0},
    {"c", NEEDS_VALUE, CHOOSES_CPUS},
    {"d", NEEDS_VALUE, 0},
    {"l", NEEDS_VALUE, CHOOSES_CPUS},
    {"m", NEEDS_VALUE, CHOOSES_SIZE},
    {"n", NEEDS_VALUE, 0},
    {"r", NEEDS_VALUE, 0},
    {"s", NEEDS_VALUE, 0},
    {"S", NEEDS_VALUE, 0},
    {"v", NO_VALUE, 0},
    {"allow", NEEDS_VALUE, 0},
    {"base-virtaddr", NEEDS_VALUE, 0},
    {"block", NEEDS_VALUE, 0},
    {"create-uio-dev", NO_VALUE, 0},
    {"file-prefix", NEEDS_VALUE, CHOOSES_FILES},
    {"force-max-simd-bitwidth", NEEDS_VALUE, 0},
    {"huge-dir", NEEDS_VALUE, CHOOSES_MEMORY | CHOOSES_FILES},
    {"huge-unlink", MAY_HAVE_VALUE, CHOOSES_MEMORY | CHOOSES_FILES},
    {"huge-worker-stack", MAY_HAVE_VALUE, 0},
    {"in-memory", NO_VALUE, CHOOSES_FILES},
    {"iova-mode", NEEDS_VALUE, 0},
    {"lcores", NEEDS_VALUE, CHOOSES_CPUS},
    {"legacy-mem", NO_VALUE, CHOOSES_MEMORY | CHOOSES_FILES},
    {"log-level", NEEDS_VALUE, 0},
    {"main-lcore", NEEDS_VALUE, 0},
    {"match-allocations", NO_VALUE, CHOOSES_FILES},
    {"mbuf-pool-ops-name", NEEDS_VALUE, 0},
    {"no-hpet", NO_VALUE, 0},
    {"no-huge", NO_VALUE, CHOOSES_MEMORY | NO_HUGE},
    {"no-pci", NO_VALUE, 0},
    {"no-shconf", NO_VALUE, CHOOSES_FILES},
    {"no-telemetry", NO_VALUE, CHOOSES_TELEMETRY},
    {"proc-type", NEEDS_VALUE, CHOOSES_FILES},
    {"single-file-segments", NO_VALUE, CHOOSES_MEMORY},
    {"socket-limit", NEEDS_VALUE, CHOOSES_MEMORY},
    {"socket-mem", NEEDS_VALUE, CHOOSES_MEMORY},
    {"syslog", NEEDS_VALUE, 0},
    {"telemetry", NO_VALUE, CHOOSES_TELEMETRY},
    {"trace", NEEDS_VALUE, 0},
    {"trace-bufsz", NEEDS_VALUE, 0},
    {"trace-dir", NEEDS_VALUE, 0},
    {"trace-mode", NEEDS_VALUE, 0},
    {"vdev", NEEDS_VALUE, 0},
    {"vfio-intr", NEEDS_VALUE, 0},
    {"vfio-vf-token", NEEDS_VALUE, 0},
    {"vmware-tsc-map", NO_VALUE, 0},
};

/* The option that an argument begins, with its value if that is joined to it; NULL: none. */
static const struct option *find_option(const char *argument, const char **joined) {
    *joined = NULL;
    if (argument[0] != '-' || argument[1] == '\0')
        return NULL;
    bool is_long = argument[1] == '-';
    const char *name = argument + (is_long ? 2 : 1);
    size_t length = is_long ? strcspn(name, "=") : 1;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (strlen(options[i].name) != length || (length == 1) == is_long || memcmp(options[i].name, name, length) != 0)
            continue;
        if (name[length] != '\0')
            *joined = name + length + is_long;
        return &options[i];
    }
    return NULL;
}

static int refused(struct capture_error_info *error, uint32_t at, const char *argument, const char *why) {
    return capture_fail(error, CAPTURE_ERR_INVALID, "dpdk_eal_args", "dpdk_eal_args[%u] is \"%.80s\": %s", at, argument, why);
}

static int check_option(const struct capture_config *config, uint32_t *at, struct capture_error_info *error) {
    const char *argument = config->dpdk_eal_args[*at], *joined;
    const struct option *option = find_option(argument, &joined);
    if (!option)
        return refused(error, *at, argument,
                       "not an EAL option of DPDK 22.11 that a capture can use, such as --no-huge, -m 512 or -a 0000:03:00.0");
    if (option->value == NO_VALUE && joined)
        return refused(error, *at, argument, "this EAL option takes no value");
    if (option->value != NEEDS_VALUE || joined)
        return CAPTURE_OK;
    if (*at + 1 == config->dpdk_eal_arg_count)
        return refused(error, *at, argument, "this EAL option needs a value, as the next argument or after =");
    ++*at;
    return CAPTURE_OK;
}

int eal_args_check(const struct capture_config *config, struct capture_error_info *error) {
    if (config->dpdk_eal_arg_count > EAL_ARGS_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "dpdk_eal_arg_count", "dpdk_eal_arg_count is %u: accepted are 0 to %d",
                            config->dpdk_eal_arg_count, EAL_ARGS_MAX);
    for (uint32_t i = 0; i < config->dpdk_eal_arg_count; i++)
        if (strlen(config->dpdk_eal_args[i]) >= EAL_ARG_SIZE)
            return refused(error, i, config->dpdk_eal_args[i], "accepted are at most 255 bytes");
    int code = CAPTURE_OK;
    for (uint32_t i = 0; i < config->dpdk_eal_arg_count && code == CAPTURE_OK; i++)
        code = check_option(config, &i, error);
    return code;
}

uint64_t eal_free_huge_pages(void) {
    static const char folder[] = "/sys/kernel/mm/hugepages";
    uint64_t total = 0;
    DIR *sizes = opendir(folder);
    for (struct dirent *entry; sizes && (entry = readdir(sizes));) {
        char path[320];
        uint64_t pages;
        snprintf(path, sizeof path, "%s/%s/free_hugepages", folder, entry->d_name);
        FILE *file = strncmp(entry->d_name, "hugepages-", 10) == 0 ? fopen(path, "re") : NULL;
        if (file && fscanf(file, "%" SCNu64, &pages) == 1)
            total += pages;
        if (file)
            fclose(file);
    }
    if (sizes)
        closedir(sizes);
    return total;
}

__attribute__((format(printf, 2, 3))) static void append(struct eal_args *args, const char *format, ...) {
    va_list values;
    va_start(values, format);
    args->argv[args->argc] = args->text[args->argc];
    vsnprintf(args->text[args->argc], EAL_ARG_SIZE, format, values);
    va_end(values);
    args->argv[++args->argc] = NULL;
}

void eal_args_complete(const struct capture_config *config, uint64_t huge_pages, int cpu, struct eal_args *out) {
    unsigned choices = 0;
    out->argc = 0;
    append(out, "jarvis-capture");
    for (uint32_t i = 0; i < config->dpdk_eal_arg_count; i++) {
        const char *joined;
        const struct option *option = find_option(config->dpdk_eal_args[i], &joined);
        append(out, "%s", config->dpdk_eal_args[i]);
        choices |= option->choices;
        if (option->value == NEEDS_VALUE && !joined)
            append(out, "%s", config->dpdk_eal_args[++i]);
    }
    if (!(choices & CHOOSES_CPUS)) {
        append(out, "-l");
        append(out, "%d", cpu);
    }
    if (!(choices & CHOOSES_TELEMETRY))
        append(out, "--no-telemetry");
    if (!(choices & CHOOSES_MEMORY) && huge_pages == 0) {
        append(out, "--no-huge");
        choices |= NO_HUGE;
    }
    if (choices & NO_HUGE && !(choices & CHOOSES_SIZE)) {
        append(out, "-m");
        append(out, "%u", 2 * capture_config_buffer_mb(config) + 256);
    }
    if (!(choices & CHOOSES_FILES))
        append(out, choices & NO_HUGE ? "--no-shconf" : "--in-memory");
    out->no_huge = choices & NO_HUGE;
}
