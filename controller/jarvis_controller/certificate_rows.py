# SPDX-License-Identifier: Apache-2.0
"""The register of certificates and the deny-list, as rows: functions over a session, called inside the store's transaction.

`record` a certificate that was issued; `revoke` a serial, or an id: its certificates of until now; `denials` is what the running
controller keeps in memory (deny_list.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis_trust.ca import load_certificate, spki_sha256, uri_of_certificate
from jarvis_trust.ca_bundle import serial_of
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity
from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from jarvis_controller import audit_log, event_log, own_events
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.models import CertificateRow, DenialRow

AUDIT_ROLE = "audit"
RECOVERY = "recovery"
"""On whose behalf `recover-admin` issues: the certificate replaces every other administrator's."""
ENROLLMENT = "enrollment"
"""On whose behalf agents get theirs."""
_EXPIRING_NS = 7 * 86400 * 10**9
_EXPIRING_SHARE = 5
KEPT_NS = 90 * 86400 * 10**9
"""How long a certificate that is over stays in the register."""
AGENTS_KEPT_NS = 14 * 86400 * 10**9
"""The same of agents, who get one or two a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """One certificate and on whose behalf it was issued."""

    certificate: x509.Certificate
    subject: str
    role: str
    spki_sha256: bytes
    issuer: str
    by: str

    @classmethod
    def of(cls, pem: bytes, by: str) -> Self:
        """Reads it.

        Raises:
            IdentityError: it is not a certificate of a party of a fleet, or of an audit key.
        """
        certificate = load_certificate(pem)
        subject = uri_of_certificate(certificate)
        audit = "/audit/" in subject
        return cls(
            certificate=certificate,
            subject=subject,
            role=AUDIT_ROLE if audit else str(Identity.parse(subject).role),
            spki_sha256=spki_sha256(pem),
            issuer=_issuer_id(certificate),
            by=by,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """What is refused: a serial, or an id's certificates that were issued before `time_ns`."""

    serial: str
    subject: str
    time_ns: int
    reason: str
    is_open: bool
    """Of an agent: it has not been admitted again since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What an operator ordered."""

    serial: str
    """Or empty."""
    subject: str
    """Or empty."""
    reason: str
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What a list is of."""

    role: str = ""
    state: int = pb.CERTIFICATE_STATE_UNSPECIFIED
    before: int = 2**62
    """Row number that the page ends before."""
    limit: int = 100


def record(session: Session, issued: Issued, *, now_ns: int) -> bool:
    """Adds a certificate and says so; one that is there stays as it is."""
    serial = serial_of(issued.certificate)
    if session.scalar(select(CertificateRow.number).where(CertificateRow.serial == serial)) is not None:
        return False
    row = CertificateRow(
        number=(session.scalar(select(func.max(CertificateRow.number))) or 0) + 1,
        serial=serial,
        subject=issued.subject,
        role=issued.role,
        spki_sha256=issued.spki_sha256,
        issuer=issued.issuer,
        not_before_ns=int(issued.certificate.not_valid_before_utc.timestamp()) * 10**9,
        not_after_ns=int(issued.certificate.not_valid_after_utc.timestamp()) * 10**9,
        issue_time_ns=now_ns,
        issued_by=issued.by,
    )
    session.add(row)
    session.flush()
    _forget_old(session, now_ns)
    if issued.by == ENROLLMENT:
        return True  # which has an entry of its own
    detail = {
        "issued_by": issued.by,
        "issuer": row.issuer,
        "not_after_ns": row.not_after_ns,
        "serial": serial,
        "spki_sha256": row.spki_sha256.hex(),
        "subject": row.subject,
    }
    principal = issued.by if issued.by.startswith("spiffe://") else audit_log.CONTROLLER
    audit_log.append(session, AuditEntry(principal=principal, action="certificate.issue", detail=detail), now_ns)
    return True


def revoke(session: Session, order: Revocation, *, now_ns: int, keep_events: int) -> tuple[list[CertificateRow], list[Denial]]:
    """Denies what is ordered, audits it and tells of it; the rows that it touches, and what memory must hold.

    Revoking again changes nothing. With the newest certificate of an agent its id is denied too: it has to be admitted again.

    Raises:
        KeyError: a serial, or an id, under which nothing was ever issued.
        ValueError: it is the controller's own: agents have no deny-list.
    """
    rows = list(_targets(session, order))
    if not rows:
        raise KeyError(order.serial or order.subject)
    if rows[0].role in {"controller", AUDIT_ROLE}:
        raise ValueError(f"{rows[0].subject}: an agent's or operator's is accepted; a change of the CA ends the others")
    subject = order.subject or (rows[0].subject if _takes_the_agent_out(session, rows[0]) else "")
    fresh = [row for row in rows if row.revoke_time_ns is None]
    for row in fresh:
        row.revoke_time_ns, row.revoke_reason, row.revoked_by = now_ns, order.reason, order.principal
    if subject:
        denial = session.get(DenialRow, subject) or DenialRow(subject=subject)
        denial.time_ns, denial.reason, denial.principal, denial.is_open = now_ns, order.reason, order.principal, True
        session.add(denial)
    session.flush()
    if fresh or subject:
        detail = {"reason": order.reason, "serials": [row.serial for row in fresh], "subject": rows[0].subject}
        agent_id = agent_of(rows[0].subject)
        entry = AuditEntry(principal=order.principal, action="certificate.revoke", agent_id=agent_id, detail=detail)
        audit_log.append(session, entry, now_ns)
        told = own_events.certificate_revoked(
            rows[0].subject, [row.serial for row in fresh], reason=order.reason, principal=order.principal, agent_id=agent_id
        )
        event_log.append_own(session, [told], now_ns=now_ns, keep=keep_events)
    return rows, [denial for denial in denials(session, now_ns) if denial.subject == rows[0].subject]


def revoke_other_admins(session: Session, serial: str, *, now_ns: int, keep_events: int) -> None:
    """The controller's host made a new administrator because all others are lost: whoever has their certificates is out."""
    chosen = select(CertificateRow).where(
        CertificateRow.role == "admin",
        CertificateRow.serial != serial,
        CertificateRow.revoke_time_ns.is_(None),
        CertificateRow.not_after_ns > now_ns,
    )
    for row in session.scalars(chosen).all():
        order = Revocation(serial=row.serial, subject="", reason=f"replaced by {serial} (recover-admin)", principal=RECOVERY)
        revoke(session, order, now_ns=now_ns, keep_events=keep_events)


