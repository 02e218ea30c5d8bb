# SPDX-License-Identifier: Apache-2.0
"""The agent's journal: bounded, on disk before it is handed out, one gapless source over restarts; and what is told to it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis.capture.v1 import event_pb2 as pb
from jarvis_agent.event_file import EventFile
from jarvis_agent.events import KEPT_EVENTS, EventJournal
from jarvis_agent.happenings import CaptureWatch, LeaseWatch
from jarvis_native import CaptureEvent
from jarvis_native.types import CaptureEventType

from tests.unit.agent.fakes import FakeClock

AGENT = "a" * 32


def journal_at(path: Path) -> EventJournal:
    return EventJournal(EventFile(path), agent_id=AGENT, wall_clock_ns=lambda: 1_700_000_000 * 10**9)


@asynccontextmanager
async def running(journal: EventJournal) -> AsyncIterator[None]:
    """As the agent runs it; finished in order at the end."""
    keeper = asyncio.create_task(journal.keep())
    yield
    await journal.finish()
    await keeper


def tell(journal: EventJournal, count: int = 1, *, first: int = 0) -> None:
    for number in range(first, first + count):
        journal.tell(pb.EVENT_TYPE_CAPTURE_LOSS, pb.EVENT_SEVERITY_WARNING, f"event {number}", value=number)


async def told(journal: EventJournal, source_id: str = "", sequence: int = 0, *, count: int) -> list[pb.Event]:
    """The first `count` events after a place."""
    found: list[pb.Event] = []
    async with asyncio.timeout(10):
        async for events in journal.follow(source_id, sequence):
            found += events
            if len(found) >= count:
                break
    return found


async def everything(journal: EventJournal) -> list[pb.Event]:
    """Of a journal that is finished."""
    return [event for events in [batch async for batch in journal.follow("", 0)] for event in events]


def values(events: Iterable[pb.Event]) -> list[int]:
    return [event.value for event in events]


def sequences(events: Iterable[pb.Event]) -> list[int]:
    return [event.sequence for event in events]


async def test_what_is_told_is_numbered_from_one_and_handed_out_in_order(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    tell(journal, 2)
    async with running(journal):
        tell(journal, 2, first=2)
        events = await told(journal, count=4)
    assert (sequences(events), values(events)) == ([1, 2, 3, 4], [0, 1, 2, 3])
    assert {(event.agent_id, len(event.source_id)) for event in events} == {(AGENT, 32)}


async def test_another_thread_may_tell(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        waiting = asyncio.create_task(told(journal, count=50))
        await asyncio.gather(*(asyncio.to_thread(tell, journal, 10) for _ in range(5)))
        assert sequences(await waiting) == list(range(1, 51))


async def test_a_journal_goes_on_after_a_restart_with_its_source_and_its_numbers(tmp_path: Path) -> None:
    first = journal_at(tmp_path / "journal")
    async with running(first):
        tell(first, 3)
        before = await told(first, count=3)
    second = journal_at(tmp_path / "journal")
    async with running(second):
        tell(second, 2, first=3)
        after = await told(second, before[1].source_id, before[1].sequence, count=3)
        fresh = await told(second, count=5)
    assert (values(after), sequences(after)) == ([2, 3, 4], [3, 4, 5])
    assert len({event.source_id for event in fresh}) == 1
    assert sequences(fresh) == [1, 2, 3, 4, 5], "a caller that has nothing gets all"


async def test_a_crash_loses_nothing_that_was_handed_out(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    keeper = asyncio.create_task(journal.keep())
    tell(journal, 3)
    handed_out = await told(journal, count=3)
    keeper.cancel()  # nothing else is done in order
    again = journal_at(tmp_path / "journal")
    async with running(again):
        assert await told(again, count=3) == handed_out


@pytest.mark.parametrize("extra", [1, 700, 3 * KEPT_EVENTS])
async def test_the_newest_events_are_kept_and_a_gap_shows_how_many_are_not(tmp_path: Path, extra: int) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        for first in range(0, KEPT_EVENTS + extra, 256):
            tell(journal, min(256, KEPT_EVENTS + extra - first), first=first)
            await asyncio.sleep(0.01)
        events = await told(journal, count=KEPT_EVENTS)
    assert sequences(events) == list(range(extra + 1, KEPT_EVENTS + extra + 1))
    again = journal_at(tmp_path / "journal")
    async with running(again):
        assert sequences(await told(again, count=KEPT_EVENTS))[-1] == KEPT_EVENTS + extra
    assert EventFile(tmp_path / "journal").load()[0][-1].sequence == KEPT_EVENTS + extra


async def test_a_slow_reader_is_overtaken_and_sees_the_gap(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        tell(journal, 10)
        reader = journal.follow("", 0)
        assert sequences(await anext(reader)) == list(range(1, 11))
        tell(journal, KEPT_EVENTS + 5, first=10)
        assert sequences(await anext(reader))[0] == 16


@settings(deadline=None, max_examples=40)
@given(damage=st.integers(min_value=0), cut=st.booleans())
def test_a_damaged_file_is_read_up_to_the_damage_and_what_follows_is_another_source(
    tmp_path_factory: pytest.TempPathFactory, damage: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"

    async def run() -> None:
        journal = journal_at(path)
        async with running(journal):
            tell(journal, 5)
            before = await told(journal, count=5)
        data = bytearray(path.read_bytes())
        place = damage % len(data)
        if cut:
            del data[place:]
        else:
            data[place] ^= 0x55
        path.write_bytes(data)
        again = journal_at(path)
        async with running(again):
            tell(again, 1, first=5)
        after = await everything(again)
        assert after[:-1] == before[: len(after) - 1], "what can be read is what was written"
        boundary = len(after) == 6 or (cut and len(data) in _boundaries(before))
        assert (after[-1].source_id == before[-1].source_id) is (boundary and len(after) > 1)
        whole, is_whole = EventFile(path).load()
        assert is_whole
        assert whole == after

    asyncio.run(run())


def _boundaries(events: list[pb.Event]) -> set[int]:
    """File lengths at which an event ends."""
    lengths = {8}
    for event in events:
        lengths.add(max(lengths) + 8 + event.ByteSize())
    return lengths


async def test_without_a_disk_events_are_told_as_another_sources(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    journal = journal_at(directory / "journal")
    async with running(journal):
        tell(journal, 2)
        durable = await told(journal, count=2)
        (directory / "journal").rename(tmp_path / "journal")
        directory.rmdir()
        tell(journal, 1, first=2)
        (lost_disk,) = await told(journal, durable[-1].source_id, 2, count=1)
        assert (lost_disk.value, lost_disk.sequence) == (2, 1)
        assert lost_disk.source_id != durable[-1].source_id
        directory.mkdir()
        tell(journal, 1, first=3)
        assert sequences(await told(journal, lost_disk.source_id, 1, count=1)) == [2]
    assert values(EventFile(directory / "journal").load()[0]) == [0, 1, 2, 3], "once it can be written, all that is kept is"


async def test_a_journal_that_was_set_back_numbers_its_events_anew(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        tell(journal, 3)
        source = (await told(journal, count=3))[-1].source_id
        events = await told(journal, source, 7, count=3)
        assert (values(events), sequences(events)) == ([0, 1, 2], [1, 2, 3])
        assert source not in {event.source_id for event in events}
    assert EventFile(tmp_path / "journal").load()[0] == events


async def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        tell(journal)
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o600


async def test_after_the_end_readers_end_and_nothing_more_is_told(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "journal")
    async with running(journal):
        reader = asyncio.create_task(everything(journal))
        tell(journal, 2)
    tell(journal, 1, first=2)
    async with asyncio.timeout(10):
        assert values(await reader) == values(await everything(journal)) == [0, 1]


# -- captures and leases --


class FakeCore:
    """A core's ring of events."""

    def __init__(self) -> None:
        self.events: list[CaptureEvent] = []

    def add(self, kind: CaptureEventType, *, value: int = 0, delta: int = 0, interface: str = "", skip: int = 0) -> None:
        sequence = 1 + skip + (self.events[-1].sequence if self.events else 0)
        self.events.append(
            CaptureEvent(
                sequence=sequence, time_unix_ns=5, type=kind, value=value, delta=delta, interface=interface, message="a sentence"
            )
        )

    def next_events(self, after_sequence: int = 0) -> list[CaptureEvent]:
        return [event for event in self.events if event.sequence > after_sequence]


