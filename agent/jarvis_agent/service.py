# SPDX-License-Identifier: Apache-2.0
"""AgentService: the wire's methods on raw bytes, each behind the same checks in the same order.

    size → firmware trusted → lease → command signature, freshness, role → parse → perform → bytes

Requests are taken as bytes because the signature covers the bytes as received; StreamFlows and ListFlows forward the native
core's bytes as they are. The caller's identity was checked before (peer.ControllerOnly).
"""

from __future__ import annotations

import asyncio
import logging
import platform
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import (
    CAPTURE_STATE_IDLE,
    FLOW_SORT_DURATION,
    FLOW_SORT_LAST,
    FLOW_SORT_OCTETS,
    FLOW_SORT_PACKETS,
    FLOW_SORT_START,
    FLOW_SORT_UNSPECIFIED,
    CaptureStatus,
)
from jarvis.capture.v1.trust_pb2 import Lease
from jarvis_native import MeasuredObject, PacketCaptureEngine
from jarvis_native.engine import SortKey
from jarvis_trust.commands import AGENT_SERVICE, LEASED_METHODS
from jarvis_trust.errors import CommandError
from jarvis_trust.release_files import Part

from jarvis_agent import __version__, wire
from jarvis_agent.aborts import abort_status, abort_with
from jarvis_agent.attest import Attester
from jarvis_agent.authorization import MUTATIONS, AnswerCache, Command, CommandGate
from jarvis_agent.captures import CaptureManager
from jarvis_agent.errors import AgentStoppingError, RequestError
from jarvis_agent.events import EventJournal
from jarvis_agent.export_service import ExportVerbs
from jarvis_agent.firmware import FirmwareState
from jarvis_agent.flow_stream import FlowStream, plan_stream
from jarvis_agent.lease import LeaseKeeper
from jarvis_agent.peer import controller_spki_sha256, own_spki_sha256
from jarvis_agent.releases import DEFAULT_TRIAL_S, Releases
from jarvis_agent.rpc_errors import firmware_untrusted
from jarvis_agent.software_identity import AbsentStoreKey
from jarvis_agent.store_key import StoreKey

_LOG = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 * 1024
MAX_STREAMS = 64
MAX_EVENT_STREAMS = 8
"""Besides: streams of flows must not keep events from being told, nor streams of events, which need no lease, flows."""
DEFAULT_FLOW_LIMIT = 100
MAX_FLOW_LIMIT = 100_000
MIN_INTERVAL_S, MAX_INTERVAL_S, DEFAULT_INTERVAL_S = 0.1, 3600.0, 1.0
_TICK_S = 0.1
"""How often a waiting metrics stream looks whether it has to end."""

_SORTS: dict[int, SortKey] = {
    FLOW_SORT_UNSPECIFIED: "none",
    FLOW_SORT_PACKETS: "packets",
    FLOW_SORT_OCTETS: "octets",
    FLOW_SORT_START: "start",
    FLOW_SORT_LAST: "last",
    FLOW_SORT_DURATION: "duration",
}

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:  # generic in the stubs only
    Context = grpc.aio.ServicerContext
_Unary = Callable[[bytes, Context], Awaitable[bytes]]


