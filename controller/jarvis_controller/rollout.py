# SPDX-License-Identifier: Apache-2.0
"""A roll-out: a release brought to agents stage by stage, until all have it, too many failed, or it is cancelled.

    agents that have it come first ──▶ stage 1 ──wait──▶ stage 2 ──wait──▶ ...        every outcome is emitted as it comes
                                          └ failures ≥ max_failures, or cancelled: no further agent is begun

A stage says how many agents are to have the release at its end, of all that are selected: one that cannot be reached is replaced
by the next. Agents under way are never interrupted; the roll-out ends when they have. It keeps nothing: run again, it finds those
that have the release and goes on with the others. No I/O of its own: what is done to an agent, and how it does then, it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog
from google.rpc import code_pb2
from jarvis.capture.v1 import release_pb2 as pb
from jarvis_trust.release_files import PartError
from jarvis_trust.status import error_status

from jarvis_controller.agent_record import AgentRecord

_log = structlog.get_logger()
_LOOK_S = 1.0
"""Between two looks at the agents of a stage that waits."""
FAILURES = frozenset({pb.ROLL_OUT_RESULT_ROLLED_BACK, pb.ROLL_OUT_RESULT_FAILED})
_HAVE_IT = frozenset({pb.ROLL_OUT_RESULT_UPDATED, pb.ROLL_OUT_RESULT_CURRENT})


class Condition(StrEnum):
    """How an agent does after its update."""

    GOOD = "good"
    """Verified, with the release."""
    AWAY = "away"
    """Not verified now; it may be again."""
    LOST = "lost"
    """It will not be by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollOutPlan:
    """How far and how fast."""

    targets: tuple[int, ...]
    """Agents that are to have the release at the end of each stage; ascending."""
    max_failures: int
    wait_s: float
    concurrency: int


def stage_targets(stages: Sequence[pb.RollOutStage], agents: int) -> tuple[int, ...]:
    """Whole numbers of agents, at most all of them.

    Raises:
        PartError: a stage is no size, or smaller than the one before.
    """
    targets: list[int] = []
    for index, stage in enumerate(stages):
        kind = stage.WhichOneof("size")
        if kind == "agents" and stage.agents >= 1:
            target = min(stage.agents, agents)
        elif kind == "percent" and 1 <= stage.percent <= 100:
            target = math.ceil(agents * stage.percent / 100)
        else:
            value = "unset" if kind is None else f"{getattr(stage, kind)} {kind}"
            raise PartError(f"stages[{index}]", f"{value}; 1 or more agents, or 1 to 100 percent, are accepted")
        if targets and target < targets[-1]:
            raise PartError(f"stages[{index}]", f"{target} of {agents} agents; {targets[-1]} or more are accepted there")
        targets.append(target)
    return tuple(targets)


