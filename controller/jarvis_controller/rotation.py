# SPDX-License-Identifier: Apache-2.0
"""Takes the fleet from one CA to the next: what each stage changes in the running controller, and who would be cut off by it.

    PREPARED    the new CA is trusted; leases tell agents, which renew their certificates and with them what they trust
    ACTIVATED   it issues; refused while a live agent does not trust it
    NONE        the old one is trusted no more, in calls under way too; refused while certificates of it are in use

`force` takes a step that would cut somebody off; whom is in the audit entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from google.rpc import code_pb2
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis_trust.ca import load_certificate
from jarvis_trust.ca_bundle import ca_id
from sqlalchemy.orm import Session

from jarvis_controller import audit_log, certificate_rows
from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.authorities import Authorities, Stage, StageError
from jarvis_controller.deny_list import DenyList
from jarvis_controller.issuer import Issuer
from jarvis_controller.models import AuthorityRow
from jarvis_controller.rpc_status import RpcError, refuse
from jarvis_controller.states import State
from jarvis_controller.store import Store
from jarvis_controller.tls import ControllerCredentials

_log = structlog.get_logger()

_ASKED_AT_ONCE = 64
_NAMED = 20
STAGES = {
    Stage.NONE: pb.ROTATION_STAGE_NONE,
    Stage.PREPARED: pb.ROTATION_STAGE_PREPARED,
    Stage.ACTIVATED: pb.ROTATION_STAGE_ACTIVATED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an administrator asked for."""

    stage: int
    force: bool
    reason: str
    principal: str


