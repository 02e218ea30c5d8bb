/* SPDX-License-Identifier: Apache-2.0 */
/* sFlow's row in the list of encoders; its samples and counters come by capture_exporter_read_samples and _counters. */
#ifndef JARVIS_SFLOW_H
#define JARVIS_SFLOW_H

#include "export/encoder.h"

extern const struct export_encoder_ops export_sflow_ops;

#endif
