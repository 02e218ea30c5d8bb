# SPDX-License-Identifier: Apache-2.0
"""What the verifier's checks work on: the evidence as it reads, established apart from every judgement of it.

    record, challenge, evidence, policy -> Case -> its readings (quote, events, manifest, ...) -> checks.py judges them

A reading says what the bytes say and nothing of their worth: which signature holds, which value is accepted and what follows is
the checks' alone. So each check can be taken out by itself, and a test does that to show that what it holds against gets through
without it and only without it. Nothing passes by default all the same: what cannot be read is evaluated by no check that needs it
(NotEvaluatedError), and so is what a check named in `after` has refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from jarvis.capture.v1 import trust_pb2
from jarvis_trust.boot_events import BootFacts, boot_facts
from jarvis_trust.boot_log import BootLog, parse_boot_log
from jarvis_trust.boot_reference import BootReference
from jarvis_trust.errors import AttestationError, TrustError
from jarvis_trust.eventlog import FirmwareEvent, parse_log
from jarvis_trust.firmware import Manifest
from jarvis_trust.ima_log import IMA_PCR, ImaEntry, parse_ima_log, replay_until
from jarvis_trust.ima_policy import ImaPolicy
from jarvis_trust.quote import quote_binding
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.revocations import Revocations
from jarvis_trust.software_identity import software_evidence_holds
from jarvis_trust.tpm_structures import (
    AttestReading,
    QuoteAttest,
    TpmPublic,
    parse_ecdsa_signature,
    parse_public,
    read_attest_quote,
)

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.ima_state import ImaState
from jarvis_controller.readings import ReadingCache

FIRMWARE_OBJECT = "libjarvis_capture.so"
PCRS = 24
"""Of a PC client's TPM."""

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
class ReleaseTrust:
    """What manifests are judged by, at one moment. The controller's own, whatever agents send."""

    root: ReleaseRoot
    revocations: Revocations | None
    """Verified; None: nothing is revoked."""
    time_ns: int
    """Of the wall clock, ns since the Unix epoch: manifest, root and revocation list must not have expired then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierPolicy:
    """What the fleet demands, and this controller's end of the channel."""

    releases: ReleaseTrust
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
    firmware_versions: frozenset[str] = frozenset()
    """Versions of manifests that are accepted; empty = every one."""
    reported: frozenset[tuple[str, str]] = frozenset()
    """(check, reason) of failures that do not end the trust: see verifier.REPORTABLE."""
    agent_spki: bytes | None = None
    """The same of the agent, as this connection showed it; None: the carrier cannot see it (direct)."""
    ima: ImaPolicy | None = None
    """None: IMA's list is not judged. With one, and `boot`: level L3."""
    without_tpm: bool = False
    """Of an agent that has none: the policy admits it, and demands no level of it that needs more."""


class NotEvaluatedError(Exception):
    """A check needs what could not be read, or what an earlier check refused."""


