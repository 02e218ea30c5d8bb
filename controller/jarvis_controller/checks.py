# SPDX-License-Identifier: Apache-2.0
"""The checks of evidence, each a function over a Case that raises when it does not hold, and their table in order.

    record, challenge, evidence, policy -> Case -> a check reads what it needs, and leaves what it established for those after it

A check whose need an earlier one could not establish raises NotEvaluatedError; any TrustError is its failure.

These reach assurance level L1: the firmware's own measurements, quoted by a TPM whose EK was proved at enrolment. A rooted host
that extends good digests without loading what they name is not found out by them. Those of measured boot (boot_checks.py) are put
between them where the fleet demands L2.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis.capture.v1 import trust_pb2
from jarvis_trust.boot_log import BootLog
from jarvis_trust.boot_reference import BootReference
from jarvis_trust.errors import AttestationError
from jarvis_trust.eventlog import MAX_LOG_BYTES, FirmwareEvent, parse_log, replay
from jarvis_trust.firmware import MAX_MANIFEST_BYTES, Manifest, verify_manifest
from jarvis_trust.quote import quote_binding
from jarvis_trust.tpm_structures import (
    ALG_SHA256,
    MAX_ATTEST_BYTES,
    MAX_SIGNATURE_BYTES,
    TPM_GENERATED,
    TPM_ST_ATTEST_QUOTE,
    QuoteAttest,
    TpmPublic,
    parse_attest_quote,
    parse_ecdsa_signature,
    parse_public,
    qualified_name,
)
from jarvis_trust.tpm_templates import check_ak_template

from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.models import AgentRecord

FIRMWARE_OBJECT = "libjarvis_capture.so"

_MAGIC_WRONG = "ATTEST_MAGIC_WRONG"
_TYPE_WRONG = "ATTEST_TYPE_WRONG"
_ATTEST_MAX = MAX_ATTEST_BYTES
_SIGNATURE_MAX = MAX_SIGNATURE_BYTES
_PCRS_MAX = 24

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPolicy:
    """What measured boot is judged by."""

    references: tuple[BootReference, ...]
    """Verified sets; one of them must match."""
    pcrs: tuple[int, ...]
    """The PCRs that must match, ascending."""
    require_secure_boot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierPolicy:
    """What the fleet demands, and this controller's end of the channel."""

    release_key: bytes
    """PEM, the controller's own pinned copy."""
    firmware_floor: int
    pcr: int
    controller_spki: bytes
    """SHA-256 of the SubjectPublicKeyInfo that the agent saw on this channel."""
    known_firmware: frozenset[tuple[str, str]] = frozenset()
    """(object, SHA-256 hex) named by manifests that were verified before and are not below the floor: a host that moved on
    to another release without a reboot still has them in its log."""
    lease_ns: int
    """Length of the lease that a pass yields."""
    boot: BootPolicy | None = None
    """None: level L1, measured boot is not judged."""


class NotEvaluatedError(Exception):
    """A check needs what an earlier one could not establish."""


@dataclass(slots=True, kw_only=True)
class Case:
    """What the checks work on, and what they establish for those after them."""

    record: AgentRecord
    challenge: ConsumedChallenge
    evidence: trust_pb2.Evidence
    policy: VerifierPolicy
    attest: QuoteAttest | None = None
    ak: TpmPublic | None = None
    signature: bytes | None = None
    """DER."""
    events: list[FirmwareEvent] | None = None
    manifest: Manifest | None = None
    tls_spki: bytes | None = None
    pcr_values: dict[int, bytes] = field(default_factory=dict)
    firmware: bytes | None = None
    boot_log: BootLog | None = None
    reference: str = ""
    """"NAME version N" of the set that boot matches."""


def need(value: T | None, what: str) -> T:
    """What an earlier check established.

    Raises:
        NotEvaluatedError: it did not.
    """
    if value is None:
        raise NotEvaluatedError(f"needs {what}, which did not pass")
    return value


def _size(case: Case) -> None:
    evidence = case.evidence
    for name, size, most in (
        ("attest", len(evidence.attest), _ATTEST_MAX),
        ("signature", len(evidence.signature), _SIGNATURE_MAX),
        ("event_log", len(evidence.event_log), MAX_LOG_BYTES),
        ("manifest", len(evidence.manifest), MAX_MANIFEST_BYTES),
        ("manifest_signature", len(evidence.manifest_signature), _SIGNATURE_MAX),
        ("pcrs", len(evidence.pcrs), _PCRS_MAX),
    ):
        if size > most:
            raise AttestationError("EVIDENCE_TOO_LARGE", f"{name}: {size}; at most {most} is accepted")
    for name, value in (("boot_id", evidence.boot_id), ("session_id", evidence.session_id)):
        if len(value) != 16:
            raise AttestationError("EVIDENCE_MALFORMED", f"{name}: {len(value)} bytes; 16 are accepted")


