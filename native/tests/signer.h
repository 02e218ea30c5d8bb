/* SPDX-License-Identifier: Apache-2.0 */
/* A controller as far as an authority sees one: leases and commands signed with a key of the test's own, and an authority whose
 * clock the test holds. */
#ifndef JARVIS_SIGNER_H
#define JARVIS_SIGNER_H

#include <openssl/evp.h>

#include "check.h"
#include "trust/authority.h"

#define SECONDS UINT64_C(1000000000)

static const char agent_id[] = "abcdefghijklmnopqrstuvwxyz234567";
static const char start_capture[] = "/jarvis.capture.v1.AgentService/StartCapture";
static const char update_interfaces[] = "/jarvis.capture.v1.AgentService/UpdateInterfaces";
static const char list_flows[] = "/jarvis.capture.v1.AgentService/ListFlows";
static const uint8_t signer_seed[32] = {1, 2, 3, 4, 5, 6, 7, 8};
static const uint8_t session_id[16] = {0x5e}, ak_name[34] = {0, 11, 1}, firmware_sha256[32] = {0xf1}, tls_spki[32] = {0x71};

static _Atomic uint64_t boottime = 1000 * SECONDS;

static inline uint64_t held_clock(void) {
    return boottime;
}

/* ---- messages as protobuf writes them */

struct message {
    uint8_t bytes[20000];
    size_t length;
};

static inline void put_varint(struct message *message, uint64_t value) {
    for (; value >= 0x80; value >>= 7)
        message->bytes[message->length++] = (uint8_t)(value | 0x80);
    message->bytes[message->length++] = (uint8_t)value;
}

static inline void put_number(struct message *message, uint32_t field, uint64_t value) {
    put_varint(message, field << 3);
    put_varint(message, value);
}

static inline void put_bytes(struct message *message, uint32_t field, const void *data, size_t length) {
    put_varint(message, field << 3 | 2);
    put_varint(message, length);
    memcpy(message->bytes + message->length, data, length);
    message->length += length;
}

static inline void put_text(struct message *message, uint32_t field, const char *text) {
    put_bytes(message, field, text, strlen(text));
}

/* ---- signing */

struct signature {
    uint8_t bytes[64];
};

static inline EVP_PKEY *signing_key(void) {
    return EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, signer_seed, sizeof(signer_seed));
}

static inline void frame_field(struct message *framed, const void *data, size_t length) {
    for (int shift = 24; shift >= 0; shift -= 8)
        framed->bytes[framed->length++] = (uint8_t)(length >> shift);
    memcpy(framed->bytes + framed->length, data, length);
    framed->length += length;
}

static inline void frame_u64(struct message *framed, uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(value >> (56 - 8 * i));
    frame_field(framed, bytes, sizeof(bytes));
}

static inline void frame_tag(struct message *framed, const char *tag) {
    memcpy(framed->bytes, tag, strlen(tag) + 1);
    framed->length = strlen(tag) + 1;
}

static inline struct signature sign(const struct message *framed) {
    struct signature signature;
    size_t length = sizeof(signature.bytes);
    EVP_PKEY *key = signing_key();
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    CHECK_EQUAL(1, EVP_DigestSignInit(context, NULL, NULL, NULL, key));
    CHECK_EQUAL(1, EVP_DigestSign(context, signature.bytes, &length, framed->bytes, framed->length));
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    return signature;
}

static inline struct signature sign_lease(const struct message *lease) {
    static struct message framed;
    frame_tag(&framed, "jarvis-lease-v1");
    frame_field(&framed, lease->bytes, lease->length);
    return sign(&framed);
}

/* ---- the authority and its leases */

static inline capture_authority_t *authority_of(const struct capture_authority_config *changes) {
    uint8_t key_bytes[32];
    size_t length = sizeof(key_bytes);
    EVP_PKEY *key = signing_key();
    CHECK_EQUAL(1, EVP_PKEY_get_raw_public_key(key, key_bytes, &length));
    EVP_PKEY_free(key);
    struct capture_authority_config config = changes ? *changes : (struct capture_authority_config){0};
    config.struct_size = sizeof(config);
    config.agent_id = agent_id;
    config.command_public_key = key_bytes;
    config.session_id = session_id;
    config.ak_name = ak_name;
    config.firmware_sha256 = firmware_sha256;
    capture_authority_t *authority;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, capture_authority_create(&config, &authority, &error));
    authority->clock = held_clock;
    return authority;
}

struct lease_fields {
    uint8_t nonce;
    uint64_t sequence, duration_ns, audit_sequence;
    const char *agent_id; /* NULL: ours; likewise */
    const uint8_t *ak_name, *tls_spki, *firmware_sha256, *session_id;
    uint8_t audit_head;
    bool reads_only;
};

