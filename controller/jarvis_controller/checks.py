# SPDX-License-Identifier: Apache-2.0
"""The checks of evidence, each a function over a Case that raises when it does not hold, and their table in order.

    Case (case.py: what the evidence says) -> a check judges one thing and establishes nothing for those after it

Any TrustError is a check's failure; NotEvaluatedError says that it could not be judged, which passes nothing either. Each check
holds against something that no other does: a test takes them out of the table one by one and sees it get through.

These reach assurance level L1: the firmware's own measurements, quoted by a TPM whose EK was proved at enrolment. A rooted host
that extends good digests without loading what they name is not found out by them. Those of measured boot (boot_checks.py) are put
between them where the fleet demands L2.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis_trust.boot_log import MAX_BOOT_LOG_BYTES
from jarvis_trust.errors import AttestationError, Finding
from jarvis_trust.eventlog import MAX_LOG_BYTES, FirmwareEvent, replay
from jarvis_trust.firmware import MANIFEST_FILE, MAX_MANIFEST_BYTES, verify_manifest
from jarvis_trust.ima_log import MAX_IMA_LOG_BYTES
from jarvis_trust.release_signatures import MAX_SIGNATURES_BYTES
from jarvis_trust.tpm_structures import (
    ALG_SHA256,
    MAX_ATTEST_BYTES,
    MAX_SIGNATURE_BYTES,
    TPM_GENERATED,
    TPM_ST_ATTEST_QUOTE,
    qualified_name,
)
from jarvis_trust.tpm_templates import check_ak_template

from jarvis_controller.case import FIRMWARE_OBJECT, Case, NotEvaluatedError, established

_MAGIC_WRONG = "ATTEST_MAGIC_WRONG"
_TYPE_WRONG = "ATTEST_TYPE_WRONG"
_PCRS_MAX = 24


def _size(case: Case) -> None:
    evidence = case.evidence
    for name, size, most in (
        ("attest", len(evidence.attest), MAX_ATTEST_BYTES),
        ("signature", len(evidence.signature), MAX_SIGNATURE_BYTES),
        ("event_log", len(evidence.event_log), MAX_LOG_BYTES),
        ("boot_log", len(evidence.boot_log), MAX_BOOT_LOG_BYTES),
        ("ima_log", len(evidence.ima_log), MAX_IMA_LOG_BYTES),
        ("manifest", len(evidence.manifest), MAX_MANIFEST_BYTES),
        ("manifest_signature", len(evidence.manifest_signature), MAX_SIGNATURES_BYTES),
        ("pcrs", len(evidence.pcrs), _PCRS_MAX),
    ):
        if size > most:
            raise AttestationError("EVIDENCE_TOO_LARGE", f"{name}: {size}; at most {most} is accepted")
    for name, value in (("boot_id", evidence.boot_id), ("session_id", evidence.session_id)):
        if len(value) != 16:
            raise AttestationError("EVIDENCE_MALFORMED", f"{name}: {len(value)} bytes; 16 are accepted")


def _structure(case: Case) -> None:
    case.after("size")
    others = {_MAGIC_WRONG, _TYPE_WRONG}
    malformed = [violation for violation in case.attest.violations if violation.reason not in others]
    if not malformed:
        return
    if len(malformed) < len(case.attest.violations):
        raise NotEvaluatedError("attest is not a quote: see magic and type")
    raise malformed[0]


def _challenge(case: Case) -> None:
    problem = case.challenge.problem
    if problem:
        raise AttestationError(problem, "the challenge is " + problem.removeprefix("CHALLENGE_").replace("_", " ").lower())
    if case.challenge.agent_id != case.record.agent_id:
        raise AttestationError("CHALLENGE_OF_ANOTHER_AGENT", f"it was put to agent {case.challenge.agent_id}")


def _ak(case: Case) -> None:
    if not hmac.compare_digest(case.ak.name, case.record.ak_name):
        raise AttestationError("AK_MISMATCH", "the stored attestation key does not have the stored Name")
    check_ak_template(case.ak)


def _scheme(case: Case) -> None:
    hash_algorithm, _ = case.signature
    if hash_algorithm != ALG_SHA256:
        raise AttestationError(
            "SIGNATURE_SCHEME", f"signature uses hash {hash_algorithm:#06x}; the AK's SHA-256 (0x000b) is accepted"
        )


def _signature(case: Case) -> None:
    case.after("ak", "signature-scheme")
    key = established("ak", lambda: case.ak).key
    _, der = established("signature-scheme", lambda: case.signature)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AttestationError("SIGNATURE_SCHEME", "the AK is not an ECDSA key")
    try:
        # Over the bytes as received: a second encoding could be of something else.
        key.verify(der, case.evidence.attest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AttestationError("SIGNATURE_INVALID", "the quote is not signed by the attestation key of record") from error


def _magic(case: Case) -> None:
    case.after("size")
    found = case.evidence.attest[:4]
    if found != TPM_GENERATED.to_bytes(4, "big"):
        raise AttestationError(_MAGIC_WRONG, f"attest starts with {found.hex()}; ff544347 marks what a TPM made itself")


def _type(case: Case) -> None:
    case.after("size")
    found = case.evidence.attest[4:6]
    if found != TPM_ST_ATTEST_QUOTE.to_bytes(2, "big"):
        raise AttestationError(_TYPE_WRONG, f"attest is of type {found.hex()}; 8018 is a quote")


def _qualified_signer(case: Case) -> None:
    case.after("ak")
    name = established("ak", lambda: case.ak).name
    if not hmac.compare_digest(case.quote.qualified_signer, qualified_name(name)):
        raise AttestationError("QUALIFIED_SIGNER_MISMATCH", "the signer is not the AK of record in the endorsement hierarchy")


def _qualifying_data(case: Case) -> None:
    if not case.record.tls_spkis:
        raise AttestationError("NONCE_MISMATCH", "no certificate is on record for this agent")
    if case.bound_spki is None:
        raise AttestationError(
            "NONCE_MISMATCH",
            "extraData is not that of this challenge, these TLS keys, this agent, boot, session, manifest and event log",
        )


def _channel(case: Case) -> None:
    shown = case.policy.agent_spki
    if shown is None:
        return  # direct carrier: which key answered cannot be seen, and the agent is shown as unbound
    case.after("qualifying-data")
    bound = case.bound_spki
    if bound is None:
        raise NotEvaluatedError("needs qualifying-data, which did not pass")
    if not hmac.compare_digest(bound, shown):
        raise AttestationError(
            "CHANNEL_KEY_MISMATCH",
            f"the quote binds the TLS key {bound.hex()}; the connection that it came over showed {shown.hex()}",
        )


def _pcr_selection(case: Case) -> None:
    quote, wanted = case.quote, case.challenge.pcrs
    if not wanted or case.policy.pcr not in wanted:
        raise NotEvaluatedError("the challenge names no PCRs")
    if quote.pcr_bank != ALG_SHA256:
        raise AttestationError("PCR_SELECTION_MISMATCH", f"bank {quote.pcr_bank:#06x} was quoted; SHA-256 (0x000b) was asked for")
    if quote.pcr_indices != wanted:
        raise AttestationError(
            "PCR_SELECTION_MISMATCH", f"PCRs {list(quote.pcr_indices)} were quoted; {list(wanted)} were asked for"
        )


def _pcr_values(case: Case) -> None:
    quote = case.quote
    indices = tuple(value.index for value in case.evidence.pcrs)
    if indices != quote.pcr_indices:
        raise AttestationError(
            "PCR_VALUES_INVALID", f"values of PCRs {list(indices)} came; exactly {list(quote.pcr_indices)} are accepted"
        )
    for value in case.evidence.pcrs:
        if len(value.digest) != 32:
            raise AttestationError("PCR_VALUES_INVALID", f"PCR {value.index}: {len(value.digest)} bytes; 32 are accepted")
    digest = hashlib.sha256(b"".join(value.digest for value in case.evidence.pcrs)).digest()
    if not hmac.compare_digest(digest, quote.pcr_digest):
        raise AttestationError("PCR_MISMATCH", "the PCR values do not have the digest that the TPM signed")


def _clock(case: Case) -> None:
    quote, last = case.quote, case.record.tpm
    if last is None:
        return
    boot, last_boot = (quote.reset_count, quote.restart_count), (last.reset_count, last.restart_count)
    if boot < last_boot:
        raise AttestationError(
            "RESET_COUNT_BACKWARDS", f"(resetCount, restartCount) {boot} is below {last_boot}: a replay or a clone"
        )
    # Across a reset the clock may well go back: it is saved only now and then.
    if boot == last_boot and quote.clock <= last.clock:
        raise AttestationError("CLOCK_BACKWARDS", f"clock {quote.clock} ms is not above {last.clock} ms: a replay or a clone")


def _tpm_reset(case: Case) -> None:
    """A boot resets TPM and host: one without the other leaves PCRs that say nothing of what runs (TPM Genie)."""
    quote, last = case.quote, case.record.tpm
    if last is None or quote.reset_count <= last.reset_count or not case.record.boot_id:
        return
    if hmac.compare_digest(case.evidence.boot_id, case.record.boot_id):
        raise AttestationError(
            "TPM_RESET_WITHOUT_REBOOT",
            f"the TPM's resetCount rose from {last.reset_count} to {quote.reset_count} while the host's boot id stayed the same: "
            "the PCRs do not tell of this boot any more",
        )


def _tpm_firmware(case: Case) -> None:
    quote, last = case.quote, case.record.tpm
    if last is not None and quote.firmware_version != last.firmware_version:
        raise AttestationError(
            "TPM_FIRMWARE_CHANGED",
            f"the TPM's firmware is {quote.firmware_version:#018x}; {last.firmware_version:#018x} is on record",
        )


def _event_log(case: Case) -> None:
    events = case.events
    for event in events:
        if event.pcr != case.policy.pcr:
            raise AttestationError(
                "EVENT_LOG_MISMATCH",
                f"record {event.recnum} is of PCR {event.pcr}; firmware is measured into {case.policy.pcr}",
                finding=Finding(pcr=event.pcr, event=event.recnum, component=event.subject),
            )
    case.after("pcr-values")
    quoted = case.pcr_values.get(case.policy.pcr)
    if quoted is None:
        raise NotEvaluatedError("needs pcr-values, which did not pass")
    if not hmac.compare_digest(replay(events), quoted):
        raise AttestationError(
            "EVENT_LOG_MISMATCH",
            f"the event log's {len(events)} records do not give the quoted value of PCR {case.policy.pcr}",
            finding=Finding(pcr=case.policy.pcr),
        )


def _manifest(case: Case) -> None:
    case.after("size")
    verify_manifest(case.evidence.manifest, case.evidence.manifest_signature, case.policy.releases.root)


def _expiry(case: Case) -> None:
    case.after("manifest")
    manifest = established("manifest", lambda: case.manifest)
    releases = case.policy.releases
    releases.root.check_expiry(releases.time_ns)
    manifest.check_expiry(releases.time_ns)
    if releases.revocations is not None:
        releases.revocations.check_expiry(releases.time_ns)


def _floor(case: Case) -> None:
    case.after("manifest")
    established("manifest", lambda: case.manifest).check_floor(case.policy.firmware_floor)


def _revoked(case: Case) -> None:
    """What this release consists of, and what was measured since the TPM's reset: what ran may have changed the host."""
    revocations = case.policy.releases.revocations
    if revocations is None:
        return
    manifest = established("manifest", lambda: case.manifest)
    events = established("event-log", lambda: case.events)
    named = [(MANIFEST_FILE, hashlib.sha256(case.evidence.manifest).hexdigest()), *manifest.objects.items()]
    measured = [(event.subject, event.sha256.hex()) for event in events if event.type != "mapping"]
    revocations.check([*named, *measured])


