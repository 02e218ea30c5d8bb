# SPDX-License-Identifier: Apache-2.0
"""Signed checkpoints: who can rewrite the whole chain still cannot make one, and cannot leave one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from jarvis.capture.v1.audit_pb2 import AuditCheckpoint
from jarvis_trust.audit import GENESIS, AuditHead
from jarvis_trust.audit_checkpoint import MAX_UNCOVERED_ENTRIES, CheckpointSigner, CheckpointVerifier
from jarvis_trust.ca import FleetCA, generate_key, identity_of_certificate, public_key_of
from jarvis_trust.errors import AuditError, IdentityError
from jarvis_trust.identities import Identity, Role

NOW_NS = int(datetime.now(UTC).timestamp()) * 10**9
CA = FleetCA.create("lab", now=datetime.now(UTC) - timedelta(days=200))


def signer_of(ca: FleetCA = CA, *, now: datetime | None = None) -> CheckpointSigner:
    key = generate_key()
    return CheckpointSigner(key + ca.issue_audit_signer("main", public_key_of(key), timedelta(days=10), now=now))


SIGNER = signer_of()


def head(sequence: int, mark: int = 0) -> AuditHead:
    return AuditHead(sequence=sequence, hash=bytes([mark]) + sequence.to_bytes(31, "big"))


def checkpoints(*sequences: int, signer: CheckpointSigner = SIGNER) -> list[AuditCheckpoint]:
    return [signer.sign(number, head(sequence), NOW_NS) for number, sequence in enumerate(sequences, start=1)]


def check(
    given: Sequence[AuditCheckpoint],
    *,
    entries: int = 10,
    mark: int = 0,
    age_ns: int = 0,
    signers: Sequence[CheckpointSigner] = (SIGNER,),
) -> int:
    """Entries that no checkpoint covers."""
    verifier = CheckpointVerifier(CA.certificate_pem)
    for signer in signers:
        verifier.trust(signer.certificate)
    for checkpoint in given:
        verifier.add(checkpoint)
    last = GENESIS
    for sequence in range(1, entries + 1):
        last = head(sequence, mark)
        verifier.entry(last, NOW_NS)
    return verifier.finish(last, NOW_NS + age_ns)


def refusal(given: Sequence[AuditCheckpoint], **options: object) -> str:
    with pytest.raises(AuditError) as refused:
        check(given, **options)  # type: ignore[arg-type]
    return refused.value.reason


def test_a_chain_with_all_its_checkpoints_holds_and_says_what_they_do_not_cover() -> None:
    assert check(checkpoints(3, 7)) == 3
    assert check([], entries=0) == 0


def test_a_chain_rewritten_throughout_does_not_fit_its_checkpoints() -> None:
    assert refusal(checkpoints(3, 7), mark=1) == "AUDIT_CHECKPOINT_MISMATCH"


def test_a_checkpoint_that_was_taken_out_is_missed_by_its_number() -> None:
    first, _, third = checkpoints(3, 5, 7)
    assert refusal([first, third]) == "AUDIT_CHECKPOINT_MISSING"


def test_a_chain_without_checkpoints_is_none_that_a_controller_leaves() -> None:
    assert check([], entries=MAX_UNCOVERED_ENTRIES) == MAX_UNCOVERED_ENTRIES
    assert refusal([], entries=MAX_UNCOVERED_ENTRIES + 1) == "AUDIT_CHECKPOINT_MISSING"
    assert refusal([], age_ns=3 * 3600 * 10**9) == "AUDIT_CHECKPOINT_MISSING"
    assert check(checkpoints(10), age_ns=3 * 3600 * 10**9) == 0, "what is covered may be of any age"


def test_a_chain_that_ends_before_its_last_checkpoint_was_cut() -> None:
    assert refusal(checkpoints(3, 11)) == "AUDIT_TRUNCATED"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: setattr(one, "sequence", one.sequence - 1),
        lambda one: setattr(one, "hash", bytes(32)),
        lambda one: setattr(one, "signature", b""),
        lambda one: one.time.FromNanoseconds(NOW_NS + 1),
        lambda one: one.time.FromNanoseconds(NOW_NS - 86400 * 10**9),
        lambda one: setattr(one.time, "seconds", -(2**62)),
        lambda one: setattr(one, "hash", b"short"),
    ],
)
def test_no_field_of_a_checkpoint_can_be_changed(spoil: Callable[[AuditCheckpoint], object]) -> None:
    given = checkpoints(3, 7)
    spoil(given[1])
    assert refusal(given) == "AUDIT_CHECKPOINT_INVALID"


def test_a_checkpoint_does_not_pass_for_another_of_the_same_place() -> None:
    given = checkpoints(3, 7)
    given[1].number = 3
    assert refusal(given) == "AUDIT_CHECKPOINT_MISSING"
    renumbered = [SIGNER.sign(2, head(7), NOW_NS)]
    renumbered[0].number = 1
    assert refusal(renumbered) == "AUDIT_CHECKPOINT_INVALID"


def test_only_a_key_that_the_fleets_ca_certified_for_this_signs() -> None:
    stranger = signer_of(FleetCA.create("lab"))
    assert refusal(checkpoints(3, signer=stranger), signers=(stranger,)) == "AUDIT_SIGNER_UNTRUSTED"
    assert refusal(checkpoints(3, signer=stranger)) == "AUDIT_SIGNER_UNTRUSTED"
    key = generate_key()
    controller = Identity(fleet="lab", role=Role.CONTROLLER, name="main")
    tls = CheckpointSigner(key + CA.issue(controller, public_key_of(key), timedelta(days=1)))
    assert refusal(checkpoints(3, signer=tls), signers=(tls,)) == "AUDIT_SIGNER_UNTRUSTED", "a TLS key signs no checkpoint"


def test_checkpoints_outlive_the_certificate_that_they_were_signed_under() -> None:
    old = signer_of(now=datetime.now(UTC) - timedelta(days=100))
    then = NOW_NS - 95 * 86400 * 10**9
    given = [old.sign(1, head(3), then), SIGNER.sign(2, head(7), NOW_NS)]
    assert check(given, signers=(old, SIGNER)) == 3
    given[0] = old.sign(1, head(3), NOW_NS)
    assert refusal(given, signers=(old, SIGNER)) == "AUDIT_CHECKPOINT_INVALID", "but sign nothing after its end"


def test_the_audit_certificate_is_nobody_on_a_connection() -> None:
    with pytest.raises(IdentityError):
        identity_of_certificate(SIGNER.certificate)


def test_a_key_that_is_not_that_of_its_certificate_is_refused() -> None:
    key = generate_key()
    certificate = CA.issue_audit_signer("main", public_key_of(key), timedelta(days=10))
    with pytest.raises(IdentityError):
        CheckpointSigner(generate_key() + certificate)
    with pytest.raises(IdentityError):
        CheckpointSigner(key)