@dataclass(kw_only=True)
class Case:
    """One judgement's inputs, what they say, and which checks have failed so far. Not slotted: each reading is made once."""

    record: AgentRecord
    challenge: ConsumedChallenge
    evidence: trust_pb2.Evidence
    policy: VerifierPolicy
    readings: ReadingCache = field(default_factory=lambda: ReadingCache(0))
    """What was read of the same bytes before; none by default."""
    failed: set[str] = field(default_factory=set)
    """Names of checks, kept by the verifier."""
    reference: str = ""
    """"NAME version N" of the set that boot matches; left by check boot-reference."""

    def after(self, *checks: str) -> None:
        """What these checks refused is of no use to another.

        Raises:
            NotEvaluatedError: one of them failed.
        """
        for name in checks:
            if name in self.failed:
                raise NotEvaluatedError(f"needs {name}, which did not pass")

    @cached_property
    def attest(self) -> AttestReading:
        """The signed structure and all that is wrong with its form."""
        return read_attest_quote(self.evidence.attest)

    @property
    def quote(self) -> QuoteAttest:
        """Its fields.

        Raises:
            NotEvaluatedError: it cannot be read as a quote.
        """
        self.after("size")
        if self.attest.quote is None:
            raise NotEvaluatedError("needs structure, which did not pass")
        return self.attest.quote

    @cached_property
    def ak(self) -> TpmPublic:
        """The attestation key of record. Raises AttestationError when it is not a public area."""
        return parse_public(self.record.ak_public)

    @cached_property
    def signature(self) -> tuple[int, bytes]:
        """Hash algorithm (TPM_ALG_ID) and the signature as DER. Raises AttestationError when it is not an ECDSA signature."""
        self.after("size")
        return parse_ecdsa_signature(self.evidence.signature)

    @cached_property
    def bound_spki(self) -> bytes | None:
        """The agent's TLS key, of those on record, that extraData names together with everything else that it must name."""
        quote, evidence = self.quote, self.evidence
        for spki in self.record.tls_spkis:
            expected = quote_binding(
                nonce=self.challenge.nonce,
                agent_spki_sha256=spki,
                controller_spki_sha256=self.policy.controller_spki,
                agent_id=self.record.agent_id,
                boot_id=evidence.boot_id,
                session_id=evidence.session_id,
                manifest=evidence.manifest,
                event_log=evidence.event_log,
            )
            if hmac.compare_digest(quote.extra_data, expected):
                return spki
        return None

    @cached_property
    def software_spki(self) -> bytes | None:
        """The TLS key, of those on record, that the software signature of an agent without a TPM names with all else."""
        evidence = self.evidence
        for spki in self.record.tls_spkis:
            if software_evidence_holds(
                self.record.ak_public,
                evidence.software_signature,
                nonce=self.challenge.nonce,
                agent_spki_sha256=spki,
                controller_spki_sha256=self.policy.controller_spki,
                agent_id=self.record.agent_id,
                boot_id=evidence.boot_id,
                session_id=evidence.session_id,
                manifest=evidence.manifest,
                event_log=evidence.event_log,
            ):
                return spki
        return None

    @cached_property
    def pcr_values(self) -> dict[int, bytes]:
        """Values as sent, by index: of a use only after check pcr-values."""
        self.after("size")
        return {value.index: value.digest for value in self.evidence.pcrs}

    @cached_property
    def events(self) -> list[FirmwareEvent]:
        """The firmware's event log; check `size` bounds it. Raises AttestationError when it is malformed."""
        self.after("size")
        log = self.evidence.event_log
        return self.readings.get("events", hashlib.sha256(log).digest(), len(log), lambda: parse_log(log, max_bytes=len(log)))

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest as it came, whoever signed it. Raises FirmwareError when it is malformed."""
        self.after("size")
        data = self.evidence.manifest
        return self.readings.get("manifest", hashlib.sha256(data).digest(), len(data), lambda: Manifest.from_bytes(data))

    @property
    def last_load(self) -> FirmwareEvent | None:
        """The last measurement of the firmware since the TPM's reset."""
        loads = [event for event in self.events if event.type == "load-attempt" and event.subject == FIRMWARE_OBJECT]
        return loads[-1] if loads else None

    @cached_property
    def boot_log_digest(self) -> bytes:
        """SHA-256 of the boot log that came."""
        return hashlib.sha256(self.evidence.boot_log).digest()

    @cached_property
    def boot_log(self) -> BootLog:
        """The TCG event log that came, or that was filled in for a digest that is known. Raises AttestationError."""
        self.after("size")
        return self._of_boot_log("boot-log", lambda: parse_boot_log(self.evidence.boot_log))

    @cached_property
    def boot_values(self) -> dict[int, bytes]:
        """What the boot log gives for every PCR."""
        log = self.boot_log
        return self._of_boot_log("boot-values", lambda: log.replay(range(PCRS)))

    @cached_property
    def boot_facts(self) -> BootFacts:
        """What the boot log says of the boot; of a use only after check boot-events."""
        log = self.boot_log
        return self._of_boot_log("boot-facts", lambda: boot_facts(log))

    def _of_boot_log(self, kind: str, read: Callable[[], T]) -> T:
        return self.readings.get(kind, self.boot_log_digest, len(self.evidence.boot_log), read)

    @property
    def boot_policy(self) -> BootPolicy:
        """What measured boot is judged by.

        Raises:
            NotEvaluatedError: the fleet demands none.
        """
        if self.policy.boot is None:
            raise NotEvaluatedError("needs a boot policy")
        return self.policy.boot

    @property
    def ima_policy(self) -> ImaPolicy:
        """What IMA's list is judged by.

        Raises:
            NotEvaluatedError: the fleet demands none.
        """
        if self.policy.ima is None:
            raise NotEvaluatedError("needs an IMA policy")
        return self.policy.ima

    @cached_property
    def ima_before(self) -> ImaState:
        """The list up to where the part that came begins. Raises AttestationError when that is not where ours ends."""
        scope, first = self.ima_policy.scope_sha256, self.evidence.ima_first_entry
        if first == 0:
            return ImaState(boot_id=self.evidence.boot_id, scope_sha256=scope)
        known = self.record.ima
        if known is None or (known.boot_id, known.scope_sha256, known.entries) != (self.evidence.boot_id, scope, first):
            raise AttestationError(
                "IMA_LOG_INVALID", f"the IMA list begins at entry {first}, which is not where the known part ends"
            )
        return known

    @cached_property
    def ima_entries(self) -> tuple[ImaEntry, ...]:
        """What follows. Raises AttestationError when it is malformed."""
        self.after("size")
        return parse_ima_log(self.evidence.ima_log, first=self.evidence.ima_first_entry)

    @cached_property
    def ima_quoted(self) -> int | None:
        """How many of them PCR 10 had taken when it was quoted; None when no number gives its value."""
        quoted = self.pcr_values.get(IMA_PCR)
        return None if quoted is None else replay_until(self.ima_entries, self.ima_before.pcr, quoted)

    @cached_property
    def ima_now(self) -> ImaState:
        """The list up to the quote. Raises AttestationError when it cannot be read."""
        entries = self.ima_entries
        return self.ima_before.advanced(entries[: self.ima_quoted], self.ima_policy)


def established(what: str, read: Callable[[], T]) -> T:
    """A reading for a check that is not the one to judge it.

    Raises:
        NotEvaluatedError: it cannot be made; the check `what` says why.
    """
    try:
        return read()
    except TrustError as error:
        raise NotEvaluatedError(f"needs {what}, which did not pass") from error