def _version(case: Case) -> None:
    case.after("manifest")
    accepted = case.policy.firmware_versions
    version = established("manifest", lambda: case.manifest).version
    if accepted and version not in accepted:
        message = f"version {version} is not one that the policy accepts: {', '.join(sorted(accepted))}"
        raise AttestationError("FIRMWARE_VERSION_NOT_ACCEPTED", message)


def _firmware(case: Case) -> None:
    case.after("manifest")
    events = established("event-log", lambda: case.events)
    manifest = established("manifest", lambda: case.manifest)
    signed = frozenset(manifest.objects.items())
    session = (case.evidence.boot_id.hex(), case.evidence.session_id.hex())
    bad: list[FirmwareEvent] = []
    for event in events:
        if event.type == "mapping":
            continue  # listed for people; no policy judges them here
        measured = (event.subject, event.sha256.hex())
        # A trial is of another release than its process runs: it must be of a known one, like what ran before.
        is_current = event.type == "load-attempt" and (event.content["boot_id"], event.content["session_id"]) == session
        # What runs now must be what this manifest signs; what ran before may be of another good release.
        if measured not in signed and (is_current or measured not in case.policy.known_firmware):
            bad.append(event)
    if bad:
        told = ", ".join(
            f"{event.subject} was measured with SHA-256 {event.sha256.hex()} (record {event.recnum})" for event in bad
        )
        first = Finding(pcr=bad[0].pcr, event=bad[0].recnum, component=bad[0].subject)
        message = f"{told}; the signed manifest of {manifest.version} does not name it"
        raise AttestationError("FIRMWARE_UNTRUSTED_MEASUREMENT", message, finding=first)