def denials(session: Session, now_ns: int) -> list[Denial]:
    """Everything that is refused now: revoked serials that are not over, and ids."""
    revoked = select(CertificateRow).where(CertificateRow.revoke_time_ns.is_not(None), CertificateRow.not_after_ns > now_ns)
    found = [
        Denial(serial=row.serial, subject=row.subject, time_ns=row.revoke_time_ns or 0, reason=row.revoke_reason, is_open=False)
        for row in session.scalars(revoked)
    ]
    ids = session.scalars(select(DenialRow))
    return found + [
        Denial(serial="", subject=row.subject, time_ns=row.time_ns, reason=row.reason, is_open=row.is_open) for row in ids
    ]


def is_denied(session: Session, serial: str, subject: str, issue_ns: int) -> bool:
    """Whether a certificate that need not be in the register is refused now, by its serial or its id."""
    row = find(session, serial)
    if row is not None:
        return row.revoke_time_ns is not None
    denial = session.get(DenialRow, subject)
    return denial is not None and issue_ns < denial.time_ns


def denied_keys(session: Session, subject: str) -> frozenset[bytes]:
    """SPKI digests of the id's revoked certificates: a key that may be stolen is certified no more."""
    chosen = select(CertificateRow.spki_sha256).where(
        CertificateRow.subject == subject, CertificateRow.revoke_time_ns.is_not(None)
    )
    return frozenset(session.scalars(chosen))


def must_be_admitted(session: Session, subject: str) -> bool:
    """Whether the id was revoked and nobody let it in again."""
    row = session.get(DenialRow, subject)
    return row is not None and row.is_open


def open_denial(session: Session, agent_id: str) -> DenialRow | None:
    """Of an agent that was revoked and not admitted again."""
    chosen = select(DenialRow).where(DenialRow.subject.endswith(f"/agent/{agent_id}"), DenialRow.is_open)
    return session.scalars(chosen).first()


def page(session: Session, criteria: Criteria, trusted: Sequence[str], now_ns: int) -> tuple[list[pb.Certificate], int]:
    """Certificates, newest first, and the row number that the next page begins before (0: there is none)."""
    chosen = select(CertificateRow, _is_superseded()).where(CertificateRow.number < criteria.before)
    if criteria.role:
        chosen = chosen.where(CertificateRow.role == criteria.role)
    found: list[pb.Certificate] = []
    last = 0
    for row, superseded in session.execute(chosen.order_by(CertificateRow.number.desc()).execution_options(yield_per=500)):
        if len(found) == criteria.limit:
            return found, last
        message = to_message(row, superseded=superseded, trusted=trusted, now_ns=now_ns)
        if criteria.state in {pb.CERTIFICATE_STATE_UNSPECIFIED, message.state}:
            found.append(message)
            last = row.number
    return found, 0


