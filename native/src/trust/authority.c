/* SPDX-License-Identifier: Apache-2.0 */
/* An authority's life, its challenges, and the leases that it accepts. The rules are those of jarvis_agent.lease but for what
 * only the agent can know (the TPM's reset count, the state on disk). */
#include "trust/authority.h"

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "error.h"
#include "trust/names.h"

static const char lease_tag[] = "jarvis-lease-v1";

static uint64_t boottime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int missing(struct capture_error_info *error, const char *field) {
    return capture_fail(error, CAPTURE_ERR_INVALID, field, "%s is missing", field);
}

static int check_config(const struct capture_authority_config *config, struct capture_error_info *error) {
    if (!config || config->struct_size != sizeof(*config))
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size",
                            "struct_size is %u: accepted is %zu, the size this library was built with",
                            config ? config->struct_size : 0, sizeof(*config));
    if (!config->agent_id || !name_is_agent_id((struct wire_bytes){(const uint8_t *)config->agent_id, strlen(config->agent_id)}))
        return capture_fail(error, CAPTURE_ERR_INVALID, "agent_id", "agent_id is %.80s: 32 characters of a-z 2-7 are accepted",
                            config->agent_id ? config->agent_id : "missing");
    if (!config->command_public_key)
        return missing(error, "command_public_key");
    if (!config->session_id)
        return missing(error, "session_id");
    if (!config->ak_name)
        return missing(error, "ak_name");
    return config->firmware_sha256 ? CAPTURE_OK : missing(error, "firmware_sha256");
}

int capture_authority_create(const struct capture_authority_config *config, capture_authority_t **out,
                             struct capture_error_info *error) {
    *out = NULL;
    int result = check_config(config, error);
    if (result != CAPTURE_OK)
        return result;
    struct capture_authority *authority = calloc(1, sizeof(*authority));
    if (!authority)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for an authority could not be allocated",
                            sizeof(*authority));
    atomic_init(&authority->references, 1);
    pthread_mutex_init(&authority->lock, NULL);
    authority->clock = boottime_ns;
    memcpy(authority->agent_id, config->agent_id, sizeof(authority->agent_id));
    memcpy(authority->public_key, config->command_public_key, sizeof(authority->public_key));
    memcpy(authority->session_id, config->session_id, sizeof(authority->session_id));
    memcpy(authority->ak_name, config->ak_name, sizeof(authority->ak_name));
    memcpy(authority->firmware_sha256, config->firmware_sha256, sizeof(authority->firmware_sha256));
    authority->sequence = config->lease_sequence;
    authority->audit_sequence = config->audit_sequence;
    authority->audit_known = config->audit_head != NULL;
    if (config->audit_head)
        memcpy(authority->audit_head, config->audit_head, sizeof(authority->audit_head));
    *out = authority;
    return CAPTURE_OK;
}

struct capture_authority *authority_hold(struct capture_authority *authority) {
    atomic_fetch_add(&authority->references, 1);
    return authority;
}

static void free_lease(struct held_lease *held) {
    used_ids_free(&held->used);
    free(held->bytes);
    *held = (struct held_lease){0};
}

void capture_authority_release(capture_authority_t *authority) {
    if (!authority || atomic_fetch_sub(&authority->references, 1) != 1)
        return;
    authority_drop_grants(authority);
    free_lease(&authority->current);
    free_lease(&authority->previous);
    pthread_mutex_destroy(&authority->lock);
    free(authority);
}

/* ---- challenges */

static struct challenge *find_challenge(struct capture_authority *authority, const uint8_t *nonce) {
    for (uint32_t i = 0; i < AUTHORITY_CHALLENGES; i++) {
        struct challenge *challenge = &authority->challenges[i];
        if (challenge->boottime_ns && memcmp(challenge->nonce, nonce, NONCE_BYTES) == 0)
            return challenge;
    }
    return NULL;
}

