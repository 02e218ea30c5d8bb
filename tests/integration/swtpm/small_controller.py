# SPDX-License-Identifier: Apache-2.0
"""A controller reduced to what an agent sees of one: enrolment, challenges, leases and signed commands, from jarvis_trust.

It judges nothing by policy, so that tests can make it do what a real controller never would: sign stale leases, wrong digests
and commands that do not fit.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from grpc_status import rpc_status
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.enrollment_pb2 import EnrollChallenge, EnrollParams, EnrollRequest, EnrollResponse, EnrollResult
from jarvis.capture.v1.enrollment_pb2_grpc import EnrollmentServiceServicer, add_EnrollmentServiceServicer_to_server
from jarvis.capture.v1.trust_pb2 import Evidence, Lease, SignedLease
from jarvis_trust.ca import FleetCA, generate_key, public_key_from_csr, public_key_of, spki_sha256
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY, LEASED_METHODS, CommandSigner, generate_command_key
from jarvis_trust.credential import make_credential
from jarvis_trust.ek_certificate import verify_ek_certificate
from jarvis_trust.enrollment import check_enrollment_proof, new_secret
from jarvis_trust.errors import EnrollmentError, TrustError
from jarvis_trust.identities import Identity, Role, agent_id_from_ek
from jarvis_trust.joinfile import JoinFile, new_token
from jarvis_trust.status import trust_error_status
from jarvis_trust.tls_certification import check_certification, check_tls_key
from jarvis_trust.tpm_structures import TpmPublic, parse_attest_quote, parse_public

FLEET = "test.example"
PRINCIPAL = f"spiffe://{FLEET}/operator/operator/ada"


@dataclass(slots=True, kw_only=True)
class KnownAgent:
    """What enrolment taught of one agent."""

    agent_id: str
    ak: TpmPublic
    address: str
    certificate_pem: bytes


@dataclass(slots=True)
class Enrollments(EnrollmentServiceServicer):
    """EnrollmentService on a port of its own."""

    ca: FleetCA
    roots: list[bytes]
    tokens: set[str] = field(default_factory=set)
    agents: dict[str, KnownAgent] = field(default_factory=dict)
    lifetime: timedelta = timedelta(hours=24)
    enrolled_with_token: list[bool] = field(default_factory=list)

    async def Enroll(self, request_iterator: AsyncIterator[EnrollRequest], context: Any) -> AsyncIterator[EnrollResponse]:  # noqa: N802
        try:
            params = (await anext(request_iterator)).params
            ek, ak = parse_public(params.ek_public), parse_public(params.ak_public)
            now = datetime.now(UTC) + timedelta(minutes=5)  # swtpm_localca's certificates begin this very second
            verify_ek_certificate(params.ek_certificate, list(params.ek_chain), self.roots, ek, now)
            agent_id = agent_id_from_ek(ek.spki_der)
            self._spend_token(params, agent_id)
            secret = new_secret()
            blob, encrypted = make_credential(ek, ak.name, secret)
            challenge = EnrollChallenge(credential_blob=blob, encrypted_secret=encrypted, nonce=secrets.token_bytes(32))
            yield EnrollResponse(challenge=challenge)
            proof = (await anext(request_iterator)).proof
            check_enrollment_proof(
                secret, params.SerializeToString(deterministic=True), challenge.SerializeToString(deterministic=True), proof.hmac
            )
            if params.tls_public:
                check_certification(
                    tls=check_tls_key(params.tls_public, public_key_from_csr(params.csr)),
                    ak=ak,
                    certify=proof.certify,
                    signature=proof.certify_signature,
                    nonce=challenge.nonce,
                    agent_id=agent_id,
                )
            yield EnrollResponse(result=self._result(params, agent_id, ak))
        except TrustError as error:
            status = rpc_status.to_status(trust_error_status(Code.PERMISSION_DENIED, error))
            await context.abort(status.code, status.details, status.trailing_metadata)

    def _spend_token(self, params: EnrollParams, agent_id: str) -> None:
        if not params.token:
            if agent_id not in self.agents:
                raise EnrollmentError("TOKEN_MISSING", "this EK is not enrolled")
        elif params.token not in self.tokens:
            raise EnrollmentError("TOKEN_REUSED", "this token was used already")
        self.tokens.discard(params.token)
        self.enrolled_with_token.append(bool(params.token))

    def _result(self, params: EnrollParams, agent_id: str, ak: TpmPublic) -> EnrollResult:
        identity = Identity(fleet=FLEET, role=Role.AGENT, name=agent_id)
        leaf = self.ca.issue(identity, public_key_from_csr(params.csr), self.lifetime)
        self.agents[agent_id] = KnownAgent(agent_id=agent_id, ak=ak, address=params.address, certificate_pem=leaf)
        expire = Timestamp()
        expire.FromDatetime(datetime.now(UTC) + self.lifetime)
        return EnrollResult(
            agent_id=agent_id, certificate_pem=leaf + self.ca.certificate_pem, ca_pem=self.ca.certificate_pem, expire_time=expire
        )


class SmallController:
    """Keys of a fleet, the enrolment port, and calls to one agent."""

    def __init__(self, roots: list[bytes]) -> None:
        self.ca = FleetCA.create(FLEET)
        private_pem, self.command_public_pem = generate_command_key()
        self.signer = CommandSigner(private_pem)
        self.key_pem, self.certificate_pem = self.issue(Identity(fleet=FLEET, role=Role.CONTROLLER, name="main"))
        self.enrollments = Enrollments(self.ca, roots)
        self.address = ""
        self.sequence = 0
        self.audit_sequence = 0
        self._server: grpc.aio.Server | None = None

    def issue(self, identity: Identity, lifetime: timedelta = timedelta(hours=1)) -> tuple[bytes, bytes]:
        """A key and its certificate chain for any identity."""
        key = generate_key()
        return key, self.ca.issue(identity, public_key_of(key), lifetime) + self.ca.certificate_pem

    async def start(self) -> None:
        self._server = grpc.aio.server()
        add_EnrollmentServiceServicer_to_server(self.enrollments, self._server)
        credentials = grpc.ssl_server_credentials([(self.key_pem, self.certificate_pem)])
        port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def write_join_file(self, path: Path) -> JoinFile:
        token = new_token()
        self.enrollments.tokens.add(token)
        join = JoinFile(
            fleet=FLEET,
            token=token,
            ca_pem=self.ca.certificate_pem.decode(),
            command_public_pem=self.command_public_pem.decode(),
            address=self.address,
        )
        join.save(path)
        return join

    def line_to(self, agent_id: str, address: str, *, identity: Identity | None = None) -> AgentLine:
        """A connection to an agent, as the controller or as somebody else of the fleet."""
        key, certificate = (self.key_pem, self.certificate_pem) if identity is None else self.issue(identity)
        credentials = grpc.ssl_channel_credentials(self.ca.certificate_pem, key, certificate)
        options = [("grpc.ssl_target_name_override", f"{agent_id}.agents.{FLEET}"), ("grpc.use_local_subchannel_pool", 1)]
        return AgentLine(self, agent_id, grpc.aio.secure_channel(address, credentials, options=options))


class AgentLine:
    """Calls over one connection."""

    def __init__(self, controller: SmallController, agent_id: str, channel: grpc.aio.Channel) -> None:
        self.controller = controller
        self.agent_id = agent_id
        self.channel = channel
        self.lease: Lease | None = None

    async def close(self) -> None:
        await self.channel.close(None)

    async def call(self, name: str, request: Message, metadata: list[tuple[str, bytes]] | None = None) -> bytes:
        """A unary call on bytes, with the metadata given."""
        method = self.channel.unary_unary(AGENT_SERVICE + name, request_serializer=None, response_deserializer=None)
        answer: bytes = await method(request.SerializeToString(), metadata=metadata, timeout=20.0)
        return answer

    async def attest(self, nonce: bytes | None = None, pcrs: tuple[int, ...] = (0, 7, 14)) -> tuple[bytes, Evidence]:
        nonce = secrets.token_bytes(32) if nonce is None else nonce
        answer = await self.call("Attest", pb.AttestRequest(nonce=nonce, pcrs=pcrs))
        return nonce, pb.AttestResponse.FromString(answer).evidence

    def make_lease(self, quoted_nonce: bytes, evidence: Evidence, *, firmware_sha256: bytes, **changes: Any) -> SignedLease:
        """The lease that a controller would give for this evidence, with any field changed."""
        controller = self.controller
        controller.sequence += 1
        controller.audit_sequence += 1
        agent = controller.enrollments.agents[self.agent_id]
        fields: dict[str, Any] = {
            "agent_id": self.agent_id,
            "ak_name": agent.ak.name,
            "tls_spki_sha256": spki_sha256(agent.certificate_pem),
            "firmware_sha256": firmware_sha256,
            "session_id": evidence.session_id,
            "tpm_reset_count": parse_attest_quote(evidence.attest).reset_count,
            "methods": sorted(LEASED_METHODS),
            "sequence": controller.sequence,
            "audit_head": secrets.token_bytes(32),
            "audit_sequence": controller.audit_sequence,
            "duration_ns": 60 * 10**9,
            "nonce": quoted_nonce,
        }
        self.lease = Lease(**(fields | changes))
        return controller.signer.sign_lease(self.lease)

    async def take_lease(self, **changes: Any) -> None:
        """Challenge, evidence, lease, delivery."""
        nonce, evidence = await self.attest()
        info = pb.GetAgentInfoResponse.FromString(await self.call("GetAgentInfo", pb.GetAgentInfoRequest()))
        signed = self.make_lease(nonce, evidence, firmware_sha256=changes.pop("firmware_sha256", info.firmware.sha256), **changes)
        await self.call("RenewLease", pb.RenewLeaseRequest(lease=signed))

    def authorization(self, name: str, request: Message, **changes: Any) -> list[tuple[str, bytes]]:
        """Metadata of a command that is signed as it should be, with any field changed before signing."""
        assert self.lease is not None
        fields: dict[str, Any] = {
            "agent_id": self.agent_id,
            "method": AGENT_SERVICE + name,
            "session_id": self.lease.session_id,
            "lease_sequence": self.lease.sequence,
            "request_id": str(uuid.uuid4()),
            "principal": PRINCIPAL,
            "expires_ns": 30 * 10**9,
            "payload": request.SerializeToString(),
        }
        authorization = self.controller.signer.authorize(**(fields | changes))
        return [(AUTHORIZATION_METADATA_KEY, authorization.SerializeToString())]

    async def command(self, name: str, request: Message, **changes: Any) -> bytes:
        """A signed unary command."""
        return await self.call(name, request, self.authorization(name, request, **changes))

    async def stream(self, name: str, request: Message, **changes: Any) -> AsyncIterator[bytes]:
        """A signed streaming command."""
        method = self.channel.unary_stream(AGENT_SERVICE + name, request_serializer=None, response_deserializer=None)
        async for message in method(request.SerializeToString(), metadata=self.authorization(name, request, **changes)):
            yield message