@dataclass(slots=True, kw_only=True)
class AgentService:
    """The handlers and what they work with. Used on the event loop."""

    agent_id: str
    firmware: FirmwareState
    attester: Attester
    leases: LeaseKeeper
    gate: CommandGate
    captures: CaptureManager | None
    """None while firmware was refused: there is nothing to capture with."""
    exports: ExportVerbs
    journal: EventJournal
    releases: Releases
    measure_trial: Callable[[MeasuredObject], None]
    """Logs and extends an object that a trial is about to load; blocks."""
    request_restart: Callable[[], None]
    """Drains the agent and starts its process anew."""
    start_time_ns: int
    """Of the process, nanoseconds since the Unix epoch."""
    tpm_status: Callable[[], tuple[pb.TpmState.ValueType, str]]
    """State of the TPM, and why it is not READY."""
    ca_bundle_sha256: Callable[[], bytes]
    """Of the CAs that this agent trusts."""
    on_trust: Callable[[bytes], None]
    """Told what each lease says the fleet's CAs are."""
    store_key: StoreKey | AbsentStoreKey
    answers: AnswerCache = field(default_factory=AnswerCache)
    is_draining: bool = False
    """Set when the agent stops: streams end, new commands are refused."""
    streams: int = 0
    """Open now, of both kinds."""
    event_streams: int = 0
    """Of them, those of events."""
    streams_ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no stream is open."""

    def __post_init__(self) -> None:
        self.streams_ended.set()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service for grpc.aio.Server.add_generic_rpc_handlers: bytes in, bytes out."""
        unary: dict[str, tuple[_Unary, str]] = {
            "GetAgentInfo": (self._get_agent_info, ""),
            "ListBackends": (self._list_backends, ""),
            "Attest": (self._attest, ""),
            "VerifyFirmware": (self._verify_firmware, ""),
            "RenewLease": (self._renew_lease, "lease"),
            "StartCapture": (self._start_capture, "spec"),
            "StopCapture": (self._stop_capture, ""),
            "UpdateInterfaces": (self._update_interfaces, ""),
            "GetStatus": (self._get_status, ""),
            "GetMetrics": (self._get_metrics, ""),
            "ListFlows": (self._list_flows, "query"),
            "StageRelease": (self._stage_release, ""),
            "ActivateRelease": (self._activate_release, ""),
            **self.exports.handlers(),
        }
        streams = {
            "StreamMetrics": (self._stream_metrics, ""),
            "StreamFlows": (self._stream_flows, "subscription"),
            "StreamEvents": (self._stream_events, ""),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, perform, scope))
            for name, (perform, scope) in unary.items()
        }
        for name, (stream, scope) in streams.items():
            methods[name] = grpc.unary_stream_rpc_method_handler(self._streaming(name, stream, scope))
        return grpc.method_handlers_generic_handler(AGENT_SERVICE.strip("/"), methods)

    # ---- the checks

    def _unary(self, name: str, perform: _Unary, scope: str) -> Any:
        method = AGENT_SERVICE + name

        async def handle(payload: bytes, context: Context) -> bytes:
            try:
                command = await self._admit(method, payload, context)
                if command is not None and method in MUTATIONS:
                    _LOG.info("%s on behalf of %s, request %s", name, command.principal, command.request_id)
                    return await self.answers.answer(command, lambda: perform(payload, context))
                return await perform(payload, context)
            except Exception as error:  # noqa: BLE001 - the one place that turns exceptions into statuses
                await self._abort(context, error, scope)

        return handle

    def _streaming(self, name: str, stream: Callable[[bytes, Context], AsyncIterator[bytes]], scope: str) -> Any:
        method = AGENT_SERVICE + name

        async def handle(payload: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                await self._admit(method, payload, context)
                with self._open_stream(is_events=name == "StreamEvents"):
                    async for message in stream(payload, context):
                        yield message
            except Exception as error:  # noqa: BLE001 - as above
                await self._abort(context, error, scope)

        return handle

    async def _admit(self, method: str, payload: bytes, context: Context) -> Command | None:
        """The command, for methods that need a lease; None for the others, which may be called in any state."""
        if len(payload) > MAX_REQUEST_BYTES:
            raise RequestError(("", f"a request of {len(payload)} bytes; at most {MAX_REQUEST_BYTES} are accepted"))
        if self.is_draining:
            raise AgentStoppingError
        needs_firmware = method in LEASED_METHODS or method == f"{AGENT_SERVICE}ListBackends"
        if needs_firmware and self.firmware.firmware is None:
            await abort_status(context, firmware_untrusted(self.firmware))
        if method not in LEASED_METHODS:
            return None
        metadata = context.invocation_metadata() or ()
        return self.gate.admit(method, payload, tuple((str(key), value) for key, value in metadata))

    async def _abort(self, context: Context, error: Exception, scope: str) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        await abort_with(context, error, scope=scope)

    def _captures(self) -> CaptureManager:
        if self.captures is None:
            raise AssertionError("admitted without firmware")
        return self.captures

    # ---- always served

    async def _get_agent_info(self, payload: bytes, _context: Context) -> bytes:
        wire.parse(pb.GetAgentInfoRequest, payload)
        tpm_state, tpm_message = self.tpm_status()
        store_key_state, store_key_message = self.store_key.status()
        return pb.GetAgentInfoResponse(
            agent_id=self.agent_id,
            version=__version__,
            hostname=socket.gethostname(),
            kernel=platform.release(),
            boot_id=self.attester.boot_id,
            session_id=self.attester.session_id,
            start_time=wire.timestamp(self.start_time_ns),
            firmware=self.firmware.status(),
            tpm_state=tpm_state,
            ca_bundle_sha256=self.ca_bundle_sha256(),
            tpm_message=tpm_message or (store_key_message and f"store key: {store_key_message}"),
            store_key_state=store_key_state,
        ).SerializeToString()

    async def _verify_firmware(self, payload: bytes, _context: Context) -> bytes:
        wire.parse(pb.VerifyFirmwareRequest, payload)
        return pb.VerifyFirmwareResponse(firmware=self.firmware.status()).SerializeToString()

    async def _attest(self, payload: bytes, context: Context) -> bytes:
        request = wire.parse(pb.AttestRequest, payload)
        evidence = await self.attester.evidence(
            nonce=request.nonce,
            pcrs=tuple(request.pcrs),
            controller_spki_sha256=controller_spki_sha256(context),
            shown_spki_sha256=own_spki_sha256(context),
            known_boot_log_sha256=request.known_boot_log_sha256,
            known_ima=(request.known_ima_boot_id, request.known_ima_entries),
        )
        return pb.AttestResponse(evidence=evidence).SerializeToString()

    async def _renew_lease(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.RenewLeaseRequest, payload)
        lease = self.leases.accept(request.lease)
        self.on_trust(Lease.FromString(request.lease.lease).ca_bundle_sha256)  # its signature holds
        if not self.leases.sequence:
            _LOG.warning("lease %d: the controller ended it; work is paused until it gives another", lease.sequence)
        if request.HasField("store_approval"):
            self.store_key.offer(request.store_approval)
        return pb.RenewLeaseResponse(sequence=lease.sequence).SerializeToString()

    async def _get_status(self, payload: bytes, _context: Context) -> bytes:
        wire.parse(pb.GetStatusRequest, payload)
        response = pb.GetStatusResponse(
            capture=CaptureStatus(state=CAPTURE_STATE_IDLE) if self.captures is None else self.captures.status(),
            firmware=self.firmware.status(),
            lease_sequence=self.leases.sequence,
            release=self.releases.status(),
        )
        remaining = self.leases.remaining_ns()
        if remaining > 0:
            response.lease_remaining.CopyFrom(wire.duration(remaining))
        return response.SerializeToString()

    # ---- capture verbs

    async def _list_backends(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.ListBackendsRequest, payload)
        backends = await asyncio.to_thread(
            PacketCaptureEngine.get_available_backends, request.interface or None, firmware=self.firmware.firmware
        )
        return pb.ListBackendsResponse(backends=[wire.backend_info(backend) for backend in backends]).SerializeToString()

    async def _start_capture(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.StartCaptureRequest, payload)
        return pb.StartCaptureResponse(status=await self._captures().start(request.spec, payload)).SerializeToString()

    async def _stop_capture(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.StopCaptureRequest, payload)
        return pb.StopCaptureResponse(status=await self._captures().stop(discard=request.discard)).SerializeToString()

    async def _update_interfaces(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.UpdateInterfacesRequest, payload)
        status = await self._captures().update_interfaces(add=request.add, remove=request.remove)
        return pb.UpdateInterfacesResponse(status=status).SerializeToString()

    async def _get_metrics(self, payload: bytes, _context: Context) -> bytes:
        wire.parse(pb.GetMetricsRequest, payload)
        return pb.GetMetricsResponse(metrics=wire.capture_metrics(self._captures().metrics())).SerializeToString()

    async def _list_flows(self, payload: bytes, _context: Context) -> bytes:
        query = wire.parse(pb.ListFlowsRequest, payload).query
        if query.limit > MAX_FLOW_LIMIT:
            raise RequestError(("query.limit", f"{query.limit}; 1 to {MAX_FLOW_LIMIT} are accepted, 0 = {DEFAULT_FLOW_LIMIT}"))
        if query.sort_by not in _SORTS:
            raise RequestError(("query.sort_by", f"{query.sort_by}; 0 to {max(_SORTS)} are accepted"))
        run = self._captures().require_run()
        return await asyncio.to_thread(
            run.engine.encode_flows,
            limit=query.limit or DEFAULT_FLOW_LIMIT,
            min_packets=query.min_packets,
            sort_by=_SORTS[query.sort_by],
            filter=query.filter,
        )

    async def _stream_metrics(self, payload: bytes, _context: Context) -> AsyncIterator[bytes]:
        request = wire.parse(pb.StreamMetricsRequest, payload)
        interval = request.interval.seconds + request.interval.nanos / 1e9 if request.HasField("interval") else DEFAULT_INTERVAL_S
        if not MIN_INTERVAL_S <= interval <= MAX_INTERVAL_S:
            raise RequestError(("interval", f"{interval:g} s; {MIN_INTERVAL_S:g} s to {MAX_INTERVAL_S:g} s are accepted"))
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            yield pb.StreamMetricsResponse(metrics=wire.capture_metrics(self._captures().metrics())).SerializeToString()
            due = max(due + interval, loop.time())
            while (left := due - loop.time()) > 0:
                self._check_stream(f"{AGENT_SERVICE}StreamMetrics")
                await asyncio.sleep(min(left, _TICK_S))
            self._check_stream(f"{AGENT_SERVICE}StreamMetrics")

    async def _stream_flows(self, payload: bytes, _context: Context) -> AsyncIterator[bytes]:
        plan = plan_stream(wire.parse(pb.StreamFlowsRequest, payload).subscription)
        stream = FlowStream(
            plan,
            self._captures(),
            check_lease=lambda: _none(self.leases.require(f"{AGENT_SERVICE}StreamFlows")),
            is_draining=lambda: self.is_draining,
        )
        try:
            async for message in stream.messages():
                yield message
        finally:
            stream.close()

    async def _stream_events(self, payload: bytes, _context: Context) -> AsyncIterator[bytes]:
        request = wire.parse(pb.StreamEventsRequest, payload)
        async for events in self.journal.follow(request.source_id, request.sequence):
            yield pb.StreamEventsResponse(events=events).SerializeToString()
        raise AgentStoppingError

    # ---- releases

    async def _stage_release(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.StageReleaseRequest, payload)
        return pb.StageReleaseResponse(received=await self.releases.stage(Part.of(request))).SerializeToString()

    async def _activate_release(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.ActivateReleaseRequest, payload)
        trial_s = request.trial.seconds + request.trial.nanos / 1e9 if request.HasField("trial") else DEFAULT_TRIAL_S
        version = await self.releases.activate(request.manifest_sha256, trial_s, self.measure_trial)
        self.request_restart()
        return pb.ActivateReleaseResponse(version=version).SerializeToString()

    @contextmanager
    def _open_stream(self, *, is_events: bool) -> Iterator[None]:
        limit = MAX_EVENT_STREAMS if is_events else MAX_STREAMS
        if (self.event_streams if is_events else self.streams - self.event_streams) >= limit:
            raise CommandError("STREAM_LIMIT", f"{limit} such streams are open; at most so many are accepted")
        self.streams += 1
        self.event_streams += is_events
        self.streams_ended.clear()
        try:
            yield
        finally:
            self.streams -= 1
            self.event_streams -= is_events
            if self.streams == 0:
                self.streams_ended.set()

    def _check_stream(self, method: str) -> None:
        self.leases.require(method)
        if self.is_draining:
            raise AgentStoppingError


def _none(_value: object) -> None:
    """Takes a check's result and gives nothing: for callbacks that only raise."""
