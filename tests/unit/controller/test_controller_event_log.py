# SPDX-License-Identifier: Apache-2.0
"""The event log: once each, in order, bounded, with every gap counted; what requests and agents' messages are refused for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis.capture.v1 import agent_pb2, event_pb2, fleet_pb2
from jarvis_controller import event_log
from jarvis_controller.event_collector import Allowance, EventWireError, parse_events
from jarvis_controller.event_log import Criteria
from jarvis_controller.event_request import make_token, read_event_watch, read_token
from jarvis_controller.rpc_status import RpcError
from jarvis_controller.states import Event as Happened
from jarvis_controller.store import Store
from jarvis_trust.status import reason_of

from tests.unit.controller.test_controller_store import ADMIN, AGENT, HOUR_NS, Clock, enrol, enrolled, passed

SOURCE, OTHER_SOURCE = "ab" * 16, "cd" * 16
KEEP = 50
LOSS = event_pb2.EVENT_TYPE_CAPTURE_LOSS
INFO, WARNING, CRITICAL = (
    event_pb2.EVENT_SEVERITY_INFO,
    event_pb2.EVENT_SEVERITY_WARNING,
    event_pb2.EVENT_SEVERITY_CRITICAL,
)


@dataclass(slots=True, kw_only=True)
class Log:
    """A small store and its clock."""

    store: Store
    clock: Clock

    async def events(self, after: int = 0, **criteria: Any) -> list[event_pb2.Event]:
        kept = await self.store.run(lambda session: event_log.page(session, after, 1000, Criteria(**criteria)))
        return [event_pb2.Event.FromString(item.data) for item in kept]

    async def positions(self) -> list[int]:
        return [item.position for item in await self.store.run(lambda session: event_log.page(session, 0, 1000, Criteria()))]


@pytest_asyncio.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    clock = Clock()
    store = Store(f"sqlite:///{tmp_path / 'controller.db'}", kept_events=KEEP, wall_clock_ns=clock)
    await store.open()
    yield Log(store=store, clock=clock)
    await store.close()


def event(sequence: int, **fields: Any) -> event_pb2.Event:
    defaults: dict[str, Any] = {"source_id": SOURCE, "sequence": sequence, "type": LOSS, "severity": WARNING, "value": sequence}
    return event_pb2.Event(**{**defaults, **fields})


def events(first: int, last: int, **fields: Any) -> list[event_pb2.Event]:
    return [event(sequence, **fields) for sequence in range(first, last + 1)]


def types(found: list[event_pb2.Event]) -> list[str]:
    return [event_pb2.EventType.Name(item.type).removeprefix("EVENT_TYPE_").lower() for item in found]


async def test_an_event_is_kept_once_however_often_it_comes(log: Log) -> None:
    assert await log.store.keep_events(AGENT, events(1, 3)) == 3
    assert await log.store.keep_events(AGENT, events(2, 5)) == 2
    assert [item.sequence for item in await log.events()] == [1, 2, 3, 4, 5]
    assert await log.store.run(lambda session: event_log.last_collected(session, AGENT)) == (SOURCE, 5)


async def test_the_same_numbers_of_another_source_or_agent_are_other_events(log: Log) -> None:
    await log.store.keep_events(AGENT, events(1, 2))
    log.clock.now_ns += 1
    await log.store.keep_events(AGENT, events(1, 2, source_id=OTHER_SOURCE))
    await log.store.keep_events("b" * 32, events(1, 2))
    assert len(await log.events()) == 6
    assert await log.store.run(lambda session: event_log.last_collected(session, AGENT)) == (OTHER_SOURCE, 2)
    assert await log.store.keep_events(AGENT, events(1, 2)) == 0, "a source of before is remembered"


async def test_a_gap_is_told_as_a_loss_with_its_exact_count_before_what_follows_it(log: Log) -> None:
    await log.store.keep_events(AGENT, [*events(1, 2), *events(10, 10)])
    found = await log.events()
    assert types(found) == ["capture_loss", "capture_loss", "events_lost", "capture_loss"]
    assert (found[2].value, found[2].agent_id, found[2].severity) == (7, AGENT, WARNING)
    assert found[2].source_id != SOURCE, "the controller tells it"


async def test_an_agent_cannot_speak_in_anothers_name(log: Log) -> None:
    await log.store.keep_events(AGENT, [event(1, agent_id="b" * 32)])
    (found,) = await log.events()
    assert found.agent_id == AGENT
    assert found.receive_time.ToNanoseconds() == log.clock.now_ns


async def test_only_the_newest_are_kept_and_their_positions_have_no_gap(log: Log) -> None:
    for first in range(1, 121, 8):
        await log.store.keep_events(AGENT, events(first, first + 7))
    assert await log.positions() == list(range(120 - KEEP + 1, 121))
    extent = await log.store.run(event_log.extent)
    assert (extent.oldest, extent.newest, len(extent.log_id)) == (71, 120, 16)


async def test_what_becomes_of_an_agent_is_told_with_its_reason(log: Log) -> None:
    await enrol(log.store)
    await log.store.record_passed(AGENT, passed())
    await log.store.record_passed(AGENT, passed())
    await log.store.change_state(AGENT, Happened.CONTACT_LOST, "no answer")
    await log.store.change_state(AGENT, Happened.CONTACT_LOST, "no answer still")
    await log.store.record_passed(AGENT, passed())
    await log.store.change_state(AGENT, Happened.ATTESTATION_FAILED, "PCR_MISMATCH: another")
    await log.store.change_state(AGENT, Happened.RELEASE_ORDERED, "checked", principal=ADMIN)
    found = await log.events()
    assert types(found) == [
        "agent_enrolled", "agent_state_changed", "agent_state_changed", "agent_state_changed", "attestation_failed",
        "agent_state_changed", "agent_state_changed",
    ]  # fmt: skip
    assert [item.detail["to"] for item in found if "to" in item.detail] == [
        "VERIFIED", "STALE", "VERIFIED", "QUARANTINED", "STALE",
    ]  # fmt: skip
    assert [item.sequence for item in found] == list(range(1, 8)), "one gapless source"
    assert (found[5].value, found[5].severity) == (fleet_pb2.AGENT_STATE_QUARANTINED, CRITICAL)
    assert found[4].detail["reason"] == "PCR_MISMATCH: another"
    assert found[6].detail["principal"] == ADMIN


async def test_a_second_failed_attestation_of_a_quarantined_agent_is_no_news(log: Log) -> None:
    await enrol(log.store)
    for _ in range(2):
        await log.store.change_state(AGENT, Happened.ATTESTATION_FAILED, "PCR_MISMATCH")
    assert types(await log.events()) == ["agent_enrolled", "attestation_failed", "agent_state_changed"]


async def test_an_enrolment_that_only_renews_the_certificate_is_no_event_and_a_readmission_is(log: Log) -> None:
    await enrol(log.store)
    await log.store.enroll(enrolled(), None)
    await log.store.change_state(AGENT, Happened.RETIRE_ORDERED, "scrapped", principal=ADMIN)
    await log.store.create_token("another", {}, HOUR_NS, principal=ADMIN)
    await log.store.enroll(enrolled(), "another")
    assert types(await log.events()) == ["agent_enrolled", "agent_state_changed", "agent_enrolled", "agent_state_changed"]


async def test_a_change_that_is_refused_leaves_no_event(log: Log) -> None:
    with pytest.raises(KeyError):
        await log.store.change_state(AGENT, Happened.CONTACT_LOST, "nobody")
    await log.store.create_token("token", {}, HOUR_NS, principal=ADMIN)
    assert await log.events() == []


async def test_type_and_severity_are_sieved_and_since_is_when_it_became_known(log: Log) -> None:
    await log.store.keep_events(AGENT, [event(1), event(2, severity=INFO), event(3, type=event_pb2.EVENT_TYPE_CLOCK_STEP)])
    log.clock.now_ns += 10**9
    await log.store.keep_events(AGENT, [event(4, severity=CRITICAL)])
    assert [item.sequence for item in await log.events(min_severity=WARNING)] == [1, 3, 4]
    assert [item.sequence for item in await log.events(types={LOSS})] == [1, 2, 4]
    since = log.clock.now_ns
    assert await log.store.run(lambda session: event_log.first_since(session, since)) == 4
    assert await log.store.run(lambda session: event_log.first_since(session, since + 1)) is None


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), max_size=8))
def test_kept_and_lost_together_are_every_event_up_to_the_newest(batches: list[tuple[int, int]]) -> None:
    """Whatever overlapping stretches of a journal come, each number is kept once or counted as lost once."""

    async def run() -> None:
        store = Store("sqlite://", kept_events=10_000)
        await store.open()
        for first, count in batches:
            await store.keep_events(AGENT, events(first, first + count - 1))
        kept = await store.run(lambda session: event_log.page(session, 0, 10_000, Criteria()))
        await store.close()
        found = [event_pb2.Event.FromString(item.data) for item in kept]
        numbers = [item.sequence for item in found if item.type == LOSS]
        lost = sum(item.value for item in found if item.type == event_pb2.EVENT_TYPE_EVENTS_LOST)
        assert numbers == sorted(set(numbers))
        assert len(numbers) + lost == max((first + count - 1 for first, count in batches), default=0)

    asyncio.run(run())


# -- what agents send --


@pytest.mark.parametrize(
    "changes",
    [
        {"type": event_pb2.EVENT_TYPE_AGENT_STATE_CHANGED},
        {"type": 0},
        {"severity": 0},
        {"severity": 9},
        {"source_id": "AB" * 16},
        {"source_id": ""},
        {"sequence": 0},
        {"sequence": 2**63},
        {"message": "x" * 1001},
        {"detail": {"key": "x" * 1001}},
        {"detail": {str(number): "" for number in range(17)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_event_that_no_agent_may_tell_is_refused(changes: dict[str, Any]) -> None:
    good = agent_pb2.StreamEventsResponse(events=[event(1)])
    assert list(parse_events(good.SerializeToString())) == [event(1)]
    bad = agent_pb2.StreamEventsResponse(events=[event(1), event(**{"sequence": 2, **changes})])
    with pytest.raises(EventWireError):
        parse_events(bad.SerializeToString())


def test_a_type_of_a_newer_agent_is_taken() -> None:
    newer = agent_pb2.StreamEventsResponse(events=[event(1, type=98)])
    assert [item.type for item in parse_events(newer.SerializeToString())] == [98]


def test_what_is_no_message_or_too_much_of_one_is_refused() -> None:
    with pytest.raises(EventWireError):
        parse_events(b"\xff\xff")
    with pytest.raises(EventWireError):
        parse_events(agent_pb2.StreamEventsResponse(events=events(1, 257)).SerializeToString())


def test_an_agent_may_burst_and_is_then_read_at_a_steady_rate() -> None:
    allowance = Allowance(burst=100, per_s=10)
    assert allowance.take(100, 50.0) == 0.0
    assert allowance.take(20, 50.0) == pytest.approx(2.0)
    assert allowance.take(10, 52.0) == pytest.approx(1.0)
    assert allowance.take(100, 1000.0) == 0.0


# -- what operators ask --


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("min_severity", fleet_pb2.WatchEventsRequest(min_severity=9)),  # type: ignore[arg-type]  # what a newer caller may send
        ("types[1]", fleet_pb2.WatchEventsRequest(types=[LOSS, 0])),
        ("types[0]", fleet_pb2.WatchEventsRequest(types=[98])),  # type: ignore[list-item]  # likewise
        ("last_events", fleet_pb2.WatchEventsRequest(last_events=0)),
        ("last_events", fleet_pb2.WatchEventsRequest(last_events=100_001)),
        ("selector.agent_ids[0]", fleet_pb2.WatchEventsRequest(selector=fleet_pb2.AgentSelector(agent_ids=["x"]))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_refused_with_its_field(field: str, request_: fleet_pb2.WatchEventsRequest) -> None:
    with pytest.raises(RpcError) as refused:
        read_event_watch(request_)
    assert field in refused.value.status.message


def test_a_time_before_1970_is_refused() -> None:
    request = fleet_pb2.WatchEventsRequest()
    request.since.seconds = -1
    with pytest.raises(RpcError):
        read_event_watch(request)


def test_a_token_is_good_for_the_log_that_gave_it_only() -> None:
    token = make_token(b"l" * 16, 7)
    assert read_token(token, b"l" * 16, 7) == 7
    for bad, log_id, newest in ((token, b"m" * 16, 7), (token, b"l" * 16, 6), (b"", b"l" * 16, 7), (token + b"x", b"l" * 16, 7)):
        with pytest.raises(RpcError) as refused:
            read_token(bad, log_id, newest)
        assert reason_of(refused.value.status) == "RESUME_TOKEN_INVALID"
