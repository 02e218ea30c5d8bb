# SPDX-License-Identifier: Apache-2.0
"""Signs the audit chain every so many entries, and at the latest every so many seconds.

    audit_log.append -> Store.run -> Checkpointer.advance, in the same transaction -> a row -> (committed) -> audit.checkpoint

Before it signs, it follows the chain from the last checkpoint that it knows to the head: entries that were covered once cannot be
rewritten or cut away and signed anew. What it knows is kept in the state directory too, outside the database, or whoever edits
the database would take the checkpoints away with the rest. Used on the store's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError
from jarvis.capture.v1 import audit_pb2, fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead, verify_chain
from jarvis_trust.audit_checkpoint import CheckpointSigner, CheckpointVerifier
from jarvis_trust.ca import FleetCA, generate_key, load_certificate, public_key_of
from jarvis_trust.ca_bundle import issued_by
from jarvis_trust.errors import AuditError, IdentityError
from jarvis_trust.keyfiles import load_private_key, read_private, replace_private
from sqlalchemy import select
from sqlalchemy.orm import Session

from jarvis_controller import audit_log
from jarvis_controller.models import AuditCheckpointRow, AuditSignerRow

if TYPE_CHECKING:  # which needs the store, which needs this
    from jarvis_controller.issuer import Issuer

_log = structlog.get_logger()

AUDIT_KEY_FILE = "audit.pem"
"""Key and certificate of the audit key, in the state directory."""
CHECKPOINT_FILE = "audit.checkpoint"
"""The last checkpoint, in the state directory."""
KEY_LIFETIME = timedelta(days=400)
_RENEW_BEFORE = timedelta(days=35)
_PAGE = 1000


def audit_signer(directory: Path, ca: FleetCA | Issuer, name: str, *, now: datetime | None = None) -> CheckpointSigner:
    """The audit key of this controller; made, or made anew, where there is none, it ends within 35 days or its CA is another one.

    Raises:
        IdentityError: the file is exposed to others, or holds something else.
        OSError: it cannot be read or written.
    """
    path = directory / AUDIT_KEY_FILE
    if path.exists():
        signer = CheckpointSigner(load_private_key(path))
        left = signer.not_after - (now or datetime.now(UTC))
        if left > _RENEW_BEFORE and issued_by(load_certificate(signer.certificate), load_certificate(ca.certificate_pem)):
            return signer
    key = generate_key()
    replace_private(path, key + ca.issue_audit_signer(name, public_key_of(key), KEY_LIFETIME))
    return CheckpointSigner(load_private_key(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A checkpoint: its number and where it is in the chain."""

    number: int
    head: AuditHead


_START = _Place(number=0, head=GENESIS)


