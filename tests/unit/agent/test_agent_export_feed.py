# SPDX-License-Identifier: Apache-2.0
"""A collector's feed: what it reads, when it flushes, how it ends; with sources that give what the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from jarvis_agent.export import feed as feed_module
from jarvis_agent.export.feed import MAX_SOURCES, CollectorFeed
from jarvis_agent.export.sources import NO_TOTALS
from jarvis_native import FlowBatch
from jarvis_native.errors import CaptureStateError, LeaseOver
from jarvis_native.export import ExportBlock, ExportStatistics, ExportTotals

from tests.unit.agent.export_commands import FakeRun


def block(flows: int = 1, mark: bytes = b"") -> ExportBlock:
    return ExportBlock(
        data=bytearray(mark), index=b"", messages=1 if flows else 0, records=flows, flows=flows, packets=0, octets=0
    )


NOTHING = block(0)


def batch(data: ExportBlock = NOTHING, **changes: Any) -> FlowBatch[ExportBlock]:
    fields: dict[str, Any] = {
        "data": data, "records": data.flows, "shard": 0, "first_sequence": 0, "next_sequence": 0, "lost": 0,
        "first_lost_sequence": 0, "last_lost_sequence": 0, "more": False, "end": False,
    }  # fmt: skip
    return FlowBatch(**(fields | changes))


@dataclass
class FakeSource:
    """Gives its steps, then `rest`; a step is a batch, an error, or what is called with `flush`."""

    run: Any
    steps: list[Any] = field(default_factory=list)
    rest: Any = None
    closed: bool = False
    flushes: list[bool] = field(default_factory=list)
    seen: ExportTotals = NO_TOTALS
    has_counters: bool = False

    def read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        if self.closed:
            raise CaptureStateError("the reader is closed", field="reader")
        self.flushes.append(flush)
        step = self.steps.pop(0) if self.steps else self.rest if self.rest is not None else batch(end=True)
        if isinstance(step, Exception):
            raise step
        return step(flush) if callable(step) else step

    def counters(self) -> ExportBlock | None:
        return block(0) if not self.has_counters else replace(block(1, b"counters"), flows=0)

    def options(self, _statistics: ExportStatistics) -> ExportBlock:
        return NOTHING

    def totals(self) -> ExportTotals:
        return self.seen

    def metering(self) -> ExportStatistics:
        return ExportStatistics(observed_packets=5)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A feed over fake sources, what it has put, and a way to wait."""

    def __init__(self, **options: Any) -> None:
        self.sources: dict[str, FakeSource] = {}
        self.opened: list[bool] = []
        self.got: list[ExportBlock] = []
        self.changed = threading.Condition()
        self.feed = CollectorFeed("feed", open_source=self.open, put=self.put, **({"flush_s": 3600.0} | options))

    def open(self, run: Any, *, is_new: bool) -> FakeSource:
        self.opened.append(is_new)
        if run.capture_id not in self.sources:
            raise CaptureStateError("the engine is closed", field="capture")
        return self.sources[run.capture_id]

    def put(self, data: ExportBlock) -> None:
        with self.changed:
            self.got.append(data)
            self.changed.notify_all()

    def add(self, name: str, *steps: Any, **more: Any) -> FakeSource:
        source = FakeSource(FakeRun(capture_id=name), list(steps), **more)
        self.sources[name] = source
        self.feed.attach(source.run)
        return source

    def flows(self) -> list[int]:
        return [data.flows for data in self.got]


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.feed.stop()


def test_captures_are_read_to_their_end_in_their_order_and_let_go(bench: Bench) -> None:
    one = bench.add("one", batch(block(1), more=True), batch(block(2)), batch(end=True))
    two = bench.add("two", batch(block(3), end=True), batch(end=True))
    bench.feed.start()
    wait_until(lambda: one.closed and two.closed)
    assert bench.flows() == [1, 2, 3]
    assert bench.feed.current is None


def test_at_the_end_of_a_capture_the_message_that_is_not_full_is_flushed(bench: Bench) -> None:
    def last(flush: bool) -> FlowBatch[ExportBlock]:
        return batch(block(7) if flush else NOTHING, end=True)

    source = bench.add("one", batch(), last, last, batch(end=True))
    bench.feed.start()
    wait_until(lambda: source.closed)
    assert bench.flows() == [7]
    assert source.flushes[-2:] == [True, True]


def test_the_first_records_are_flushed_at_once_and_then_only_when_the_time_is_over(bench: Bench) -> None:
    source = bench.add("one", rest=batch())
    bench.feed.start()
    wait_until(lambda: len(source.flushes) > 3)
    assert source.flushes[:4] == [True, False, False, False]


def test_without_a_lease_nothing_is_read_and_afterwards_it_goes_on(bench: Bench) -> None:
    over = LeaseOver("the lease is over", field="LEASE_EXPIRED")
    source = bench.add("one", over, over, batch(block(4)), rest=batch())
    bench.feed.start()
    wait_until(lambda: bench.flows() == [4])
    assert not source.closed


