# SPDX-License-Identifier: Apache-2.0
"""Requests that change something, and what came of them, so that a repeated one does nothing twice.

Functions over a session, run on the store's thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from jarvis.capture.v1 import fleet_pb2
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jarvis_controller import audit_log
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.models import OutcomeRow, RequestRow
from jarvis_controller.records import RequestConflictError

_LIFETIME_NS = 24 * 3600 * 10**9


def begin(session: Session, request_id: str, *, principal: str, method: str, payload: bytes, now_ns: int) -> Mapping[str, bytes]:
    """Registers a mutation; for a repeated one, gives the outcomes that are known: agent id -> bytes of the outcome.

    Raises:
        RequestConflictError: the id was used for something else in the last 24 h.
    """
    digest = hashlib.sha256(payload).digest()
    _forget(session, now_ns - _LIFETIME_NS)
    row = session.get(RequestRow, request_id)
    if row is None:
        session.add(RequestRow(request_id=request_id, principal=principal, method=method, payload_sha256=digest, time_ns=now_ns))
        return {}
    if (row.principal, row.method, row.payload_sha256) != (principal, method, digest):
        raise RequestConflictError(request_id)
    outcomes = session.scalars(select(OutcomeRow).where(OutcomeRow.request_id == request_id))
    return {outcome.agent_id: outcome.outcome for outcome in outcomes}


def record_outcome(
    session: Session, entry: AuditEntry, outcome: fleet_pb2.CaptureOutcome | fleet_pb2.ExportOutcome, now_ns: int
) -> None:
    """Audits what an agent answered; keeps a success for a repeated request."""
    if outcome.status.code == 0:
        session.merge(OutcomeRow(request_id=entry.request_id, agent_id=entry.agent_id, outcome=outcome.SerializeToString()))
    audit_log.append(session, entry, now_ns)


def _forget(session: Session, before_ns: int) -> None:
    old = select(RequestRow.request_id).where(RequestRow.time_ns < before_ns)
    session.execute(delete(OutcomeRow).where(OutcomeRow.request_id.in_(old)))
    session.execute(delete(RequestRow).where(RequestRow.time_ns < before_ns))
