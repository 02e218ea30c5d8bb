# SPDX-License-Identifier: Apache-2.0
"""CollectorSession: templates first, the right sequence, and nothing lost or sent twice however often the connection breaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_agent.export.blocks import Amount, message_bytes
from jarvis_agent.export.errors import ExportError, unreachable
from jarvis_agent.export.session import NO_MESSAGES, CollectorSession
from jarvis_native.export import ExportBlock

from tests.export_messages import TEMPLATE, HandSource, HandStamp, Reading, record_block, template_block


class PlayedTransport:
    """A connection that breaks when told to; what is not settled then has not arrived."""

    message_max = 1400
    address = "played"

    def __init__(self, *, restarts: bool, burst: int = 0, seed: int = 0) -> None:
        self.kind: Literal["tcp", "udp"] = "tcp" if restarts else "udp"
        self.restarts = restarts
        self.burst = burst
        self.sessions: list[list[bytes]] = []
        """Messages that arrived, by connection."""
        self.breaks_after: list[int] = []
        """Messages until a connection breaks, one entry a connection; later ones hold."""
        self.is_stale_now = False
        self.is_closed = True
        self._random = random.Random(seed)
        self._flight: list[bytes] = []
        self._broken = False
        self.sent = 0

    def connect(self) -> None:
        assert self.is_closed
        self._left = self.breaks_after.pop(0) if self.breaks_after else None
        if self._left == 0:
            raise unreachable("played", "nobody there")
        self.sessions.append([])
        self._flight, self._broken, self.is_closed, self.is_stale_now = [], False, False, False
        self.sent = 0

    def send(self, block: ExportBlock) -> None:
        for number in range(block.messages):
            if self._left is not None and self.sent == self._left:
                self._broken = True
                raise unreachable("played", "went away")
            self._flight.append(bytes(message_bytes(block, number)))
            self.sent += 1

    def settled(self) -> int:
        if not self._broken:
            for _ in range(self._random.randint(0, len(self._flight))):
                self.sessions[-1].append(self._flight.pop(0))
        return 0 if self.is_closed else len(self.sessions[-1])

    def check(self) -> None:
        if self._broken:
            raise unreachable("played", "went away")

    def probe(self, _timeout_s: float) -> None:
        self.check()

    def is_stale(self) -> bool:
        return self.is_stale_now

    def wait_settled(self, _timeout_s: float) -> None:
        self.check()
        self.sessions[-1] += self._flight
        self._flight = []

    def close(self) -> None:
        self.is_closed = True


def session_over(transport: PlayedTransport, **changes: object) -> CollectorSession:
    parts = {"source": HandSource(), "new_stamp": HandStamp} | changes
    return CollectorSession(transport=transport, **parts)  # type: ignore[arg-type]


class NoSource:
    """Of a protocol without templates and options: NetFlow v5, sFlow."""

    def templates(self) -> ExportBlock:
        return NO_MESSAGES

    def options(self, _exported: object) -> ExportBlock:
        return NO_MESSAGES


def read_session(messages: list[bytes], expected: int | None = 0) -> Reading:
    reading = Reading(expected=expected)
    for message in messages:
        reading.take(message)
    return reading


def test_templates_and_options_go_before_the_first_record() -> None:
    transport = PlayedTransport(restarts=True)
    session = session_over(transport)
    session.send(record_block(range(20)))
    assert session.finish(1)
    reading = read_session(transport.sessions[0])
    assert (reading.numbers, reading.options, reading.missing) == (list(range(20)), 1, 0)


def test_the_rest_of_a_block_stays_here_when_nothing_may_leave_any_more() -> None:
    transport = PlayedTransport(restarts=True, burst=2)
    most = [4]
    session = session_over(transport, may_send=lambda: transport.sent < most[0])
    session.send(record_block(range(80)))  # ten messages, behind templates and options
    assert (session.counters().amount.flows, session.counters().waiting.flows) == (16, 64)
    assert not session.finish(1)
    most[0] = 0
    session.open()
    assert (session.is_open, transport.is_closed, transport.sessions[1]) == (False, True, [])
    most[0] = 100
    session.open()
    assert session.finish(1)
    assert read_session(transport.sessions[2]).numbers == list(range(16, 80))


def test_templates_and_options_are_not_sent_again_while_nothing_may_leave() -> None:
    transport, now, may_send = PlayedTransport(restarts=False), [0.0], [True]
    session = session_over(transport, clock=lambda: now[0], may_send=lambda: may_send[0])
    session.open()
    before, may_send[0], now[0] = transport.sent, False, 1_000.0
    session.tick()
    assert transport.sent == before
    may_send[0] = True
    session.tick()
    assert transport.sent == 2 * before


def test_a_new_connection_begins_a_new_session() -> None:
    transport = PlayedTransport(restarts=True)
    session = session_over(transport)
    session.send(record_block(range(20)))
    session.finish(1)
    session.send(record_block(range(20, 30)))
    session.finish(1)
    assert [read_session(messages).numbers for messages in transport.sessions] == [list(range(20)), list(range(20, 30))]
    assert session.counters().connects == 2


def test_a_gap_shows_in_the_sequence() -> None:
    transport = PlayedTransport(restarts=True)
    session = session_over(transport)
    session.send(record_block(range(20)))
    session.send(record_block(range(30, 40)), gap=Amount(messages=9_000, records=10, flows=10))
    session.finish(1)
    reading = read_session(transport.sessions[0])
    assert reading.missing == 10
    assert reading.numbers == [*range(20), *range(30, 40)]


def test_templates_of_an_earlier_process_are_told_before_its_records_in_every_session() -> None:
    transport = PlayedTransport(restarts=True)
    session = session_over(transport)
    old = template_block(300)
    session.send(record_block(range(8), template=300), templates=old)
    session.send(record_block(range(8, 16), template=300), templates=old)
    session.finish(1)
    session.send(record_block(range(16, 24), template=300), templates=old)
    session.finish(1)
    first, second = (read_session(messages) for messages in transport.sessions)
    assert first.numbers + second.numbers == list(range(24))
    assert len(transport.sessions[0]) == 2 + 1 + 2  # templates and options; the old templates once


def test_over_udp_templates_come_again_after_five_seconds_then_by_time_and_by_messages() -> None:
    now = [0.0]
    transport = PlayedTransport(restarts=False)
    session = session_over(transport, clock=lambda: now[0], refresh_s=60, refresh_messages=100)
    session.open()

    def templates_told() -> int:
        transport.wait_settled(0)
        return sum(b"\x01\x00\x00\x03\x00\x94" in message for message in transport.sessions[0])

    assert templates_told() == 1
    for moment, told in ((4.9, 1), (5.0, 2), (64.9, 2), (65.0, 3), (66.0, 3)):
        now[0] = moment
        session.tick()
        assert templates_told() == told, moment
    session.send(record_block(range(98), per_message=1))
    assert templates_told() == 3
    session.send(record_block(range(98, 101), per_message=1))
    session.send(record_block(range(101, 102), per_message=1))
    assert templates_told() == 4


def test_over_a_connection_only_options_come_again() -> None:
    now = [0.0]
    transport = PlayedTransport(restarts=True)
    session = session_over(transport, clock=lambda: now[0], refresh_s=60)
    session.open()
    now[0] = 60.0
    session.tick()
    session.finish(1)
    reading = read_session(transport.sessions[0])
    assert (len(transport.sessions[0]), reading.options) == (3, 2)


def test_a_stale_way_is_left_for_a_new_one() -> None:
    transport = PlayedTransport(restarts=True)
    session = session_over(transport)
    session.send(record_block(range(8)))
    transport.is_stale_now = True
    session.send(record_block(range(8, 16)))
    session.finish(1)
    assert [read_session(messages).numbers for messages in transport.sessions] == [list(range(8)), list(range(8, 16))]


def test_what_waits_to_be_sent_again_is_not_counted_as_sent() -> None:
    transport = PlayedTransport(restarts=True)
    transport.settled = lambda: 0  # type: ignore[method-assign]
    transport.breaks_after = [4]
    session = session_over(transport)
    with pytest.raises(ExportError):
        session.send(record_block(range(40)))  # five messages behind templates and options: two leave
    counters = session.counters()
    assert (counters.amount.flows, counters.waiting.flows) == (0, 40)
    assert (counters.waiting.packets, counters.waiting.octets) == (40 * 3, 40 * 180)
    session.open()
    assert (session.counters().amount.flows, session.counters().waiting.flows) == (40, 0)


@dataclass(frozen=True)
class Step:
    """A block that is handed over, and what else happens then."""

    records: int
    gap: int
    ticks: bool
    is_stale: bool


STEPS = st.lists(
    st.builds(Step, records=st.integers(1, 60), gap=st.integers(0, 50), ticks=st.booleans(), is_stale=st.booleans()),
    min_size=1,
    max_size=12,
)


def until_it_works(action: Callable[[], object]) -> None:
    while True:
        try:
            action()
        except ExportError:
            continue
        return


def take_steps(session: CollectorSession, transport: PlayedTransport, steps: list[Step]) -> int:
    """Returns how many blocks became settled. Sessions end when everything has left."""
    number = settled = 0
    for step in steps:
        transport.is_stale_now = step.is_stale and not transport.is_closed
        block = record_block(range(number, number + step.records))
        number += step.records
        try:
            session.send(block, gap=Amount(messages=step.gap, records=step.gap, flows=step.gap))
            if step.ticks:
                session.tick()
        except ExportError:
            until_it_works(session.open)
        settled += session.take_settled()
    while session.counters().waiting:
        until_it_works(session.tick if session.is_open else session.open)
    try:
        assert session.finish(1)
    except ExportError:
        until_it_works(session.open)
        assert session.finish(1)
    return settled + session.take_settled()


@settings(max_examples=300, deadline=None)
@given(
    restarts=st.booleans(),
    seed=st.integers(0, 2**32),
    breaks=st.lists(st.integers(0, 30), max_size=8),
    steps=STEPS,
    burst=st.sampled_from([0, 1, 3, 32]),
    has_templates=st.booleans(),
    closed=st.lists(st.booleans(), max_size=60),
)
def test_whatever_breaks_every_record_arrives_once_in_order_and_with_its_sequence(
    *, restarts: bool, seed: int, breaks: list[int], steps: list[Step], burst: int, has_templates: bool, closed: list[bool]
) -> None:
    transport = PlayedTransport(restarts=restarts, burst=burst, seed=seed)
    transport.breaks_after = list(breaks)
    answers = iter(closed)
    session = session_over(
        transport,
        refresh_s=0,
        refresh_messages=5,
        may_send=lambda: not next(answers, False),
        records_per_second=10**9,
        source=HandSource() if has_templates else NoSource(),
    )
    assert take_steps(session, transport, steps) == len(steps)
    known = set() if has_templates else {TEMPLATE}
    readings = [Reading(templates=set(known)) for _ in (transport.sessions if restarts else [None])]
    for place, messages in enumerate(transport.sessions):
        for message in messages:
            readings[place if restarts else 0].take(message)
    records = sum(step.records for step in steps)
    assert [number for reading in readings for number in reading.numbers] == list(range(records))
    counters = session.counters()
    assert (counters.amount.flows, counters.amount.packets, bool(counters.waiting)) == (records, records * 3, False)
    # A connection may break between a gap and the block behind it: the next one's session tells it then.
    assert sum(reading.missing for reading in readings) == sum(step.gap for step in steps)
