# SPDX-License-Identifier: Apache-2.0
"""A roll-out's course: stages, failures, agents that are away, cancellation; with agents that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import release_pb2 as pb
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.release_service import DEFAULT_STAGES, read_plan
from jarvis_controller.rollout import Condition, RollOut, RollOutPlan, stage_targets
from jarvis_controller.rpc_status import RpcError
from jarvis_trust.release_files import PartError
from jarvis_trust.status import field_violations

UPDATED, ROLLED_BACK = pb.ROLL_OUT_RESULT_UPDATED, pb.ROLL_OUT_RESULT_ROLLED_BACK
NOT_REACHED, CURRENT = pb.ROLL_OUT_RESULT_NOT_REACHED, pb.ROLL_OUT_RESULT_CURRENT
FAILED = pb.ROLL_OUT_RESULT_FAILED


class Agents:
    """So many agents, each with a result of its own; UPDATED unless another is given."""

    def __init__(
        self, count: int, results: Mapping[int, Any] | None = None, *, conditions: Mapping[int, Condition] | None = None
    ) -> None:
        self.ids = [f"agent-{number:02d}" for number in range(count)]
        self.results = {self.ids[number]: result for number, result in (results or {}).items()}
        self.conditions = {self.ids[number]: condition for number, condition in (conditions or {}).items()}
        self.begun: list[str] = []
        self.at_once = self.most_at_once = 0
        self.events: list[pb.RollOutReleaseResponse] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def update(self, agent: AgentRecord, stage: int) -> pb.RollOutAgent:
        self.begun.append(agent.agent_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        await self.hold.wait()
        self.at_once -= 1
        result = self.results.get(agent.agent_id, UPDATED)
        if isinstance(result, Exception):
            raise result
        return pb.RollOutAgent(agent_id=agent.agent_id, stage=stage, result=result, status=status_pb2.Status(code=code_pb2.OK))

    async def look(self, agent_id: str, _may_attest: bool) -> tuple[Condition, str]:
        return self.conditions.get(agent_id, Condition.GOOD), "as told"

    def roll_out(self, targets: Sequence[int], *, max_failures: int = 1, wait_s: float = 0.0, concurrency: int = 8) -> RollOut:
        plan = RollOutPlan(targets=tuple(targets), max_failures=max_failures, wait_s=wait_s, concurrency=concurrency)
        records = [cast(AgentRecord, SimpleNamespace(agent_id=agent_id)) for agent_id in self.ids]
        return RollOut(plan, records, update=self.update, look=self.look, emit=self.events.append)

    def stages(self) -> dict[str, int]:
        return {event.agent.agent_id: event.agent.stage for event in self.events if event.HasField("agent")}


async def until(condition: Callable[[], bool]) -> None:
    """Lets the roll-out go on until then."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to that")