class Rotation:
    """The fleet's CAs as a running controller uses them. One event loop."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        issuer: Issuer,
        credentials: ControllerCredentials,
        deny_list: DenyList,
        store: Store,
        client: AgentClient,
        reconnect: Callable[[], None],
        on_change: Callable[[], None],
        attest_all_soon: Callable[[], None],
    ) -> None:
        """Everything that the CAs matter to.

        Args:
            authorities: on disk.
            issuer: records what a step makes the controller issue for itself.
            credentials: get new ones with each step.
            deny_list: refuses what a step makes untrusted.
            store: for the audit entry.
            client: asks agents what they trust.
            reconnect: dials agents anew.
            on_change: called after each step, e.g. for the key that signs the audit chain.
            attest_all_soon: asks agents to attest, which brings them leases that name the CAs.
        """
        self._authorities = authorities
        self._issuer = issuer
        self._credentials = credentials
        self._deny_list = deny_list
        self._store = store
        self._client = client
        self._reconnect = reconnect
        self._on_change = on_change
        self._attest_all_soon = attest_all_soon
        self._lock = asyncio.Lock()

    async def rotate(self, order: Order) -> pb.GetAuthoritiesResponse:
        """Takes the step.

        Raises:
            RpcError: FAILED_PRECONDITION: ROTATION_STAGE (it is not the next one), ROTATION_CUTS_OFF (who would be).
        """
        async with self._lock:
            step = self._step(order.stage)
            cut_off = await self._cut_off(order.stage)
            if cut_off and not order.force:
                more = f" and {len(cut_off) - _NAMED} more" if len(cut_off) > _NAMED else ""
                message = (
                    f"{len(cut_off)} would be cut off (force takes the step all the same): {'; '.join(cut_off[:_NAMED])}{more}"
                )
                raise refuse(code_pb2.FAILED_PRECONDITION, "ROTATION_CUTS_OFF", message, metadata={"count": str(len(cut_off))})
            try:
                step()
            except StageError as error:
                raise refuse(code_pb2.FAILED_PRECONDITION, "ROTATION_STAGE", str(error)) from error
            self._credentials.trust_changed()
            self._deny_list.trust(self._authorities.bundle.certificates)
            if self._authorities.stage is Stage.NONE:
                self._reconnect()  # whose certificates were of the old CA must show others
            self._on_change()
            await self._issuer.record(self._store)
            await self._audit(order, cut_off)
            _log.info("the fleet CA is being changed", stage=str(self._authorities.stage), principal=order.principal)
        self._attest_all_soon()
        return await self.describe()

    async def describe(self) -> pb.GetAuthoritiesResponse:
        """The CAs and the stage."""
        now_ns = self._store.now_ns()
        authorities = self._authorities
        roles = {"issuing": authorities.issuing, "next": authorities.next, "previous": authorities.previous}
        certificates = [(role, load_certificate(ca.certificate_pem)) for role, ca in roles.items() if ca is not None]
        certificates += [("retired", certificate) for certificate in authorities.retired]

        def count(session: Session) -> list[int]:
            return [len(certificate_rows.in_use(session, ca_id(certificate), now_ns)) for _, certificate in certificates]

        counts = await self._store.run(count)
        answer = pb.GetAuthoritiesResponse(stage=STAGES[authorities.stage], ca_pem=authorities.bundle.pem)
        for (role, certificate), number in zip(certificates, counts, strict=True):
            pem = certificate.public_bytes(Encoding.PEM)
            row = answer.authorities.add(id=ca_id(certificate), role=role, certificate_pem=pem, certificates=number)
            row.not_after.FromDatetime(certificate.not_valid_after_utc)
        return answer

    def _step(self, stage: int) -> Callable[[], None]:
        now = self._authorities.stage
        steps = {
            (Stage.NONE, pb.ROTATION_STAGE_PREPARED): self._authorities.prepare,
            (Stage.PREPARED, pb.ROTATION_STAGE_ACTIVATED): self._authorities.activate,
            (Stage.PREPARED, pb.ROTATION_STAGE_NONE): self._authorities.finish,
            (Stage.ACTIVATED, pb.ROTATION_STAGE_NONE): self._authorities.finish,
        }
        step = steps.get((now, pb.RotationStage.ValueType(stage)))
        if step is None:
            accepted = " or ".join(pb.RotationStage.Name(to) for (at, to) in steps if at is now)
            message = f"stage {stage}: the rotation's stage is {now}; {accepted} is accepted now"
            raise refuse(code_pb2.FAILED_PRECONDITION, "ROTATION_STAGE", message)
        return step

    async def _cut_off(self, stage: int) -> Sequence[str]:
        authorities = self._authorities
        if stage == pb.ROTATION_STAGE_ACTIVATED:
            return await self._who_do_not_trust(authorities.bundle.sha256)
        if stage == pb.ROTATION_STAGE_NONE and authorities.previous is not None:
            issuer = ca_id(load_certificate(authorities.previous.certificate_pem))
            now_ns = self._store.now_ns()

            def find(session: Session) -> list[str]:
                rows = certificate_rows.in_use(session, issuer, now_ns)
                return [f"{row.subject} (certificate {row.serial})" for row in rows if row.role != "controller"]

            return await self._store.run(find)
        return ()

    async def _who_do_not_trust(self, bundle_sha256: bytes) -> list[str]:
        slots = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(agent: AgentRecord) -> str:
            async with slots:
                try:
                    info = await self._client.info(agent)
                except RpcError as error:
                    return f"agent {agent.agent_id} ({agent.hostname}) does not answer: {error.status.message}"
            if info.ca_bundle_sha256 != bundle_sha256:
                return f"agent {agent.agent_id} ({agent.hostname}) does not trust the new CA yet"
            return ""

        agents = [agent for agent in await self._store.agents() if agent.state is not State.RETIRED]
        return [problem for problem in await asyncio.gather(*map(ask, agents)) if problem]

    async def _audit(self, order: Order, cut_off: Sequence[str]) -> None:
        detail = {
            "cut_off": list(cut_off[:_NAMED]),
            "cut_off_number": len(cut_off),
            "issuing": ca_id(load_certificate(self._authorities.issuing.certificate_pem)),
            "reason": order.reason,
            "stage": str(self._authorities.stage),
            "trusted": [ca_id(certificate) for certificate in self._authorities.bundle.certificates],
        }
        entry = AuditEntry(principal=order.principal, action="authority.rotate", detail=detail)

        def write(session: Session) -> None:
            remember_authorities(session, self._authorities, self._store.now_ns())
            audit_log.append(session, entry, self._store.now_ns())

        await self._store.run(write)


def remember_authorities(session: Session, authorities: Authorities, now_ns: int) -> None:
    """Notes that the database belongs to these CAs."""
    for certificate in authorities.known:
        name = ca_id(certificate)
        if session.get(AuthorityRow, name) is None:
            session.add(AuthorityRow(id=name, time_ns=now_ns))


def is_of(session: Session, authorities: Authorities) -> bool:
    """Whether the database belongs to the CA that issues, or to nobody yet."""
    rows = session.query(AuthorityRow.id).all()
    return not rows or ca_id(load_certificate(authorities.issuing.certificate_pem)) in {row.id for row in rows}
