# SPDX-License-Identifier: Apache-2.0
"""Evidence on a bench: an honest agent, and what the controller holds of it, for tests of the verifier."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from jarvis.capture.v1 import trust_pb2
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.case import BootPolicy, ReleaseTrust, VerifierPolicy
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.ima_state import ImaState
from jarvis_controller.states import State
from jarvis_controller.verifier import NOT_EVALUATED, Report, verify
from jarvis_trust.encoding import instant_ns
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.ima_policy import ImaPolicy
from jarvis_trust.revocations import Revocations

from testbed.boot import boot_log, reference_of, uefi_boot
from tests.support import ReleaseKey
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import SoftwareTpm

NOW_NS = instant_ns("2026-11-23T00:00:00Z")
AGENT_SPKI = hashlib.sha256(b"agent's TLS key").digest()
CONTROLLER_SPKI = hashlib.sha256(b"controller's TLS key").digest()


def record_of(device: SoftwareTpm, /, **changes: Any) -> AgentRecord:
    fields: dict[str, Any] = {
        "agent_id": device.agent_id,
        "state": State.ENROLLED,
        "reason": "",
        "state_time_ns": 0,
        "labels": {},
        "address": "127.0.0.1:7443",
        "hostname": "host",
        "version": "1.0.0",
        "enroll_time_ns": 0,
        "ek_certificate": b"",
        "ek_public": device.ek_public,
        "ak_public": device.ak_public,
        "ak_name": device.ak.name,
        "tls_spkis": (AGENT_SPKI,),
        "certificate_expire_ns": 0,
        "verify_time_ns": None,
        "tpm": None,
        "boot_id": b"",
        "session_id": b"",
        "firmware_sha256": b"",
        "firmware_version": "",
        "lease_sequence": 0,
        "lease_expire_ns": None,
    }
    return AgentRecord(**{**fields, **changes})


@dataclass(slots=True, kw_only=True)
class Bench:
    """An honest agent and what the controller holds of it; a test spoils one thing."""

    release_key: ReleaseKey
    release: Release
    tpm: SoftwareTpm
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    problem: str = ""
    floor: int = 0
    versions: frozenset[str] = frozenset()
    reported: frozenset[tuple[str, str]] = frozenset()
    known: frozenset[tuple[str, str]] = frozenset()
    record_changes: dict[str, Any] = field(default_factory=dict)
    shown_spki: bytes | None = None
    """The agent's key on the connection, where the carrier sees it."""
    revocations: Revocations | None = None
    time_ns: int = NOW_NS
    boot: BootPolicy | None = None
    """With one, its PCRs are asked for too."""
    ima: ImaPolicy | None = None
    """With one, PCR 10 is asked for too."""
    known_ima: ImaState | None = None
    """What the controller kept of the list."""

    @property
    def pcrs(self) -> tuple[int, ...]:
        """What the challenge asks for."""
        return (*(self.boot.pcrs if self.boot else ()), *((IMA_PCR,) if self.ima else ()), self.tpm.pcr)

    def evidence(self, *, nonce: bytes | None = None, **attest: bytes) -> trust_pb2.Evidence:
        return self.tpm.evidence(
            nonce=nonce or self.nonce,
            agent_spki=AGENT_SPKI,
            controller_spki=CONTROLLER_SPKI,
            manifest=self.release.manifest,
            manifest_signature=self.release.signature,
            attest=attest,
            pcrs=self.pcrs,
            known_ima=(self.known_ima.boot_id, self.known_ima.entries) if self.known_ima else (b"", 0),
        )

    def signed(self, evidence: trust_pb2.Evidence) -> trust_pb2.Evidence:
        """Signs the attest again after it was changed: what a TPM that lies would send."""
        evidence.signature = self.tpm.sign(evidence.attest)
        return evidence

    @property
    def policy(self) -> VerifierPolicy:
        """What the fleet demands."""
        return VerifierPolicy(
            releases=ReleaseTrust(root=self.release_key.release_root, revocations=self.revocations, time_ns=self.time_ns),
            firmware_floor=self.floor,
            pcr=self.tpm.pcr,
            controller_spki=CONTROLLER_SPKI,
            known_firmware=self.known,
            lease_ns=600 * 10**9,
            boot=self.boot,
            firmware_versions=self.versions,
            reported=self.reported,
            agent_spki=self.shown_spki,
            ima=self.ima,
        )

    @property
    def record(self) -> AgentRecord:
        """What is on record of the agent."""
        return record_of(self.tpm, **{"ima": self.known_ima, **self.record_changes})

    def judge(self, evidence: trust_pb2.Evidence, *, pcrs: tuple[int, ...] | None = None, **options: Any) -> Report:
        asked = () if self.problem == "CHALLENGE_UNKNOWN" else pcrs or self.pcrs
        challenge = ConsumedChallenge(agent_id=self.tpm.agent_id, nonce=self.nonce, pcrs=asked, problem=self.problem)
        return verify(self.record, challenge, evidence, self.policy, **options)


def bench_of(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    """A host that runs the release."""
    tpm = SoftwareTpm(ak_key=keys.ak_key, ek_key=keys.ek_key)
    tpm.measure(release.sha256)
    return Bench(release_key=release_key, release=release, tpm=tpm)


def measured_bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm, *, pcrs: tuple[int, ...]) -> Bench:
    """The same under firmware that measured; the policy demands the boot that it was, secure boot on."""
    tpm = SoftwareTpm(ak_key=keys.ak_key, ek_key=keys.ek_key)
    tpm.boot(boot_log(uefi_boot()))
    tpm.measure(release.sha256)
    policy = BootPolicy(references=(reference_of(tpm.boot_log, pcrs=pcrs),), pcrs=pcrs, require_secure_boot=True)
    return Bench(release_key=release_key, release=release, tpm=tpm, boot=policy)


def failed(report: Report) -> set[tuple[str, str]]:
    return {(check.name, check.reason) for check in report.checks if not check.passed and check.reason != NOT_EVALUATED}