def test_records_overwritten_unread_are_counted(bench: Bench) -> None:
    source = bench.add("one", batch(block(1), lost=5), batch(lost=2), batch(end=True))
    bench.feed.start()
    wait_until(lambda: source.closed)
    assert bench.feed.overwritten == 7


def test_counters_of_ended_captures_stay_in_the_sums(bench: Bench) -> None:
    ended = bench.add("one", seen=replace(NO_TOTALS, records=3, unexportable_flows=1))
    bench.feed.start()
    wait_until(lambda: bench.feed.current is None)
    assert ended.closed
    bench.add("two", rest=batch(), seen=replace(NO_TOTALS, records=4))
    assert (bench.feed.totals().records, bench.feed.totals().unexportable_flows) == (7, 1)
    assert bench.feed.metering().observed_packets == 10


def test_a_capture_that_did_not_come_about_is_let_go(bench: Bench) -> None:
    source = bench.add("one", rest=batch())
    bench.feed.start()
    source.run.is_abandoned = True
    wait_until(lambda: source.closed)


def test_a_capture_that_fails_ends_alone_and_is_told(bench: Bench) -> None:
    broken = bench.add("one", CaptureStateError("damaged", field="capture"))
    sound = bench.add("two", batch(block(2)), batch(end=True))
    bench.feed.start()
    wait_until(lambda: broken.closed and sound.closed)
    assert bench.flows() == [2]
    assert "capture one cannot be read any more: damaged" in bench.feed.message


def test_a_fault_ends_one_capture_and_is_told(bench: Bench) -> None:
    broken = bench.add("one", ValueError("a fault"))
    sound = bench.add("two", batch(block(2)), batch(end=True))
    bench.feed.start()
    wait_until(lambda: broken.closed and sound.closed)
    assert bench.flows() == [2]
    assert "fault of the program" in bench.feed.message


def test_a_capture_that_cannot_be_opened_is_told_until_the_next_one_can(bench: Bench) -> None:
    bench.feed.attach(FakeRun(capture_id="gone"))  # type: ignore[arg-type]
    assert "gone is not exported" in bench.feed.message
    bench.add("one", rest=batch())
    assert bench.feed.message == ""


def test_a_feed_is_a_bounded_number_of_captures_behind() -> None:
    bench = Bench()  # never started: it reads nothing
    sources = [bench.add(str(number), rest=batch()) for number in range(MAX_SOURCES + 1)]
    assert [source.closed for source in sources] == [True] + [False] * MAX_SOURCES
    assert "capture 0" in bench.feed.message
    bench.feed.stop()
    assert all(source.closed for source in sources)


def test_a_stopped_feed_gives_out_what_a_running_capture_has_and_ends(bench: Bench) -> None:
    source = bench.add("one", rest=lambda flush: batch(block(1) if flush and not bench.got else NOTHING))
    source.steps = [batch()]
    bench.feed.start()
    wait_until(lambda: len(source.flushes) > 2)
    bench.feed.stop()
    assert bench.flows() == [1]
    assert source.closed


def test_a_stopped_feed_reads_an_ended_capture_to_its_end(bench: Bench) -> None:
    late = [batch(), batch(), batch(block(9)), batch(end=True)]
    source = bench.add("one", LeaseOver("over", field="LEASE_EXPIRED"), rest=LeaseOver("over", field="LEASE_EXPIRED"))
    bench.feed.start()
    wait_until(lambda: len(source.flushes) > 1)
    source.run.is_active = False
    source.rest = None
    source.steps = late
    bench.feed.stop()
    assert bench.flows() == [9]


def test_an_ended_capture_that_never_says_so_holds_nothing_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "STOP_S", 0.05)
    source = bench.add("one", rest=batch())
    source.run.is_active = False
    bench.feed.start()
    bench.feed.stop()
    assert source.closed


def test_a_feed_without_captures_ends_at_once(bench: Bench) -> None:
    bench.feed.start()
    bench.feed.stop()
    assert bench.got == []


def test_interfaces_counters_are_told_at_their_own_interval() -> None:
    bench = Bench(flush_s=0.0, counters_s=3600.0)
    source = bench.add("one", rest=batch(), has_counters=True)
    bench.feed.start()
    wait_until(lambda: len(source.flushes) > 3)
    bench.feed.stop()
    assert [bytes(data.data) for data in bench.got] == [b"counters"]
    assert all(source.flushes)


def test_a_turn_is_announced_whether_there_is_a_capture_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "IDLE_S", 0.01)
    turns: list[int] = []
    bench = Bench(on_turn=lambda: turns.append(1))
    bench.feed.start()
    wait_until(lambda: len(turns) > 1)
    bench.feed.stop()
