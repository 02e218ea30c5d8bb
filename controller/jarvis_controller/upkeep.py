# SPDX-License-Identifier: Apache-2.0
"""What a controller does for itself: database and audit chain checked at the start, certificate and audit key renewed."""

from __future__ import annotations

import asyncio

import structlog
from jarvis_trust.errors import AuditError, TrustError

from jarvis_controller import certificate_rows
from jarvis_controller.audit_checkpoints import Checkpointer, audit_signer
from jarvis_controller.authorities import CA_DIRECTORY, Authorities
from jarvis_controller.config import ConfigError, ControllerConfig
from jarvis_controller.deny_list import DenyList
from jarvis_controller.issuer import Issuer
from jarvis_controller.rotation import is_of, remember_authorities
from jarvis_controller.store import Store
from jarvis_controller.tls import ControllerCredentials

_log = structlog.get_logger()

_RENEW_CHECK_S = 3600.0


class Upkeep:
    """Used from the event loop."""

    def __init__(
        self,
        config: ControllerConfig,
        *,
        authorities: Authorities,
        issuer: Issuer,
        credentials: ControllerCredentials,
        checkpointer: Checkpointer,
        deny_list: DenyList,
        store: Store,
    ) -> None:
        self._config = config
        self._authorities = authorities
        self._issuer = issuer
        self._credentials = credentials
        self._checkpointer = checkpointer
        self._deny_list = deny_list
        self._store = store

    async def check_database(self) -> None:
        """Of this fleet, or new.

        Raises:
            ConfigError: it belongs to another CA.
        """
        if not await self._store.run(lambda session: is_of(session, self._authorities)):
            await self._store.close()
            raise ConfigError(
                "DATABASE_OF_ANOTHER_FLEET: database_url: the database belongs to another CA than"
                f" {self._config.state_directory / CA_DIRECTORY}: a fleet is made once; restore its state directory,"
                " or begin with an empty database"
            )
        await self._store.run(lambda session: remember_authorities(session, self._authorities, self._store.now_ns()))

    async def record_issued(self) -> None:
        """What was issued meanwhile becomes a row of the register; what is revoked is refused."""
        await self._issuer.record(self._store)
        self._deny_list.deny(await self._store.run(lambda session: certificate_rows.denials(session, self._store.now_ns())))

    async def check_audit(self) -> None:
        """Recomputes the chain; what is found is logged."""
        try:
            await self._store.verify_audit()
        except AuditError as error:
            # It goes on: the log is evidence now, and refusing to run would only hide it from `jarvisctl audit verify`.
            _log.error("the audit log was edited", sequence=error.sequence, reason=error.reason, message=error.message)

    async def sign_audit(self) -> None:
        """Until it is cancelled: a checkpoint whenever one is due."""
        while True:
            try:
                await self._store.checkpoint()
            except Exception:  # noqa: BLE001 - logged with its trace; the next turn tries again
                _log.exception("the audit chain could not be signed")
            await asyncio.sleep(self._config.audit_checkpoint_s)

    async def renew_certificate(self) -> None:
        """Until it is cancelled: what the controller shows and signs with is renewed in time."""
        while True:
            await asyncio.sleep(_RENEW_CHECK_S)
            try:
                if self._credentials.renew_if_due():
                    _log.info("own certificate renewed", not_after=self._credentials.current.not_after.isoformat())
                self.renew_audit_key()
                self._issuer.collect_spooled(self._config.state_directory)
                await self.record_issued()
            except (OSError, TrustError) as error:
                _log.error("own certificate could not be renewed; trying again in an hour", error=str(error))

    def renew_audit_key(self) -> None:
        """Certified by the CA of now, and anew before it ends."""
        self._checkpointer.ca_pem = self._authorities.known_pem
        self._checkpointer.signer = audit_signer(self._config.state_directory, self._issuer, self._config.name)
