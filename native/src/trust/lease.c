/* SPDX-License-Identifier: Apache-2.0 */
#include "trust/lease.h"

#include <inttypes.h>

#include "error.h"
#include "trust/names.h"

enum { SHOWN = 80 };

static bool take_bytes(const struct wire_field *field, struct wire_bytes *out) {
    *out = field->bytes;
    return field->type == WIRE_LENGTH_DELIMITED;
}

static bool take_number(const struct wire_field *field, uint64_t limit, uint64_t *out) {
    *out = field->value;
    return field->type == WIRE_VARINT && field->value <= limit;
}

static bool take_method(const struct wire_field *field, struct lease *out) {
    if (out->method_count == LEASE_METHODS_MAX)
        return false;
    return take_bytes(field, &out->methods[out->method_count++]);
}

/* Nothing is exported from here, so that the entries themselves are the program's to read; their form is judged all the same:
 * what this takes, protobuf takes. */
static bool take_collector(const struct wire_field *field, struct lease *out) {
    struct wire_bytes entry;
    if (!take_bytes(field, &entry) || out->collector_count == LEASE_COLLECTORS_MAX)
        return false;
    out->collector_count++;
    for (size_t i = 0; i < entry.length; i++)
        if (entry.data[i] <= ' ' || entry.data[i] > '~')
            return false;
    return entry.length >= 1 && entry.length <= LEASE_COLLECTOR_CHARACTERS_MAX;
}

/* Fields by their numbers in trust.proto. */
static bool take_lease_field(const struct wire_field *field, struct lease *out) {
    uint64_t number;
    switch (field->number) {
    case 1:
        return take_bytes(field, &out->agent_id);
    case 2:
        return take_bytes(field, &out->ak_name);
    case 3:
        return take_bytes(field, &out->tls_spki_sha256);
    case 4:
        return take_bytes(field, &out->firmware_sha256);
    case 5:
        return take_bytes(field, &out->session_id);
    case 6:
        if (!take_number(field, UINT32_MAX, &number))
            return false;
        out->tpm_reset_count = (uint32_t)number;
        return true;
    case 7:
        return take_method(field, out);
    case 8:
        return take_number(field, UINT64_MAX, &out->sequence);
    case 9:
        return take_bytes(field, &out->audit_head);
    case 10:
        return take_number(field, UINT64_MAX, &out->audit_sequence);
    case 11:
        return take_number(field, UINT64_MAX, &out->duration_ns);
    case 12:
        return take_bytes(field, &out->nonce);
    case 13: /* informative, but protobuf reads it */
        return field->type == WIRE_LENGTH_DELIMITED && wire_is_message(field->bytes);
    case 15:
        return take_collector(field, out);
    default:
        return true;
    }
}

static bool take_command_field(const struct wire_field *field, struct command *out) {
    switch (field->number) {
    case 1:
        return take_number(field, UINT64_MAX, &out->lease_sequence);
    case 2:
        return take_bytes(field, &out->request_id);
    case 3:
        return take_bytes(field, &out->principal);
    case 4:
        return take_number(field, UINT64_MAX, &out->expires_ns);
    case 5:
        return take_bytes(field, &out->signature);
    default:
        return true;
    }
}

/* A field that can only be there once; `seen` has a bit for each low field number. */
static bool is_repeated(const struct wire_field *field, uint32_t known, uint32_t *seen) {
    if (field->number > 31 || !(known & 1u << field->number))
        return false;
    bool again = *seen & 1u << field->number;
    *seen |= 1u << field->number;
    return again;
}

bool lease_parse(struct wire_bytes bytes, struct lease *out) {
    const uint32_t singular = 0x3f7e; /* fields 1..13 but 7, methods */
    uint32_t seen = 0;
    struct wire_field field;
    enum wire_result result;
    *out = (struct lease){0};
    while ((result = wire_next(&bytes, &field)) == WIRE_FIELD)
        if (is_repeated(&field, singular, &seen) || !take_lease_field(&field, out))
            return false;
    return result == WIRE_END;
}

bool command_parse(struct wire_bytes bytes, struct command *out) {
    const uint32_t singular = 0x3e; /* fields 1..5 */
    uint32_t seen = 0;
    struct wire_field field;
    enum wire_result result;
    *out = (struct command){0};
    while ((result = wire_next(&bytes, &field)) == WIRE_FIELD)
        if (is_repeated(&field, singular, &seen) || !take_command_field(&field, out))
            return false;
    return result == WIRE_END;
}