static inline void write_lease(struct message *lease, struct lease_fields fields) {
    const uint8_t nonce[32] = {fields.nonce}, head[32] = {fields.audit_head};
    lease->length = 0;
    put_text(lease, 1, fields.agent_id ? fields.agent_id : agent_id);
    put_bytes(lease, 2, fields.ak_name ? fields.ak_name : ak_name, 34);
    put_bytes(lease, 3, fields.tls_spki ? fields.tls_spki : tls_spki, 32);
    put_bytes(lease, 4, fields.firmware_sha256 ? fields.firmware_sha256 : firmware_sha256, 32);
    put_bytes(lease, 5, fields.session_id ? fields.session_id : session_id, 16);
    put_number(lease, 6, 4);
    put_text(lease, 7, list_flows);
    if (!fields.reads_only) {
        put_text(lease, 7, start_capture);
        put_text(lease, 7, update_interfaces);
    }
    put_number(lease, 8, fields.sequence);
    put_bytes(lease, 9, head, sizeof(head));
    put_number(lease, 10, fields.audit_sequence);
    put_number(lease, 11, fields.duration_ns);
    put_bytes(lease, 12, nonce, sizeof(nonce));
}

/* What came of the last call, its reason. */
static struct capture_error_info refusal;

static inline int note(capture_authority_t *authority, uint8_t nonce) {
    const uint8_t bytes[32] = {nonce};
    uint64_t at;
    refusal = (struct capture_error_info){0};
    int code = capture_authority_note_challenge(authority, bytes, tls_spki, &at, &refusal);
    if (code == CAPTURE_OK)
        CHECK_EQUAL(authority->clock(), at);
    return code;
}

static inline int accept_bytes(capture_authority_t *authority, const struct message *lease) {
    struct signature signature = sign_lease(lease);
    struct capture_lease out;
    refusal = (struct capture_error_info){0};
    return capture_authority_accept_lease(authority, lease->bytes, lease->length, signature.bytes, sizeof(signature.bytes), &out,
                                          &refusal);
}

static inline int give(capture_authority_t *authority, struct lease_fields fields) {
    static struct message lease;
    write_lease(&lease, fields);
    return accept_bytes(authority, &lease);
}

/* A challenge now, and its lease. */
static inline void lease_for(capture_authority_t *authority, uint8_t number, uint64_t duration_ns) {
    CHECK_EQUAL(CAPTURE_OK, note(authority, number));
    int code = give(authority, (struct lease_fields){.nonce = number, .sequence = number, .duration_ns = duration_ns});
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", refusal.field, refusal.message);
    CHECK_EQUAL(CAPTURE_OK, code);
}

/* ---- commands */

struct command_fields {
    const char *method;
    const void *payload;
    size_t payload_length;
    uint64_t lease_sequence, expires_ns;
    const char *request_id, *principal;
};

static inline void write_command(struct message *out, struct command_fields fields) {
    static struct message framed;
    frame_tag(&framed, "jarvis-command-v1");
    frame_field(&framed, agent_id, strlen(agent_id));
    frame_field(&framed, fields.method, strlen(fields.method));
    frame_field(&framed, session_id, sizeof(session_id));
    frame_u64(&framed, fields.lease_sequence);
    frame_field(&framed, fields.request_id, strlen(fields.request_id));
    frame_field(&framed, fields.principal, strlen(fields.principal));
    frame_u64(&framed, fields.expires_ns);
    frame_field(&framed, fields.payload, fields.payload_length);
    struct signature signature = sign(&framed);
    out->length = 0;
    put_number(out, 1, fields.lease_sequence);
    put_text(out, 2, fields.request_id);
    put_text(out, 3, fields.principal);
    put_number(out, 4, fields.expires_ns);
    put_bytes(out, 5, signature.bytes, sizeof(signature.bytes));
}

static inline int admit_as(capture_authority_t *authority, const struct message *authorization, const char *method,
                           const void *payload, size_t length) {
    refusal = (struct capture_error_info){0};
    return capture_authority_admit(authority, method, payload, length, authorization->bytes, authorization->length, &refusal);
}

static inline int admit(capture_authority_t *authority, struct command_fields fields) {
    static struct message authorization;
    write_command(&authorization, fields);
    return admit_as(authority, &authorization, fields.method, fields.payload, fields.payload_length);
}

static inline struct command_fields command_under(uint64_t lease_sequence, const char *method, const char *request_id) {
    return (struct command_fields){
        .method = method,
        .payload = "",
        .lease_sequence = lease_sequence,
        .expires_ns = 5 * SECONDS,
        .request_id = request_id,
        .principal = "spiffe://lab.example/operator/operator/ada",
    };
}

/* A StartCaptureRequest. */
static inline void write_start(struct message *out, const char *interface, const char *filter) {
    static struct message spec;
    spec.length = out->length = 0;
    put_text(&spec, 1, interface);
    put_text(&spec, 4, filter);
    put_bytes(out, 1, spec.bytes, spec.length);
}

static inline void order_start(capture_authority_t *authority, uint64_t lease_sequence, const char *request_id,
                               const struct message *request) {
    struct command_fields command = command_under(lease_sequence, start_capture, request_id);
    command.payload = request->bytes;
    command.payload_length = request->length;
    int code = admit(authority, command);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", refusal.field, refusal.message);
    CHECK_EQUAL(CAPTURE_OK, code);
}

#endif
