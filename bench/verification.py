# SPDX-License-Identifier: Apache-2.0
"""How many attestations one core of a controller judges: every check, measured boot with a log of 150 events.

A software TPM quotes, each time over another nonce, PCRs that were extended by a boot log and by a firmware event log such as an
agent keeps (its objects and the executable mappings of a process). Judged is what came over the wire, from the bytes of Evidence
on: once as from a host that was never seen, once with the readings of its boot log and manifest kept from before.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_agent.event_log import EventLog
from jarvis_agent.tpm_device import TpmDevice
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.case import BootPolicy, ReleaseTrust, VerifierPolicy
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.readings import ReadingCache
from jarvis_controller.states import State
from jarvis_controller.verifier import Report, Verdict, verify
from jarvis_trust.boot_log import EventType, parse_boot_log
from jarvis_trust.boot_reference import record_reference
from jarvis_trust.eventlog import load_attempt, mapping
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.quote import quote_binding
from jarvis_trust.release_root import ROOT_FILE, ReleaseRoot
from jarvis_trust.tpm_structures import parse_public
from rich.console import Console
from rich.table import Table

from testbed.boot import Measurement, boot_log, play, uefi_boot
from testbed.fleet import FIRMWARE
from testbed.swtpm import TpmVendor

QUOTES = 400
BOOT_EVENTS = 150
MAPPINGS = 40
"""Executable files that an agent's process has mapped."""
PCR, BOOT_PCRS = 14, tuple(range(9))
CACHE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One answer to a challenge, and what the controller held when it came."""

    record: AgentRecord
    challenge: ConsumedChallenge
    evidence: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Who quotes: ids of its boot and process, and TLS keys as the quotes bind them."""

    device: TpmDevice
    event_log: bytes
    boot_log: bytes
    manifest: bytes
    signature: bytes
    agent_id: str
    boot_id: bytes
    session_id: bytes
    agent_spki: bytes
    controller_spki: bytes

    def evidence(self, nonce: bytes) -> Evidence:
        """A quote and what explains it."""
        binding = quote_binding(
            nonce=nonce,
            agent_spki_sha256=self.agent_spki,
            controller_spki_sha256=self.controller_spki,
            agent_id=self.agent_id,
            boot_id=self.boot_id,
            session_id=self.session_id,
            manifest=self.manifest,
            event_log=self.event_log,
        )
        quote = self.device.quote(extra_data=binding, pcrs=(*BOOT_PCRS, PCR))
        return Evidence(
            attest=quote.attest,
            signature=quote.signature,
            pcrs=[PcrValue(index=index, digest=value) for index, value in sorted(quote.pcrs.items())],
            event_log=self.event_log,
            manifest=self.manifest,
            manifest_signature=self.signature,
            boot_id=self.boot_id,
            session_id=self.session_id,
            boot_log=self.boot_log,
            boot_log_sha256=hashlib.sha256(self.boot_log).digest(),
        )


def long_boot() -> list[Measurement]:
    """A boot that GRUB measured line by line, as it does: BOOT_EVENTS events in all."""
    boot = uefi_boot()
    lines = [
        Measurement(pcr=8, type=EventType.IPL, data=f"grub_cmd: menuentry number {number} of the configuration\0".encode())
        for number in range(BOOT_EVENTS - len(boot))
    ]
    return boot + lines


def measure_firmware(device: TpmDevice, directory: Path, manifest: Manifest, boot_id: bytes, session_id: bytes) -> bytes:
    """Logs and extends what an agent would: the objects of the release, then other mappings. Returns the log."""
    log, now = EventLog(directory, PCR), datetime.now(UTC)
    log.open(device)
    for name, digest in manifest.objects.items():
        measured = bytes.fromhex(digest)
        log.record(device, load_attempt(object_name=name, sha256=measured, time=now, boot_id=boot_id, session_id=session_id))
    for number in range(MAPPINGS):
        path = f"/usr/lib/x86_64-linux-gnu/libsomething{number}.so.1"
        measured = hashlib.sha256(path.encode()).digest()
        log.record(device, mapping(path=path, sha256=measured, time=now, boot_id=boot_id, session_id=session_id))
    return log.read()