static int invalid_lease(struct capture_error_info *error, const char *name, size_t found, size_t accepted) {
    return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID", "lease: %s has %zu bytes; %zu are accepted", name, found,
                        accepted);
}

static int check_sizes(const struct lease *lease, struct capture_error_info *error) {
    const struct {
        const char *name;
        const struct wire_bytes *bytes;
        size_t size;
    } fields[] = {
        {"ak_name", &lease->ak_name, AK_NAME_BYTES},
        {"tls_spki_sha256", &lease->tls_spki_sha256, DIGEST_BYTES},
        {"firmware_sha256", &lease->firmware_sha256, DIGEST_BYTES},
        {"session_id", &lease->session_id, SESSION_BYTES},
        {"audit_head", &lease->audit_head, DIGEST_BYTES},
        {"nonce", &lease->nonce, NONCE_BYTES},
    };
    if (!name_is_agent_id(lease->agent_id))
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID",
                            "lease: agent_id has %zu bytes; 32 characters of a-z 2-7 are accepted", lease->agent_id.length);
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        if (fields[i].bytes->length != fields[i].size)
            return invalid_lease(error, fields[i].name, fields[i].bytes->length, fields[i].size);
    return CAPTURE_OK;
}

static int check_methods(const struct lease *lease, struct capture_error_info *error) {
    if (lease->method_count == 0)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID", "lease: methods has no name; 1 to %d are accepted",
                            LEASE_METHODS_MAX);
    for (uint32_t i = 0; i < lease->method_count; i++) {
        const struct wire_bytes *method = &lease->methods[i];
        if (!name_is_method(*method))
            return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID",
                                "lease: methods[%u] is no full name such as /jarvis.capture.v1.AgentService/StartCapture", i);
        for (uint32_t before = 0; before < i; before++)
            if (wire_equal(lease->methods[before], method->data, method->length))
                return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID",
                                    "lease: methods[%u] and methods[%u] are the same; different ones are accepted", before, i);
    }
    return CAPTURE_OK;
}

int lease_check(const struct lease *lease, struct capture_error_info *error) {
    int result = check_sizes(lease, error);
    if (result == CAPTURE_OK)
        result = check_methods(lease, error);
    if (result != CAPTURE_OK)
        return result;
    if (lease->sequence == 0)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID", "lease: sequence is 0; 1 and above are accepted");
    if (lease->duration_ns < 1 || lease->duration_ns > LEASE_DURATION_MAX_NS)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID",
                            "lease: duration_ns is %" PRIu64 "; 1 to %" PRIu64 " (24 h) are accepted", lease->duration_ns,
                            LEASE_DURATION_MAX_NS);
    return CAPTURE_OK;
}

int command_check(struct command *command, struct wire_bytes method, struct capture_error_info *error) {
    static const char reason[] = "COMMAND_INVALID";
    if (!name_is_identity(command->principal))
        return capture_fail(error, CAPTURE_ERR_REFUSED, reason, "command authorization: principal (%zu bytes) is no SPIFFE id",
                            command->principal.length);
    if (!name_is_method(method))
        return capture_fail(
            error, CAPTURE_ERR_REFUSED, reason,
            "command authorization: method is %.*s; a full name such as /jarvis.capture.v1.AgentService/StartCapture "
            "is accepted",
            (int)(method.length < SHOWN ? method.length : SHOWN), (const char *)method.data);
    if (command->lease_sequence == 0)
        return capture_fail(error, CAPTURE_ERR_REFUSED, reason,
                            "command authorization: lease_sequence is 0; 1 and above are accepted");
    if (!name_is_uuid(command->request_id, command->uuid))
        return capture_fail(error, CAPTURE_ERR_REFUSED, reason,
                            "command authorization: request_id (%zu bytes) is no lower-case UUID", command->request_id.length);
    if (command->expires_ns < 1 || command->expires_ns > LEASE_DURATION_MAX_NS)
        return capture_fail(error, CAPTURE_ERR_REFUSED, reason,
                            "command authorization: expires_ns is %" PRIu64 "; 1 to %" PRIu64 " (24 h) are accepted",
                            command->expires_ns, LEASE_DURATION_MAX_NS);
    return CAPTURE_OK;
}

bool lease_allows(const struct lease *lease, struct wire_bytes method) {
    for (uint32_t i = 0; i < lease->method_count; i++)
        if (wire_equal(lease->methods[i], method.data, method.length))
            return true;
    return false;
}
