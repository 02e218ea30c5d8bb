/* SPDX-License-Identifier: Apache-2.0 */
/* Range checks and defaults of struct capture_config: one place, before anything is opened. */
#ifndef JARVIS_CONFIG_H
#define JARVIS_CONFIG_H

#include "jarvis_capture.h"

enum { CONFIG_SNAPLEN_DEFAULT = 262144, CONFIG_BUFFER_MB_DEFAULT = 64, CONFIG_WORKERS_MAX = 64, CONFIG_BUSY_POLL_US_MAX = 1000 };

/* Checks every field but `filter` (see frame_filter_compile) and what depends on the backend (see backend_select).
 * CAPTURE_OK, or CAPTURE_ERR_INVALID with the field, its value and what would be accepted. Any thread. */
int capture_config_validate(const struct capture_config *config, struct capture_error_info *error);

/* A name of an interface to capture from with this configuration: its length; not whether it exists. Any thread. */
int capture_config_check_interface(const struct capture_config *config, const char *interface, struct capture_error_info *error);

/* The values in force: what the field says, or its default where it says 0. */
uint32_t capture_config_snaplen(const struct capture_config *config);
uint32_t capture_config_buffer_mb(const struct capture_config *config);

#endif
