# SPDX-License-Identifier: Apache-2.0
"""Brings a release to one agent: looks what runs there, delivers, activates, waits until it is proved with it or without it.

    lease → status → parts staged → activated → another process answers → attested: the new release, or the one before
                                                                            └ what was captured before is started again

The agent says what it did; what runs there afterwards is the quote's word: the firmware digest of a passed attestation of another
session than before. An agent's capture is started again as it was commanded and on behalf of whoever did, by the controller's
own audit log (commanded_captures.py): the agent says no more than on which of the commanded interfaces it was.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import agent_pb2, capture_pb2
from jarvis.capture.v1 import release_pb2 as pb
from jarvis_trust.errors import TrustError
from jarvis_trust.release_files import StoredRelease
from jarvis_trust.status import error_status, reason_of, trust_error_status

from jarvis_controller.agent_client import AgentClient, Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import Attester, UnknownAgentError, describe, no_lease_status
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.case import FIRMWARE_OBJECT
from jarvis_controller.commander import Commander
from jarvis_controller.release_store import ReleaseStore
from jarvis_controller.rollout import Condition
from jarvis_controller.rpc_status import OK, RpcError, malformed_answer
from jarvis_controller.selection import gone
from jarvis_controller.states import State
from jarvis_controller.store import Store

_log = structlog.get_logger()

PART_BYTES = 48 * 1024
ACTIVATE_S = 60.0
"""For hashing, measuring and the trial run, which the agent bounds at 30 s."""
_RETURN_S = 60.0
"""How long after the trial an agent may take to come back with the release that it had."""
_ASK_S = 0.3
_RUNNING = frozenset({capture_pb2.CAPTURE_STATE_RUNNING, capture_pb2.CAPTURE_STATE_PAUSED})
_REFUSALS = ("RELEASE_", "FIRMWARE_")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOrder:
    """What is brought to agents, and for whom."""

    release: StoredRelease
    trial_s: float
    principal: str
    """Who ordered the roll-out."""
    roll_out_id: str
    """UUID, in every audit entry of it."""

    @property
    def core(self) -> bytes:
        """SHA-256 of the library, as it is measured."""
        return bytes.fromhex(self.release.manifest.objects.get(FIRMWARE_OBJECT, ""))


class AgentUpdater:
    """Updates agents for one order. Used from the event loop."""

    def __init__(
        self,
        order: UpdateOrder,
        *,
        releases: ReleaseStore,
        store: Store,
        client: AgentClient,
        attester: Attester,
        commander: Commander,
    ) -> None:
        self._order = order
        self._releases = releases
        self._store = store
        self._client = client
        self._attester = attester
        self._commander = commander

    async def update(self, agent: AgentRecord, stage: int) -> pb.RollOutAgent:
        """One agent from beginning to end; its outcome is audited."""
        outcome = pb.RollOutAgent(agent_id=agent.agent_id, stage=stage)
        try:
            await self._update(agent, outcome)
        except UnknownAgentError:
            _set(outcome, pb.ROLL_OUT_RESULT_NOT_REACHED, gone(agent).status)
        except OSError as error:
            message = f"the release cannot be read at the controller: {error.strerror}"
            _set(outcome, pb.ROLL_OUT_RESULT_NOT_REACHED, error_status(code_pb2.UNAVAILABLE, "RELEASE_IO", message))
        detail = {
            "capture": _text(outcome.capture) if outcome.HasField("capture") else "",
            "manifest_sha256": self._order.release.sha256,
            "message": _text(outcome.status),
            "result": pb.RollOutResult.Name(outcome.result).removeprefix("ROLL_OUT_RESULT_"),
            "stage": stage,
        }
        await self._audit("release.update", self._order.principal, agent.agent_id, detail)
        return outcome

    async def look(self, agent_id: str, may_attest: bool) -> tuple[Condition, str]:
        """How an agent does after its update, and why."""
        record = await self._store.agent(agent_id)
        if record is not None and may_attest and record.state is State.STALE:
            record = (await self._attester.attest(agent_id)).agent
        if record is None or record.state in {State.QUARANTINED, State.RETIRED}:
            return Condition.LOST, "it is gone" if record is None else f"{record.state}: {record.reason}"
        if record.state is not State.VERIFIED:
            return Condition.AWAY, f"{record.state}: {record.reason}"
        if record.firmware_sha256 != self._order.core:
            return Condition.LOST, f"it runs release {record.firmware_version} ({record.firmware_sha256.hex()})"
        return Condition.GOOD, ""

    async def _update(self, agent: AgentRecord, outcome: pb.RollOutAgent) -> None:
        try:
            proved, _ = await self._attester.ensure_lease(agent.agent_id)
            status = await self._client.status(proved)
        except RpcError as error:
            _set(outcome, pb.ROLL_OUT_RESULT_NOT_REACHED, error.status)
            return
        if self._is_there(proved, status):
            _set(outcome, pb.ROLL_OUT_RESULT_CURRENT, OK)
            return
        runs = status.capture.state in _RUNNING
        if runs and status.capture.spec.files:
            message = "it replays capture files, which would begin again: roll out when the replay is over"
            _set(outcome, pb.ROLL_OUT_RESULT_SKIPPED, error_status(code_pb2.FAILED_PRECONDITION, "REPLAY_RUNNING", message))
            return
        if not (await self._is_good_still(outcome) and await self._deliver(agent.agent_id, outcome)):
            return
        began = time.monotonic()
        if not await self._activate(agent.agent_id, outcome):
            return
        record = await self._come_back(proved, outcome)
        if record is not None and runs:
            outcome.capture.CopyFrom(await self._start_again(record.agent_id, status.capture))
            outcome.capture_gap.FromNanoseconds(round((time.monotonic() - began) * 1e9))

    async def _is_good_still(self, outcome: pb.RollOutAgent) -> bool:
        """A roll-out may take days: what was revoked meanwhile, or is below a floor that rose, would quarantine who gets it."""
        try:
            await self._releases.get(self._order.release.sha256)
        except TrustError as error:
            _set(outcome, pb.ROLL_OUT_RESULT_ROLLED_BACK, trust_error_status(code_pb2.FAILED_PRECONDITION, error))
            return False
        return True

    def _is_there(self, record: AgentRecord, status: agent_pb2.GetStatusResponse) -> bool:
        """The digest was quoted; which of two releases with the same library it is, the agent says."""
        named = status.release.manifest_sha256 == bytes.fromhex(self._order.release.sha256)
        return named and record.firmware_sha256 == self._order.core

    async def _deliver(self, agent_id: str, outcome: pb.RollOutAgent) -> bool:
        """Stages every file; False: the outcome says why not."""
        manifest = self._order.release.manifest
        objects, version = manifest.objects, manifest.version
        await self._store.know_release(objects, version=version, security_version=manifest.security_version)
        try:
            for name in self._order.release.file_names:
                await self._deliver_file(agent_id, name)
        except RpcError as error:
            reason = reason_of(error.status)
            if reason == "FIRMWARE_WRONG_ARCHITECTURE":
                _set(outcome, pb.ROLL_OUT_RESULT_SKIPPED, error.status)
            elif reason.startswith(_REFUSALS):
                _set(outcome, pb.ROLL_OUT_RESULT_ROLLED_BACK, error.status)
            else:
                _set(outcome, pb.ROLL_OUT_RESULT_NOT_REACHED, error.status)
            return False
        return True

    async def _deliver_file(self, agent_id: str, name: str) -> None:
        try:
            await self._deliver_parts(agent_id, name)
        except RpcError as error:
            if reason_of(error.status).startswith(_REFUSALS):
                raise
            # An answer was lost, or the agent restarted: what it has of the file is begun anew, once.
            await self._deliver_parts(agent_id, name)

    async def _deliver_parts(self, agent_id: str, name: str) -> None:
        offset, size = 0, 1
        while offset < size:
            data, size = await self._releases.read(self._order.release, name, offset, PART_BYTES)
            request = agent_pb2.StageReleaseRequest(
                manifest_sha256=bytes.fromhex(self._order.release.sha256), file_name=name, offset=offset, data=data, size=size
            )
            await self._commander.call(agent_id, Command(rpc="StageRelease", request=request, principal=self._order.principal))
            offset += len(data)

    async def _activate(self, agent_id: str, outcome: pb.RollOutAgent) -> bool:
        """False: the agent refused, and goes on with what it has. True as well when its answer was lost."""
        request = agent_pb2.ActivateReleaseRequest(manifest_sha256=bytes.fromhex(self._order.release.sha256))
        request.trial.FromNanoseconds(round(self._order.trial_s * 1e9))
        command = Command(
            rpc="ActivateRelease",
            request=request,
            principal=self._order.principal,
            request_id=str(uuid.uuid4()),
            timeout_s=ACTIVATE_S,
        )
        try:
            await self._commander.call(agent_id, command)
        except RpcError as error:
            if reason_of(error.status) == "RELEASE_BUSY" or error.status.code in {
                code_pb2.UNAVAILABLE,
                code_pb2.DEADLINE_EXCEEDED,
            }:
                return True
            _set(outcome, pb.ROLL_OUT_RESULT_ROLLED_BACK, error.status)
            return False
        return True

    async def _come_back(self, before: AgentRecord, outcome: pb.RollOutAgent) -> AgentRecord | None:
        """Waits for another process and attests it; None while none is proved."""
        deadline = time.monotonic() + self._order.trial_s + _RETURN_S
        last = error_status(code_pb2.UNAVAILABLE, "RELEASE_NO_ANSWER", "no other process of the agent was proved in time")
        while time.monotonic() < deadline:
            try:
                info = await self._client.info(before)
                if info.session_id != before.session_id and info.firmware.loaded:
                    attested = await self._attester.attest(before.agent_id)
                    if attested.agent.state in {State.QUARANTINED, State.RETIRED}:
                        _set(outcome, pb.ROLL_OUT_RESULT_FAILED, no_lease_status(attested.agent))
                        return None
                    if not attested.status.code and attested.agent.session_id != before.session_id:
                        await self._settle(attested.agent, outcome)
                        return attested.agent
                    last = attested.status if attested.status.code else last
            except RpcError as error:
                last = error.status
            await asyncio.sleep(_ASK_S)
        _set(outcome, pb.ROLL_OUT_RESULT_FAILED, last)
        return None

    async def _settle(self, record: AgentRecord, outcome: pb.RollOutAgent) -> None:
        """Another process is proved: with which release?"""
        status = await self._client.status(record)
        if self._is_there(record, status):
            _set(outcome, pb.ROLL_OUT_RESULT_UPDATED, OK)
            return
        back = status.release.rolled_back
        reason = back.reason if back.manifest_sha256 == bytes.fromhex(self._order.release.sha256) else "RELEASE_NOT_HELD"
        message = f"it went back to {record.firmware_version}: {back.message or 'the agent says nothing of the release'}"
        _set(outcome, pb.ROLL_OUT_RESULT_ROLLED_BACK, error_status(code_pb2.ABORTED, reason, message))

    async def _start_again(self, agent_id: str, capture: capture_pb2.CaptureStatus) -> status_pb2.Status:
        """Signs what somebody commanded, not what the agent says: it would have packets looked at that nobody asked for."""
        commanded = await self._store.commanded_capture(agent_id)
        spec = None if commanded is None else commanded.spec_on([interface.name for interface in capture.interfaces])
        status = OK
        if commanded is None or spec is None:
            message = (
                "the agent says that it ran a capture, or an interface of one, that nobody commanded: it is not started again"
            )
            status = error_status(code_pb2.FAILED_PRECONDITION, "CAPTURE_NOT_COMMANDED", message)
        else:
            request = agent_pb2.StartCaptureRequest(spec=spec)
            command = Command(rpc="StartCapture", request=request, principal=commanded.principal, request_id=str(uuid.uuid4()))
            try:
                agent_pb2.StartCaptureResponse.FromString(await self._commander.call(agent_id, command))
            except RpcError as error:
                status = error.status
            except DecodeError:
                status = malformed_answer().status
        principal = self._order.principal if commanded is None else commanded.principal
        detail = {"message": _text(status), "ordered_by": self._order.principal, "previous_capture_id": capture.capture_id}
        await self._audit("capture.restart", principal, agent_id, detail)
        return status

    async def _audit(self, action: str, principal: str, agent_id: str, detail: Mapping[str, object]) -> None:
        entry = AuditEntry(
            principal=principal, action=action, agent_id=agent_id, detail=detail, request_id=self._order.roll_out_id
        )
        await self._store.audit(entry)


def _set(outcome: pb.RollOutAgent, result: pb.RollOutResult.ValueType, status: status_pb2.Status) -> None:
    outcome.result = result
    outcome.status.CopyFrom(status)


def _text(status: status_pb2.Status) -> str:
    return describe(status) if status.code else "OK"
