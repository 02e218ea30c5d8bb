/* SPDX-License-Identifier: Apache-2.0 */
/* The signed messages, read and checked for form: jarvis.capture.v1.Lease and CommandAuthorization (trust.proto), by the rules of
 * jarvis_trust.commands. What they are worth is judged by the authority (authority.c). */
#ifndef JARVIS_LEASE_H
#define JARVIS_LEASE_H

#include "jarvis_capture.h"
#include "trust/wire.h"

enum {
    LEASE_BYTES_MAX = 16 * 1024,
    LEASE_METHODS_MAX = 64,
    LEASE_COLLECTORS_MAX = 64,
    LEASE_COLLECTOR_CHARACTERS_MAX = 100,
    AUTHORIZATION_BYTES_MAX = 4096,
    AK_NAME_BYTES = 34, /* TPM2B_NAME contents: algorithm and SHA-256 */
    DIGEST_BYTES = 32,
    SESSION_BYTES = 16,
    NONCE_BYTES = 32,
};
#define LEASE_DURATION_MAX_NS (UINT64_C(24) * 3600 * 1000000000)

/* Points into the bytes that it was read from. */
struct lease {
    struct wire_bytes agent_id, ak_name, tls_spki_sha256, firmware_sha256, session_id, audit_head, nonce;
    struct wire_bytes methods[LEASE_METHODS_MAX];
    uint32_t method_count, collector_count;
    uint32_t tpm_reset_count;
    uint64_t sequence, audit_sequence, duration_ns;
};

struct command {
    struct wire_bytes request_id, principal, signature;
    uint64_t lease_sequence, expires_ns;
    uint8_t uuid[16]; /* of request_id, once its form was checked */
};

/* Reads; nothing but the encoding is judged. False: not such a message, or more methods than there can be. */
bool lease_parse(struct wire_bytes bytes, struct lease *out);
bool command_parse(struct wire_bytes bytes, struct command *out);

/* Every field in its range: CAPTURE_OK, or CAPTURE_ERR_REFUSED with LEASE_INVALID or COMMAND_INVALID and the field's name. */
int lease_check(const struct lease *lease, struct capture_error_info *error);
int command_check(struct command *command, struct wire_bytes method, struct capture_error_info *error);

bool lease_allows(const struct lease *lease, struct wire_bytes method);

#endif