class RollOut:
    """One roll-out. `run` is its task; `cancel` lets it end early."""

    def __init__(
        self,
        plan: RollOutPlan,
        agents: Sequence[AgentRecord],
        *,
        update: Callable[[AgentRecord, int], Awaitable[pb.RollOutAgent]],
        look: Callable[[str, bool], Awaitable[tuple[Condition, str]]],
        emit: Callable[[pb.RollOutReleaseResponse], None],
    ) -> None:
        """Nothing has begun.

        Args:
            plan: how far and how fast.
            agents: all that are selected, those first that have the release.
            update: brings the release to an agent, as part of a stage; its outcome.
            look: how an agent does (agent id, whether it may be attested for an answer), and why.
            emit: told every agent and stage as it ends; must not block.
        """
        self._plan = plan
        self._waiting = deque(agents)
        self._update = update
        self._look = look
        self._emit = emit
        self._results: dict[str, pb.RollOutResult.ValueType] = {}
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """No further agent is begun."""
        self._cancelled.set()

    async def run(self) -> pb.RollOutEnded:
        """Until nothing is left to do; the end is the caller's to tell."""
        for number, target in enumerate(self._plan.targets, 1):
            updated = await self._stage(number, target)
            if updated and not self._must_end:
                await self._wait(number, updated)
            ended = pb.RollOutStageEnded(stage=number, updated=self._have_it, failures=self._failures)
            self._emit(pb.RollOutReleaseResponse(stage_ended=ended))
            if self._must_end:
                break
        count = Counter(self._results.values())
        return pb.RollOutEnded(
            updated=count[pb.ROLL_OUT_RESULT_UPDATED],
            current=count[pb.ROLL_OUT_RESULT_CURRENT],
            skipped=count[pb.ROLL_OUT_RESULT_SKIPPED],
            not_reached=count[pb.ROLL_OUT_RESULT_NOT_REACHED],
            rolled_back=count[pb.ROLL_OUT_RESULT_ROLLED_BACK],
            failed=count[pb.ROLL_OUT_RESULT_FAILED],
            untouched=len(self._waiting),
            stopped=self._failures >= self._plan.max_failures,
        )

    @property
    def _failures(self) -> int:
        return sum(result in FAILURES for result in self._results.values())

    @property
    def _have_it(self) -> int:
        return sum(result in _HAVE_IT for result in self._results.values())

    @property
    def _must_end(self) -> bool:
        return self._cancelled.is_set() or self._failures >= self._plan.max_failures

    async def _stage(self, number: int, target: int) -> list[str]:
        """Begins agents until so many have it; the ids of those that were updated now."""
        running: set[asyncio.Task[pb.RollOutAgent]] = set()
        updated: list[str] = []
        while True:
            room = min(self._plan.concurrency, target - self._have_it)
            while self._waiting and not self._must_end and len(running) < room:
                running.add(asyncio.ensure_future(self._one(self._waiting.popleft(), number)))
            if not running:
                return updated
            try:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:  # the controller stops, and these have had their time
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                raise
            for outcome in (task.result() for task in done):
                self._note(outcome)
                if outcome.result == pb.ROLL_OUT_RESULT_UPDATED:
                    updated.append(outcome.agent_id)

    async def _one(self, agent: AgentRecord, stage: int) -> pb.RollOutAgent:
        try:
            return await self._update(agent, stage)
        except Exception:  # noqa: BLE001 - logged with its trace; one agent's fault must not leave the others in the middle
            _log.exception("an agent could not be updated", agent_id=agent.agent_id)
            status = error_status(code_pb2.INTERNAL, "INTERNAL", "the controller failed unexpectedly; its log says why")
            return pb.RollOutAgent(agent_id=agent.agent_id, stage=stage, result=pb.ROLL_OUT_RESULT_FAILED, status=status)

    def _note(self, outcome: pb.RollOutAgent) -> None:
        self._results[outcome.agent_id] = outcome.result
        self._emit(pb.RollOutReleaseResponse(agent=outcome))

    async def _wait(self, stage: int, agent_ids: Sequence[str]) -> None:
        """The stage's agents must stay as they are; one that does not is a failure after all."""
        end = time.monotonic() + self._plan.wait_s
        while (left := end - time.monotonic()) > 0 and not self._must_end:
            await self._judge(stage, agent_ids, is_last_look=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_S)):
                    await self._cancelled.wait()
        if not self._must_end:
            await self._judge(stage, agent_ids, is_last_look=True)

    async def _judge(self, stage: int, agent_ids: Sequence[str], *, is_last_look: bool) -> None:
        for agent_id in agent_ids:
            if self._results[agent_id] != pb.ROLL_OUT_RESULT_UPDATED:
                continue
            condition, why = await self._look(agent_id, is_last_look)
            if condition is Condition.LOST or (is_last_look and condition is Condition.AWAY):
                status = error_status(code_pb2.FAILED_PRECONDITION, "RELEASE_NOT_HELD", f"it was updated and did not stay: {why}")
                self._note(pb.RollOutAgent(agent_id=agent_id, stage=stage, result=pb.ROLL_OUT_RESULT_FAILED, status=status))
