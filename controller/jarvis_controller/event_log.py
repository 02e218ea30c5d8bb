# SPDX-License-Identifier: Apache-2.0
"""The fleet's events as kept: one table in the order in which they became known, the newest so many of it.

    agents' events (event_collector.py), the controller's own (store.py) -> append -> position 1, 2, 3, ... -> page

Functions over a session, so that a change and its event are stored together or not at all. An event that is there already, by
source and number, is not stored twice; a gap in a source's numbers is stored as EVENTS_LOST. All writers go through the store's
one thread, so positions have no gaps.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1.event_pb2 import Event
from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from jarvis_controller.models import EventRow, EventSourceRow

CONTROLLER_SOURCE = ""
"""In the place of an agent's id, of the controller's own source."""
CHANGED = "events changed"
"""Key of a session's `info`: set when an event was appended."""
_KEPT_SOURCES = 8
"""Sources remembered for each agent: a new one comes only with a new disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvent:
    """One event and where it is."""

    position: int
    agent_id: str
    type: int
    data: bytes
    """Event, serialized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What is kept."""

    log_id: bytes
    """16 random bytes of this log: positions of another one mean nothing here."""
    oldest: int
    """Position of the oldest event kept; newest + 1 when there is none."""
    newest: int
    """Position of the newest one; 0 before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """Which events, agents apart."""

    types: Collection[int] = ()
    """Empty: all."""
    min_severity: int = 0


def append_own(session: Session, events: Sequence[Event], *, now_ns: int, keep: int) -> None:
    """Adds events of the controller itself, numbered here."""
    for event in events:
        _number(session, event, now_ns)
    _insert(session, events, now_ns=now_ns, keep=keep)


def append_collected(session: Session, agent_id: str, events: Sequence[Event], *, now_ns: int, keep: int) -> int:
    """Adds what an agent told, in its order; what is known already is left out. Returns how many were new."""
    fresh: list[Event] = []
    new = 0
    for event in events:
        source = session.get(EventSourceRow, (agent_id, event.source_id))
        if source is None:
            source = EventSourceRow(agent_id=agent_id, source_id=event.source_id, sequence=0, time_ns=now_ns)
            session.add(source)
            session.flush()
        if event.sequence <= source.sequence:
            continue
        lost = event.sequence - source.sequence - 1
        if lost:
            fresh.append(_number(session, _lost(agent_id, lost), now_ns))
        source.sequence, source.time_ns = event.sequence, now_ns
        # What an agent says of itself is whose certificate it showed, whatever it writes here.
        event.agent_id = agent_id
        fresh.append(event)
        new += 1
    _insert(session, fresh, now_ns=now_ns, keep=keep)
    _forget_old_sources(session, agent_id)
    return new


def last_collected(session: Session, agent_id: str) -> tuple[str, int]:
    """Source and number of the last event that came from an agent; empty and 0 when none did."""
    newest = select(EventSourceRow).where(EventSourceRow.agent_id == agent_id).order_by(EventSourceRow.time_ns.desc()).limit(1)
    row = session.scalars(newest).first()
    return ("", 0) if row is None else (row.source_id, row.sequence)


def extent(session: Session) -> Extent:
    """What is kept now."""
    oldest, newest = session.execute(select(func.min(EventRow.position), func.max(EventRow.position))).one()
    log_id = bytes.fromhex(_own_source(session).source_id)
    return Extent(log_id=log_id, oldest=oldest or 1, newest=newest or 0)


def first_since(session: Session, time_ns: int) -> int | None:
    """Position of the first event that became known at this time or later; None when there is none."""
    return session.scalar(select(func.min(EventRow.position)).where(EventRow.receive_ns >= time_ns))


def page(session: Session, after: int, limit: int, criteria: Criteria) -> list[KeptEvent]:
    """Up to `limit` events at positions above `after`, oldest first."""
    rows = select(EventRow).where(EventRow.position > after)
    return _fetch(session, rows.order_by(EventRow.position).limit(limit), criteria)


def page_back(session: Session, before: int, limit: int, criteria: Criteria) -> list[KeptEvent]:
    """Up to `limit` events at positions below `before`, newest first."""
    rows = select(EventRow).where(EventRow.position < before)
    return _fetch(session, rows.order_by(EventRow.position.desc()).limit(limit), criteria)


def _fetch(session: Session, statement: Select[EventRow], criteria: Criteria) -> list[KeptEvent]:
    if criteria.types:
        statement = statement.where(EventRow.type.in_(criteria.types))
    if criteria.min_severity:
        statement = statement.where(EventRow.severity >= criteria.min_severity)
    rows = session.scalars(statement)
    return [KeptEvent(position=row.position, agent_id=row.agent_id, type=row.type, data=row.data) for row in rows]


def _insert(session: Session, events: Sequence[Event], *, now_ns: int, keep: int) -> None:
    if not events:
        return
    newest = session.scalar(select(func.max(EventRow.position))) or 0
    for position, event in enumerate(events, newest + 1):
        event.receive_time.FromNanoseconds(now_ns)
        session.add(
            EventRow(
                position=position,
                agent_id=event.agent_id,
                type=event.type,
                severity=event.severity,
                receive_ns=now_ns,
                data=event.SerializeToString(deterministic=True),
            )
        )
    session.execute(delete(EventRow).where(EventRow.position <= newest + len(events) - keep))
    session.flush()
    session.info[CHANGED] = True


def _number(session: Session, event: Event, now_ns: int) -> Event:
    """Makes it the controller's next."""
    source = _own_source(session)
    source.sequence += 1
    event.source_id, event.sequence = source.source_id, source.sequence
    event.time.FromNanoseconds(now_ns)
    return event


def _own_source(session: Session) -> EventSourceRow:
    row = session.scalars(select(EventSourceRow).where(EventSourceRow.agent_id == CONTROLLER_SOURCE)).first()
    if row is None:
        row = EventSourceRow(agent_id=CONTROLLER_SOURCE, source_id=secrets.token_hex(16), sequence=0, time_ns=0)
        session.add(row)
        session.flush()
    return row


def _forget_old_sources(session: Session, agent_id: str) -> None:
    sources = select(EventSourceRow).where(EventSourceRow.agent_id == agent_id).order_by(EventSourceRow.time_ns.desc())
    for row in session.scalars(sources.offset(_KEPT_SOURCES)).all():
        session.delete(row)


def _lost(agent_id: str, lost: int) -> Event:
    return Event(
        type=event_pb2.EVENT_TYPE_EVENTS_LOST,
        severity=event_pb2.EVENT_SEVERITY_WARNING,
        agent_id=agent_id,
        value=lost,
        message=f"{lost} events of the agent were overwritten there before they were collected",
    )