int capture_authority_note_challenge(capture_authority_t *authority, const uint8_t *nonce, const uint8_t *tls_spki_sha256,
                                     uint64_t *out_boottime_ns, struct capture_error_info *error) {
    int result = CAPTURE_OK;
    pthread_mutex_lock(&authority->lock);
    if (find_challenge(authority, nonce)) {
        result = capture_fail(error, CAPTURE_ERR_REFUSED, "NONCE_REUSED",
                              "this nonce was answered already; 32 new random bytes are accepted");
    } else {
        struct challenge *challenge = &authority->challenges[authority->next_challenge++ % AUTHORITY_CHALLENGES];
        *challenge = (struct challenge){.boottime_ns = authority->clock()};
        memcpy(challenge->nonce, nonce, NONCE_BYTES);
        memcpy(challenge->tls_spki_sha256, tls_spki_sha256, DIGEST_BYTES);
        *out_boottime_ns = challenge->boottime_ns;
    }
    pthread_mutex_unlock(&authority->lock);
    return result;
}

/* ---- a lease */

static int stale(struct capture_error_info *error, const char *why) {
    return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_STALE", "%s", why);
}

static int not_ours(struct capture_error_info *error, const char *field) {
    return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_NOT_OURS", "the lease's %s is another than this agent's", field);
}

static int check_subject(const struct capture_authority *authority, const struct lease *lease, const struct challenge *challenge,
                         struct capture_error_info *error) {
    if (!wire_equal(lease->agent_id, authority->agent_id, strlen(authority->agent_id)))
        return not_ours(error, "agent_id");
    if (!wire_equal(lease->ak_name, authority->ak_name, AK_NAME_BYTES))
        return not_ours(error, "ak_name");
    if (!wire_equal(lease->tls_spki_sha256, challenge->tls_spki_sha256, DIGEST_BYTES))
        return not_ours(error, "tls_spki_sha256");
    if (!wire_equal(lease->firmware_sha256, authority->firmware_sha256, DIGEST_BYTES))
        return not_ours(error, "firmware_sha256");
    return wire_equal(lease->session_id, authority->session_id, SESSION_BYTES) ? CAPTURE_OK : not_ours(error, "session_id");
}

static int check_order(const struct capture_authority *authority, const struct lease *lease, struct capture_error_info *error) {
    if (lease->sequence <= authority->sequence)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_STALE",
                            "the lease's sequence is %" PRIu64 "; above %" PRIu64 " is accepted", lease->sequence,
                            authority->sequence);
    if (lease->audit_sequence < authority->audit_sequence)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "AUDIT_TRUNCATED",
                            "the lease's audit_sequence is %" PRIu64 "; %" PRIu64 " was seen before: the log was cut",
                            lease->audit_sequence, authority->audit_sequence);
    if (lease->audit_sequence == authority->audit_sequence && authority->audit_known &&
        !wire_equal(lease->audit_head, authority->audit_head, DIGEST_BYTES))
        return capture_fail(error, CAPTURE_ERR_REFUSED, "AUDIT_TRUNCATED",
                            "the audit head at sequence %" PRIu64 " is another than before: the log was rewritten",
                            lease->audit_sequence);
    return CAPTURE_OK;
}

/* Everything that follows from what was seen before; *challenge is the lease's. */
static int judge_lease(struct capture_authority *authority, const struct lease *lease, uint64_t now_ns,
                       struct challenge **challenge, uint64_t *end_ns, struct capture_error_info *error) {
    const struct held_lease *held = &authority->current;
    bool shortens = held->bytes && wire_equal(lease->nonce, held->challenge.nonce, NONCE_BYTES);
    *challenge = shortens ? &authority->current.challenge : find_challenge(authority, lease->nonce.data);
    if (!*challenge || (!shortens && (*challenge)->leased))
        return stale(error, "the lease's nonce is of no challenge that was noted and has no lease yet");
    int result = check_subject(authority, lease, *challenge, error);
    if (result == CAPTURE_OK)
        result = check_order(authority, lease, error);
    if (result != CAPTURE_OK)
        return result;
    *end_ns = (*challenge)->boottime_ns + lease->duration_ns;
    if (shortens && *end_ns >= held->end_ns)
        return stale(error, "the nonce has a lease: only one that ends earlier is accepted for it");
    if (!shortens && *end_ns <= now_ns)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_EXPIRED",
                            "the lease ended %" PRIu64 " ms ago, counted from its challenge", (now_ns - *end_ns) / 1000000);
    return CAPTURE_OK;
}