def _structure(case: Case) -> None:
    if len(case.evidence.attest) > _ATTEST_MAX:
        raise NotEvaluatedError("attest is too large to parse")
    try:
        case.attest = parse_attest_quote(case.evidence.attest)
    except AttestationError as error:
        if error.reason in {_MAGIC_WRONG, _TYPE_WRONG}:
            raise NotEvaluatedError("attest is not a quote: see magic and type") from error
        raise


def _challenge(case: Case) -> None:
    problem = case.challenge.problem
    if problem:
        raise AttestationError(problem, "the challenge is " + problem.removeprefix("CHALLENGE_").replace("_", " ").lower())
    if case.challenge.agent_id != case.record.agent_id:
        raise AttestationError("CHALLENGE_OF_ANOTHER_AGENT", f"it was put to agent {case.challenge.agent_id}")


def _ak(case: Case) -> None:
    public = parse_public(case.record.ak_public)
    if not hmac.compare_digest(public.name, case.record.ak_name):
        raise AttestationError("AK_MISMATCH", "the stored attestation key does not have the stored Name")
    check_ak_template(public)
    case.ak = public


def _scheme(case: Case) -> None:
    if len(case.evidence.signature) > _SIGNATURE_MAX:
        raise NotEvaluatedError("signature is too large to parse")
    hash_algorithm, der = parse_ecdsa_signature(case.evidence.signature)
    if hash_algorithm != ALG_SHA256:
        raise AttestationError(
            "SIGNATURE_SCHEME", f"signature uses hash {hash_algorithm:#06x}; the AK's SHA-256 (0x000b) is accepted"
        )
    case.signature = der


