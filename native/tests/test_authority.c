/* SPDX-License-Identifier: Apache-2.0 */
/* Leases and commands as the core judges them, under a clock that the test holds; signed as the controller signs. */
#include "signed_vectors.h"
#include "signer.h"

static const char id_one[] = "01234567-89ab-cdef-0123-456789abcdef", id_two[] = "01234567-89ab-cdef-0123-456789abcde0";

static uint64_t end_of(capture_authority_t *authority) {
    struct capture_lease lease;
    CHECK_EQUAL(CAPTURE_OK, capture_authority_get_lease(authority, &lease));
    CHECK_EQUAL(lease.in_force, authority_in_force(authority));
    return lease.end_ns;
}

static void check_refused(const char *reason, int code) {
    CHECK_EQUAL(CAPTURE_ERR_REFUSED, code);
    CHECK_TEXT(reason, refusal.field);
    CHECK(refusal.message[0] != '\0');
}

/* ---- leases */

static void what_the_controllers_signer_wrote_is_taken(void) {
    capture_authority_t *authority = authority_of(NULL);
    struct capture_lease lease;
    CHECK_EQUAL(CAPTURE_OK, note(authority, 7));
    CHECK_EQUAL(CAPTURE_OK, capture_authority_accept_lease(authority, vector_lease, sizeof(vector_lease), vector_signature,
                                                           sizeof(vector_signature), &lease, &refusal));
    CHECK_EQUAL(7, lease.sequence);
    CHECK_EQUAL(boottime + 10 * SECONDS, lease.end_ns);
    CHECK_EQUAL(CAPTURE_OK, capture_authority_admit(authority, list_flows, (const uint8_t *)"\x0a", 2, vector_authorization,
                                                    sizeof(vector_authorization), &refusal));
    capture_authority_release(authority);
}

static void a_lease_counts_from_its_challenge_and_ends_on_the_very_nanosecond(void) {
    capture_authority_t *authority = authority_of(NULL);
    uint64_t noted = boottime;
    CHECK(!authority_in_force(authority));
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    boottime += 4 * SECONDS;
    CHECK_EQUAL(CAPTURE_OK, give(authority, (struct lease_fields){.nonce = 1, .sequence = 1, .duration_ns = 10 * SECONDS}));
    CHECK_EQUAL(noted + 10 * SECONDS, end_of(authority));
    boottime = noted + 10 * SECONDS - 1;
    CHECK(authority_in_force(authority));
    boottime++;
    CHECK(!authority_in_force(authority));
    capture_authority_release(authority);
}

static void a_lease_that_comes_after_its_end_is_refused(void) {
    capture_authority_t *authority = authority_of(NULL);
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    boottime += 10 * SECONDS;
    check_refused("LEASE_EXPIRED",
                  give(authority, (struct lease_fields){.nonce = 1, .sequence = 1, .duration_ns = 10 * SECONDS}));
    CHECK_EQUAL(0, end_of(authority));
    capture_authority_release(authority);
}

static void a_changed_lease_or_signature_is_refused(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message lease;
    struct capture_lease out;
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    write_lease(&lease, (struct lease_fields){.nonce = 1, .sequence = 1, .duration_ns = SECONDS});
    struct signature signature = sign_lease(&lease);
    for (size_t at = 0; at < lease.length; at += 7) {
        lease.bytes[at] ^= 1;
        int code = capture_authority_accept_lease(authority, lease.bytes, lease.length, signature.bytes, 64, &out, &refusal);
        check_refused("LEASE_SIGNATURE_INVALID", code);
        lease.bytes[at] ^= 1;
    }
    for (size_t length = 0; length < 64; length += 21)
        check_refused("LEASE_SIGNATURE_INVALID", capture_authority_accept_lease(authority, lease.bytes, lease.length,
                                                                                signature.bytes, length, &out, &refusal));
    signature.bytes[63] ^= 0x80;
    check_refused("LEASE_SIGNATURE_INVALID",
                  capture_authority_accept_lease(authority, lease.bytes, lease.length, signature.bytes, 64, &out, &refusal));
    capture_authority_release(authority);
}