def _session(case: Case) -> None:
    last = established("event-log", lambda: case.last_load)
    if last is None:
        raise AttestationError("FIRMWARE_NOT_MEASURED", f"{FIRMWARE_OBJECT} was not measured since the TPM's last reset")
    session = (case.evidence.boot_id.hex(), case.evidence.session_id.hex())
    if (last.content["boot_id"], last.content["session_id"]) != session:
        raise AttestationError(
            "SESSION_MISMATCH", f"the last measurement of {FIRMWARE_OBJECT} is of another boot or process of the agent"
        )


CHECKS: tuple[tuple[str, Callable[[Case], None]], ...] = (
    ("size", _size),
    ("structure", _structure),
    ("challenge", _challenge),
    ("ak", _ak),
    ("signature-scheme", _scheme),
    ("signature", _signature),
    ("magic", _magic),
    ("type", _type),
    ("qualified-signer", _qualified_signer),
    ("qualifying-data", _qualifying_data),
    ("channel", _channel),
    ("pcr-selection", _pcr_selection),
    ("pcr-values", _pcr_values),
    ("clock", _clock),
    ("tpm-reset", _tpm_reset),
    ("tpm-firmware", _tpm_firmware),
    ("event-log", _event_log),
    ("manifest", _manifest),
    ("firmware-expiry", _expiry),
    ("firmware-floor", _floor),
    ("firmware-version", _version),
    ("firmware-revoked", _revoked),
    ("firmware", _firmware),
    ("session", _session),
)
"""Name and function of every check, in the order in which they run."""
