# SPDX-License-Identifier: Apache-2.0
"""The audit log: append-only, each entry's hash covers the one before.

`append` runs inside the caller's transaction, so that a change and its entry are stored together or not at all. All writers
go through the store's one thread, so the chain never forks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead, entry_hash, verify_chain
from jarvis_trust.encoding import canonical_json
from sqlalchemy import select
from sqlalchemy.orm import Session

from jarvis_controller.models import AuditRow

CONTROLLER = "controller"
"""The principal of what the controller does by itself."""
APPENDED = "audit_head"
"""Key of Session.info: the head that this session's transaction has made, for who signs it."""
_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What is to be logged."""

    principal: str
    """SPIFFE id, or CONTROLLER."""
    action: str
    """E.g. "capture.start", "agent.state"."""
    agent_id: str = ""
    detail: Mapping[str, object]
    """What exactly, where, with what result; stored as canonical JSON."""
    request_id: str = ""


def head(session: Session) -> AuditHead:
    """The newest entry's sequence and hash."""
    last = session.scalars(select(AuditRow).order_by(AuditRow.sequence.desc()).limit(1)).first()
    return GENESIS if last is None else AuditHead(sequence=last.sequence, hash=last.hash)


def append(session: Session, entry: AuditEntry, now_ns: int) -> AuditHead:
    """Adds an entry; `now_ns` is wall-clock time, ns since the Unix epoch."""
    last = head(session)
    detail = canonical_json(entry.detail).decode("ascii")
    row = AuditRow(
        sequence=last.sequence + 1,
        time_ns=now_ns,
        principal=entry.principal,
        action=entry.action,
        agent_id=entry.agent_id,
        detail=detail,
        request_id=entry.request_id,
        previous_hash=last.hash,
        hash=entry_hash(
            last.hash, last.sequence + 1, now_ns, entry.principal, entry.action, entry.agent_id, detail, entry.request_id
        ),
    )
    session.add(row)
    session.flush()
    appended = AuditHead(sequence=row.sequence, hash=row.hash)
    session.info[APPENDED] = appended
    return appended


def page(session: Session, after_sequence: int, limit: int) -> Sequence[fleet_pb2.AuditEvent]:
    """Up to `limit` entries with a higher sequence, oldest first."""
    rows = session.scalars(select(AuditRow).where(AuditRow.sequence > after_sequence).order_by(AuditRow.sequence).limit(limit))
    return [_event(row) for row in rows]


def verify(session: Session) -> None:
    """Recomputes the whole chain.

    Raises:
        AuditError: an entry was changed, removed or put in; it carries the first bad sequence.
    """
    verify_chain(all_events(session))


def hash_at(session: Session, sequence: int) -> bytes:
    """The stored hash of one entry; empty when there is none."""
    return session.scalars(select(AuditRow.hash).where(AuditRow.sequence == sequence)).first() or b""


def all_events(session: Session, *, after: int = 0) -> Iterator[fleet_pb2.AuditEvent]:
    """Every entry with a higher sequence than `after`, oldest first, a page at a time."""
    while events := page(session, after, _PAGE):
        yield from events
        after = events[-1].sequence


def _event(row: AuditRow) -> fleet_pb2.AuditEvent:
    event = fleet_pb2.AuditEvent(
        sequence=row.sequence,
        principal=row.principal,
        action=row.action,
        agent_id=row.agent_id,
        detail=row.detail,
        previous_hash=row.previous_hash,
        hash=row.hash,
        request_id=row.request_id,
    )
    event.time.FromNanoseconds(row.time_ns)
    return event