static void a_lease_for_somebody_else_is_refused(void) {
    static const uint8_t other[34] = {9};
    static const char other_agent[] = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const struct lease_fields others[] = {
        {.agent_id = other_agent}, {.ak_name = other}, {.tls_spki = other}, {.firmware_sha256 = other}, {.session_id = other},
    };
    capture_authority_t *authority = authority_of(NULL);
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
        struct lease_fields fields = others[i];
        fields.nonce = fields.sequence = 1;
        fields.duration_ns = SECONDS;
        check_refused("LEASE_NOT_OURS", give(authority, fields));
    }
    lease_for(authority, 2, SECONDS);
    capture_authority_release(authority);
}

static void a_nonce_yields_one_lease_and_a_second_one_may_only_end_it_earlier(void) {
    capture_authority_t *authority = authority_of(NULL);
    struct lease_fields fields = {.nonce = 1, .sequence = 1, .duration_ns = 10 * SECONDS};
    check_refused("LEASE_STALE", give(authority, fields));
    lease_for(authority, 1, 10 * SECONDS);
    check_refused("NONCE_REUSED", note(authority, 1));
    uint64_t end = end_of(authority);
    for (uint64_t more = 0; more < 2; more++) {
        fields.sequence = 2;
        fields.duration_ns = (10 + more) * SECONDS;
        check_refused("LEASE_STALE", give(authority, fields));
    }
    fields.duration_ns = 1;
    CHECK_EQUAL(CAPTURE_OK, give(authority, fields));
    CHECK_EQUAL(end - 10 * SECONDS + 1, end_of(authority));
    boottime += 1;
    CHECK(!authority_in_force(authority));
    lease_for(authority, 3, SECONDS);
    fields.sequence = 4; /* of a nonce whose time is over */
    check_refused("LEASE_STALE", give(authority, fields));
    capture_authority_release(authority);
}

static void sequence_and_audit_head_never_go_back_not_even_behind_an_earlier_process(void) {
    const uint8_t head[32] = {5};
    struct capture_authority_config before = {.lease_sequence = 9, .audit_sequence = 20, .audit_head = head};
    capture_authority_t *authority = authority_of(&before);
    struct lease_fields fields = {.nonce = 1, .sequence = 9, .duration_ns = SECONDS, .audit_sequence = 20, .audit_head = 5};
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    check_refused("LEASE_STALE", give(authority, fields));
    fields.sequence = 10;
    fields.audit_sequence = 19;
    check_refused("AUDIT_TRUNCATED", give(authority, fields));
    fields.audit_sequence = 20;
    fields.audit_head = 6;
    check_refused("AUDIT_TRUNCATED", give(authority, fields));
    fields.audit_head = 5;
    CHECK_EQUAL(CAPTURE_OK, give(authority, fields));
    fields.nonce = 2;
    CHECK_EQUAL(CAPTURE_OK, note(authority, 2));
    check_refused("LEASE_STALE", give(authority, fields));
    capture_authority_release(authority);
}

static void only_the_newest_challenges_may_still_get_a_lease(void) {
    capture_authority_t *authority = authority_of(NULL);
    for (uint8_t nonce = 1; nonce <= AUTHORITY_CHALLENGES + 1; nonce++)
        CHECK_EQUAL(CAPTURE_OK, note(authority, nonce));
    check_refused("LEASE_STALE", give(authority, (struct lease_fields){.nonce = 1, .sequence = 1, .duration_ns = SECONDS}));
    CHECK_EQUAL(CAPTURE_OK, give(authority, (struct lease_fields){.nonce = 2, .sequence = 1, .duration_ns = SECONDS}));
    capture_authority_release(authority);
}

