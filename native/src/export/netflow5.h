/* SPDX-License-Identifier: Apache-2.0 */
/* NetFlow v5's row in the exporter's list. */
#ifndef JARVIS_EXPORT_NETFLOW5_H
#define JARVIS_EXPORT_NETFLOW5_H

#include "export/encoder.h"

extern const struct export_encoder_ops export_netflow5_ops;

#endif