async def kinds(journal: EventJournal) -> list[str]:
    events = await everything(journal)
    return [pb.EventType.Name(event.type).removeprefix("EVENT_TYPE_").lower() for event in events]


async def test_each_event_of_the_core_becomes_one_of_the_journal(tmp_path: Path) -> None:
    journal, core = journal_at(tmp_path / "journal"), FakeCore()
    watch = CaptureWatch(journal, "c1", core, is_paused=lambda: False)
    async with running(journal):
        watch.started("afpacket")
        core.add(CaptureEventType.LOSS, value=17)
        core.add(CaptureEventType.CLOCK_STEP, delta=-(10**9))
        watch.look()
        watch.look()
        core.add(CaptureEventType.CLOCK_SYNC, value=0)
        for state in (1, 2, 3):
            core.add(CaptureEventType.INTERFACE, value=state, interface="eth0")
        core.add(CaptureEventType.INTERFACE_ADDED, interface="eth1")
        core.add(CaptureEventType.INTERFACE_REMOVED, interface="eth1")
        watch.ended(failed=False, message="")
    assert await kinds(journal) == [
        "capture_started", "capture_loss", "clock_step", "clock_sync", "interface_up", "interface_down", "interface_gone",
        "interface_added", "interface_removed", "capture_stopped",
    ]  # fmt: skip
    events = await everything(journal)
    assert (events[1].value, events[2].delta, events[6].interface) == (17, -(10**9), "eth0")
    assert {event.capture_id for event in events} == {"c1"}
    assert events[1].time.ToNanoseconds() == 5, "when the core noticed"
    assert [event.severity for event in events[3:7]] == [
        pb.EVENT_SEVERITY_WARNING, pb.EVENT_SEVERITY_INFO, pb.EVENT_SEVERITY_WARNING, pb.EVENT_SEVERITY_ERROR,
    ]  # fmt: skip