def _signature(case: Case) -> None:
    ak, der = need(case.ak, "ak"), need(case.signature, "signature-scheme")
    if not isinstance(ak.key, ec.EllipticCurvePublicKey):
        raise AttestationError("SIGNATURE_SCHEME", "the AK is not an ECDSA key")
    try:
        # Over the bytes as received: a second encoding could be of something else.
        ak.key.verify(der, case.evidence.attest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AttestationError("SIGNATURE_INVALID", "the quote is not signed by the attestation key of record") from error


def _magic(case: Case) -> None:
    found = case.evidence.attest[:4]
    if found != TPM_GENERATED.to_bytes(4, "big"):
        raise AttestationError(_MAGIC_WRONG, f"attest starts with {found.hex()}; ff544347 marks what a TPM made itself")


def _type(case: Case) -> None:
    found = case.evidence.attest[4:6]
    if found != TPM_ST_ATTEST_QUOTE.to_bytes(2, "big"):
        raise AttestationError(_TYPE_WRONG, f"attest is of type {found.hex()}; 8018 is a quote")


def _qualified_signer(case: Case) -> None:
    attest, ak = need(case.attest, "structure"), need(case.ak, "ak")
    if not hmac.compare_digest(attest.qualified_signer, qualified_name(ak.name)):
        raise AttestationError("QUALIFIED_SIGNER_MISMATCH", "the signer is not the AK of record in the endorsement hierarchy")


def _qualifying_data(case: Case) -> None:
    attest, evidence = need(case.attest, "structure"), case.evidence
    if not case.record.tls_spkis:
        raise AttestationError("NONCE_MISMATCH", "no certificate is on record for this agent")
    for spki in case.record.tls_spkis:
        expected = quote_binding(
            nonce=case.challenge.nonce,
            agent_spki_sha256=spki,
            controller_spki_sha256=case.policy.controller_spki,
            agent_id=case.record.agent_id,
            boot_id=evidence.boot_id,
            session_id=evidence.session_id,
            manifest=evidence.manifest,
            event_log=evidence.event_log,
        )
        if hmac.compare_digest(attest.extra_data, expected):
            case.tls_spki = spki
            return
    raise AttestationError(
        "NONCE_MISMATCH",
        "extraData is not that of this challenge, these TLS keys, this agent, boot, session, manifest and event log",
    )


def _pcr_selection(case: Case) -> None:
    attest = need(case.attest, "structure")
    wanted = case.challenge.pcrs
    if not wanted or case.policy.pcr not in wanted:
        raise NotEvaluatedError("the challenge names no PCRs")
    if attest.pcr_bank != ALG_SHA256:
        raise AttestationError(
            "PCR_SELECTION_MISMATCH", f"bank {attest.pcr_bank:#06x} was quoted; SHA-256 (0x000b) was asked for"
        )
    if tuple(attest.pcr_indices) != wanted:
        raise AttestationError(
            "PCR_SELECTION_MISMATCH", f"PCRs {list(attest.pcr_indices)} were quoted; {list(wanted)} were asked for"
        )


def _pcr_values(case: Case) -> None:
    attest = need(case.attest, "structure")
    indices = tuple(value.index for value in case.evidence.pcrs)
    if indices != tuple(attest.pcr_indices):
        raise AttestationError(
            "PCR_VALUES_INVALID", f"values of PCRs {list(indices)} came; exactly {list(attest.pcr_indices)} are accepted"
        )
    for value in case.evidence.pcrs:
        if len(value.digest) != 32:
            raise AttestationError("PCR_VALUES_INVALID", f"PCR {value.index}: {len(value.digest)} bytes; 32 are accepted")
    digest = hashlib.sha256(b"".join(value.digest for value in case.evidence.pcrs)).digest()
    if not hmac.compare_digest(digest, attest.pcr_digest):
        raise AttestationError("PCR_MISMATCH", "the PCR values do not have the digest that the TPM signed")
    case.pcr_values = {value.index: value.digest for value in case.evidence.pcrs}


def _clock(case: Case) -> None:
    attest, last = need(case.attest, "structure"), case.record.tpm
    if last is None:
        return
    boot, last_boot = (attest.reset_count, attest.restart_count), (last.reset_count, last.restart_count)
    if boot < last_boot:
        raise AttestationError(
            "RESET_COUNT_BACKWARDS", f"(resetCount, restartCount) {boot} is below {last_boot}: a replay or a clone"
        )
    # Across a reset the clock may well go back: it is saved only now and then.
    if boot == last_boot and attest.clock <= last.clock:
        raise AttestationError("CLOCK_BACKWARDS", f"clock {attest.clock} ms is not above {last.clock} ms: a replay or a clone")


def _tpm_firmware(case: Case) -> None:
    attest, last = need(case.attest, "structure"), case.record.tpm
    if last is not None and attest.firmware_version != last.firmware_version:
        raise AttestationError(
            "TPM_FIRMWARE_CHANGED",
            f"the TPM's firmware is {attest.firmware_version:#018x}; {last.firmware_version:#018x} is on record",
        )


def _event_log(case: Case) -> None:
    if len(case.evidence.event_log) > MAX_LOG_BYTES:
        raise NotEvaluatedError("event_log is too large to parse")
    events = parse_log(case.evidence.event_log)
    for event in events:
        if event.pcr != case.policy.pcr:
            raise AttestationError(
                "EVENT_LOG_MISMATCH", f"record {event.recnum} is of PCR {event.pcr}; firmware is measured into {case.policy.pcr}"
            )
    case.events = events
    quoted = need(case.pcr_values.get(case.policy.pcr), "pcr-values")
    if not hmac.compare_digest(replay(events), quoted):
        raise AttestationError(
            "EVENT_LOG_MISMATCH", f"the event log's {len(events)} records do not give the quoted value of PCR {case.policy.pcr}"
        )


def _manifest(case: Case) -> None:
    if len(case.evidence.manifest) > MAX_MANIFEST_BYTES:
        raise NotEvaluatedError("manifest is too large to parse")
    case.manifest = verify_manifest(case.evidence.manifest, case.evidence.manifest_signature, case.policy.release_key)


def _floor(case: Case) -> None:
    manifest = need(case.manifest, "manifest")
    if manifest.security_version < case.policy.firmware_floor:
        raise AttestationError(
            "FIRMWARE_BELOW_FLOOR",
            f"security_version {manifest.security_version} of {manifest.version} is below the floor {case.policy.firmware_floor}",
        )


def _firmware(case: Case) -> None:
    events = need(case.events, "event-log")
    signed = frozenset() if case.manifest is None else frozenset(case.manifest.objects.items())
    session = (case.evidence.boot_id.hex(), case.evidence.session_id.hex())
    bad: list[str] = []
    for event in events:
        if event.type != "load-attempt":
            continue  # other mappings are listed for people; no policy judges them here
        measured = (event.subject, event.sha256.hex())
        is_current = (event.content["boot_id"], event.content["session_id"]) == session
        # What runs now must be what this manifest signs; what ran before may be of another good release.
        if measured not in signed and (is_current or measured not in case.policy.known_firmware):
            bad.append(f"{event.subject} was measured with SHA-256 {event.sha256.hex()} (record {event.recnum})")
    if bad:
        release = "no trusted manifest" if case.manifest is None else f"the signed manifest of {case.manifest.version}"
        raise AttestationError("FIRMWARE_UNTRUSTED_MEASUREMENT", f"{', '.join(dict.fromkeys(bad))}; {release} does not name it")


def _session(case: Case) -> None:
    events = need(case.events, "event-log")
    session = (case.evidence.boot_id.hex(), case.evidence.session_id.hex())
    loads = [event for event in events if event.type == "load-attempt" and event.subject == FIRMWARE_OBJECT]
    if not loads:
        raise AttestationError("FIRMWARE_NOT_MEASURED", f"{FIRMWARE_OBJECT} was not measured since the TPM's last reset")
    last = loads[-1]
    if (last.content["boot_id"], last.content["session_id"]) != session:
        raise AttestationError(
            "SESSION_MISMATCH", f"the last measurement of {FIRMWARE_OBJECT} is of another boot or process of the agent"
        )
    case.firmware = last.sha256


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
    ("pcr-selection", _pcr_selection),
    ("pcr-values", _pcr_values),
    ("clock", _clock),
    ("tpm-firmware", _tpm_firmware),
    ("event-log", _event_log),
    ("manifest", _manifest),
    ("firmware-floor", _floor),
    ("firmware", _firmware),
    ("session", _session),
)
"""Name and function of every check, in the order in which they run."""