static void a_lease_has_every_field_in_its_range(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message lease;
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    struct lease_fields whole = {.nonce = 1, .sequence = 1, .duration_ns = SECONDS};
    struct lease_fields none = whole, zero = whole, days = whole, agent = whole;
    none.sequence = 0;
    zero.duration_ns = 0;
    days.duration_ns = LEASE_DURATION_MAX_NS + 1;
    agent.agent_id = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const struct lease_fields bad[] = {none, zero, days, agent};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        check_refused("LEASE_INVALID", give(authority, bad[i]));
    write_lease(&lease, whole);
    put_text(&lease, 7, list_flows); /* twice */
    check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    write_lease(&lease, whole);
    put_text(&lease, 7, "StartCapture");
    check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    write_lease(&lease, whole);
    for (int i = 0; i < LEASE_METHODS_MAX; i++)
        put_text(&lease, 7, list_flows);
    check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    capture_authority_release(authority);
}

static void a_field_has_one_spelling_and_unknown_ones_are_skipped(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message lease;
    static const struct {
        const char *bytes;
        size_t length;
    } endings[] = {
        {"\x40\x02", 2},                                          /* sequence again */
        {"\x62\x00", 2},                                          /* nonce again */
        {"\x6d\x00\x00\x00\x00", 5},                              /* issue_time as fixed32 */
        {"\x6a\x02\x08\x80", 4},                                  /* issue_time that is cut */
        {"\x73\x74", 2},                                          /* a group */
        {"\x00", 1},                                              /* field 0 */
        {"\x70", 1},                                              /* a field without a value */
        {"\x72\x05", 2},                                          /* fewer bytes than said */
        {"\x70\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11},     /* more than 64 bits */
        {"\x70\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 12}, /* eleven bytes */
    };
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    struct lease_fields whole = {.nonce = 1, .sequence = 1, .duration_ns = SECONDS};
    for (size_t i = 0; i < sizeof(endings) / sizeof(*endings); i++) {
        write_lease(&lease, whole);
        memcpy(lease.bytes + lease.length, endings[i].bytes, endings[i].length);
        lease.length += endings[i].length;
        check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    }
    write_lease(&lease, whole);
    put_bytes(&lease, 13, "\x08\x01", 2);
    put_number(&lease, 14, 1);
    put_text(&lease, 5000, "of a later release");
    CHECK_EQUAL(CAPTURE_OK, accept_bytes(authority, &lease));
    capture_authority_release(authority);
}

static void a_lease_names_up_to_64_collectors_of_100_characters(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message lease;
    char entry[LEASE_COLLECTOR_CHARACTERS_MAX + 2];
    memset(entry, 'c', sizeof(entry));
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    struct lease_fields whole = {.nonce = 1, .sequence = 1, .duration_ns = SECONDS};
    const struct {
        const char *data;
        size_t length;
    } bad[] = {{entry, LEASE_COLLECTOR_CHARACTERS_MAX + 1}, {"", 0}, {"two words", 9}, {"\xff", 1}, {"\x7f", 1}, {"a\0b", 3}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        write_lease(&lease, whole);
        put_bytes(&lease, 15, bad[i].data, bad[i].length);
        check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    }
    write_lease(&lease, whole);
    put_number(&lease, 15, 1);
    check_refused("LEASE_INVALID", accept_bytes(authority, &lease));
    write_lease(&lease, whole);
    for (int i = 0; i < LEASE_COLLECTORS_MAX; i++)
        put_bytes(&lease, 15, entry, LEASE_COLLECTOR_CHARACTERS_MAX);
    CHECK(lease.length < LEASE_BYTES_MAX);
    struct message one_more = lease;
    put_text(&one_more, 15, "one.more");
    check_refused("LEASE_INVALID", accept_bytes(authority, &one_more));
    CHECK_EQUAL(CAPTURE_OK, accept_bytes(authority, &lease));
    capture_authority_release(authority);
}

static void a_lease_of_more_than_16_kib_is_not_even_hashed(void) {
    capture_authority_t *authority = authority_of(NULL);
    static const uint8_t zeros[LEASE_BYTES_MAX + 1];
    struct capture_lease out;
    check_refused("LEASE_INVALID", capture_authority_accept_lease(authority, zeros, sizeof(zeros), zeros, 64, &out, &refusal));
    check_refused("LEASE_SIGNATURE_INVALID",
                  capture_authority_accept_lease(authority, zeros, sizeof(zeros) - 1, zeros, 64, &out, &refusal));
    capture_authority_release(authority);
}

/* ---- commands */

static void a_command_needs_a_lease_that_is_in_force_and_allows_its_method(void) {
    capture_authority_t *authority = authority_of(NULL);
    CHECK_EQUAL(CAPTURE_ERR_LEASE, admit(authority, command_under(1, list_flows, id_one)));
    CHECK_TEXT("AGENT_UNATTESTED", refusal.field);
    CHECK_EQUAL(CAPTURE_OK, note(authority, 1));
    CHECK_EQUAL(CAPTURE_OK, give(authority, (struct lease_fields){
                                                .nonce = 1, .sequence = 1, .duration_ns = 10 * SECONDS, .reads_only = true}));
    check_refused("LEASE_METHOD_DENIED", admit(authority, command_under(1, start_capture, id_one)));
    CHECK_EQUAL(CAPTURE_OK, admit(authority, command_under(1, list_flows, id_one)));
    boottime += 10 * SECONDS;
    struct command_fields late = command_under(1, list_flows, id_two);
    late.expires_ns = 60 * SECONDS;
    CHECK_EQUAL(CAPTURE_ERR_LEASE, admit(authority, late));
    CHECK_TEXT("LEASE_EXPIRED", refusal.field);
    capture_authority_release(authority);
}

static void a_command_expires_counted_from_the_challenge_of_its_lease(void) {
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 60 * SECONDS);
    boottime += 5 * SECONDS - 1;
    CHECK_EQUAL(CAPTURE_OK, admit(authority, command_under(1, list_flows, id_one)));
    boottime += 1;
    check_refused("COMMAND_EXPIRED", admit(authority, command_under(1, list_flows, id_two)));
    capture_authority_release(authority);
}

static void what_the_signature_covers_cannot_be_exchanged(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message authorization;
    lease_for(authority, 1, 60 * SECONDS);
    write_command(&authorization, command_under(1, list_flows, id_one));
    check_refused("COMMAND_SIGNATURE_INVALID", admit_as(authority, &authorization, start_capture, "", 0));
    check_refused("COMMAND_SIGNATURE_INVALID", admit_as(authority, &authorization, list_flows, "x", 1));
    for (size_t at = 1; at < authorization.length; at += 5) {
        authorization.bytes[at] ^= 1;
        CHECK_EQUAL(CAPTURE_ERR_REFUSED, admit_as(authority, &authorization, list_flows, "", 0));
        authorization.bytes[at] ^= 1;
    }
    CHECK_EQUAL(CAPTURE_OK, admit_as(authority, &authorization, list_flows, "", 0));
    capture_authority_release(authority);
}

static void a_command_has_every_field_in_its_range(void) {
    capture_authority_t *authority = authority_of(NULL);
    static const char *const principals[] = {
        "",
        "spiffe://lab.example/agent/short",
        "spiffe://Lab.example/controller/main",
        "spiffe://lab.example/operator/root/ada",
        "spiffe://lab..example/controller/main",
        "spiffe://lab.example/operator/admin/.ada",
        "spiffe://lab.example/controller/main/",
    };
    struct command_fields fields;
    lease_for(authority, 1, 60 * SECONDS);
    for (size_t i = 0; i < sizeof(principals) / sizeof(*principals); i++) {
        fields = command_under(1, list_flows, id_one);
        fields.principal = principals[i];
        check_refused("COMMAND_INVALID", admit(authority, fields));
    }
    check_refused("COMMAND_INVALID", admit(authority, command_under(0, list_flows, id_one)));
    check_refused("COMMAND_INVALID", admit(authority, command_under(1, list_flows, "01234567-89AB-cdef-0123-456789abcdef")));
    check_refused("COMMAND_INVALID", admit(authority, command_under(1, "ListFlows", id_one)));
    fields = command_under(1, list_flows, id_one);
    fields.expires_ns = 0;
    check_refused("COMMAND_INVALID", admit(authority, fields));
    fields.expires_ns = LEASE_DURATION_MAX_NS + 1;
    check_refused("COMMAND_INVALID", admit(authority, fields));
    capture_authority_release(authority);
}

static void a_request_id_serves_once_under_a_lease(void) {
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 60 * SECONDS);
    struct command_fields fields = command_under(1, list_flows, id_one);
    CHECK_EQUAL(CAPTURE_OK, admit(authority, fields));
    CHECK_EQUAL(CAPTURE_COMMAND_REPEATED, admit(authority, fields));
    fields.payload = "x";
    fields.payload_length = 1;
    check_refused("REQUEST_ID_REUSED", admit(authority, fields));
    CHECK_EQUAL(CAPTURE_OK, admit(authority, command_under(1, start_capture, id_one)));
    capture_authority_release(authority);
}

