# SPDX-License-Identifier: Apache-2.0
"""Firmware at start: measured into the PCR first, judged second, loaded last; refused firmware leaves the agent up but mute.

    library and modules → sealed memfd → SHA-256 → event log (fsync) → PCR extend → manifest, signatures, floor … → dlopen
    → backends' own libraries looked for → every other executable mapping of the process logged and extended likewise

Nothing here can be switched off: there is no parameter for it and load_firmware's allow_unsigned is never passed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jarvis.capture.v1.agent_pb2 import FirmwareStatus
from jarvis_native import Firmware, MeasuredObject, load_firmware
from jarvis_native.engine import PacketCaptureEngine
from jarvis_native.loader import LIBRARY
from jarvis_trust.errors import TrustError
from jarvis_trust.eventlog import load_attempt, mapping, trial
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, verify_manifest
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.release_store import load_revocations, load_root
from jarvis_trust.revocations import check_revoked

from jarvis_agent.config import AgentConfig
from jarvis_agent.event_log import EventLog
from jarvis_agent.software_identity import SoftwareWorker
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.trial import TrialOrder, run_trial

_LOG = logging.getLogger(__name__)
_FIRMWARE_MEMFD = "/memfd:" + LIBRARY.removesuffix(".so")
"""What the kernel calls the library's and its modules' memfds begins so."""
_MAX_MANIFEST_BYTES = 64 * 1024
"""What an attestation carries at most; a real manifest has under 2 KiB."""


FloorSource = Callable[[], tuple[int, str]]
"""The lowest security_version that may run here, and who says so; floor.py. Blocks; raises TpmError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareState:
    """What came of the one attempt to load firmware in this process."""

    firmware: Firmware | None
    """The loaded library; None when it was refused."""
    sha256: bytes
    """Of the library's bytes as measured; empty when it was never read."""
    manifest: bytes
    """manifest.json as it lies there, for the controller's own judgement; empty when missing."""
    signature: bytes
    reason: str = ""
    """Why it was refused, e.g. FIRMWARE_SIGNATURE_INVALID; empty when loaded."""
    message: str = ""

    def status(self) -> FirmwareStatus:
        """The wire's form."""
        return FirmwareStatus(
            loaded=self.firmware is not None,
            sha256=self.sha256,
            version="" if self.firmware is None else self.firmware.version,
            reason=self.reason,
            message=self.message,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementContext:
    """Who measures: what every event names beside the digest."""

    worker: TpmWorker | SoftwareWorker
    event_log: EventLog
    boot_id: bytes
    session_id: bytes

    def record_load_attempt(self, measured: MeasuredObject) -> None:
        """Logs and extends; blocks until the TPM has it. Called before anything is judged."""
        self._record(load_attempt, measured)

    def record_trial(self, measured: MeasuredObject) -> None:
        """As record_load_attempt, for an object that another process is about to try (trial.py)."""
        self._record(trial, measured)

    def _record(self, describe: Callable[..., dict[str, str]], measured: MeasuredObject) -> None:
        def operation(device: TpmDevice) -> None:
            content = describe(
                object_name=measured.name,
                sha256=measured.sha256,
                time=datetime.now(UTC),
                boot_id=self.boot_id,
                session_id=self.session_id,
            )
            self.event_log.record(device, content)

        self.worker.submit(TpmPriority.MEASUREMENT, operation).result()

    def record_mapping(self, path: str, sha256: bytes) -> None:
        """Logs and extends another executable mapping, unless this boot's log has the same file already."""

        def operation(device: TpmDevice) -> None:
            if not self.event_log.holds_mapping(path, sha256):
                self.event_log.record(
                    device,
                    mapping(path=path, sha256=sha256, time=datetime.now(UTC), boot_id=self.boot_id, session_id=self.session_id),
                )

        self.worker.submit(TpmPriority.MEASUREMENT, operation).result()


def judge_release(config: AgentConfig, floor: FloorSource, manifest: bytes, signature: bytes) -> Manifest:
    """The manifest of a staged release, judged as `load` would. Blocks: it asks the TPM for its floor.

    Raises:
        FirmwareError: it is refused.
        TpmError: the floor is not known.
    """
    lowest, source = floor()
    root = load_root(config.release_root, config.state_directory)
    judged = verify_manifest(
        manifest,
        signature,
        root,
        floor=lowest,
        floor_source=source,
        architecture=os.uname().machine,
        now_ns=time.time_ns(),
    )
    named = [(MANIFEST_FILE, hashlib.sha256(manifest).hexdigest()), *judged.objects.items()]
    check_revoked(_revoked(config, root), named)
    return judged


def try_release(config: AgentConfig, floor: FloorSource, directory: Path, measure: Callable[[MeasuredObject], None]) -> str:
    """Tries the release of a directory in a process of its own, by the rules of `load`; its version. Blocks.

    Raises:
        ReleaseError, FirmwareError: see run_trial.
        TpmError: the floor is not known.
    """
    root = load_root(config.release_root, config.state_directory)
    lowest, source = floor()
    order = TrialOrder(
        directory=directory, release_root=root.data, floor=lowest, floor_source=source, revoked=_revoked(config, root)
    )
    return run_trial(order, measure)


def load(config: AgentConfig, context: MeasurementContext, floor: FloorSource) -> FirmwareState:
    """Measures and tries to load the firmware. Blocks; never raises for bad firmware, it says so in the state.

    A TPM or an event log that fails in the middle is a refusal too: what was not measured does not run.
    """
    measured: list[bytes] = []

    def measure(found: MeasuredObject) -> None:
        measured.append(found.sha256)
        context.record_load_attempt(found)

    try:
        root = load_root(config.release_root, config.state_directory)
        revoked = _revoked(config, root)
        lowest, source = floor()
        firmware = load_firmware(
            config.firmware_directory,
            release_root=root.data,
            floor=lowest,
            floor_source=source,
            revoked=revoked,
            measure=measure,
        )
        # Libraries that backends look for at run time (libpfring) are looked for once: now, so that they are measured too.
        PacketCaptureEngine.get_available_backends(firmware=firmware)
        _record_mappings(context)
    except TrustError as error:
        _LOG.error("firmware refused (%s): %s", error.reason, error.message)
        return FirmwareState(
            firmware=None,
            sha256=measured[0] if measured else b"",
            manifest=_read_capped(config.firmware_directory / MANIFEST_FILE),
            signature=_read_capped(config.firmware_directory / SIGNATURE_FILE),
            reason=error.reason,
            message=error.message,
        )
    return FirmwareState(
        firmware=firmware, sha256=firmware.digest, manifest=firmware.manifest_bytes, signature=firmware.signature
    )


def executable_mappings(maps: str) -> Iterator[tuple[str, str]]:
    """(address range, path) of each file that is mapped executable, from the text of /proc/PID/maps, each path once.

    The memfds of the firmware are left out: the sealed bytes of each object have an event of their own.
    """
    seen: set[str] = set()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or "x" not in fields[1] or not fields[5].startswith("/"):
            continue
        path = fields[5]
        if path not in seen and not path.startswith(_FIRMWARE_MEMFD):
            seen.add(path)
            yield fields[0], path


def _record_mappings(context: MeasurementContext) -> None:
    for addresses, path in executable_mappings(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")):
        digest = _hash_mapping(addresses, path)
        if digest is not None:
            context.record_mapping(path, digest)


def _hash_mapping(addresses: str, path: str) -> bytes | None:
    """SHA-256 of the file that is really mapped (map_files finds it even when it was replaced), else of its path."""
    for name in (f"/proc/self/map_files/{addresses}", path):
        try:
            with open(name, "rb") as file:  # noqa: PTH123 - the kernel's magic link, not a path to resolve
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            reason = error.strerror
    _LOG.warning("an executable mapping cannot be read and is not in the event log: %s: %s", path, reason)
    return None


def _revoked(config: AgentConfig, root: ReleaseRoot) -> Mapping[str, str]:
    """What is revoked by the list that the configuration names, which must be in force."""
    if config.revocations is None:
        return {}
    revocations = load_revocations(config.revocations, root, config.state_directory)
    revocations.check_expiry(time.time_ns())
    return revocations.digests


def _read_capped(path: Path) -> bytes:
    """The file's bytes; empty when it is not there, or larger than evidence carries (the controller will miss it)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError:
        return b""
    return data if len(data) <= _MAX_MANIFEST_BYTES else b""


def read_boot_id() -> bytes:
    """The kernel's boot id, 16 bytes."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""))


def new_session_id() -> bytes:
    """16 random bytes, new for each process."""
    return os.urandom(16)
