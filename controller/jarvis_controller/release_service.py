# SPDX-License-Identifier: Apache-2.0
"""ReleaseService: the releases that the controller holds, and their roll-out, one at a time.

The roll-out is a task of its own that the stream listens to: when the operator goes away it begins no further agent and ends in
order by itself. Roles are checked before a handler runs (authorization.py).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from jarvis.capture.v1 import release_pb2 as pb
from jarvis_trust.errors import TrustError
from jarvis_trust.release_files import Part, PartError

from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.agent_update import AgentUpdater, UpdateOrder
from jarvis_controller.attestation import Attester
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.authorization import caller_of
from jarvis_controller.commander import Commander
from jarvis_controller.release_store import ReleaseStore
from jarvis_controller.rollout import RollOut, RollOutPlan, stage_targets
from jarvis_controller.rpc_status import RpcError, bad_field, refuse, refuse_trust
from jarvis_controller.selection import read_selector, select
from jarvis_controller.store import Store

_log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_STAGES = (
    pb.RollOutStage(agents=1),
    pb.RollOutStage(percent=10),
    pb.RollOutStage(percent=50),
    pb.RollOutStage(percent=100),
)
_MAX_STAGES = 16
_MAX_FAILURES = 10_000
_MAX_CONCURRENCY, _DEFAULT_CONCURRENCY = 256, 8
_DEFAULT_WAIT_S, _MAX_WAIT_S = 30.0, 86_400.0
_DEFAULT_TRIAL_S, _MIN_TRIAL_S, _MAX_TRIAL_S = 60.0, 5.0, 600.0
_SETTLE_S = 5.0
_Messages = asyncio.Queue[pb.RollOutReleaseResponse | None]
"""None: nothing follows."""
_CODES = {
    "RELEASE_INCOMPLETE": code_pb2.NOT_FOUND,
    "RELEASE_LIMIT": code_pb2.RESOURCE_EXHAUSTED,
    "RELEASE_DISK_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "RELEASE_IO": code_pb2.UNAVAILABLE,
}
"""Any other reason is FAILED_PRECONDITION."""


class ReleaseService:
    """The handlers. One instance per controller."""

    def __init__(
        self,
        *,
        fleet: str,
        releases: ReleaseStore,
        store: Store,
        client: AgentClient,
        attester: Attester,
        commander: Commander,
    ) -> None:
        self._fleet = fleet
        self._releases = releases
        self._store = store
        self._client = client
        self._attester = attester
        self._commander = commander
        self._roll_out: RollOut | None = None
        self._task: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """Begins no further agent, waits a moment for those under way, and lets go of the releases."""
        if self._roll_out is not None and self._task is not None:
            self._roll_out.cancel()
            await asyncio.wait({self._task}, timeout=_SETTLE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._releases.close()

    async def add_release(self, request: pb.AddReleaseRequest, context: Context) -> pb.AddReleaseResponse:
        """AddRelease."""
        try:
            received, release = await self._releases.add(Part.of(request))
        except (PartError, TrustError) as error:
            raise _refused(error) from error
        if release is not None:
            detail = {
                "manifest_sha256": release.manifest_sha256.hex(),
                "objects": dict(release.objects),
                "version": release.version,
            }
            await self._audit(self._principal(context), "release.add", detail)
        return pb.AddReleaseResponse(received=received, release=release)

    async def list_releases(self, _request: pb.ListReleasesRequest, _context: Context) -> pb.ListReleasesResponse:
        """ListReleases."""
        return pb.ListReleasesResponse(releases=await self._releases.listed())

    async def remove_release(self, request: pb.RemoveReleaseRequest, context: Context) -> pb.RemoveReleaseResponse:
        """RemoveRelease."""
        name = _name(request.manifest_sha256)
        if self._roll_out is not None:
            raise _busy()
        try:
            was_there = await self._releases.remove(name)
        except OSError as error:
            raise refuse(code_pb2.UNAVAILABLE, "RELEASE_IO", f"release {name} cannot be deleted: {error.strerror}") from error
        if not was_there:
            raise refuse(code_pb2.NOT_FOUND, "RELEASE_INCOMPLETE", f"release {name} is not here")
        await self._audit(self._principal(context), "release.remove", {"manifest_sha256": name})
        return pb.RemoveReleaseResponse()

    async def roll_out_release(
        self, request: pb.RollOutReleaseRequest, context: Context
    ) -> AsyncGenerator[pb.RollOutReleaseResponse, None]:
        """RollOutRelease."""
        name = _name(request.manifest_sha256)
        agents = select(read_selector(request.selector), await self._store.agents(), may_be_empty=False)
        plan = read_plan(request, len(agents))
        trial_s = _seconds("trial", request.trial, _MIN_TRIAL_S, _MAX_TRIAL_S) if request.HasField("trial") else _DEFAULT_TRIAL_S
        try:
            release = await self._releases.get(name)
        except (PartError, TrustError) as error:
            raise _refused(error) from error
        if self._roll_out is not None:
            raise _busy()
        principal = self._principal(context)
        order = UpdateOrder(release=release, trial_s=trial_s, principal=principal, roll_out_id=str(uuid.uuid4()))
        messages: _Messages = asyncio.Queue()
        roll_out = self._begin(order, plan, agents, messages)
        try:
            started = pb.RollOutStarted(release=await self._releases.message(release), agents=len(agents), stages=plan.targets)
            yield pb.RollOutReleaseResponse(started=started)
            message = None
            while (following := await messages.get()) is not None:
                message = following
                yield message
        finally:
            roll_out.cancel()
        if message is None or not message.HasField("ended"):
            raise refuse(code_pb2.UNAVAILABLE, "ROLL_OUT_BROKEN_OFF", "the controller broke it off: run it again to go on")

    def _begin(
        self,
        order: UpdateOrder,
        plan: RollOutPlan,
        agents: Sequence[AgentRecord],
        messages: _Messages,
    ) -> RollOut:
        updater = AgentUpdater(
            order,
            releases=self._releases,
            store=self._store,
            client=self._client,
            attester=self._attester,
            commander=self._commander,
        )
        ordered = sorted(agents, key=lambda agent: (agent.firmware_sha256 != order.core, agent.agent_id))
        roll_out = RollOut(plan, ordered, update=updater.update, look=updater.look, emit=messages.put_nowait)
        self._roll_out = roll_out
        self._task = asyncio.get_running_loop().create_task(self._run(roll_out, order, plan, len(agents), messages))
        return roll_out

    async def _run(self, roll_out: RollOut, order: UpdateOrder, plan: RollOutPlan, agents: int, messages: _Messages) -> None:
        detail: dict[str, object] = {
            "agents": agents,
            "manifest_sha256": order.release.sha256,
            "max_failures": plan.max_failures,
            "stages": list(plan.targets),
            "version": order.release.manifest.version,
        }
        try:
            await self._audit(order.principal, "release.roll-out", detail, order.roll_out_id)
            end = await roll_out.run()
            counts: dict[str, object] = {field.name: getattr(end, field.name) for field in end.DESCRIPTOR.fields}
            await self._audit(order.principal, "release.roll-out-end", detail | counts, order.roll_out_id)
            messages.put_nowait(pb.RollOutReleaseResponse(ended=end))
        except Exception:  # noqa: BLE001 - logged with its trace; whoever listens is told that it was broken off
            _log.exception("a roll-out was broken off")
        finally:
            # Before the end is read: who reads it may order the next one.
            self._roll_out = None
            messages.put_nowait(None)

    def _principal(self, context: Context) -> str:
        return caller_of(context, self._fleet).uri

    async def _audit(self, principal: str, action: str, detail: Mapping[str, object], request_id: str = "") -> None:
        await self._store.audit(AuditEntry(principal=principal, action=action, detail=detail, request_id=request_id))


def read_plan(request: pb.RollOutReleaseRequest, agents: int) -> RollOutPlan:
    """How far and how fast a request means.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if len(request.stages) > _MAX_STAGES:
        raise bad_field("stages", f"{len(request.stages)}; at most {_MAX_STAGES} are accepted")
    if request.max_failures > _MAX_FAILURES:
        raise bad_field("max_failures", f"{request.max_failures}; 1 to {_MAX_FAILURES} are accepted, 0 = 1")
    if request.concurrency > _MAX_CONCURRENCY:
        accepted = f"1 to {_MAX_CONCURRENCY} are accepted, 0 = {_DEFAULT_CONCURRENCY}"
        raise bad_field("concurrency", f"{request.concurrency}; {accepted}")
    try:
        targets = stage_targets(request.stages or DEFAULT_STAGES, agents)
    except PartError as error:
        raise bad_field(error.field, error.description) from error
    return RollOutPlan(
        targets=targets,
        max_failures=request.max_failures or 1,
        wait_s=_seconds("wait", request.wait, 0.0, _MAX_WAIT_S) if request.HasField("wait") else _DEFAULT_WAIT_S,
        concurrency=request.concurrency or _DEFAULT_CONCURRENCY,
    )


def _seconds(field: str, duration: Duration, low: float, high: float) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not low <= seconds <= high:
        raise bad_field(field, f"{seconds:g} s; {low:g} s to {high:g} s are accepted")
    return seconds


def _name(manifest_sha256: bytes) -> str:
    if len(manifest_sha256) != 32:
        raise bad_field("manifest_sha256", f"{len(manifest_sha256)} bytes; 32 are accepted")
    return manifest_sha256.hex()


def _busy() -> RpcError:
    message = "a roll-out is under way, or its last agents are: it ends by itself"
    return refuse(code_pb2.FAILED_PRECONDITION, "ROLL_OUT_RUNNING", message)


def _refused(error: PartError | TrustError) -> RpcError:
    if isinstance(error, PartError):
        return bad_field(error.field, error.description)
    return refuse_trust(_CODES.get(error.reason, code_pb2.FAILED_PRECONDITION), error)
