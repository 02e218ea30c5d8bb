# SPDX-License-Identifier: Apache-2.0
"""A controller that commands exports, and what an ExportManager works with: a lease, a journal, captures, lines."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jarvis.capture.v1 import export_pb2 as pb
from jarvis.capture.v1.agent_pb2 import EnableExportRequest
from jarvis_agent.export.store import ENABLE_EXPORT, StoredExport
from jarvis_agent.lease import ActiveLease
from jarvis_native import LeaseTerms
from jarvis_trust.commands import CommandSigner, generate_command_key

AGENT_ID, SESSION = "a" * 32, b"s" * 16
PRIVATE_PEM, PUBLIC_PEM = generate_command_key()
SIGNER = CommandSigner(PRIVATE_PEM)
ADA = "spiffe://lab.example/operator/operator/ada"


def spec(export_id: str = "siem", **changes: Any) -> pb.ExportSpec:
    """An export that is acceptable."""
    fields: dict[str, Any] = {
        "export_id": export_id,
        "protocol": pb.EXPORT_PROTOCOL_IPFIX,
        "collectors": [pb.ExportCollector(host="192.0.2.1")],
    }
    return pb.ExportSpec(**(fields | changes))


def command(asked: pb.ExportSpec | None = None, *, at: int = 1, **changes: Any) -> StoredExport:
    """An EnableExport as it was admitted."""
    payload = EnableExportRequest(spec=spec() if asked is None else asked).SerializeToString()
    fields: dict[str, Any] = {
        "agent_id": AGENT_ID,
        "method": ENABLE_EXPORT,
        "session_id": SESSION,
        "lease_sequence": 1,
        "request_id": str(uuid.uuid4()),
        "principal": ADA,
        "expires_ns": 30 * 10**9,
        "payload": payload,
    }
    authorization = SIGNER.authorize(**(fields | changes)).SerializeToString()
    return StoredExport(payload=payload, authorization=authorization, session_id=SESSION, enable_time_ns=at)


@dataclass
class FakeLease:
    """The lease in force, as the core and the keeper have it."""

    sequence: int = 1
    in_force: bool = True
    collectors: tuple[str, ...] = ("192.0.2.0/24",)

    def terms(self) -> LeaseTerms:
        return LeaseTerms(sequence=self.sequence, quoted_ns=0, end_ns=1, in_force=self.in_force)

    def current(self) -> ActiveLease | None:
        if not self.in_force:
            return None
        return ActiveLease(
            sequence=self.sequence, methods=frozenset(), quoted_ns=0, end_ns=1, nonce=b"", export_collectors=self.collectors
        )


@dataclass
class FakeJournal:
    """Keeps what it is told."""

    told: list[tuple[int, str]] = field(default_factory=list)

    def tell(self, kind: int, _severity: int, message: str, **_more: Any) -> None:
        self.told.append((kind, message))

    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.told]


@dataclass
class FakeRun:
    """A capture that is only attached."""

    capture_id: str = "c"
    is_active: bool = True
    is_abandoned: bool = False


@dataclass
class FakeCaptures:
    """Where managers follow captures."""

    followers: list[Callable[[Any], None]] = field(default_factory=list)

    def follow(self, attach: Callable[[Any], None]) -> Callable[[], None]:
        self.followers.append(attach)
        return lambda: self.followers.remove(attach)

    def begin(self, run: FakeRun) -> None:
        for attach in self.followers:
            attach(run)


@dataclass
class FakeLine:
    """A collector's line that notes what it is told to do."""

    may_leave: Callable[[], bool]
    started: bool = False
    attached: list[tuple[Any, bool]] = field(default_factory=list)
    stopped: list[dict[str, Any]] = field(default_factory=list)
    fails_to_stop: bool = False

    def start(self) -> None:
        self.started = True

    def attach(self, run: Any, *, is_new: bool) -> None:
        self.attached.append((run, is_new))

    def stop(self, **how: Any) -> None:
        self.stopped.append(how)
        if self.fails_to_stop:
            raise OSError("the disk is gone")

    def status(self) -> pb.CollectorStatus:
        return pb.CollectorStatus(flows=7)
