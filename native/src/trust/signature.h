/* SPDX-License-Identifier: Apache-2.0 */
/* What is signed, and whether it was: the framing of jarvis_trust.encoding.framed, Ed25519 (RFC 8032) and SHA-256 by OpenSSL. */
#ifndef JARVIS_SIGNATURE_H
#define JARVIS_SIGNATURE_H

#include "trust/wire.h"

enum { SIGNATURE_BYTES = 64, PUBLIC_KEY_BYTES = 32, SHA256_BYTES = 32 };

enum signature_verdict {
    SIGNATURE_VALID = 1,
    SIGNATURE_INVALID = 0,
    SIGNATURE_FAILED = -1, /* memory, or libcrypto: nothing was judged */
};

/* Whether `signature` is the key's over tag, a zero byte, and each field behind its length (32 bits, big-endian). */
enum signature_verdict signature_verify(const uint8_t public_key[PUBLIC_KEY_BYTES], struct wire_bytes signature, const char *tag,
                                        const struct wire_bytes *fields, uint32_t count);

/* False: libcrypto failed. */
bool sha256_of(struct wire_bytes data, uint8_t out[SHA256_BYTES]);

#endif
