/* SPDX-License-Identifier: Apache-2.0 */
#include "trust/signature.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <stdlib.h>

static uint8_t *put(uint8_t *at, const void *data, size_t length) {
    if (length)
        memcpy(at, data, length);
    return at + length;
}

/* Ed25519 takes the message in one piece. */
static uint8_t *frame(const char *tag, const struct wire_bytes *fields, uint32_t count, size_t *length) {
    *length = strlen(tag) + 1;
    for (uint32_t i = 0; i < count; i++)
        *length += 4 + fields[i].length;
    uint8_t *message = malloc(*length), *at = message;
    if (!message)
        return NULL;
    at = put(at, tag, strlen(tag) + 1);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size = (uint32_t)fields[i].length;
        const uint8_t big_endian[4] = {(uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
        at = put(at, big_endian, sizeof(big_endian));
        at = put(at, fields[i].data, fields[i].length);
    }
    return message;
}

static enum signature_verdict verify(const uint8_t *public_key, struct wire_bytes signature, const uint8_t *message,
                                     size_t length) {
    enum signature_verdict verdict = SIGNATURE_FAILED;
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, public_key, PUBLIC_KEY_BYTES);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (key && context && EVP_DigestVerifyInit(context, NULL, NULL, NULL, key) == 1)
        verdict = EVP_DigestVerify(context, signature.data, signature.length, message, length) == 1 ? SIGNATURE_VALID
                                                                                                    : SIGNATURE_INVALID;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    ERR_clear_error(); /* the queue belongs to the thread, and the thread to the program */
    return verdict;
}

enum signature_verdict signature_verify(const uint8_t public_key[PUBLIC_KEY_BYTES], struct wire_bytes signature, const char *tag,
                                        const struct wire_bytes *fields, uint32_t count) {
    size_t length;
    if (signature.length != SIGNATURE_BYTES)
        return SIGNATURE_INVALID;
    uint8_t *message = frame(tag, fields, count, &length);
    if (!message)
        return SIGNATURE_FAILED;
    enum signature_verdict verdict = verify(public_key, signature, message, length);
    free(message);
    return verdict;
}

bool sha256_of(struct wire_bytes data, uint8_t out[SHA256_BYTES]) {
    unsigned length = 0;
    bool done = EVP_Digest(data.length ? data.data : (const uint8_t *)"", data.length, out, &length, EVP_sha256(), NULL) == 1;
    if (!done)
        ERR_clear_error();
    return done && length == SHA256_BYTES;
}
