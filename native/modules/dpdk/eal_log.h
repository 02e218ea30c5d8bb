/* SPDX-License-Identifier: Apache-2.0 */
/* The stream that DPDK logs into; what is kept of it is read by eal.h's eal_log_since. */
#ifndef JARVIS_DPDK_EAL_LOG_H
#define JARVIS_DPDK_EAL_LOG_H

#include <stdio.h>

/* NULL: no memory. Any thread may write into it. */
FILE *eal_log_open(void);

#endif
