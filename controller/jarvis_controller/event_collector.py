# SPDX-License-Identifier: Apache-2.0
"""Collects agents' events into the event log: one StreamEvents call per agent that was proved, kept up while it is trusted.

    agent's journal -> StreamEvents after the last one kept -> checked -> event log (one transaction a message)

An agent that has lost its lease (STALE) is still listened to: that its lease ended, or its firmware was refused, is what it has
to say. A quarantined or retired one is not. What was kept decides where a call begins, so neither a break nor a restart of either
side repeats or skips an event. An agent that tells more than is reasonable is read slower, until its own journal overwrites the
oldest, which is counted; nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable, Sequence

import structlog
from google.protobuf.message import DecodeError
from jarvis.capture.v1 import agent_pb2, event_pb2

from jarvis_controller import event_log
from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.rpc_status import RpcError
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.states import State
from jarvis_controller.store import Store

_log = structlog.get_logger()

_LISTENED_TO = {State.VERIFIED, State.STALE}
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 30.0
_BURST_EVENTS, _EVENTS_PER_S = 2_048, 50.0
_LAST_AGENT_TYPE = 99
_MAX_BATCH, _MAX_TEXT, _MAX_DETAILS = 256, 1_000, 16
_SOURCE = re.compile(r"[0-9a-f]{32}")


class EventWireError(Exception):
    """An agent's message is not what StreamEvents promises."""


def parse_events(data: bytes) -> Sequence[event_pb2.Event]:
    """The events of one StreamEventsResponse.

    Raises:
        EventWireError: it is none, or holds an event that no agent may tell.
    """
    try:
        events = agent_pb2.StreamEventsResponse.FromString(data).events
    except DecodeError as error:
        raise EventWireError(f"{len(data)} bytes that are no StreamEventsResponse") from error
    if len(events) > _MAX_BATCH:
        raise EventWireError(f"{len(events)} events in one message; {_MAX_BATCH} are accepted")
    for event in events:
        if not 0 < event.type <= _LAST_AGENT_TYPE:
            raise EventWireError(f"an event of type {event.type}; 1..{_LAST_AGENT_TYPE} are an agent's to tell")
        if event.severity not in event_pb2.EventSeverity.values() or not event.severity:
            raise EventWireError(f"an event of severity {event.severity}; one of EventSeverity's is accepted")
        if not _SOURCE.fullmatch(event.source_id) or not 0 < event.sequence < 2**63:
            raise EventWireError("an event without a source of 32 hexadecimal digits and a number from 1")
        if len(event.detail) > _MAX_DETAILS or any(len(text) > _MAX_TEXT for text in _texts(event)):
            raise EventWireError(f"an event with a text of more than {_MAX_TEXT} characters, or {len(event.detail)} details")
    return events


def _texts(event: event_pb2.Event) -> list[str]:
    return [event.capture_id, event.interface, event.message, *event.detail.keys(), *event.detail.values()]


class Allowance:
    """How much one agent may tell: a burst, and so many a second. Sans-I/O; times in seconds of any steady clock."""

    def __init__(self, *, burst: float = _BURST_EVENTS, per_s: float = _EVENTS_PER_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._left, self._at_s = burst, 0.0

    def take(self, events: int, now_s: float) -> float:
        """So many came; how long to wait, in seconds, before the next are read."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s) - events
        self._at_s = now_s
        return max(0.0, -self._left / self._per_s)


class EventCollector:
    """One task per agent that is listened to."""

    def __init__(
        self, *, store: Store, client: AgentClient, feed: StateFeed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._client = client
        self._feed = feed
        self._clock = clock
        self._agents: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._draw = random.SystemRandom().uniform

    async def run(self) -> None:
        """Collects until it is cancelled."""
        with self._feed.listen() as listener:
            try:
                for agent in await self._store.agents():
                    self._follow(agent)
                while True:
                    for record in await listener.changed():
                        self._follow(record)
            finally:
                tasks = list(self._agents.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, agent: AgentRecord) -> None:
        """Begins, goes on or ends with an agent, as its state is now."""
        agent_id = agent.agent_id
        if agent.state not in _LISTENED_TO:
            task = self._agents.pop(agent_id, None)
            self._wake.pop(agent_id, None)
            if task is not None:
                task.cancel()
        elif agent_id not in self._agents:
            self._wake[agent_id] = asyncio.Event()
            self._agents[agent_id] = asyncio.get_running_loop().create_task(self._keep_up(agent_id), name=f"events {agent_id}")
        elif agent.state is State.VERIFIED:
            self._wake[agent_id].set()  # it has answered just now: no need to wait out a backoff

    async def _keep_up(self, agent_id: str) -> None:
        wake, allowance, failures = self._wake[agent_id], Allowance(), 0
        while True:
            wake.clear()
            try:
                came = await self._collect(agent_id, allowance)
            except EventWireError as error:
                _log.warning("an agent's events are malformed", agent_id=agent_id, reason=str(error))
                came = False
            except Exception:  # noqa: BLE001 - logged with its trace; the next call may fare better
                _log.exception("events could not be collected", agent_id=agent_id)
                came = False
            failures = 0 if came else failures + 1
            longest = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures, 20))
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the wake-up.
                async with asyncio.timeout(_FIRST_BACKOFF_S + self._draw(0.0, longest)):
                    await wake.wait()

    async def _collect(self, agent_id: str, allowance: Allowance) -> bool:
        """One call, to its end; whether anything came.

        Raises:
            EventWireError: the agent sent what it must not.
        """
        agent = await self._store.agent(agent_id)
        if agent is None or agent.state not in _LISTENED_TO:
            return False
        source_id, sequence = await self._store.run(lambda session: event_log.last_collected(session, agent_id))
        came = False
        try:
            async with contextlib.aclosing(self._client.events(agent, source_id, sequence)) as messages:
                async for message in messages:
                    events = parse_events(message)
                    await self._store.keep_events(agent_id, events)
                    came = True
                    await asyncio.sleep(allowance.take(len(events), self._clock()))
        except RpcError as error:
            _log.debug("event stream ended", agent_id=agent_id, code=error.status.code, reason=error.status.message)
        return came
