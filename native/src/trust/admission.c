/* SPDX-License-Identifier: Apache-2.0 */
/* Commands under a lease, and what an admitted one entitles to: one start, or the addition of the interfaces that it names. */
#include <inttypes.h>
#include <stdlib.h>

#include "error.h"
#include "trust/authority.h"
#include "trust/request.h"

static const char command_tag[] = "jarvis-command-v1";
static const char start_method[] = "/jarvis.capture.v1.AgentService/StartCapture";
static const char interfaces_method[] = "/jarvis.capture.v1.AgentService/UpdateInterfaces";

enum { METHOD_BYTES_MAX = 256, ADDED_MAX = 64 };

static struct wire_bytes bytes_of(const char *text) {
    return (struct wire_bytes){(const uint8_t *)text, strlen(text)};
}

int authority_require_lease(const struct capture_authority *authority, uint64_t now_ns, struct capture_error_info *error) {
    if (!authority->current.bytes)
        return capture_fail(error, CAPTURE_ERR_LEASE, "AGENT_UNATTESTED",
                            "this agent process holds no lease: it has to be attested first");
    if (now_ns < authority->end_ns)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_LEASE, "LEASE_EXPIRED", "lease %" PRIu64 " ended %" PRIu64 " ms ago: attest again",
                        authority->current.lease.sequence, (now_ns - authority->end_ns) / 1000000);
}

/* ---- judging a command */

static int verify_command(const struct capture_authority *authority, const struct command *command, struct wire_bytes method,
                          struct wire_bytes payload, struct capture_error_info *error) {
    uint8_t sequence[8], expires[8];
    for (int i = 0; i < 8; i++) {
        sequence[i] = (uint8_t)(command->lease_sequence >> (56 - 8 * i));
        expires[i] = (uint8_t)(command->expires_ns >> (56 - 8 * i));
    }
    const struct wire_bytes fields[] = {
        bytes_of(authority->agent_id),
        method,
        {authority->session_id, SESSION_BYTES},
        {sequence, sizeof(sequence)},
        command->request_id,
        command->principal,
        {expires, sizeof(expires)},
        payload,
    };
    enum signature_verdict verdict =
        signature_verify(authority->public_key, command->signature, command_tag, fields, sizeof(fields) / sizeof(*fields));
    if (verdict == SIGNATURE_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "the command's signature could not be checked");
    if (verdict == SIGNATURE_INVALID)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "COMMAND_SIGNATURE_INVALID",
                            "not signed with the fleet's command key for this agent, process, method and payload");
    return CAPTURE_OK;
}

/* The lease in force must allow the method; the command may be under the one before it (a renewal may cross it on its way). */
static int judge_lease_of(struct capture_authority *authority, const struct command *command, struct wire_bytes method,
                          uint64_t now_ns, struct held_lease **covering, struct capture_error_info *error) {
    int result = authority_require_lease(authority, now_ns, error);
    if (result != CAPTURE_OK)
        return result;
    if (!lease_allows(&authority->current.lease, method))
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_METHOD_DENIED", "lease %" PRIu64 " does not allow the method",
                            authority->current.lease.sequence);
    bool current = authority->current.lease.sequence == command->lease_sequence;
    bool previous = authority->previous.bytes && authority->previous.lease.sequence == command->lease_sequence;
    if (!current && !previous)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_STALE", "lease_sequence is %" PRIu64 "; %" PRIu64 " is in force",
                            command->lease_sequence, authority->current.lease.sequence);
    *covering = current ? &authority->current : &authority->previous;
    if (now_ns - (*covering)->challenge.boottime_ns >= command->expires_ns)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "COMMAND_EXPIRED", "the command is over by the boot clock");
    return CAPTURE_OK;
}

static int note_use(struct held_lease *lease, const struct command *command, struct wire_bytes method, struct wire_bytes payload,
                    struct capture_error_info *error) {
    uint8_t name[METHOD_BYTES_MAX + sizeof(command->uuid)], digest[SHA256_BYTES];
    struct used_id id;
    memcpy(name, command->uuid, sizeof(command->uuid));
    memcpy(name + sizeof(command->uuid), method.data, method.length);
    bool done = sha256_of((struct wire_bytes){name, sizeof(command->uuid) + method.length}, digest);
    memcpy(id.key, digest, sizeof(id.key));
    done = done && sha256_of(payload, digest);
    memcpy(id.digest, digest, sizeof(id.digest));
    switch (done ? used_ids_note(&lease->used, &id) : USED_NO_MEMORY) {
    case USED_NEW:
        return CAPTURE_OK;
    case USED_SAME:
        return CAPTURE_COMMAND_REPEATED;
    case USED_OTHER:
        return capture_fail(error, CAPTURE_ERR_REFUSED, "REQUEST_ID_REUSED", "request_id %.36s came with another request before",
                            (const char *)command->request_id.data);
    case USED_FULL:
        return capture_fail(error, CAPTURE_ERR_REFUSED, "COMMAND_LIMIT", "%d commands under one lease; the next lease makes room",
                            USED_IDS_MAX);
    default:
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "the command could not be noted as used");
    }
}