async def test_stages_come_one_after_the_other_and_the_end_counts_them() -> None:
    agents = Agents(10)
    end = await agents.roll_out([1, 5, 10]).run()
    assert list(agents.stages().values()) == [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert [event.stage_ended.updated for event in agents.events if event.HasField("stage_ended")] == [1, 5, 10]
    assert (end.updated, end.untouched, end.stopped) == (10, 0, False)


@pytest.mark.parametrize("result", [ROLLED_BACK, FAILED, RuntimeError("a fault of ours")])
async def test_the_first_failure_stops_it(result: Any) -> None:
    agents = Agents(10, {0: result})
    end = await agents.roll_out([1, 10]).run()
    assert agents.begun == ["agent-00"]
    assert (end.rolled_back + end.failed, end.untouched, end.stopped) == (1, 9, True)


async def test_as_many_failures_as_are_allowed_stop_it_and_agents_under_way_finish() -> None:
    agents = Agents(20, {3: ROLLED_BACK, 5: FAILED, 6: FAILED})
    end = await agents.roll_out([20], max_failures=2, concurrency=4).run()
    assert end.stopped
    assert end.rolled_back + end.failed >= 2
    assert len(agents.begun) == sum((end.updated, end.rolled_back, end.failed))
    assert len(agents.begun) + end.untouched == 20
    assert agents.most_at_once == 4


async def test_an_agent_that_is_away_is_replaced_so_that_a_stage_proves_something() -> None:
    agents = Agents(5, {0: NOT_REACHED, 1: NOT_REACHED})
    end = await agents.roll_out([1, 5]).run()
    assert agents.stages() == {"agent-00": 1, "agent-01": 1, "agent-02": 1, "agent-03": 2, "agent-04": 2}
    assert (end.updated, end.not_reached, end.stopped) == (3, 2, False)


async def test_agents_that_have_it_count_for_the_stages() -> None:
    agents = Agents(10, dict.fromkeys(range(5), CURRENT))
    end = await agents.roll_out([1, 5, 10]).run()
    assert agents.stages()["agent-04"] == 2
    assert agents.stages()["agent-05"] == 3
    assert (end.current, end.updated) == (5, 5)


async def test_the_last_stage_leaves_alone_what_it_does_not_name() -> None:
    agents = Agents(10)
    end = await agents.roll_out([1, 3]).run()
    assert (end.updated, end.untouched, end.stopped) == (3, 7, False)


@pytest.mark.parametrize("condition", [Condition.LOST, Condition.AWAY])
async def test_an_agent_that_does_not_stay_is_a_failure_after_all(condition: Condition) -> None:
    agents = Agents(10, conditions={0: condition})
    end = await agents.roll_out([1, 10], wait_s=0.01).run()
    assert agents.begun == ["agent-00"]
    assert (end.updated, end.failed, end.stopped) == (0, 1, True)
    status = [event.agent.status for event in agents.events if event.HasField("agent")][-1]
    assert "did not stay: as told" in status.message


async def test_cancelled_it_begins_no_further_agent_and_ends_when_those_under_way_have() -> None:
    agents = Agents(10)
    agents.hold.clear()
    roll_out = agents.roll_out([10], concurrency=3)
    task = asyncio.ensure_future(roll_out.run())
    await until(lambda: agents.at_once == 3)
    roll_out.cancel()
    agents.hold.set()
    end = await task
    assert (end.updated, end.untouched, end.stopped) == (3, 7, False)
    assert len(agents.begun) == 3


async def test_cancelled_while_it_waits_it_ends_at_once() -> None:
    agents = Agents(3)
    roll_out = agents.roll_out([1, 3], wait_s=86_400)
    task = asyncio.ensure_future(roll_out.run())
    await until(lambda: bool(agents.events))
    roll_out.cancel()
    assert (await task).untouched == 2


def test_the_default_stages_are_one_agent_a_tenth_half_and_all() -> None:
    assert stage_targets(DEFAULT_STAGES, 1000) == (1, 100, 500, 1000)
    assert stage_targets(DEFAULT_STAGES, 3) == (1, 1, 2, 3)
    assert stage_targets(DEFAULT_STAGES, 1) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("stages", "index"),
    [
        ([pb.RollOutStage()], 0),
        ([pb.RollOutStage(agents=0)], 0),
        ([pb.RollOutStage(percent=101)], 0),
        ([pb.RollOutStage(agents=5), pb.RollOutStage(percent=10)], 1),
    ],
)
def test_a_stage_that_is_none_is_named(stages: list[pb.RollOutStage], index: int) -> None:
    with pytest.raises(PartError) as refused:
        stage_targets(stages, 20)
    assert refused.value.field == f"stages[{index}]"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RollOutReleaseRequest(stages=[pb.RollOutStage(agents=1)] * 17), "stages"),
        (pb.RollOutReleaseRequest(max_failures=10_001), "max_failures"),
        (pb.RollOutReleaseRequest(concurrency=257), "concurrency"),
        (pb.RollOutReleaseRequest(wait=Duration(seconds=86_401)), "wait"),
        (pb.RollOutReleaseRequest(wait=Duration(seconds=-1)), "wait"),
    ],
)
def test_a_plan_that_is_not_accepted_names_its_field(request_: pb.RollOutReleaseRequest, field: str) -> None:
    with pytest.raises(RpcError) as refused:
        read_plan(request_, 10)
    assert dict(field_violations(refused.value.status)).keys() == {field}


def test_an_empty_plan_means_the_defaults() -> None:
    assert read_plan(pb.RollOutReleaseRequest(), 10) == RollOutPlan(
        targets=(1, 1, 5, 10), max_failures=1, wait_s=30.0, concurrency=8
    )
