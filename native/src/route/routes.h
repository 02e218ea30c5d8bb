/* SPDX-License-Identifier: Apache-2.0 */
/* Routes as the core's other parts hold them; what they know: capture_routes_lookup. */
#ifndef JARVIS_ROUTES_H
#define JARVIS_ROUTES_H

#include "jarvis_capture.h"

/* Another holder: each ends with a capture_routes_release. Any thread. */
void capture_routes_retain(capture_routes_t *routes);

#endif