/* ---- what it entitles to */

static void drop_grant(struct grant *grant) {
    free(grant->payload);
    *grant = (struct grant){0};
}

void authority_drop_grants(struct capture_authority *authority) {
    for (uint32_t i = 0; i < AUTHORITY_GRANTS; i++)
        drop_grant(&authority->grants[i]);
}

static int add_grant(struct capture_authority *authority, struct wire_bytes method, struct wire_bytes payload,
                     struct capture_error_info *error) {
    bool start = wire_equal(method, start_method, sizeof(start_method) - 1);
    if (!start && !wire_equal(method, interfaces_method, sizeof(interfaces_method) - 1))
        return CAPTURE_OK;
    struct grant *grant = &authority->grants[authority->next_grant++ % AUTHORITY_GRANTS];
    drop_grant(grant);
    grant->payload = malloc(payload.length ? payload.length : 1);
    if (!grant->payload)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for a command could not be allocated", payload.length);
    if (payload.length)
        memcpy(grant->payload, payload.data, payload.length);
    grant->length = payload.length;
    grant->kind = start ? GRANT_START : GRANT_INTERFACES;
    return CAPTURE_OK;
}

int capture_authority_admit(capture_authority_t *authority, const char *method, const uint8_t *payload, uint64_t payload_length,
                            const uint8_t *authorization, uint64_t length, struct capture_error_info *error) {
    struct wire_bytes name = bytes_of(method ? method : ""), request = {payload, payload_length};
    struct command command;
    struct held_lease *lease = NULL;
    if (length > AUTHORIZATION_BYTES_MAX || payload_length > PAYLOAD_BYTES_MAX || name.length > METHOD_BYTES_MAX)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "COMMAND_INVALID",
                            "command: %" PRIu64 " bytes of authorization, %" PRIu64 " of payload; %d and %d are accepted", length,
                            payload_length, AUTHORIZATION_BYTES_MAX, PAYLOAD_BYTES_MAX);
    if (!command_parse((struct wire_bytes){authorization, length}, &command))
        return capture_fail(error, CAPTURE_ERR_REFUSED, "COMMAND_INVALID",
                            "command authorization: its bytes are not a CommandAuthorization message");
    int result = verify_command(authority, &command, name, request, error);
    if (result == CAPTURE_OK)
        result = command_check(&command, name, error);
    if (result != CAPTURE_OK)
        return result;
    pthread_mutex_lock(&authority->lock);
    result = judge_lease_of(authority, &command, name, authority->clock(), &lease, error);
    if (result == CAPTURE_OK)
        result = note_use(lease, &command, name, request, error);
    if (result == CAPTURE_OK)
        result = add_grant(authority, name, request, error);
    pthread_mutex_unlock(&authority->lock);
    return result;
}

static int not_commanded(struct capture_error_info *error, const char *method) {
    return capture_fail(error, CAPTURE_ERR_REFUSED, "CAPTURE_NOT_COMMANDED",
                        "no admitted %s entitles to this, or it was carried out", method);
}

int authority_take_start(struct capture_authority *authority, struct wire_bytes request, const struct capture_config *config,
                         struct capture_error_info *error) {
    pthread_mutex_lock(&authority->lock);
    int result = authority_require_lease(authority, authority->clock(), error);
    struct grant *found = NULL;
    for (uint32_t i = 0; result == CAPTURE_OK && i < AUTHORITY_GRANTS && !found; i++) {
        struct grant *grant = &authority->grants[i];
        if (grant->kind == GRANT_START && wire_equal(request, grant->payload, grant->length))
            found = grant;
    }
    if (result == CAPTURE_OK)
        result = found ? request_check_start(request, config, error) : not_commanded(error, "StartCapture");
    if (result == CAPTURE_OK)
        drop_grant(found);
    pthread_mutex_unlock(&authority->lock);
    return result;
}

int authority_take_interface(struct capture_authority *authority, const char *interface, struct capture_error_info *error) {
    pthread_mutex_lock(&authority->lock);
    int result = authority_require_lease(authority, authority->clock(), error);
    bool found = false;
    for (uint32_t i = 0; result == CAPTURE_OK && i < AUTHORITY_GRANTS && !found; i++) {
        struct grant *grant = &authority->grants[i];
        if (grant->kind != GRANT_INTERFACES)
            continue;
        int number = request_find_added((struct wire_bytes){grant->payload, grant->length}, interface);
        found = number >= 0 && number < ADDED_MAX && !(grant->added & UINT64_C(1) << number);
        if (found)
            grant->added |= UINT64_C(1) << number;
    }
    if (result == CAPTURE_OK && !found)
        result = not_commanded(error, "UpdateInterfaces");
    pthread_mutex_unlock(&authority->lock);
    return result;
}
