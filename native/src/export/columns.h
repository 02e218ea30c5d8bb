/* SPDX-License-Identifier: Apache-2.0 */
/* Records column by column, into the caller's arrays. */
#ifndef JARVIS_COLUMNS_H
#define JARVIS_COLUMNS_H

#include "jarvis_capture.h"

/* Writes record number `row`; columns that are NULL are skipped, and those of statistics are 0 where there are none (NULL). */
void columns_put(const struct capture_flow_columns *columns, uint32_t row, const struct capture_flow *flow,
                 const struct capture_flow_statistics *statistics);

#endif