static void the_lease_before_still_covers_a_command_and_older_ones_do_not(void) {
    capture_authority_t *authority = authority_of(NULL);
    lease_for(authority, 1, 60 * SECONDS);
    lease_for(authority, 2, 60 * SECONDS);
    CHECK_EQUAL(CAPTURE_OK, admit(authority, command_under(1, list_flows, id_one)));
    lease_for(authority, 3, 60 * SECONDS);
    check_refused("LEASE_STALE", admit(authority, command_under(1, list_flows, id_two)));
    check_refused("LEASE_STALE", admit(authority, command_under(4, list_flows, id_two)));
    capture_authority_release(authority);
}

static void used_ids_are_told_apart_and_bounded(void) {
    struct used_ids used = {0};
    for (uint32_t i = 0; i < USED_IDS_MAX; i++) {
        struct used_id id = {0};
        memcpy(id.key + (i < 512 ? 8 : 0), &i, sizeof(i)); /* the first ones hash alike */
        CHECK_EQUAL(USED_NEW, used_ids_note(&used, &id));
    }
    struct used_id again = {0}, fresh = {.key = {0xff, 0xff, 0xff, 0xff}};
    memcpy(again.key, &(uint32_t){512}, sizeof(uint32_t));
    CHECK_EQUAL(USED_SAME, used_ids_note(&used, &again));
    again.digest[15] = 1;
    CHECK_EQUAL(USED_OTHER, used_ids_note(&used, &again));
    CHECK_EQUAL(USED_FULL, used_ids_note(&used, &fresh));
    used_ids_free(&used);
}