def messages(session: Session, rows: Iterable[CertificateRow], trusted: Sequence[str], now_ns: int) -> list[pb.Certificate]:
    """Rows as operators see them."""
    numbers = [row.number for row in rows]
    chosen = select(CertificateRow, _is_superseded()).where(CertificateRow.number.in_(numbers))
    found = session.execute(chosen.order_by(CertificateRow.number.desc()))
    return [to_message(row, superseded=superseded, trusted=trusted, now_ns=now_ns) for row, superseded in found]


def in_use(session: Session, issuer: str, now_ns: int) -> Sequence[CertificateRow]:
    """What a CA issued that is neither over, nor revoked, nor superseded; audit keys apart, whose signatures stay verifiable."""
    chosen = select(CertificateRow).where(
        CertificateRow.issuer == issuer,
        CertificateRow.not_after_ns > now_ns,
        CertificateRow.revoke_time_ns.is_(None),
        CertificateRow.role != AUDIT_ROLE,
        ~_is_superseded(),
    )
    return session.scalars(chosen).all()


def find(session: Session, serial: str) -> CertificateRow | None:
    """One certificate."""
    return session.scalars(select(CertificateRow).where(CertificateRow.serial == serial)).first()


def to_message(row: CertificateRow, *, superseded: bool, trusted: Sequence[str], now_ns: int) -> pb.Certificate:
    """A row as operators see it."""
    message = pb.Certificate(
        serial=row.serial,
        subject=row.subject,
        role=row.role,
        spki_sha256=row.spki_sha256,
        issuer=row.issuer,
        issued_by=row.issued_by,
        state=_state(row, superseded=superseded, trusted=trusted, now_ns=now_ns),
        revoke_reason=row.revoke_reason,
        revoked_by=row.revoked_by,
    )
    message.not_before.FromNanoseconds(row.not_before_ns)
    message.not_after.FromNanoseconds(row.not_after_ns)
    message.issue_time.FromNanoseconds(row.issue_time_ns)
    if row.revoke_time_ns is not None:
        message.revoke_time.FromNanoseconds(row.revoke_time_ns)
    return message


def agent_of(subject: str) -> str:
    """The id of the agent that a SPIFFE id names; empty for anybody else."""
    return subject.rpartition("/agent/")[2] if "/agent/" in subject else ""


def _state(row: CertificateRow, *, superseded: bool, trusted: Sequence[str], now_ns: int) -> pb.CertificateState.ValueType:
    left = row.not_after_ns - now_ns
    if row.revoke_time_ns is not None:
        return pb.CERTIFICATE_STATE_REVOKED
    if left <= 0:
        return pb.CERTIFICATE_STATE_EXPIRED
    if row.issuer not in trusted:
        return pb.CERTIFICATE_STATE_UNTRUSTED
    if superseded:
        return pb.CERTIFICATE_STATE_SUPERSEDED
    if left < min(_EXPIRING_NS, (row.not_after_ns - row.not_before_ns) // _EXPIRING_SHARE):
        return pb.CERTIFICATE_STATE_EXPIRING
    return pb.CERTIFICATE_STATE_VALID


def _is_superseded() -> ColumnElement[bool]:
    """Whether another certificate was issued to the row's id later."""
    newer = aliased(CertificateRow)
    later = select(newer.number).where(newer.subject == CertificateRow.subject, newer.number > CertificateRow.number)
    return later.correlate(CertificateRow).exists()


def _targets(session: Session, order: Revocation) -> Sequence[CertificateRow]:
    column, value = (CertificateRow.serial, order.serial) if order.serial else (CertificateRow.subject, order.subject)
    return session.scalars(select(CertificateRow).where(column == value)).all()


def _takes_the_agent_out(session: Session, row: CertificateRow) -> bool:
    newest = session.scalar(select(func.max(CertificateRow.number)).where(CertificateRow.subject == row.subject))
    return bool(agent_of(row.subject)) and newest == row.number


def _forget_old(session: Session, now_ns: int) -> None:
    """Rows of long ago; never the newest of an id, nor a revoked one, whose key stays refused."""
    is_agents = CertificateRow.role == "agent"
    is_old = or_(
        is_agents & (CertificateRow.not_after_ns < now_ns - AGENTS_KEPT_NS),
        ~is_agents & (CertificateRow.not_after_ns < now_ns - KEPT_NS),
    )
    session.execute(delete(CertificateRow).where(is_old, CertificateRow.revoke_time_ns.is_(None), _is_superseded()))


def _issuer_id(certificate: x509.Certificate) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        found = None
    if found is None:
        raise IdentityError("CERTIFICATE_INVALID", "the certificate does not say which key issued it")
    return found.hex()