class Checkpointer:
    """Makes the checkpoints of one chain."""

    def __init__(self, *, signer: CheckpointSigner, ca_pem: bytes, directory: Path, every_entries: int) -> None:
        self.signer = signer
        """May be replaced when the key is renewed."""
        self.ca_pem = ca_pem
        """Every CA that may have certified a signer, of the past too; replaced when the fleet's CA is."""
        self._path = directory / CHECKPOINT_FILE
        self._every = every_entries
        self._last: _Place = _START
        self._made: tuple[_Place, bytes] | None = None
        self._stopped = True

    def open(self, session: Session) -> None:
        """Checks every checkpoint in the database, that the last one remembered is among them, and the chain against them.

        Raises:
            AuditError: the chain or its checkpoints were edited or cut. From then on nothing is signed.
        """
        self._stopped = True
        verifier = CheckpointVerifier(self.ca_pem)
        for certificate in session.scalars(select(AuditSignerRow.certificate)):
            verifier.trust(certificate)
        remembered, last = self._remembered(), _START
        for checkpoint in _all(session):
            verifier.add(checkpoint)
            last = _Place(number=checkpoint.number, head=AuditHead(sequence=checkpoint.sequence, hash=checkpoint.hash))
            if last.number == remembered.number and last != remembered:
                raise _missing(remembered)
        if last.number < remembered.number:
            raise _missing(remembered)
        head = GENESIS
        for event in audit_log.all_events(session):
            head = verify_chain((event,), after=head)
            verifier.entry(head, event.time.ToNanoseconds())
        if head.sequence < last.head.sequence:
            raise AuditError(
                "AUDIT_TRUNCATED",
                f"audit chain ends at entry {head.sequence}; checkpoint {last.number} was signed for entry {last.head.sequence}",
                sequence=head.sequence + 1,
            )
        self._last, self._stopped = last, False

    def advance(self, session: Session, head: AuditHead, now_ns: int, *, at_once: bool = False) -> None:
        """Adds a checkpoint when it is due; call `committed` or `rolled_back` afterwards. `now_ns` is of the wall clock."""
        uncovered = head.sequence - self._last.head.sequence
        if self._stopped or uncovered < (1 if at_once else self._every):
            return
        try:
            self._catch_up(session)
            if head.sequence <= self._last.head.sequence:
                return
            self._follow(session, head)
        except AuditError as error:
            # The entries go on being written; that nothing signs them any more is what `jarvisctl audit verify` finds.
            self._stopped = True
            _log.error("the audit log was edited: no more checkpoints", reason=error.reason, message=error.message)
            return
        checkpoint = self.signer.sign(self._last.number + 1, head, now_ns)
        if session.get(AuditSignerRow, self.signer.signer_sha256) is None:
            session.add(AuditSignerRow(sha256=self.signer.signer_sha256, certificate=self.signer.certificate))
            session.flush()
        session.add(
            AuditCheckpointRow(
                number=checkpoint.number,
                sequence=checkpoint.sequence,
                hash=checkpoint.hash,
                time_ns=now_ns,
                signer_sha256=checkpoint.signer_sha256,
                signature=checkpoint.signature,
            )
        )
        self._made = (_Place(number=checkpoint.number, head=head), checkpoint.SerializeToString())

    def committed(self) -> None:
        """The transaction was committed: what was made in it is remembered outside the database."""
        if self._made is None:
            return
        (self._last, data), self._made = self._made, None
        try:
            replace_private(self._path, data)
        except OSError as error:
            # The file may lag: it says what must at least be there.
            _log.error("the last audit checkpoint could not be remembered", path=str(self._path), error=str(error))

    def rolled_back(self) -> None:
        """The transaction was not committed."""
        self._made = None

    def _catch_up(self, session: Session) -> None:
        """Takes over checkpoints of another process over the same database: the one before this, that has not ended yet."""
        rows = _rows(session, self._last.number, _PAGE)
        if not rows:
            return
        verifier = CheckpointVerifier(self.ca_pem, after=self._last.number, head=self._last.head)
        for certificate in session.scalars(select(AuditSignerRow.certificate)):
            verifier.trust(certificate)
        for row in rows:
            verifier.add(_message(row))
        # Their chain is followed from what this process knows, before they are believed.
        newest = AuditHead(sequence=rows[-1].sequence, hash=rows[-1].hash)
        self._follow(session, newest)
        self._last = _Place(number=rows[-1].number, head=newest)

    def _follow(self, session: Session, head: AuditHead) -> None:
        last = self._last.head
        if last.sequence and audit_log.hash_at(session, last.sequence) != last.hash:
            message = f"audit entry {last.sequence} is not the one that checkpoint {self._last.number} was signed for"
            raise AuditError("AUDIT_CHECKPOINT_MISMATCH", message, sequence=last.sequence)
        verify_chain(audit_log.all_events(session, after=last.sequence), after=last, expected=head)

    def _remembered(self) -> _Place:
        try:
            checkpoint = audit_pb2.AuditCheckpoint.FromString(read_private(self._path))
        except FileNotFoundError:
            return _START
        except (OSError, IdentityError, DecodeError) as error:
            raise AuditError("AUDIT_CHECKPOINT_INVALID", f"{self._path} cannot be read: {error}", sequence=0) from error
        head = AuditHead(sequence=checkpoint.sequence, hash=checkpoint.hash)
        return _Place(number=checkpoint.number, head=head)


@contextmanager
def signed_checkpoints(checkpointer: Checkpointer | None, session: Session, now_ns: Callable[[], int]) -> Iterator[None]:
    """A transaction, with the checkpoint in it that is due after what it appended to the audit chain."""
    try:
        with session.begin():
            yield
            head = session.info.pop(audit_log.APPENDED, None)
            if checkpointer is not None and head is not None:
                checkpointer.advance(session, head, now_ns())
    except BaseException:
        if checkpointer is not None:
            checkpointer.rolled_back()
        raise
    if checkpointer is not None:
        checkpointer.committed()


def page(session: Session, after_number: int, limit: int) -> fleet_pb2.ListAuditCheckpointsResponse:
    """Up to `limit` checkpoints with a higher number, oldest first, with their signers."""
    rows = _rows(session, after_number, limit)
    signers = {row.signer_sha256: None for row in rows}
    certificates = session.scalars(select(AuditSignerRow.certificate).where(AuditSignerRow.sha256.in_(signers)))
    return fleet_pb2.ListAuditCheckpointsResponse(
        checkpoints=[_message(row) for row in rows], signer_certificates=list(certificates)
    )


def _all(session: Session) -> Iterator[audit_pb2.AuditCheckpoint]:
    after = 0
    while rows := _rows(session, after, _PAGE):
        yield from map(_message, rows)
        after = rows[-1].number


def _rows(session: Session, after_number: int, limit: int) -> Sequence[AuditCheckpointRow]:
    chosen = select(AuditCheckpointRow).where(AuditCheckpointRow.number > after_number)
    return session.scalars(chosen.order_by(AuditCheckpointRow.number).limit(limit)).all()


def _message(row: AuditCheckpointRow) -> audit_pb2.AuditCheckpoint:
    checkpoint = audit_pb2.AuditCheckpoint(
        number=row.number,
        sequence=row.sequence,
        hash=row.hash,
        signer_sha256=row.signer_sha256,
        signature=row.signature,
    )
    checkpoint.time.FromNanoseconds(row.time_ns)
    return checkpoint


def _missing(remembered: _Place) -> AuditError:
    message = f"checkpoint {remembered.number}, signed for audit entry {remembered.head.sequence}, is gone from the database"
    return AuditError("AUDIT_CHECKPOINT_MISSING", message, sequence=remembered.head.sequence)