/* ---- what an admitted command entitles to */

static int take_start(capture_authority_t *authority, const struct message *request, const char *interface, const char *filter) {
    struct capture_config config = {.interface = interface, .filter = filter};
    refusal = (struct capture_error_info){0};
    return authority_take_start(authority, (struct wire_bytes){request->bytes, request->length}, &config, &refusal);
}

static void an_admitted_start_serves_one_capture_of_its_interface_and_filter(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message request, other;
    write_start(&request, "eth0", "port 53");
    write_start(&other, "eth1", "port 53");
    lease_for(authority, 1, 60 * SECONDS);
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &request, "eth0", "port 53"));
    order_start(authority, 1, id_one, &request);
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &other, "eth1", "port 53"));
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &request, "eth1", "port 53"));
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &request, "eth0", NULL));
    CHECK_EQUAL(CAPTURE_OK, take_start(authority, &request, "eth0", "port 53"));
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &request, "eth0", "port 53"));
    capture_authority_release(authority);
}

static void what_was_granted_outlives_a_renewal_but_no_time_without_a_lease(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message request;
    write_start(&request, "eth0", "");
    lease_for(authority, 1, 10 * SECONDS);
    order_start(authority, 1, id_one, &request);
    order_start(authority, 1, id_two, &request);
    lease_for(authority, 2, 10 * SECONDS);
    CHECK_EQUAL(CAPTURE_OK, take_start(authority, &request, "eth0", NULL));
    boottime += 10 * SECONDS;
    CHECK_EQUAL(CAPTURE_ERR_LEASE, take_start(authority, &request, "eth0", NULL));
    lease_for(authority, 3, 10 * SECONDS);
    check_refused("CAPTURE_NOT_COMMANDED", take_start(authority, &request, "eth0", NULL));
    capture_authority_release(authority);
}

