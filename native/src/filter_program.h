/* SPDX-License-Identifier: Apache-2.0 */
/* One BPF expression compiled for one link type. */
#ifndef JARVIS_FILTER_PROGRAM_H
#define JARVIS_FILTER_PROGRAM_H

#include "jarvis_capture.h"

#include <pcap/pcap.h>

/* CAPTURE_OK (free with pcap_freecode), or CAPTURE_ERR_FILTER with libpcap's message, or CAPTURE_ERR_NO_MEMORY. Any thread:
 * pcap_compile keeps its state in the handle since libpcap 1.8. */
int filter_program_compile(const char *expression, uint16_t link_type, uint32_t snaplen, struct bpf_program *out,
                           struct capture_error_info *error);

#endif
