/* SPDX-License-Identifier: Apache-2.0 */
/* What a signed request says about a capture, against what is about to be captured: StartCaptureRequest and
 * UpdateInterfacesRequest (agent.proto), as far as it matters whose packets are looked at. */
#ifndef JARVIS_REQUEST_H
#define JARVIS_REQUEST_H

#include "jarvis_capture.h"
#include "trust/wire.h"

/* The configuration has the request's interfaces in their order, as many files, and its filter; so much holds of every way to
 * carry it out (files are found below a directory of the agent's, PF_RING's "pcap:FILE" too). CAPTURE_OK, or CAPTURE_ERR_REFUSED
 * with CAPTURE_NOT_COMMANDED. */
int request_check_start(struct wire_bytes request, const struct capture_config *config, struct capture_error_info *error);

/* Which of the interfaces to add this is, from 0; -1: none, or not such a request. */
int request_find_added(struct wire_bytes request, const char *interface);

#endif
