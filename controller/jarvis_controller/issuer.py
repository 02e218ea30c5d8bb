# SPDX-License-Identifier: Apache-2.0
"""The one place where the fleet CA's key is used: whatever it certifies becomes a row of the register.

    Issuer.issue(...) -> PEM, remembered -> await record() -> certificate_rows, in a transaction

Signing does not wait for the database (the controller's own certificate is needed before it is open), so what was issued is kept
until it is recorded, and an error of the database loses none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis_trust.ca_bundle import serial_of
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity
from sqlalchemy.orm import Session

from jarvis_controller import certificate_rows
from jarvis_controller.authorities import Authorities
from jarvis_controller.certificate_rows import Issued
from jarvis_controller.store import Store

_log = structlog.get_logger()

SPOOL_DIRECTORY = "issued"
"""Of the state directory: certificates that the controller's own program issued without the database."""
CONTROLLER = "controller"


@dataclass(slots=True, kw_only=True)
class _Pending:
    issued: Issued
    spooled: Path | None = None


class Issuer:
    """Issues and records. Used on the event loop's thread, or before there is one."""

    def __init__(self, authorities: Authorities) -> None:
        self.authorities = authorities
        self._pending: list[_Pending] = []

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self.authorities.fleet

    @property
    def certificate_pem(self) -> bytes:
        """The CA that issues."""
        return self.authorities.issuing.certificate_pem

    @property
    def ca_pem(self) -> bytes:
        """Every CA that is trusted now."""
        return self.authorities.bundle.pem

    def issue(
        self,
        identity: Identity,
        public_key: ec.EllipticCurvePublicKey,
        lifetime: timedelta,
        *,
        by: str = CONTROLLER,
        now: datetime | None = None,
    ) -> bytes:
        """A leaf, PEM, from the CA that issues; see FleetCA.issue. `by` says on whose behalf."""
        return self._remember(self.authorities.issuing.issue(identity, public_key, lifetime, now=now), by)

    def issue_for_serving(self, identity: Identity, public_key: ec.EllipticCurvePublicKey, lifetime: timedelta) -> bytes:
        """The same from the CA that peers have trusted the longest: what the ports show while the fleet changes over."""
        return self._remember(self.authorities.serving.issue(identity, public_key, lifetime), CONTROLLER)

    def issue_audit_signer(
        self, name: str, public_key: ec.EllipticCurvePublicKey, lifetime: timedelta, *, now: datetime | None = None
    ) -> bytes:
        """The certificate of a key that signs the audit chain; see FleetCA.issue_audit_signer."""
        return self._remember(self.authorities.issuing.issue_audit_signer(name, public_key, lifetime, now=now), CONTROLLER)

    def note(self, pem_or_der: bytes, by: str) -> None:
        """Something that was issued before this controller ran; nothing happens when it is recorded already."""
        self._remember(pem_or_der, by)

    async def record(self, store: Store) -> None:
        """Writes what was issued since the last time."""
        pending, self._pending = self._pending, []
        if not pending:
            return

        def write(session: Session) -> None:
            for each in pending:
                is_new = certificate_rows.record(session, each.issued, now_ns=store.now_ns())
                if is_new and each.issued.by == certificate_rows.RECOVERY:
                    serial = serial_of(each.issued.certificate)
                    certificate_rows.revoke_other_admins(session, serial, now_ns=store.now_ns(), keep_events=store.kept_events)

        try:
            await store.run(write)
        except BaseException:
            self._pending = pending + self._pending
            raise
        for each in pending:
            if each.spooled is not None:
                each.spooled.unlink(missing_ok=True)

    def collect_spooled(self, directory: Path) -> None:
        """Notes what `jarvis-controller init`, `operator` and `recover-admin` left there; `record` removes it."""
        for path in sorted((directory / SPOOL_DIRECTORY).glob("*.pem")):
            try:
                issued = Issued.of(path.read_bytes(), path.name.partition("-")[0])
            except (OSError, TrustError) as error:
                _log.error("a certificate that was issued offline cannot be recorded", path=str(path), error=str(error))
                continue
            self._pending.append(_Pending(issued=issued, spooled=path))

    def _remember(self, pem: bytes, by: str) -> bytes:
        self._pending.append(_Pending(issued=Issued.of(pem, by)))
        return pem
