/* SPDX-License-Identifier: Apache-2.0 */
/* BPF expressions, compiled by libpcap and decided here, so that live and file give the same result. */
#ifndef JARVIS_FILTER_H
#define JARVIS_FILTER_H

#include "frame.h"
#include "jarvis_capture.h"

struct frame_filter; /* immutable once compiled but for a per-link-type cache: one per worker */
struct flow_filter;  /* decides on a flow record, either direction; one per reader */

/* NULL or "" compiles to a NULL filter, which matches everything. */
int frame_filter_compile(const char *expression, uint32_t snaplen, struct frame_filter **out, struct capture_error_info *error);
bool frame_filter_match(struct frame_filter *filter, const struct frame *frame);
void frame_filter_free(struct frame_filter *filter);

int flow_filter_compile(const char *expression, struct flow_filter **out, struct capture_error_info *error);
bool flow_filter_match(struct flow_filter *filter, const struct capture_flow *flow);
void flow_filter_free(struct flow_filter *filter);

#endif
