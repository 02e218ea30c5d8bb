# SPDX-License-Identifier: Apache-2.0
"""Keeps every agent proved: one task per agent, an attestation every interval with jitter, backoff while there is no answer.

A quarantined agent is left alone until somebody releases it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import structlog

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import Attester, UnknownAgentError
from jarvis_controller.policy_keeper import PolicyKeeper
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.states import State
from jarvis_controller.store import Store

_log = structlog.get_logger()
_FIRST_BACKOFF_S = 0.5
_SETTLED = {State.QUARANTINED, State.RETIRED}


def next_delay_s(interval_s: float, failures: int, draw: Callable[[float, float], float]) -> float:
    """Seconds until the next attestation.

    Args:
        interval_s: the configured interval.
        failures: attestations in a row without an answer; 0 after a pass.
        draw: uniform random number between two bounds.
    """
    if failures == 0:
        return draw(0.9 * interval_s, 1.1 * interval_s)
    # Full jitter: agents behind one broken switch must not all come back at the same moment.
    return draw(0.0, min(interval_s, _FIRST_BACKOFF_S * 2.0 ** min(failures, 20)))


class AttestationLoop:
    """One supervising task per agent that can be attested."""

    def __init__(self, *, store: Store, attester: Attester, feed: StateFeed, policies: PolicyKeeper) -> None:
        self._store = store
        self._attester = attester
        self._feed = feed
        self._policies = policies
        self._agents: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._came: dict[str, bytes] = {}
        """Processes that have connected by themselves since their agent's last turn."""
        self._draw = random.SystemRandom().uniform

    async def run(self) -> None:
        """Supervises until it is cancelled: those enrolled now, and whoever enrols or is released later."""
        with self._feed.listen() as listener:
            try:
                for agent in await self._store.agents():
                    self._watch(agent)
                while True:
                    for record in await listener.changed():
                        self._watch(record)
            finally:
                tasks = list(self._agents.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def attest_soon(self, record: AgentRecord) -> None:
        """Does not wait for the agent's next turn: it has just enrolled or was released."""
        if record.agent_id in self._agents:
            self._wake[record.agent_id].set()
        else:
            self._watch(record)

    def attest_all_soon(self) -> None:
        """Does not wait for anybody's next turn: another policy is in force. The attester bounds how many are asked at once."""
        self._came.clear()
        for wake in self._wake.values():
            wake.set()

    def connected(self, record: AgentRecord, session_id: bytes) -> None:
        """An agent that dials is there, as this process: it has its turn at once, unless that process holds a lease."""
        self._came[record.agent_id] = session_id
        self.attest_soon(record)

    def _watch(self, record: AgentRecord) -> None:
        agent_id = record.agent_id
        if record.state not in _SETTLED and agent_id not in self._agents:
            self._wake[agent_id] = asyncio.Event()
            self._agents[agent_id] = asyncio.get_running_loop().create_task(self._supervise(record), name=f"attest {agent_id}")

    async def _supervise(self, agent: AgentRecord) -> None:
        agent_id, failures = agent.agent_id, 0
        try:
            while True:
                try:
                    outcome = await self._attester.attest(agent_id, unless_session=self._came.pop(agent_id, b""))
                except UnknownAgentError:
                    return
                except Exception:  # noqa: BLE001 - logged with its trace
                    # A fault of ours must not end the supervision, nor leave a lease being renewed: it lapses by itself.
                    _log.exception("attestation could not be carried out", agent_id=agent_id)
                    failures += 1
                else:
                    if outcome.agent.state in _SETTLED:
                        return
                    agent = outcome.agent
                    failures = failures + 1 if outcome.status.code else 0
                interval_s = self._policies.current.for_agent(agent_id, agent.labels).interval_s
                await self._pause(agent_id, next_delay_s(interval_s, failures, self._draw))
        finally:
            self._agents.pop(agent_id, None)
            self._wake.pop(agent_id, None)
            self._came.pop(agent_id, None)

    async def _pause(self, agent_id: str, delay_s: float) -> None:
        wake = self._wake[agent_id]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):  # not wait_for, see event_collector.py
                await wake.wait()
        wake.clear()
