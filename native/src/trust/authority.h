/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may have packets looked at, and until when: the inside of capture_authority_t (jarvis_capture.h has the whole story).
 *
 *   note_challenge (CLOCK_BOOTTIME taken here) → the controller judges the quote → accept_lease → admit → capture_start, readers
 *
 * Who touches what
 *   lock      everything but the two atomics
 *   end_ns    written under the lock; read by every worker once a batch, by readers once a call
 *   spells    likewise; what waits in a ring when it changes may have come while no lease was in force: see worker.c
 */
#ifndef JARVIS_AUTHORITY_H
#define JARVIS_AUTHORITY_H

#include <pthread.h>
#include <stdatomic.h>

#include "jarvis_capture.h"
#include "trust/lease.h"
#include "trust/signature.h"
#include "trust/used_ids.h"

enum {
    AUTHORITY_CHALLENGES = 32, /* quotes whose lease may still come; a controller has one or two under way */
    AUTHORITY_GRANTS = 16,     /* admitted commands that are yet to be carried out */
    PAYLOAD_BYTES_MAX = 1 << 20,
};

struct challenge {
    uint8_t nonce[NONCE_BYTES], tls_spki_sha256[DIGEST_BYTES];
    uint64_t boottime_ns; /* when it was noted; 0: an unused place */
    bool leased;          /* its lease came */
};

/* A lease that was accepted. */
struct held_lease {
    uint8_t *bytes;     /* its own copy; NULL: none */
    struct lease lease; /* points into `bytes` */
    struct challenge challenge;
    uint64_t end_ns;
    struct used_ids used;
};

enum grant_kind { GRANT_NONE = 0, GRANT_START = 1, GRANT_INTERFACES = 2 };

struct grant {
    enum grant_kind kind;
    uint8_t *payload;
    size_t length;
    uint64_t added; /* GRANT_INTERFACES: those of the request that were added, a bit each */
};

struct capture_authority {
    _Atomic uint64_t end_ns; /* CLOCK_BOOTTIME; 0: there never was a lease */
    _Atomic uint64_t spells; /* times that a lease came into force when none was */
    atomic_uint references;
    uint64_t (*clock)(void); /* CLOCK_BOOTTIME; the tests' own */

    uint8_t public_key[PUBLIC_KEY_BYTES];
    char agent_id[33];
    uint8_t session_id[SESSION_BYTES], ak_name[AK_NAME_BYTES], firmware_sha256[DIGEST_BYTES];

    pthread_mutex_t lock;
    uint64_t sequence, audit_sequence; /* the highest seen: nothing goes back */
    uint8_t audit_head[DIGEST_BYTES];
    bool audit_known;
    struct challenge challenges[AUTHORITY_CHALLENGES];
    uint32_t next_challenge;
    struct held_lease current, previous;
    struct grant grants[AUTHORITY_GRANTS];
    uint32_t next_grant;
};

/* Any thread; two loads and a look at the clock. */
static inline bool authority_in_force(const struct capture_authority *authority) {
    uint64_t end_ns = atomic_load_explicit(&authority->end_ns, memory_order_acquire);
    return authority->clock() < end_ns;
}

static inline uint64_t authority_spells(const struct capture_authority *authority) {
    return atomic_load_explicit(&authority->spells, memory_order_acquire);
}

struct capture_authority *authority_hold(struct capture_authority *authority);

/* The right to start a capture of this configuration: takes the admitted StartCapture with these payload bytes, so that it serves
 * once. CAPTURE_ERR_LEASE or CAPTURE_ERR_REFUSED without. Any thread. */
int authority_take_start(struct capture_authority *authority, struct wire_bytes request, const struct capture_config *config,
                         struct capture_error_info *error);

/* Likewise to add an interface: each that an admitted UpdateInterfaces names, once. */
int authority_take_interface(struct capture_authority *authority, const char *interface, struct capture_error_info *error);

/* Forgets every grant. The caller holds the lock. */
void authority_drop_grants(struct capture_authority *authority);

/* CAPTURE_ERR_LEASE with the reason AGENT_UNATTESTED or LEASE_EXPIRED unless a lease is in force at now_ns. Holding the lock. */
int authority_require_lease(const struct capture_authority *authority, uint64_t now_ns, struct capture_error_info *error);

#endif
