/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's environment abstraction layer: one for the process, started by the first capture, never ended; and its log. */
#ifndef JARVIS_DPDK_EAL_H
#define JARVIS_DPDK_EAL_H

#include "jarvis_capture.h"

/* Starts the EAL with the configuration's arguments, or sees that it runs with them already. A configuration without arguments
 * takes the EAL as it is. Any thread; the EAL pins the thread that starts it, so that is one of its own. */
int eal_start(const struct capture_config *config, struct capture_error_info *error);

/* Does the EAL run, and does it without huge pages? Any thread. */
bool eal_running(bool *no_huge);

/* Makes the calling thread known to the EAL, so that mbufs are freed into a cache of its own; forgotten when the thread ends.
 * What it costs from the second call on is one load. Any thread while the EAL runs. */
void eal_attach_thread(void);

/* Where the log is now: for the text since then. Any thread. */
uint64_t eal_log_mark(void);

/* "; DPDK says: ..." with the last lines that DPDK logged since `mark`, or "". Nothing of it goes anywhere else. Any thread. */
void eal_log_since(uint64_t mark, char *text, size_t size);

#endif
