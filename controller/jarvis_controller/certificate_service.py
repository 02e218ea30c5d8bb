# SPDX-License-Identifier: Apache-2.0
"""CertificateService: the register, revocation, operators' certificates and the rotation of the fleet CA.

Roles are checked before a handler runs (authorization.py). Nobody gets more than an administrator gave: a renewal keeps name
and role and at most the length of what the caller shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis_trust.ca import BACKDATING, load_certificate, public_key_from_csr, spki_sha256_of_key
from jarvis_trust.ca_bundle import ca_id, serial_of
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role
from sqlalchemy.orm import Session

from jarvis_controller import certificate_rows
from jarvis_controller.attestation import Attester
from jarvis_controller.authorization import caller_of
from jarvis_controller.capture_request import check_page_size, check_reason
from jarvis_controller.certificate_rows import Criteria, Denial, Revocation
from jarvis_controller.deny_list import DenyList, Peer
from jarvis_controller.issuer import Issuer
from jarvis_controller.rotation import Order, Rotation
from jarvis_controller.rpc_status import bad_field, refuse
from jarvis_controller.states import Event, IllegalTransitionError
from jarvis_controller.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_LIFETIME = timedelta(days=30)
_LEAST_LIFETIME = timedelta(hours=1)
_MOST_LIFETIME = timedelta(days=365)
_SERIAL = re.compile(r"[0-9a-f]{40}")
_ROLES = frozenset({*Role, certificate_rows.AUDIT_ROLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateParts:
    """What the service works with."""

    store: Store
    issuer: Issuer
    deny_list: DenyList
    attester: Attester
    rotation: Rotation
    least_lifetime: timedelta = _LEAST_LIFETIME


class CertificateService:
    """The handlers. One instance per controller."""

    def __init__(self, parts: CertificateParts) -> None:
        self._parts = parts
        self._store = parts.store

    async def list_certificates(self, request: pb.ListCertificatesRequest, _context: Context) -> pb.ListCertificatesResponse:
        """ListCertificates."""
        if request.role and request.role not in _ROLES:
            raise bad_field("role", f"{request.role[:40]!r}: {', '.join(sorted(_ROLES))} are accepted")
        if request.state not in pb.CertificateState.values():
            raise bad_field("state", f"{request.state}: a CertificateState is accepted")
        criteria = Criteria(
            role=request.role,
            state=request.state,
            limit=check_page_size(request.page_size),
            before=_page_start(request.page_token),
        )
        found, more = await self._read(lambda session, trusted, now: certificate_rows.page(session, criteria, trusted, now))
        return pb.ListCertificatesResponse(certificates=found, next_page_token=str(more) if more else "")

    async def revoke_certificate(self, request: pb.RevokeCertificateRequest, context: Context) -> pb.RevokeCertificateResponse:
        """RevokeCertificate."""
        order = self._revocation(request, self._caller(context).uri)

        def revoke(session: Session, trusted: tuple[str, ...], now_ns: int) -> tuple[list[pb.Certificate], list[Denial]]:
            rows, denials = certificate_rows.revoke(session, order, now_ns=now_ns, keep_events=self._store.kept_events)
            return certificate_rows.messages(session, rows, trusted, now_ns), denials

        try:
            certificates, denials = await self._read(revoke)
        except KeyError as error:
            message = f"{'serial' if order.serial else 'subject'} {error.args[0]!r}: no certificate of it was ever issued here"
            raise refuse(code_pb2.NOT_FOUND, "CERTIFICATE_NOT_FOUND", message) from error
        except ValueError as error:
            raise bad_field("serial" if order.serial else "subject", str(error)) from error
        agents = {certificate_rows.agent_of(denial.subject) for denial in denials if denial.is_open} - {""}
        # A revoked agent is told over its tunnel that its lease has ended; nothing else goes through it any more.
        self._parts.deny_list.deny(denials, streams=not agents)
        try:
            for agent_id in agents:
                await self._take_out(agent_id, order)
        finally:
            self._parts.deny_list.enforce()
        return pb.RevokeCertificateResponse(certificates=certificates)

    async def issue_operator_certificate(
        self, request: pb.IssueOperatorCertificateRequest, context: Context
    ) -> pb.IssueOperatorCertificateResponse:
        """IssueOperatorCertificate."""
        caller = self._caller(context)
        try:
            role = Role(request.role)
        except ValueError:
            role = Role.AGENT
        if not role.is_operator:
            raise bad_field("role", f"{request.role[:40]!r}: viewer, operator or admin is accepted")
        lifetime = _lifetime(request.lifetime, self._parts.least_lifetime) if request.HasField("lifetime") else DEFAULT_LIFETIME
        try:
            identity = Identity(fleet=caller.fleet, role=role, name=request.name)
        except IdentityError as error:
            raise bad_field("name", error.message) from error
        message, pem = await self._issue(identity, request.csr, lifetime, by=self._peer(context))
        return pb.IssueOperatorCertificateResponse(certificate=message, certificate_pem=pem, ca_pem=self._parts.issuer.ca_pem)

    async def renew_operator_certificate(
        self, request: pb.RenewOperatorCertificateRequest, context: Context
    ) -> pb.RenewOperatorCertificateResponse:
        """RenewOperatorCertificate."""
        caller = self._caller(context)
        peer = self._peer(context)
        shown = peer.certificate.not_valid_after_utc - peer.certificate.not_valid_before_utc - BACKDATING
        lifetime = shown
        if request.HasField("lifetime"):
            lifetime = _lifetime(request.lifetime, self._parts.least_lifetime)
            if lifetime > shown:
                raise bad_field("lifetime", f"{lifetime}: at most that of the certificate shown, {shown}, is accepted")
        message, pem = await self._issue(caller, request.csr, lifetime, by=peer)
        return pb.RenewOperatorCertificateResponse(certificate=message, certificate_pem=pem, ca_pem=self._parts.issuer.ca_pem)

    async def get_authorities(self, _request: pb.GetAuthoritiesRequest, _context: Context) -> pb.GetAuthoritiesResponse:
        """GetAuthorities."""
        return await self._parts.rotation.describe()

    async def rotate_authority(self, request: pb.RotateAuthorityRequest, context: Context) -> pb.RotateAuthorityResponse:
        """RotateAuthority."""
        order = Order(
            stage=request.stage,
            force=request.force,
            reason=check_reason(request.reason),
            principal=self._caller(context).uri,
        )
        return pb.RotateAuthorityResponse(authorities=await self._parts.rotation.rotate(order))

    def _caller(self, context: Context) -> Identity:
        return caller_of(context, self._parts.issuer.fleet)

    def _peer(self, context: Context) -> Peer:
        """The operator's leaf."""
        caller = self._caller(context)
        peer = self._parts.deny_list.admit(context)
        if peer is None or not caller.role.is_operator:
            raise refuse(code_pb2.PERMISSION_DENIED, "ROLE_DENIED", f"{caller.uri} is no operator")
        return peer

    async def _read(self, operation: Callable[[Session, tuple[str, ...], int], Any]) -> Any:
        trusted = tuple(ca_id(certificate) for certificate in self._parts.issuer.authorities.bundle.certificates)
        return await self._store.run(lambda session: operation(session, trusted, self._store.now_ns()))

    def _revocation(self, request: pb.RevokeCertificateRequest, principal: str) -> Revocation:
        reason = check_reason(request.reason)
        serial = request.serial.lower()
        match request.WhichOneof("target"):
            case "serial":
                if _SERIAL.fullmatch(serial) is None:
                    raise bad_field("serial", f"{request.serial[:60]!r}: 40 hexadecimal digits are accepted")
            case "subject":
                try:
                    Identity.parse(request.subject)
                except IdentityError as error:
                    raise bad_field("subject", error.message) from error
            case _:
                raise bad_field("target", "neither serial nor subject: one of them is accepted")
        return Revocation(serial=serial, subject=request.subject, reason=reason, principal=principal)

    async def _take_out(self, agent_id: str, order: Revocation) -> None:
        """An agent lost its certificate: no lease, no stream, no answer until a join token admits it again."""
        if await self._store.agent(agent_id) is None:
            return
        reason = f"CERTIFICATE_REVOKED by {order.principal}: {order.reason}"
        try:
            record = await self._store.change_state(agent_id, Event.CONTACT_LOST, reason, principal=order.principal)
        except IllegalTransitionError:
            return
        await self._parts.attester.revoke(record, principal=order.principal)

    async def _issue(self, identity: Identity, csr: bytes, lifetime: timedelta, *, by: Peer) -> tuple[pb.Certificate, bytes]:
        try:
            key = public_key_from_csr(csr)
        except IdentityError as error:
            raise bad_field("csr", error.message) from error
        if await self._store.is_revoked_key(identity.uri, spki_sha256_of_key(key)):
            message = f"csr holds a key of {identity.uri} whose certificate was revoked: a new key is accepted"
            raise refuse(code_pb2.PERMISSION_DENIED, "KEY_REVOKED", message)
        pem = self._parts.issuer.issue(identity, key, lifetime, by=by.subject)
        await self._parts.issuer.record(self._store)
        serial = serial_of(load_certificate(pem))

        def find(session: Session, trusted: tuple[str, ...], now_ns: int) -> pb.Certificate | None:
            # Whoever asked may have been revoked while this was under way: then the certificate is not handed out. A revocation
            # that comes later than this look finds it in the register.
            if certificate_rows.is_denied(session, by.serial, by.subject, by.issue_ns):
                return None
            row = certificate_rows.find(session, serial)
            return certificate_rows.messages(session, [] if row is None else [row], trusted, now_ns)[0]

        message = await self._read(find)
        if message is None:
            refusal = f"the certificate {by.serial} of {by.subject} was revoked while another one was asked for with it"
            raise refuse(code_pb2.UNAUTHENTICATED, "CERTIFICATE_REVOKED", refusal)
        return message, pem


def _lifetime(duration: Duration, least: timedelta) -> timedelta:
    lifetime = duration.ToTimedelta() if abs(duration.seconds) < 10**9 else timedelta(seconds=0)
    if not least <= lifetime <= _MOST_LIFETIME:
        raise bad_field("lifetime", f"{duration.seconds} s: {int(least.total_seconds())} s..365 d is accepted")
    return lifetime


def _page_start(token: str) -> int:
    if not token:
        return 2**62
    if not token.isascii() or not token.isdecimal() or len(token) > 18:
        raise bad_field("page_token", f"{token[:40]!r}: the next_page_token of an earlier answer is accepted")
    return int(token)
