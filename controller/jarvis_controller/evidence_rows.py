# SPDX-License-Identifier: Apache-2.0
"""What verdicts were reached on, by hash: cases and the boot logs that they name.

Functions over a session, run on the store's thread. Bounded by age and by size, the oldest go first. A boot log counts as old as
the last case that names it, so that it never goes before one of its cases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jarvis.capture.v1 import audit_pb2, fleet_pb2
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from jarvis_controller.attestation_case import AttestedCase
from jarvis_controller.models import EvidenceRow, LastCaseRow


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLimits:
    """How much is kept."""

    age_ns: int = 400 * 86400 * 10**9
    octets: int = 1 << 30


def keep(session: Session, case: AttestedCase, now_ns: int, limits: EvidenceLimits) -> bytes:
    """Keeps a case and its boot log, forgets what is beyond the limits; gives the case's SHA-256."""
    if case.boot_log:
        _put(session, case.boot_log, now_ns)
    digest = _put(session, case.data, now_ns)
    session.flush()
    session.execute(delete(EvidenceRow).where(EvidenceRow.time_ns < now_ns - limits.age_ns))
    kept = session.scalar(select(func.coalesce(func.sum(EvidenceRow.size), 0))) or 0
    if kept > limits.octets:
        # A tenth more than needed: the next ones need not come here at once.
        _forget_oldest(session, kept - limits.octets + limits.octets // 10)
    return digest


def find(session: Session, sha256: bytes) -> bytes | None:
    """What has this hash, or None when nothing has, or has any more."""
    return session.scalars(select(EvidenceRow.data).where(EvidenceRow.sha256 == sha256)).first()


def remember_last(session: Session, agent_id: str, sha256: bytes) -> None:
    """This is what is known of the agent now."""
    session.merge(LastCaseRow(agent_id=agent_id, sha256=sha256))


def find_last(session: Session, agent_id: str) -> bytes:
    """SHA-256 of the agent's last case; empty when there was none. It may be forgotten already."""
    row = session.get(LastCaseRow, agent_id)
    return b"" if row is None else row.sha256


def _put(session: Session, data: bytes, now_ns: int) -> bytes:
    digest = hashlib.sha256(data).digest()
    known = session.scalar(select(func.count()).select_from(EvidenceRow).where(EvidenceRow.sha256 == digest))
    if known:
        session.execute(update(EvidenceRow).where(EvidenceRow.sha256 == digest).values(time_ns=now_ns))
    else:
        session.add(EvidenceRow(sha256=digest, time_ns=now_ns, size=len(data), data=data))
        session.flush()
    return digest


def _forget_oldest(session: Session, octets: int) -> None:
    oldest, freed = [], 0
    for sha256, size in session.execute(select(EvidenceRow.sha256, EvidenceRow.size).order_by(EvidenceRow.time_ns)):
        if freed >= octets:
            break
        oldest.append(sha256)
        freed += size
    for first in range(0, len(oldest), 500):
        session.execute(delete(EvidenceRow).where(EvidenceRow.sha256.in_(oldest[first : first + 500])))


def case(session: Session, case_sha256: bytes) -> fleet_pb2.GetAttestationCaseResponse | None:
    """A case with the boot log that it names; None when it is not kept, or not any more."""
    data = find(session, case_sha256)
    if data is None:
        return None
    named = audit_pb2.AttestationCase.FromString(data).boot_log_sha256
    boot_log = find(session, named) if named else None
    return fleet_pb2.GetAttestationCaseResponse(attestation_case=data, boot_log=boot_log or b"")
