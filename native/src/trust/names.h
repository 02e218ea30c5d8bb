/* SPDX-License-Identifier: Apache-2.0 */
/* The spellings that signed messages may use, each the one that jarvis_trust writes. */
#ifndef JARVIS_NAMES_H
#define JARVIS_NAMES_H

#include "trust/wire.h"

/* 32 characters of a-z 2-7. */
bool name_is_agent_id(struct wire_bytes text);

/* "/package.Service/Method": 1..128 characters of A-Z a-z 0-9 _ . and 1..64 of A-Z a-z 0-9 _. */
bool name_is_method(struct wire_bytes text);

/* UUID in lower case, 8-4-4-4-12 digits; *out gets its 16 bytes. */
bool name_is_uuid(struct wire_bytes text, uint8_t out[16]);

/* spiffe://<fleet>/ agent/<id>, controller/<name> or operator/{viewer,operator,admin}/<name>; see jarvis_trust.identities. */
bool name_is_identity(struct wire_bytes text);

#endif
