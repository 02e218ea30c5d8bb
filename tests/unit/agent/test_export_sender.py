# SPDX-License-Identifier: Apache-2.0
"""The sender's thread: gate, retries, events, the end; against a collector that is played."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jarvis_agent.export import sender as sender_module
from jarvis_agent.export.blocks import Amount
from jarvis_agent.export.sender import CollectorSender, SenderStatus
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.spool import Spool
from jarvis_agent.export.transport import StopTime

from tests.export_messages import HandSource, HandStamp, Reading, record_block, template_block
from tests.unit.agent.test_export_session import PlayedTransport

WAIT_S = 30.0


def until(condition: Callable[[], object]) -> None:
    for _ in range(int(WAIT_S / 0.005)):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen")


@dataclass
class Told:
    """What the events said, in order."""

    events: list[str] = field(default_factory=list)
    lost: Amount = Amount()  # noqa: RUF009 - frozen

    def collector_lost(self, message: str) -> None:
        self.events.append(f"lost {message}")

    def collector_returned(self, address: str) -> None:
        self.events.append(f"returned {address}")

    def records_lost(self, lost: Amount) -> None:
        self.events.append("records")
        self.lost += lost


class Bench:
    """A sender with all around it."""

    def __init__(self, directory: Path | None = None, memory_bytes: int = 1 << 20) -> None:
        self.transport = PlayedTransport(restarts=True)
        self.stop_time = StopTime()
        self.session = CollectorSession(
            transport=self.transport, source=HandSource(), new_stamp=HandStamp, interrupt=self.stop_time
        )
        self.spool = Spool(
            protocol="ipfix", memory_bytes=memory_bytes, templates=template_block(), directory=directory, disk_bytes=1 << 20
        )
        self.gate = threading.Event()
        self.gate.set()
        self.told = Told()
        self.sender = CollectorSender(
            name="export-test",
            session=self.session,
            spool=self.spool,
            gate=self.gate.is_set,
            events=self.told,
            stop_time=self.stop_time,
        )

    def put(self, numbers: range) -> None:
        self.spool.put(record_block(numbers))

    def arrived(self) -> list[int]:
        numbers = []
        for messages in list(self.transport.sessions):
            reading = Reading()
            for message in list(messages):
                reading.take(message)
            numbers += reading.numbers
        return numbers


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    bench.sender.start()
    try:
        yield bench
    finally:
        bench.sender.stop(drain_s=0, keep=False)


@pytest.fixture(autouse=True)
def retries_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(sender_module, "LAST_RETRY_S", 0.02)


def test_what_is_put_arrives_and_leaves_the_spool() -> None:
    with running(Bench()) as bench:
        bench.put(range(100))
        until(lambda: bench.spool.status().memory_bytes == 0 and len(bench.arrived()) == 100)
        until(lambda: bench.sender.status().exported.amount.flows == 100)
        assert bench.sender.status().state == "connected"
        assert bench.told.events == []


def test_a_collector_that_is_away_is_told_once_and_its_return_too() -> None:
    bench = Bench()
    bench.transport.breaks_after = [0, 0, 0, 0]
    with running(bench):
        bench.put(range(100))
        until(lambda: len(bench.arrived()) == 100)
    assert bench.told.events == ["lost played: nobody there", "returned played"]


def test_a_connection_that_breaks_costs_no_record() -> None:
    bench = Bench()
    bench.transport.breaks_after = [5, 9, 4]
    with running(bench):
        for start in range(0, 1_000, 50):
            bench.put(range(start, start + 50))
        until(lambda: len(bench.arrived()) == 1_000)
    assert bench.arrived() == list(range(1_000))


def test_nothing_leaves_while_the_gate_is_closed() -> None:
    bench = Bench()
    bench.gate.clear()
    with running(bench):
        bench.put(range(10))
        until(lambda: bench.sender.status().state == "idle" and bench.spool.status().waiting.flows == 10)
        assert bench.transport.sessions == []
        bench.gate.set()
        until(lambda: len(bench.arrived()) == 10)
        bench.gate.clear()
        until(lambda: bench.sender.status().state == "idle" and bench.transport.is_closed)
        bench.put(range(10, 20))
        bench.gate.set()
        until(lambda: len(bench.arrived()) == 20)
    assert bench.told.events == []


def test_what_the_spool_drops_is_told() -> None:
    bench = Bench(memory_bytes=2_000)
    bench.gate.clear()
    with running(bench):
        for start in range(0, 100, 10):
            bench.put(range(start, start + 10))
        until(lambda: bench.told.lost.flows > 0 and bench.told.lost == bench.spool.status().lost)
        status = bench.sender.status()
        assert status.waiting.flows + status.spool.lost.flows == 100


def test_at_the_end_what_is_left_is_delivered() -> None:
    bench = Bench()
    bench.sender.start()
    for start in range(0, 1_000, 10):
        bench.put(range(start, start + 10))
    status = bench.sender.stop(drain_s=WAIT_S, keep=True)
    assert bench.arrived() == list(range(1_000))
    assert (status.exported.amount.flows, status.spool.lost.flows, status.waiting.flows) == (1_000, 0, 0)


@pytest.mark.parametrize("is_started", [True, False])
def test_what_cannot_be_delivered_at_the_end_is_dropped_and_counted(is_started: bool) -> None:
    bench = Bench()
    bench.transport.breaks_after = [0] * 10_000
    if is_started:
        bench.sender.start()
    bench.put(range(100))
    status = bench.sender.stop(drain_s=0.05, keep=False)
    assert status.spool.lost.flows == 100
    assert status.exported.amount.flows == 0
    assert bench.told.lost.flows == 100


def test_what_cannot_be_delivered_at_the_end_waits_on_disk_and_nothing_comes_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool")
    bench.transport.breaks_after = [20, *[0] * 10_000]
    bench.sender.start()
    for start in range(0, 1_000, 100):
        bench.put(range(start, start + 100))
    until(lambda: bench.sender.status().state == "connecting" and bench.transport.sessions)
    status: SenderStatus = bench.sender.stop(drain_s=0.05, keep=True)
    arrived = bench.arrived()
    assert status.spool.lost.flows == 0
    assert status.exported.amount.flows == len(arrived)
    again = Bench(tmp_path / "spool")
    with running(again):
        until(lambda: len(again.arrived()) == 1_000 - len(arrived))
    assert arrived + again.arrived() == list(range(1_000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_fails_is_seen_and_what_waits_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool")

    def fault(*_arguments: object) -> None:
        del bench.transport.check  # once
        raise RuntimeError("a fault")

    bench.transport.check = fault  # type: ignore[method-assign]
    bench.sender.start()
    until(lambda: "fault of the program" in bench.sender.status().message)
    bench.put(range(100))
    assert bench.sender.stop(drain_s=0, keep=True).spool.lost.flows == 0
    again = Bench(tmp_path / "spool")
    with running(again):
        until(lambda: again.arrived() == list(range(100)))


def test_a_block_that_is_under_way_stops_when_the_gate_closes() -> None:
    bench = Bench()
    bench.transport.burst = 1
    closes_after = 6  # templates, options and four messages
    gate = bench.gate.is_set
    bench.session._may_send = lambda: gate() and bench.transport.sent < closes_after  # the lease ends just then
    with running(bench):
        bench.put(range(80))
        until(lambda: bench.sender.status().exported.amount.flows == 32)
        bench.gate.clear()
        until(lambda: bench.sender.status().state == "idle" and bench.transport.is_closed)
        assert bench.arrived() == list(range(32))
        assert bench.sender.status().waiting.flows == 48
        closes_after = 100
        bench.gate.set()
        until(lambda: bench.arrived() == list(range(80)))
    assert bench.told.events == []


def test_a_lease_that_is_only_being_judged_ends_no_connection() -> None:
    bench = Bench()
    asked = 0

    def gate() -> bool:
        nonlocal asked
        asked += bench.session.is_open
        return asked not in {1, 2}  # before the first block, and in the thread's next turn

    bench.sender._gate = gate
    with running(bench):
        for start in range(0, 100, 10):
            bench.put(range(start, start + 10))
        until(lambda: len(bench.arrived()) == 100)
        assert bench.sender.status().exported.connects == 1
    assert bench.told.events == []
