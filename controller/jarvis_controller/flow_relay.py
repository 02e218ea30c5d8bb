# SPDX-License-Identifier: Apache-2.0
"""Flows of many agents as one stream: a source per agent, one bounded queue per subscriber, batches forwarded unparsed.

    agent stream -> source (checks the outer tag, remembers the resume token) -> SubscriberQueue -> the subscriber's call

A source that breaks comes back where it left off, so nothing repeats or is skipped; when it comes back as another process, what
the dead one had not sent is told as a loss of unknown size. Sources join as agents that the selector means are verified, and end
when one is quarantined; both are told as AgentStatusEvents in the stream, as is every loss.
A subscriber that follows gets the newest (drop-oldest) or is disconnected; one that reads what is kept is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import structlog
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import agent_pb2, capture_pb2, fleet_pb2, flow_pb2
from jarvis_trust.status import reason_of

from jarvis_controller.agent_client import Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import describe
from jarvis_controller.commander import Commander
from jarvis_controller.flow_wire import FlowWireError, agent_id_suffix, batch_header, is_batch, parse
from jarvis_controller.leases import ActiveLease
from jarvis_controller.process_stream import ProcessStream
from jarvis_controller.rpc_status import RpcError, refuse
from jarvis_controller.selectors import Selector
from jarvis_controller.state_feed import Listener, StateFeed
from jarvis_controller.states import State
from jarvis_controller.subscriber_queue import SlowConsumerError, SubscriberQueue

_log = structlog.get_logger()

_BACKOFF_S = (0.25, 5.0)
_WIDE_SELECTION = 32
_WIDE_DELAY_S = 1
_ENDED = {State.QUARANTINED, State.RETIRED}
# A new capture, or a log that no longer holds the place: what it does keep is all new to the subscriber.
_TOKEN_REFUSED = frozenset({"RESUME_TOKEN_INVALID", "RESUME_TOKEN_STALE", "RESUME_TOKEN_UNKNOWN"})


_STOPPING = "AGENT_STOPPING"
"""How an agent ends its streams when it has given all that it had."""


@dataclass(slots=True, kw_only=True)
class _Source:
    """One agent's part of a subscription."""

    agent: AgentRecord
    subscription: capture_pb2.FlowSubscription
    streaming: bool = False
    said: tuple[State, bool, str] | None = None
    failures: int = 0
    open: ProcessStream = field(default_factory=ProcessStream)
    suffix: bytes = field(default=b"")

    def __post_init__(self) -> None:
        self.suffix = agent_id_suffix(self.agent.agent_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """Of one subscriber's queue."""

    max_messages: int
    max_bytes: int


class FlowRelay:
    """One subscriber's merged stream. Make one per call, iterate over `messages` once."""

    def __init__(
        self,
        *,
        commander: Commander,
        feed: StateFeed,
        selector: Selector,
        request: fleet_pb2.WatchFlowsRequest,
        principal: str,
        limits: RelayLimits,
    ) -> None:
        self._commander = commander
        self._feed = feed
        self._selector = selector
        self._subscription = request.subscription
        self._principal = principal
        self._follow = request.subscription.follow
        drop_oldest = request.slow_consumer_policy != fleet_pb2.SLOW_CONSUMER_POLICY_DISCONNECT
        self._queue = SubscriberQueue(max_messages=limits.max_messages, max_bytes=limits.max_bytes, drop_oldest=drop_oldest)
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._sources: dict[str, _Source] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._error: RpcError | None = None
        self._ending = False

    async def messages(self, agents: Sequence[AgentRecord], draining: asyncio.Event) -> AsyncGenerator[bytes, None]:
        """WatchFlowsResponse bytes, until every source has ended, the caller closes or the controller drains.

        Raises:
            RpcError: RESOURCE_EXHAUSTED for a slow consumer that asked for it, or a request that every agent would refuse.
        """
        with self._feed.listen() as listener:
            wide = len(agents) > _WIDE_SELECTION
            for agent in agents:
                self._start(agent, wide=wide)
            watchers = [asyncio.ensure_future(self._end_on(draining))]
            if self._follow:
                watchers.append(asyncio.ensure_future(self._follow_states(listener)))
            try:
                async for message in self._take():
                    yield message
            finally:
                await self._stop(watchers)

    async def _take(self) -> AsyncGenerator[bytes, None]:
        while True:
            self._filled.clear()
            while (message := self._queue.take(time.time_ns())) is not None:
                self._drained.set()
                yield message
                if self._error is not None:
                    break
            if self._error is not None:
                break
            ended = not self._follow and all(task.done() for task in self._tasks.values())
            if (ended or self._ending) and not len(self._queue):
                break
            with contextlib.suppress(TimeoutError):
                # A loss that came too soon after the last notice is told when its second is over, even if nothing else comes.
                async with asyncio.timeout(1.0 if self._queue.has_losses else None):
                    await self._filled.wait()
        for loss in self._queue.take_losses():
            yield loss
        if self._error is not None:
            raise self._error

    async def _end_on(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._ending = True
        for task in self._tasks.values():
            task.cancel()
        self._filled.set()

    async def _stop(self, watchers: Sequence[asyncio.Future[None]]) -> None:
        tasks = [*self._tasks.values(), *watchers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- sources --

    def _start(self, agent: AgentRecord, *, wide: bool = False) -> None:
        subscription = capture_pb2.FlowSubscription()
        subscription.CopyFrom(self._subscription)
        if wide and not subscription.HasField("max_batch_delay"):
            subscription.max_batch_delay.FromSeconds(_WIDE_DELAY_S)
        source = self._sources.setdefault(agent.agent_id, _Source(agent=agent, subscription=subscription))
        source.agent = agent
        if agent.state in _ENDED:
            self._say(source, streaming=False, message=agent.reason)
            return
        task = asyncio.get_running_loop().create_task(self._run_source(source), name=f"flows {agent.agent_id}")
        task.add_done_callback(lambda _: self._filled.set())
        self._tasks[agent.agent_id] = task

    async def _follow_states(self, listener: Listener) -> None:
        while True:
            for record in await listener.changed():
                source = self._sources.get(record.agent_id)
                if source is None:
                    if self._selector.covers(record) and record.state is State.VERIFIED:
                        self._start(record)
                    continue
                source.agent = record
                task = self._tasks.get(record.agent_id)
                if record.state in _ENDED:
                    if task is not None:
                        task.cancel()
                    self._say(source, streaming=False, message=record.reason)
                elif task is None or task.done():
                    self._start(record)
                else:
                    self._say(source, streaming=source.streaming, message=record.reason)

    async def _run_source(self, source: _Source) -> None:
        try:
            while True:
                problem = await self._stream_once(source)
                if self._error is not None or not self._follow:
                    if problem is not None:
                        self._say(source, streaming=False, message=describe(problem))
                    return
                self._say(source, streaming=False, message="the agent ended the stream" if problem is None else describe(problem))
                low, high = _BACKOFF_S
                await asyncio.sleep(low + random.SystemRandom().uniform(0, min(high, low * 2.0 ** min(source.failures, 10))))
                source.failures += 1
        except SlowConsumerError:
            self._fail(
                refuse(
                    code_pb2.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", "the subscriber does not keep up, and asked not to lose records"
                )
            )
        except Exception:  # noqa: BLE001 - logged with its trace; a source that died silently would look like an idle agent
            _log.exception("flow source failed", agent_id=source.agent.agent_id)
            self._say(source, streaming=False, message="the controller failed to relay this agent's flows; see its log")

    async def _stream_once(self, source: _Source) -> status_pb2.Status | None:
        """Relays one stream to its end; why it broke, or None when the agent ended it."""
        request = agent_pb2.StreamFlowsRequest(subscription=source.subscription)
        command = Command(rpc="StreamFlows", request=request, principal=self._principal)
        session = b""

        def note_session(lease: ActiveLease) -> None:
            nonlocal session
            session = lease.session_id

        try:
            messages = self._commander.stream(source.agent.agent_id, command, on_lease=note_session)
            async with contextlib.aclosing(messages) as stream:
                async for message in stream:
                    self._tell_lost_process(source, source.open.message(session, time.time_ns()))
                    if not source.streaming:
                        source.failures = 0
                        self._say(source, streaming=True, message="")
                    await self._forward(source, message)
        except RpcError as error:
            source.streaming = False
            self._note_error(source, error)
            return error.status
        except FlowWireError as error:
            source.streaming = False
            return refuse(code_pb2.DATA_LOSS, "FLOW_MESSAGE_MALFORMED", str(error)).status
        source.streaming = False
        source.open.ended()
        return None

    def _note_error(self, source: _Source, error: RpcError) -> None:
        """What a stream's error means for the next attempt, or for the whole subscription."""
        reason = reason_of(error.status)
        if reason == _STOPPING:
            source.open.ended()
        elif reason in _TOKEN_REFUSED and source.subscription.HasField("resume_token"):
            if self._subscription.WhichOneof("start") == "resume_token":
                self._fail(error)  # the operator's own token, not one of ours
            else:
                source.subscription.ClearField("resume_token")
                self._tell_lost_process(source, source.open.place_lost(time.time_ns()))
        elif error.status.code == code_pb2.INVALID_ARGUMENT:
            self._fail(error)  # a bad filter is as bad at every agent and at every attempt

    def _tell_lost_process(self, source: _Source, loss: flow_pb2.LossNotice | None) -> None:
        if loss is not None:
            answer = fleet_pb2.WatchFlowsResponse(agent_id=source.agent.agent_id, loss=loss)
            self._queue.put_notice(source.agent.agent_id, answer.SerializeToString())
            self._filled.set()

    async def _forward(self, source: _Source, message: bytes) -> None:
        agent_id = source.agent.agent_id
        if is_batch(message):
            header = batch_header(message)
            while not self._follow and not self._queue.has_room:
                self._drained.clear()
                await self._drained.wait()
            self._queue.put_batch(agent_id, message + source.suffix, header, time.time_ns())
            source.open.batch(header)
            if header.resume_token:
                source.subscription.resume_token = header.resume_token
        else:
            self._forward_parsed(source, message)
        self._filled.set()

    def _forward_parsed(self, source: _Source, message: bytes) -> None:
        parsed = parse(message)
        answer = fleet_pb2.WatchFlowsResponse(agent_id=source.agent.agent_id)
        match parsed.WhichOneof("event"):
            case "loss":
                answer.loss.CopyFrom(parsed.loss)
            case "watermark":
                answer.watermark.CopyFrom(parsed.watermark)
            case "batch":
                raise FlowWireError("a batch does not begin its message")
            case _:
                raise FlowWireError("the message holds no event")
        self._queue.put_notice(source.agent.agent_id, answer.SerializeToString())

    # -- what the subscriber is told --

    def _say(self, source: _Source, *, streaming: bool, message: str) -> None:
        source.streaming = streaming
        said = (source.agent.state, streaming, message)
        if said == source.said:
            return
        source.said = said
        event = fleet_pb2.AgentStatusEvent(state=source.agent.state.wire, streaming=streaming, message=message)
        event.time.FromNanoseconds(time.time_ns())
        answer = fleet_pb2.WatchFlowsResponse(agent_id=source.agent.agent_id, status=event)
        self._queue.put_notice(source.agent.agent_id, answer.SerializeToString())
        self._filled.set()

    def _fail(self, error: RpcError) -> None:
        self._error = error
        self._filled.set()