static void an_admitted_update_adds_each_interface_that_it_names_once(void) {
    capture_authority_t *authority = authority_of(NULL);
    static struct message request;
    request.length = 0;
    put_text(&request, 1, "eth1");
    put_text(&request, 1, "pcap:trace");
    put_text(&request, 2, "eth3");
    lease_for(authority, 1, 60 * SECONDS);
    check_refused("CAPTURE_NOT_COMMANDED", authority_take_interface(authority, "eth1", &refusal));
    struct command_fields command = command_under(1, update_interfaces, id_one);
    command.payload = request.bytes;
    command.payload_length = request.length;
    CHECK_EQUAL(CAPTURE_OK, admit(authority, command));
    CHECK_EQUAL(CAPTURE_OK, authority_take_interface(authority, "eth1", &refusal));
    CHECK_EQUAL(CAPTURE_OK, authority_take_interface(authority, "pcap:/replays/trace", &refusal));
    check_refused("CAPTURE_NOT_COMMANDED", authority_take_interface(authority, "eth1", &refusal));
    check_refused("CAPTURE_NOT_COMMANDED", authority_take_interface(authority, "eth3", &refusal));
    capture_authority_release(authority);
}

static void an_authority_names_the_field_that_it_lacks(void) {
    capture_authority_t *authority;
    struct capture_authority_config config = {.struct_size = sizeof(config)};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_authority_create(&config, &authority, &refusal));
    CHECK_TEXT("agent_id", refusal.field);
    config.agent_id = agent_id;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_authority_create(&config, &authority, &refusal));
    CHECK_TEXT("command_public_key", refusal.field);
    capture_authority_release(NULL);
}

int main(void) {
    RUN(what_the_controllers_signer_wrote_is_taken);
    RUN(a_lease_counts_from_its_challenge_and_ends_on_the_very_nanosecond);
    RUN(a_lease_that_comes_after_its_end_is_refused);
    RUN(a_changed_lease_or_signature_is_refused);
    RUN(a_lease_for_somebody_else_is_refused);
    RUN(a_nonce_yields_one_lease_and_a_second_one_may_only_end_it_earlier);
    RUN(sequence_and_audit_head_never_go_back_not_even_behind_an_earlier_process);
    RUN(only_the_newest_challenges_may_still_get_a_lease);
    RUN(a_lease_has_every_field_in_its_range);
    RUN(a_field_has_one_spelling_and_unknown_ones_are_skipped);
    RUN(a_lease_names_up_to_64_collectors_of_100_characters);
    RUN(a_lease_of_more_than_16_kib_is_not_even_hashed);
    RUN(a_command_needs_a_lease_that_is_in_force_and_allows_its_method);
    RUN(a_command_expires_counted_from_the_challenge_of_its_lease);
    RUN(what_the_signature_covers_cannot_be_exchanged);
    RUN(a_command_has_every_field_in_its_range);
    RUN(a_request_id_serves_once_under_a_lease);
    RUN(the_lease_before_still_covers_a_command_and_older_ones_do_not);
    RUN(used_ids_are_told_apart_and_bounded);
    RUN(an_admitted_start_serves_one_capture_of_its_interface_and_filter);
    RUN(what_was_granted_outlives_a_renewal_but_no_time_without_a_lease);
    RUN(an_admitted_update_adds_each_interface_that_it_names_once);
    RUN(an_authority_names_the_field_that_it_lacks);
    return 0;
}
