# SPDX-License-Identifier: Apache-2.0
"""What somebody who edited the agent's Python files would have them do: runs inside the puppet's process.

    patch's name (file beside JARVIS_LIE) → the gate lets everything in, a lease is made longer, another capture is started

Python files are not measured; the native core is, and judges last.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from jarvis.capture.v1.capture_pb2 import CaptureSpec, CaptureStatus
from jarvis.capture.v1.trust_pb2 import Lease, SignedLease
from jarvis_agent.authorization import Command, CommandGate
from jarvis_agent.captures import CaptureManager
from jarvis_agent.lease import ActiveLease, LeaseKeeper

PATCH_FILE = "patch"
OPEN_GATE, LONGER_LEASE, OTHER_FILTER = "open-gate", "longer-lease", "other-filter"
_DAY_NS = 24 * 3600 * 10**9


def _told() -> str:
    path = Path(os.environ["JARVIS_LIE"]).with_name(PATCH_FILE)
    return path.read_text().strip() if path.exists() else ""


def install() -> None:
    """Takes the honest methods' places in this process."""
    honest_admit, honest_accept, honest_start = CommandGate.admit, LeaseKeeper.accept, CaptureManager.start

    def admit(self: CommandGate, method: str, payload: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> Command:
        if _told() != OPEN_GATE:
            return honest_admit(self, method, payload, metadata)
        digest = hashlib.sha256(payload).digest()
        return Command(method=method, request_id=str(uuid.uuid4()), principal="nobody", payload_sha256=digest)

    def accept(self: LeaseKeeper, signed: SignedLease) -> ActiveLease:
        if _told() == LONGER_LEASE:
            lease = Lease.FromString(signed.lease)
            lease.duration_ns = _DAY_NS
            self._accept_in_core(SignedLease(lease=lease.SerializeToString(), signature=signed.signature))
        return honest_accept(self, signed)

    async def start(self: CaptureManager, spec: CaptureSpec, request: bytes) -> CaptureStatus:
        if _told() == OTHER_FILTER:
            spec = CaptureSpec(files=spec.files)
        return await honest_start(self, spec, request)

    CommandGate.admit = admit  # type: ignore[method-assign]
    LeaseKeeper.accept = accept  # type: ignore[method-assign]
    CaptureManager.start = start  # type: ignore[method-assign]