/* After a time without a lease what was granted before is over, and workers must throw away what came meanwhile: they see the new
 * spell at the latest with the new end. */
static void put_in_force(struct capture_authority *authority, struct held_lease *lease, uint64_t now_ns) {
    if (now_ns >= authority->end_ns && lease->end_ns > now_ns) {
        authority_drop_grants(authority);
        atomic_fetch_add(&authority->spells, 1);
    }
    free_lease(&authority->previous);
    authority->previous = authority->current;
    authority->current = *lease;
    authority->sequence = lease->lease.sequence;
    authority->audit_sequence = lease->lease.audit_sequence;
    memcpy(authority->audit_head, lease->lease.audit_head.data, DIGEST_BYTES);
    authority->audit_known = true;
    atomic_store_explicit(&authority->end_ns, lease->end_ns, memory_order_release);
}

/* The lease's own copy of its bytes. */
static int read_lease(const struct capture_authority *authority, struct wire_bytes bytes, struct wire_bytes signature,
                      struct held_lease *out, struct capture_error_info *error) {
    enum signature_verdict verdict = signature_verify(authority->public_key, signature, lease_tag, &bytes, 1);
    if (verdict == SIGNATURE_FAILED)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "the lease's signature could not be checked");
    if (verdict == SIGNATURE_INVALID)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_SIGNATURE_INVALID",
                            "the lease is not signed with the fleet's command key");
    *out = (struct held_lease){.bytes = malloc(bytes.length ? bytes.length : 1)};
    if (!out->bytes)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for a lease could not be allocated", bytes.length);
    memcpy(out->bytes, bytes.data, bytes.length);
    if (!lease_parse((struct wire_bytes){out->bytes, bytes.length}, &out->lease))
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID", "lease: its bytes are not a Lease message");
    return lease_check(&out->lease, error);
}

static void describe(const struct capture_authority *authority, struct capture_lease *out) {
    const struct held_lease *held = &authority->current;
    *out = (struct capture_lease){
        .sequence = held->bytes ? held->lease.sequence : 0,
        .quoted_ns = held->challenge.boottime_ns,
        .end_ns = held->end_ns,
        .in_force = authority_in_force(authority),
    };
}

int capture_authority_accept_lease(capture_authority_t *authority, const uint8_t *lease, uint64_t length,
                                   const uint8_t *signature, uint64_t signature_length, struct capture_lease *out,
                                   struct capture_error_info *error) {
    struct held_lease fresh = {0};
    struct challenge *challenge;
    if (length > LEASE_BYTES_MAX)
        return capture_fail(error, CAPTURE_ERR_REFUSED, "LEASE_INVALID", "lease: %" PRIu64 " bytes; at most %d are accepted",
                            length, LEASE_BYTES_MAX);
    int result = read_lease(authority, (struct wire_bytes){lease, length}, (struct wire_bytes){signature, signature_length},
                            &fresh, error);
    pthread_mutex_lock(&authority->lock);
    uint64_t now_ns = authority->clock();
    if (result == CAPTURE_OK)
        result = judge_lease(authority, &fresh.lease, now_ns, &challenge, &fresh.end_ns, error);
    if (result == CAPTURE_OK) {
        challenge->leased = true;
        fresh.challenge = *challenge;
        put_in_force(authority, &fresh, now_ns);
        describe(authority, out);
    }
    pthread_mutex_unlock(&authority->lock);
    if (result != CAPTURE_OK)
        free_lease(&fresh);
    return result;
}

int capture_authority_get_lease(capture_authority_t *authority, struct capture_lease *out) {
    pthread_mutex_lock(&authority->lock);
    describe(authority, out);
    pthread_mutex_unlock(&authority->lock);
    return CAPTURE_OK;
}
