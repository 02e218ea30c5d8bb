/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments that the EAL gets: what the configuration says, checked, and what it leaves open. No DPDK in here. */
#ifndef JARVIS_DPDK_EAL_ARGS_H
#define JARVIS_DPDK_EAL_ARGS_H

#include "jarvis_capture.h"

enum { EAL_ARGS_MAX = 64, EAL_ARG_SIZE = 256, EAL_ARGS_ADDED_MAX = 8 };

/* An argument vector for rte_eal_init, program's name first. The EAL permutes argv and keeps pointers into text. */
struct eal_args {
    int argc;
    char *argv[1 + EAL_ARGS_MAX + EAL_ARGS_ADDED_MAX + 1];
    char text[1 + EAL_ARGS_MAX + EAL_ARGS_ADDED_MAX][EAL_ARG_SIZE];
    bool no_huge;
};

/* Are config->dpdk_eal_args options that the EAL of DPDK 22.11 knows, each with its value? An option that it does not know it
 * answers with its usage on stdout, and --help with exit. CAPTURE_OK, or CAPTURE_ERR_INVALID naming dpdk_eal_args. Any thread. */
int eal_args_check(const struct capture_config *config, struct capture_error_info *error);

/* Huge pages of any size that are free now, as the kernel counts them. Any thread. */
uint64_t eal_free_huge_pages(void);

/* Checked arguments, completed:
 *   without -l, -c, --lcores          -l CPU: else the EAL starts a thread on each CPU, and none of them is used
 *   without --(no-)telemetry          --no-telemetry: no socket is opened unasked
 *   without a choice of memory        --no-huge where no huge page is free (`huge_pages` is 0)
 *   with --no-huge and without -m     -m: this memory cannot grow; twice buffer_size_mb and 256 MiB
 *   without a choice of shared files  --in-memory: no file, no lock and no other process is involved; with --no-huge, which the
 * EAL does not take together with it, --no-shconf */
void eal_args_complete(const struct capture_config *config, uint64_t huge_pages, int cpu, struct eal_args *out);

#endif