async def test_core_events_that_were_overwritten_unread_are_counted(tmp_path: Path) -> None:
    journal, core = journal_at(tmp_path / "journal"), FakeCore()
    watch = CaptureWatch(journal, "c1", core, is_paused=lambda: False)
    async with running(journal):
        core.add(CaptureEventType.LOSS)
        core.add(CaptureEventType.LOSS, skip=3)
        watch.look()
    assert await kinds(journal) == ["capture_loss", "events_lost", "capture_loss"]
    assert (await everything(journal))[1].value == 3


async def test_a_pause_and_its_end_are_told_once_each(tmp_path: Path) -> None:
    journal, paused = journal_at(tmp_path / "journal"), [False]
    watch = CaptureWatch(journal, "c1", FakeCore(), is_paused=lambda: paused[0])
    async with running(journal):
        for now in (False, True, True, False, False):
            paused[0] = now
            watch.look()
        watch.ended(failed=True, message="the interface is gone")
    assert await kinds(journal) == ["capture_paused", "capture_resumed", "capture_failed"]


async def test_a_lease_is_told_when_it_begins_ends_or_is_taken_and_not_when_it_is_renewed(tmp_path: Path) -> None:
    journal, clock = journal_at(tmp_path / "journal"), FakeClock()
    watch = LeaseWatch(journal, clock=clock)
    async with running(journal):
        watch.changed(7, clock.now + 10**9)
        watch.changed(8, clock.now + 2 * 10**9)
        clock.advance(3)
        watch.look()
        watch.look()
        watch.changed(9, clock.now + 10**9)
        watch.changed(0, clock.now - 1)
        watch.changed(11, clock.now + 10**9)
        clock.advance(2)
        watch.changed(12, clock.now + 10**9)  # it came before anybody looked
        watch.close()
    assert await kinds(journal) == [
        "lease_granted", "lease_expired", "lease_granted", "lease_revoked", "lease_granted", "lease_expired", "lease_granted",
    ]  # fmt: skip
    assert values(await everything(journal)) == [7, 8, 9, 9, 11, 11, 12]


async def test_a_lease_that_runs_out_is_noticed_by_itself(tmp_path: Path) -> None:
    journal, clock = journal_at(tmp_path / "journal"), FakeClock()
    watch = LeaseWatch(journal, clock=clock)
    async with running(journal):
        watch.changed(1, clock.now + 50_000_000)
        clock.advance(1)
        events = await told(journal, count=2)
    assert events[1].type == pb.EVENT_TYPE_LEASE_EXPIRED
