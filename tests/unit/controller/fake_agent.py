# SPDX-License-Identifier: Apache-2.0
"""An agent made of software keys, over real mTLS in this process: it joins, attests, checks commands, and streams.

It is served on a port, or dials the controller with the agent's own tunnel code.

It checks what a real agent checks (signatures with the command key of its join file), so that a controller that forgets to sign
or to attest fails here too. Where it lies, a test has told it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import code_pb2
from jarvis.capture.v1 import agent_pb2, capture_pb2, enrollment_pb2, event_pb2, export_pb2, flow_pb2, trust_pb2
from jarvis.capture.v1.tunnel_pb2 import TunnelHello
from jarvis_agent.peer import controller_spki_sha256, own_spki_sha256
from jarvis_agent.tunnel import Tunnel, TunnelRetry
from jarvis_agent.tunnel_link import CHANNEL_OPTIONS, Dialled
from jarvis_controller.agent_record import Carrier
from jarvis_trust.ca import generate_key, make_csr, public_key_of, spki_sha256
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY, verify_authorization, verify_lease
from jarvis_trust.enrollment import enrollment_proof
from jarvis_trust.errors import LeaseError, TrustError
from jarvis_trust.identities import Identity, Role, controller_dns_name
from jarvis_trust.joinfile import JoinFile
from jarvis_trust.software_identity import SoftwareSigner
from jarvis_trust.status import bad_request_status, error_status
from jarvis_trust.tls_certification import certification_binding
from jarvis_trust.tpm_structures import parse_public
from jarvis_trust.tpm_templates import TLS_KEY_ATTRIBUTES

from testbed.ports import free_port
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import SoftwareTpm, Vendor, ecc_public, software_evidence

Context = grpc.aio.ServicerContext[Any, Any]
_ENROLL = "/jarvis.capture.v1.EnrollmentService/Enroll"


async def refuse(context: Context, code: int, reason: str, message: str = "") -> None:
    status = error_status(code, reason, message or reason)
    grpc_code = next(item for item in grpc.StatusCode if item.value[0] == code)
    await context.abort(grpc_code, status.message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),))


def records_batch(first: int, count: int, *, shard: int = 0) -> bytes:
    """StreamFlowsResponse bytes as the native core writes them; the token is the next sequence."""
    batch = flow_pb2.FlowBatch(
        shard=shard,
        first_sequence=first,
        next_sequence=first + count,
        base_time_unix_ns=1,
        resume_token=str(first + count).encode(),
        records=[flow_pb2.FlowRecord(flow_id=first + number, fwd_packets=1) for number in range(count)],
    )
    return agent_pb2.StreamFlowsResponse(batch=batch).SerializeToString()


@dataclass(slots=True, kw_only=True)
class FakeAgent:
    """One host."""

    release: Release
    vendor: Vendor
    tpm: SoftwareTpm = field(default_factory=SoftwareTpm)
    software: SoftwareSigner | None = None
    """With one it has no TPM; what it measures is logged all the same."""
    known_ima: tuple[bytes, int] = (b"", 0)
    """What the last challenge said of the IMA list."""
    port: int = field(default_factory=free_port)
    carrier: Carrier = Carrier.DIRECT
    tunnel_port: int = 0
    hostname: str = "fake"
    change_params: Callable[[enrollment_pb2.EnrollParams], None] = lambda _: None
    change_proof: Callable[[enrollment_pb2.EnrollProof], None] = lambda _: None
    change_evidence: Callable[[trust_pb2.Evidence], Awaitable[trust_pb2.Evidence]] | None = None
    calls: Counter[str] = field(default_factory=Counter)
    """Leased commands that were carried out, and Attest, by name."""
    batches: list[bytes] = field(default_factory=list)
    """What StreamFlows sends; a batch's resume token is the sequence after it."""
    end_stream_after: int | None = None
    """Messages after which a stream breaks off."""
    events: list[event_pb2.Event] = field(default_factory=list)
    """The journal that StreamEvents tells."""
    event_requests: list[agent_pb2.StreamEventsRequest] = field(default_factory=list)
    event_calls: int = 0
    """StreamEvents calls under way."""
    capture: capture_pb2.CaptureStatus = field(default_factory=capture_pb2.CaptureStatus)
    exports: dict[str, export_pb2.ExportStatus] = field(default_factory=dict)
    """By export id."""
    principals: list[str] = field(default_factory=list)
    subscriptions: list[capture_pb2.FlowSubscription] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    grow: asyncio.Event = field(default_factory=asyncio.Event)
    nonces: set[bytes] = field(default_factory=set)
    """Quoted and without a lease."""
    refuse_leases: bool = False
    """RenewLease fails before the lease is taken."""
    lose_answers: bool = False
    """RenewLease fails after the lease was taken."""
    hold_leases: asyncio.Event | None = None
    """RenewLease waits for it."""
    held_leases: int = 0
    is_draining: bool = False
    streams: int = 0
    """StreamFlows calls under way."""
    streams_ended: asyncio.Event = field(default_factory=asyncio.Event)
    lease: trust_pb2.Lease | None = None
    join_file: JoinFile | None = None
    key_pem: bytes = b""
    certificate_pem: bytes = b""
    ca_pem: bytes = b""
    """Every CA that it trusts since it joined last."""
    server: grpc.aio.Server | None = None
    tunnel: Tunnel | None = None
    tunnel_task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def agent_id(self) -> str:
        return self.tpm.agent_id if self.software is None else self.software.agent_id

    # -- joining --

    async def join(self, join_file: JoinFile, *, token: str | None = None) -> enrollment_pb2.EnrollResult:
        """Enrols; raises grpc.aio.AioRpcError when the controller refuses."""
        self.join_file = join_file
        key = generate_key()
        params = enrollment_pb2.EnrollParams(
            token=join_file.token if token is None else token,
            csr=make_csr(key),
            ek_certificate=self.vendor.certify(self.tpm.ek_key.public_key()),
            ek_public=self.tpm.ek_public,
            ak_public=self.tpm.ak_public,
            address=self.address if self.carrier is Carrier.DIRECT else "",
            carrier=self.carrier.wire,
            hostname=self.hostname,
            version="1.0.0",
        )
        if self.software is not None:
            for name in ("ek_certificate", "ek_public", "ak_public"):
                params.ClearField(name)
            params.software_public = self.software.spki_der
        self.change_params(params)
        if params.carrier == enrollment_pb2.CARRIER_TUNNEL and not params.tls_public:
            params.tls_public = ecc_public(public_key_of(key), TLS_KEY_ATTRIBUTES)
        credentials = grpc.ssl_channel_credentials(self.ca_pem or join_file.ca_pem.encode())
        options = (("grpc.ssl_target_name_override", controller_dns_name(join_file.fleet)),)
        async with grpc.aio.secure_channel(join_file.address, credentials, options=options) as channel:
            method: Any = channel.stream_stream(
                _ENROLL,
                request_serializer=enrollment_pb2.EnrollRequest.SerializeToString,
                response_deserializer=enrollment_pb2.EnrollResponse.FromString,
            )
            call = method(timeout=20)
            await call.write(enrollment_pb2.EnrollRequest(params=params))
            challenge = await self._answer(call, "challenge")
            transcript = params.SerializeToString(deterministic=True), challenge.challenge.SerializeToString(deterministic=True)
            if self.software is not None:
                proof = enrollment_pb2.EnrollProof(software_signature=self.software.sign_enrollment(*transcript))
            else:
                secret = self.tpm.activate(challenge.challenge.credential_blob, challenge.challenge.encrypted_secret)
                proof = enrollment_pb2.EnrollProof(hmac=enrollment_proof(secret, *transcript))
            self._certify(params, challenge.challenge.nonce, proof)
            await call.write(enrollment_pb2.EnrollRequest(proof=proof))
            result: enrollment_pb2.EnrollResult = (await self._answer(call, "result")).result
            await call.done_writing()
        self.key_pem, self.certificate_pem, self.ca_pem = key, result.certificate_pem, result.ca_pem
        return result

    def _certify(self, params: enrollment_pb2.EnrollParams, nonce: bytes, proof: enrollment_pb2.EnrollProof) -> None:
        """The AK's word for a TLS key that is shown as the TPM's."""
        if params.tls_public:
            name = parse_public(params.tls_public).name
            proof.certify = self.tpm.certify(name, certification_binding(nonce, self.agent_id))
            proof.certify_signature = self.tpm.sign(proof.certify)
        self.change_proof(proof)

    async def _answer(self, call: Any, step: str) -> enrollment_pb2.EnrollResponse:
        answer = await call.read()
        if answer is grpc.aio.EOF:
            await call.code()
            raise grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
            )
        assert answer.WhichOneof("step") == step
        response: enrollment_pb2.EnrollResponse = answer
        return response

    # -- serving --

    async def start(self) -> None:
        """Serves with the certificate that it has. Measures its firmware first, as a starting agent does."""
        assert self.join_file is not None
        self.tpm.restart_process()
        self.lease = None
        self.tpm.measure(self.release.sha256)
        generic = grpc.method_handlers_generic_handler(AGENT_SERVICE.strip("/"), self.handlers())
        if self.carrier is Carrier.TUNNEL:
            self._dial(generic)
            return
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 256 * 1024)))
        server.add_generic_rpc_handlers((generic,))
        chain = [(self.key_pem, self.certificate_pem)]
        credentials = grpc.ssl_server_credentials(chain, self.ca_pem, require_client_auth=True)
        assert server.add_secure_port(self.address, credentials) == self.port
        await server.start()
        self.server = server

    def handlers(self) -> dict[str, Any]:
        """What it answers with, by method."""
        return {
            "GetAgentInfo": _unary(self._get_agent_info, agent_pb2.GetAgentInfoRequest),
            "Attest": _unary(self._attest, agent_pb2.AttestRequest),
            "RenewLease": _unary(self._renew_lease, agent_pb2.RenewLeaseRequest),
            "GetStatus": _unary(self._get_status, agent_pb2.GetStatusRequest),
            "StreamEvents": _stream(self._stream_events),
            **{name: _unary(self._leased(name, behaviour), None) for name, behaviour in self._commands().items()},
            **{name: _stream(self._leased_stream(name, behaviour)) for name, behaviour in self._streams().items()},
        }

    def _dial(self, handlers: grpc.GenericRpcHandler[Any, Any]) -> None:
        assert self.join_file is not None
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", controller_dns_name(self.join_file.fleet)))

        def dial() -> Dialled:
            credentials = grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)
            channel = grpc.aio.secure_channel(f"127.0.0.1:{self.tunnel_port}", credentials, options=options)
            return Dialled(channel=channel, certificate_pem=self.certificate_pem)

        self.tunnel = Tunnel(
            dial=dial,
            certificate=lambda: self.certificate_pem,
            handlers=handlers,
            hello=TunnelHello(session_id=self.tpm.session_id, version="1.0.0"),
            retry=TunnelRetry(first_s=0.2, longest_s=2.0),
        )
        self.tunnel_task = asyncio.ensure_future(self.tunnel.run())

    async def stop(self) -> None:
        if self.tunnel is not None and self.tunnel_task is not None:
            self.tunnel_task.cancel()
            await asyncio.gather(self.tunnel_task, return_exceptions=True)
            await self.tunnel.stop(1.0 if self.is_draining else 0.0)
            self.tunnel = self.tunnel_task = None
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    async def shut_down(self) -> None:
        """Stops in order: streams end with AGENT_STOPPING once everything was sent."""
        self.is_draining = True
        self.grow.set()
        if self.streams:
            await self.streams_ended.wait()
        await self.stop()
        self.is_draining = False

    async def restart(self) -> None:
        await self.stop()
        await self.start()
        while self.tunnel is not None and not self.tunnel.is_open:  # noqa: ASYNC110 - a test's wait for what gRPC does
            await asyncio.sleep(0.01)

    async def holds_a_lease(self) -> bool:
        """Whether a RenewLease call waits."""
        return self.held_leases > 0

    def add_records(self, count: int) -> None:
        """One more batch of finished flows."""
        first = sum(1 for _ in self.sequences()) + 1
        self.batches.append(records_batch(first, count))
        self.grow.set()

    def tell(self, count: int = 1, *, source_id: str = "ab" * 16, **fields: Any) -> None:
        """So many more events in the journal."""
        for _ in range(count):
            sequence = 1 + max((event.sequence for event in self.events if event.source_id == source_id), default=0)
            told = {"type": event_pb2.EVENT_TYPE_CAPTURE_LOSS, "severity": event_pb2.EVENT_SEVERITY_WARNING, **fields}
            self.events.append(event_pb2.Event(**{"source_id": source_id, "sequence": sequence, **told}))
        self.grow.set()

    def sequences(self) -> list[int]:
        """The sequence numbers (and flow ids) of everything that was ever recorded."""
        parsed = [agent_pb2.StreamFlowsResponse.FromString(batch).batch for batch in self.batches]
        return [record.flow_id for batch in parsed for record in batch.records]

    async def _attest(self, request: agent_pb2.AttestRequest, context: Context) -> agent_pb2.AttestResponse:
        self.calls["Attest"] += 1
        self.nonces.add(request.nonce)
        self.known_ima = (request.known_ima_boot_id, request.known_ima_entries)
        channel: dict[str, bytes] = {
            "nonce": request.nonce,
            "agent_spki": own_spki_sha256(context) or spki_sha256(self.certificate_pem),
            "controller_spki": controller_spki_sha256(context),
        }
        release = {"manifest": self.release.manifest, "manifest_signature": self.release.signature}
        if self.software is not None:
            evidence = software_evidence(self.software, self.tpm, **channel, **release)
        else:
            evidence = self.tpm.evidence(
                **channel,
                **release,
                pcrs=request.pcrs,
                known_boot_log_sha256=request.known_boot_log_sha256,
                known_ima=self.known_ima,
            )
        if self.change_evidence is not None:
            evidence = await self.change_evidence(evidence)
        return agent_pb2.AttestResponse(evidence=evidence)

    async def _renew_lease(self, request: agent_pb2.RenewLeaseRequest, context: Context) -> agent_pb2.RenewLeaseResponse:
        assert self.join_file is not None
        if self.refuse_leases:
            await refuse(context, code_pb2.UNAVAILABLE, "NETWORK_LOST")
        if self.hold_leases is not None:
            self.held_leases += 1
            await self.hold_leases.wait()
        try:
            lease = verify_lease(request.lease, self.join_file.command_public_pem.encode())
            self._check_lease(lease)
        except TrustError as error:
            await refuse(context, code_pb2.FAILED_PRECONDITION, error.reason, error.message)
            raise
        self.lease = lease
        self.nonces.discard(lease.nonce)
        if self.lose_answers:
            await refuse(context, code_pb2.UNAVAILABLE, "NETWORK_LOST")
        return agent_pb2.RenewLeaseResponse(sequence=lease.sequence)

    def _check_lease(self, lease: trust_pb2.Lease) -> None:
        held = self.lease
        if held is not None and lease.sequence <= held.sequence:
            raise LeaseError("LEASE_STALE", "sequence")
        if lease.session_id != self.tpm.session_id:
            raise LeaseError("LEASE_NOT_OURS", "session")
        if held is not None and lease.nonce == held.nonce:
            if lease.duration_ns >= held.duration_ns:
                raise LeaseError("LEASE_STALE", "a second lease for a nonce can only end earlier")
        elif lease.nonce not in self.nonces:
            raise LeaseError("LEASE_STALE", "nonce")
        elif lease.duration_ns == 1:
            raise LeaseError("LEASE_EXPIRED", "ended before it came")

    async def _stream_events(self, payload: bytes, _context: Context) -> AsyncIterator[bytes]:
        request = agent_pb2.StreamEventsRequest.FromString(payload)
        self.event_requests.append(request)
        place = 0
        for index, event in enumerate(self.events, 1):
            if event.source_id == request.source_id and event.sequence <= request.sequence:
                place = index
        self.event_calls += 1
        try:
            while True:
                fresh, place = self.events[place:], len(self.events)
                if fresh:
                    yield agent_pb2.StreamEventsResponse(events=fresh[:256]).SerializeToString()
                    place -= max(0, len(fresh) - 256)
                else:
                    await asyncio.sleep(0.02)
        finally:
            self.event_calls -= 1

    async def _get_status(self, _request: agent_pb2.GetStatusRequest, _context: Context) -> agent_pb2.GetStatusResponse:
        return agent_pb2.GetStatusResponse(capture=self.capture)

    async def _get_agent_info(self, _request: agent_pb2.GetAgentInfoRequest, _context: Context) -> agent_pb2.GetAgentInfoResponse:
        firmware = agent_pb2.FirmwareStatus(loaded=True, sha256=self.release.sha256)
        return agent_pb2.GetAgentInfoResponse(
            agent_id=self.agent_id,
            session_id=self.tpm.session_id,
            firmware=firmware,
            ca_bundle_sha256=CaBundle.parse(self.ca_pem).sha256,
        )

    async def _admit(self, name: str, payload: bytes, context: Context) -> None:
        """The lease and the signature, as an agent checks them."""
        assert self.join_file is not None
        metadata: Any = context.invocation_metadata()
        values = [value for key, value in metadata if key == AUTHORIZATION_METADATA_KEY]
        if self.lease is None:
            await refuse(context, code_pb2.FAILED_PRECONDITION, "AGENT_UNATTESTED")
        if self.lease is not None and self.lease.duration_ns == 1:
            await refuse(context, code_pb2.FAILED_PRECONDITION, "LEASE_EXPIRED")
        authorization = trust_pb2.CommandAuthorization.FromString(values[0])
        try:
            verify_authorization(
                authorization,
                self.join_file.command_public_pem.encode(),
                agent_id=self.agent_id,
                method=AGENT_SERVICE + name,
                session_id=self.tpm.session_id,
                payload=payload,
            )
            assert self.lease is not None
            if authorization.lease_sequence != self.lease.sequence:
                raise LeaseError("LEASE_STALE", "sequence")
        except TrustError as error:
            await refuse(context, code_pb2.PERMISSION_DENIED, error.reason, error.message)
        self.calls[name] += 1
        self.principals.append(authorization.principal)
        self.request_ids.append(authorization.request_id)

    def _leased(self, name: str, behaviour: Callable[[bytes, Context], Awaitable[bytes]]) -> Any:
        async def call(payload: bytes, context: Context) -> bytes:
            await self._admit(name, payload, context)
            return await behaviour(payload, context)

        return call

    def _leased_stream(self, name: str, behaviour: Callable[[bytes, Context], AsyncIterator[bytes]]) -> Any:
        async def call(payload: bytes, context: Context) -> AsyncIterator[bytes]:
            await self._admit(name, payload, context)
            async for message in behaviour(payload, context):
                yield message

        return call

    def _commands(self) -> dict[str, Callable[[bytes, Context], Awaitable[bytes]]]:
        async def start(payload: bytes, context: Context) -> bytes:
            spec = agent_pb2.StartCaptureRequest.FromString(payload).spec
            if "nosuch0" in spec.interfaces:
                status = bad_request_status([("spec.interfaces", "no such interface")], reason="INTERFACE_NOT_FOUND")
                trailers = (("grpc-status-details-bin", status.SerializeToString()),)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message, trailing_metadata=trailers)
            self.capture = capture_pb2.CaptureStatus(
                state=capture_pb2.CAPTURE_STATE_RUNNING, capture_id=secrets.token_hex(8), spec=spec
            )
            return agent_pb2.StartCaptureResponse(status=self.capture).SerializeToString()

        async def stop(_payload: bytes, _context: Context) -> bytes:
            self.capture.state = capture_pb2.CAPTURE_STATE_STOPPED
            return agent_pb2.StopCaptureResponse(status=self.capture).SerializeToString()

        async def update(payload: bytes, _context: Context) -> bytes:
            request = agent_pb2.UpdateInterfacesRequest.FromString(payload)
            names = [interface.name for interface in self.capture.interfaces] or list(self.capture.spec.interfaces)
            del self.capture.interfaces[:]
            for name in (*names, *request.add):
                if name not in request.remove:
                    self.capture.interfaces.add(name=name, state=capture_pb2.INTERFACE_STATE_UP)
            return agent_pb2.UpdateInterfacesResponse(status=self.capture).SerializeToString()

        async def metrics(_payload: bytes, _context: Context) -> bytes:
            return agent_pb2.GetMetricsResponse(metrics=capture_pb2.CaptureMetrics(received=42)).SerializeToString()

        async def flows(_payload: bytes, _context: Context) -> bytes:
            return self.batches[0] if self.batches else b""

        return {
            "StartCapture": start,
            "StopCapture": stop,
            "UpdateInterfaces": update,
            "EnableExport": self._enable_export,
            "DisableExport": self._disable_export,
            "ListExports": self._list_exports,
            "GetMetrics": metrics,
            "ListFlows": flows,
        }

    async def _enable_export(self, payload: bytes, context: Context) -> bytes:
        spec = agent_pb2.EnableExportRequest.FromString(payload).spec
        assert self.lease is not None
        allowed = AllowList.parse(self.lease.export_collectors)
        if not all(allowed.permits(collector.host, collector.port or 4739) for collector in spec.collectors):
            await refuse(context, code_pb2.FAILED_PRECONDITION, "EXPORT_NOT_ALLOWED")
        if self.exports.get(spec.export_id, export_pb2.ExportStatus(spec=spec)).spec != spec:
            await refuse(context, code_pb2.ALREADY_EXISTS, "EXPORT_EXISTS")
        collectors = [
            export_pb2.CollectorStatus(collector=collector, state=export_pb2.COLLECTOR_STATE_CONNECTED)
            for collector in spec.collectors
        ]
        self.exports[spec.export_id] = export_pb2.ExportStatus(
            spec=spec, state=export_pb2.EXPORT_STATE_ACTIVE, collectors=collectors
        )
        return agent_pb2.EnableExportResponse(status=self.exports[spec.export_id]).SerializeToString()

    async def _disable_export(self, payload: bytes, context: Context) -> bytes:
        request = agent_pb2.DisableExportRequest.FromString(payload)
        if request.export_id not in self.exports:
            await refuse(context, code_pb2.NOT_FOUND, "EXPORT_NOT_FOUND")
        status = self.exports.pop(request.export_id)
        status.state = export_pb2.EXPORT_STATE_ENDING
        return agent_pb2.DisableExportResponse(status=status).SerializeToString()

    async def _list_exports(self, _payload: bytes, _context: Context) -> bytes:
        return agent_pb2.ListExportsResponse(exports=self.exports.values()).SerializeToString()

    def _streams(self) -> dict[str, Callable[[bytes, Context], AsyncIterator[bytes]]]:
        async def metrics(_payload: bytes, _context: Context) -> AsyncIterator[bytes]:
            received = 0
            while True:
                received += 1
                yield agent_pb2.StreamMetricsResponse(metrics=capture_pb2.CaptureMetrics(received=received)).SerializeToString()
                await asyncio.sleep(0.02)

        return {"StreamMetrics": metrics, "StreamFlows": self._stream_flows}

    async def _stream_flows(self, payload: bytes, context: Context) -> AsyncIterator[bytes]:
        subscription = agent_pb2.StreamFlowsRequest.FromString(payload).subscription
        self.subscriptions.append(subscription)
        if subscription.filter == "bad filter":
            status = bad_request_status([("subscription.filter", "syntax error")], reason="FILTER_INVALID")
            trailers = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message, trailing_metadata=trailers)
        known = {agent_pb2.StreamFlowsResponse.FromString(batch).batch.resume_token for batch in self.batches}
        if subscription.resume_token and subscription.resume_token not in known:
            await refuse(context, code_pb2.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
        self.streams += 1
        self.streams_ended.clear()
        try:
            async for message in self._records_after(subscription, context):
                yield message
        finally:
            self.streams -= 1
            if not self.streams:
                self.streams_ended.set()

    async def _records_after(self, subscription: capture_pb2.FlowSubscription, context: Context) -> AsyncIterator[bytes]:
        position = self._position_after(subscription.resume_token)
        sent = 0
        while True:
            while position < len(self.batches):
                if sent == self.end_stream_after:
                    self.end_stream_after = None
                    await refuse(context, code_pb2.UNAVAILABLE, "NETWORK_LOST")
                yield self.batches[position]
                position, sent = position + 1, sent + 1
            if not subscription.follow:
                return
            if self.is_draining:
                await refuse(context, code_pb2.UNAVAILABLE, "AGENT_STOPPING")
            self.grow.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.grow.wait(), 0.1)

    def _position_after(self, token: bytes) -> int:
        for index, batch in enumerate(self.batches):
            if token and agent_pb2.StreamFlowsResponse.FromString(batch).batch.resume_token == token:
                return index + 1
        return 0


def operator_channel(address: str, ca_pem: bytes, key_pem: bytes, certificate_pem: bytes, fleet: str) -> grpc.aio.Channel:
    """A channel as jarvisctl opens it."""
    credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, certificate_pem)
    options = (("grpc.ssl_target_name_override", Identity(fleet=fleet, role=Role.CONTROLLER, name="main").dns_names[1]),)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _unary(behaviour: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=None if request is None else request.FromString,
        response_serializer=None if request is None else lambda message: message.SerializeToString(),
    )


def _stream(behaviour: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(behaviour, request_deserializer=None, response_serializer=None)
