/* SPDX-License-Identifier: Apache-2.0 */
/* Range checks and defaults of struct capture_flow_config. */
#ifndef JARVIS_FLOW_CONFIG_H
#define JARVIS_FLOW_CONFIG_H

#include "jarvis_capture.h"

/* Fills *out with the values in force, or says which field is out of range. hash_seed 0 stays 0. */
int capture_flow_config_resolve(const struct capture_flow_config *config, struct capture_flow_config *out,
                                struct capture_error_info *error);

#endif
