# SPDX-License-Identifier: Apache-2.0
"""A subscriber's stream over an engine whose reader says what the test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jarvis.capture.v1.agent_pb2 import StreamFlowsResponse
from jarvis.capture.v1.capture_pb2 import FlowSubscription
from jarvis_agent import flow_stream
from jarvis_agent.captures import CaptureManager, CaptureRun
from jarvis_agent.errors import AgentStoppingError, CaptureRefusedError, RequestError
from jarvis_agent.flow_stream import FlowStream, plan_stream
from jarvis_native import FlowBatchBytes
from jarvis_trust.errors import LeaseError

from tests.unit.agent.fakes import FakeEngine, FakeReader, batch, metrics


class FakeCaptures:
    """A capture manager with at most one run."""

    def __init__(self, run: Any = None) -> None:
        self.run = run
        self.followers: list[Callable[[CaptureRun], None]] = []

    def require_run(self) -> Any:
        if self.run is None:
            raise CaptureRefusedError("CAPTURE_NOT_RUNNING", "none")
        return self.run

    def follow(self, attach: Callable[[CaptureRun], None]) -> Callable[[], None]:
        self.followers.append(attach)
        return lambda: self.followers.remove(attach)


def run_of(*batches: FlowBatchBytes, live: bool = True, active: bool = True, idle_timeout_s: float = 30.0) -> Any:
    return SimpleNamespace(
        engine=FakeEngine(FakeReader(list(batches))),
        plan=SimpleNamespace(is_live=live, idle_timeout_s=idle_timeout_s),
        is_active=active,
        is_abandoned=False,
    )


def stream_of(
    captures: FakeCaptures,
    subscription: FlowSubscription | None = None,
    *,
    check_lease: Callable[[], None] = lambda: None,
    is_draining: Callable[[], bool] = lambda: False,
) -> FlowStream:
    plan = plan_stream(subscription or FlowSubscription())
    return FlowStream(plan, cast(CaptureManager, captures), check_lease=check_lease, is_draining=is_draining)


async def collect(stream: FlowStream) -> list[bytes]:
    return [message async for message in stream.messages()]


async def collect_until(error: type[Exception], stream: FlowStream) -> list[bytes]:
    """What came before the error that must end the stream."""
    received = []
    try:
        async for message in stream.messages():
            received.append(message)  # noqa: PERF401 - kept although an error follows
    except error:
        return received
    pytest.fail(f"the stream ended without {error.__name__}")


async def test_batches_are_forwarded_as_they_are_and_in_order() -> None:
    batches = [batch(1000, more=True), batch(1000, more=True), batch(3, more=True), batch(0, end=True)]
    captures = FakeCaptures(run_of(*batches, active=False))
    assert await collect(stream_of(captures)) == [item.data for item in batches if item.records]


async def test_without_a_capture_there_is_nothing_to_read() -> None:
    with pytest.raises(CaptureRefusedError, match="none"):
        stream_of(FakeCaptures())


async def test_without_follow_the_stream_of_a_running_capture_ends_with_what_is_there() -> None:
    captures = FakeCaptures(run_of(batch(5, more=True), batch(2), batch(9)))
    assert len(await collect(stream_of(captures))) == 2


async def test_a_stopped_capture_is_read_until_its_end_although_nothing_is_ready_at_first() -> None:
    """Its last flows may wait for the slowest lossless reader."""
    captures = FakeCaptures(run_of(batch(0), batch(0), batch(4), batch(0, end=True), active=False))
    assert len(await collect(stream_of(captures))) == 1


async def test_a_gap_is_told_before_the_records_that_follow_it() -> None:
    lossy = batch(2, first_sequence=7, next_sequence=9, lost=7, first_lost_sequence=0, last_lost_sequence=6)
    captures = FakeCaptures(run_of(lossy, batch(0, end=True), active=False))
    notice, data = await collect(stream_of(captures))
    assert StreamFlowsResponse.FromString(notice).loss.lost == 7
    assert data == lossy.data


async def test_losses_that_were_not_due_yet_come_at_the_end() -> None:
    gaps = [batch(1, lost=3, first_lost_sequence=at, last_lost_sequence=at + 2, more=True) for at in (0, 10, 20)]
    captures = FakeCaptures(run_of(*gaps, batch(0, end=True), active=False))
    messages = [StreamFlowsResponse.FromString(message) for message in await collect(stream_of(captures)) if message[0] != 0x12]
    assert [message.loss.lost for message in messages] == [3, 6]


async def test_when_the_lease_ends_what_was_read_and_lost_is_given_first() -> None:
    left = iter([None, None])

    def check() -> None:
        try:
            next(left)
        except StopIteration:
            raise LeaseError("LEASE_EXPIRED", "over") from None

    run = run_of(batch(1, lost=1, more=True), batch(1, lost=5, more=True), batch(1))
    stream = stream_of(FakeCaptures(run), FlowSubscription(follow=True), check_lease=check)
    received = await collect_until(LeaseError, stream)
    losses = [StreamFlowsResponse.FromString(message).loss.lost for message in received if message[0] != 0x12]
    assert (len(received), losses) == (4, [1, 5])


async def test_a_drained_stream_says_that_the_agent_stops() -> None:
    captures = FakeCaptures(run_of(batch(1), batch(0, end=True), active=False))
    stream = stream_of(captures, FlowSubscription(follow=True), is_draining=lambda: True)
    assert len(await collect_until(AgentStoppingError, stream)) == 1


async def test_a_partial_batch_waits_for_its_delay_and_a_full_one_does_not() -> None:
    subscription = FlowSubscription(follow=True, max_batch_records=10)
    subscription.max_batch_delay.FromSeconds(2)
    captures = FakeCaptures(run_of(batch(10, more=True), batch(10, more=True), batch(1), batch(1), batch(0, end=True)))
    stream = stream_of(captures, subscription, is_draining=lambda: not captures.run.engine.reader.batches)
    messages = stream.messages()
    started = time.monotonic()
    for _ in range(3):
        await anext(messages)
    assert time.monotonic() - started < 1.9
    await anext(messages)
    assert time.monotonic() - started > 1.9
    stream.close()


async def test_the_wait_ends_early_when_a_full_batch_has_come_together() -> None:
    subscription = FlowSubscription(follow=True, max_batch_records=10)
    subscription.max_batch_delay.FromSeconds(10)
    run = run_of(batch(1), batch(10), batch(0))
    messages = stream_of(FakeCaptures(run), subscription).messages()
    await anext(messages)
    run.engine.metrics = metrics(log_records_written=10)
    started = time.monotonic()
    await anext(messages)
    assert time.monotonic() - started < 9.0


async def test_a_busy_log_does_not_break_batches_into_pieces() -> None:
    """`more` is set on every read of a busy link; each read after the first waits for its delay all the same."""
    subscription = FlowSubscription(follow=True)
    subscription.max_batch_delay.FromMilliseconds(100)
    trickle = [batch(1, first_sequence=at, next_sequence=at + 1, more=True) for at in range(50)]
    messages = stream_of(FakeCaptures(run_of(*trickle)), subscription).messages()
    started = time.monotonic()
    for _ in range(5):
        await anext(messages)
    assert time.monotonic() - started > 0.15


async def test_an_idle_stream_shows_that_it_lives_and_how_far_time_has_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_stream, "WATERMARK_INTERVAL_S", 0.05)
    subscription = FlowSubscription(follow=True)
    for run, promised in (
        (run_of(*[batch(0)] * 50), True),
        (run_of(*[batch(0)] * 50, live=False), False),
        (run_of(*[batch(0)] * 50, idle_timeout_s=0.0), False),
        (None, False),
    ):
        message = StreamFlowsResponse.FromString(await anext(stream_of(FakeCaptures(run), subscription).messages()))
        assert message.WhichOneof("event") == "watermark"
        assert message.watermark.HasField("low_watermark") is promised
        if promised:
            behind = time.time() - message.watermark.low_watermark.seconds
            assert 31 < behind < 35


async def test_a_follower_reads_the_next_capture_from_its_first_record() -> None:
    captures = FakeCaptures(run_of(batch(0, end=True), active=False))
    stream = stream_of(captures, FlowSubscription(follow=True, only_new=True))
    assert captures.run.engine.opened_with[0]["start"] == "newest"
    reading = asyncio.ensure_future(anext(stream.messages()))
    await asyncio.sleep(0.1)
    following = run_of(batch(3, more=True), live=False)
    (attach,) = captures.followers
    attach(following)
    assert (await reading)[0] == 0x12
    opened = following.engine.opened_with[0]
    assert (opened["start"], opened["lossless"]) == ("oldest", True)
    stream.close()
    assert captures.followers == []
    assert following.engine.reader.closed


async def test_a_subscriber_that_is_captures_behind_is_told_so_instead_of_holding_them_all() -> None:
    captures = FakeCaptures(run_of(batch(1, more=True), batch(1)))
    stream = stream_of(captures, FlowSubscription(follow=True))
    messages = stream.messages()
    await anext(messages)
    (attach,) = captures.followers
    following = [run_of(batch(1)) for _ in range(6)]
    for run in following:
        attach(run)
    assert [len(run.engine.opened_with) for run in following] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(CaptureRefusedError, match="behind"):
        await anext(messages)
    stream.close()


@pytest.mark.parametrize(
    ("subscription", "start"),
    [
        (FlowSubscription(), "oldest"),
        (FlowSubscription(only_new=True), "newest"),
        (FlowSubscription(only_new=False), "oldest"),
        (FlowSubscription(last_records=5), "last"),
        (FlowSubscription(resume_token=b"t"), "token"),
    ],
)
def test_every_start_of_the_wire_has_its_reader(subscription: FlowSubscription, start: str) -> None:
    assert plan_stream(subscription).start == start


def test_what_is_out_of_range_is_named() -> None:
    subscription = FlowSubscription(max_batch_records=10_001, last_records=0)
    subscription.max_batch_delay.FromMilliseconds(5)
    with pytest.raises(RequestError) as refused:
        plan_stream(subscription)
    fields = {field for field, _ in refused.value.violations}
    assert fields == {"subscription.max_batch_records", "subscription.max_batch_delay", "subscription.last_records"}