def submissions(host: Host, device: TpmDevice, policy: VerifierPolicy) -> Iterator[Submission]:
    """QUOTES answers in a row, each judged by what the one before left on record."""
    record = _record(host, device)
    for _ in range(QUOTES):
        nonce = secrets.token_bytes(32)
        challenge = ConsumedChallenge(agent_id=host.agent_id, nonce=nonce, pcrs=(*BOOT_PCRS, PCR), problem="")
        submission = Submission(record=record, challenge=challenge, evidence=host.evidence(nonce).SerializeToString())
        report = judge(submission, policy, None)
        if report.verdict is not Verdict.PASSED or report.proved is None:
            raise RuntimeError(f"honest evidence did not pass: {report.reason}")
        yield submission
        record = replace(record, tpm=report.proved.tpm)


def judge(submission: Submission, policy: VerifierPolicy, readings: ReadingCache | None) -> Report:
    """As the controller does, from the bytes on."""
    evidence = Evidence.FromString(submission.evidence)
    return verify(submission.record, submission.challenge, evidence, policy, readings=readings)


def _record(host: Host, device: TpmDevice) -> AgentRecord:
    ak_public = device.attestation_public()
    ak_name = parse_public(ak_public).name
    return AgentRecord(
        agent_id=host.agent_id, state=State.VERIFIED, reason="", state_time_ns=0, labels={}, address="", hostname="host",
        version="", enroll_time_ns=0, ek_certificate=b"", ek_public=b"", ak_public=ak_public, ak_name=ak_name,
        tls_spkis=(host.agent_spki,), certificate_expire_ns=0, verify_time_ns=None, tpm=None, boot_id=b"", session_id=b"",
        firmware_sha256=b"", firmware_version="", lease_sequence=0, lease_expire_ns=None,
    )  # fmt: skip


def _policy(host: Host) -> VerifierPolicy:
    reference = record_reference(
        parse_boot_log(host.boot_log), name="golden", version=1, created="2026-11-22T10:00:00Z", pcrs=BOOT_PCRS
    )
    return VerifierPolicy(
        releases=ReleaseTrust(
            root=ReleaseRoot.from_bytes((FIRMWARE / ROOT_FILE).read_bytes()), revocations=None, time_ns=time.time_ns()
        ),
        firmware_floor=0,
        pcr=PCR,
        controller_spki=host.controller_spki,
        lease_ns=600 * 10**9,
        boot=BootPolicy(references=(reference,), pcrs=BOOT_PCRS, require_secure_boot=True),
    )


def _host(device: TpmDevice, directory: Path, log: bytes) -> Host:
    boot_id, session_id = secrets.token_bytes(16), secrets.token_bytes(16)
    manifest = (FIRMWARE / MANIFEST_FILE).read_bytes()
    return Host(
        device=device,
        event_log=measure_firmware(device, directory, Manifest.from_bytes(manifest), boot_id, session_id),
        boot_log=log,
        manifest=manifest,
        signature=(FIRMWARE / SIGNATURE_FILE).read_bytes(),
        agent_id=agent_id_from_ek(parse_public(device.endorsement_identity().public).spki_der),
        boot_id=boot_id,
        session_id=session_id,
        agent_spki=secrets.token_bytes(32),
        controller_spki=secrets.token_bytes(32),
    )


def _rate(work: list[Submission], policy: VerifierPolicy, readings: ReadingCache | None) -> float:
    began = time.perf_counter()
    for submission in work:
        judge(submission, policy, readings)
    return len(work) / (time.perf_counter() - began)


def report(console: Console, *, rounds: int, cpu: int) -> dict[str, Any]:
    """Prints the table; returns judgements a second of every round."""
    log = boot_log(long_boot(), locality=None)
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name:
        directory = Path(name)
        vendor = TpmVendor(directory / "vendor")
        with vendor.make(directory / "tpm") as tpm:
            play(tpm.tcti, log)
            with TpmDevice(tpm.tcti) as device:
                host = _host(device, directory / "state", log)
                policy = _policy(host)
                work = list(submissions(host, device, policy))
    kept = ReadingCache(CACHE_BYTES)
    kinds: dict[str, Callable[[], float]] = {
        "first seen": lambda: _rate(work, policy, None),
        "boot log and manifest seen before": lambda: _rate(work, policy, kept),
    }
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        rates = {name: [measure() for _ in range(rounds)] for name, measure in kinds.items()}
    finally:
        os.sched_setaffinity(0, before)
    events = len(parse_boot_log(log).events)
    table = Table(title=f"attestations judged a second, one core: every check, boot log of {events} events ({len(log):,} bytes)")
    for heading in ("", "median", "min", "max"):
        table.add_column(heading, justify="right")
    for name, values in rates.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(values), min(values), max(values))))
    console.print(table)
    return {"boot_events": events, "quotes": QUOTES, "per_second": rates}
