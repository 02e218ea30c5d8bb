# SPDX-License-Identifier: Apache-2.0
"""The spool: order and exact counts over memory, disk, restarts and crashes; what a disk does to it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from jarvis_agent.export.blocks import Amount, amount_of
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.spool import Spool, Taken
from jarvis_native.export import ExportBlock

from tests.export_messages import Reading, record_block, split, template_block

FLOWS_A_BLOCK = 4


def block_of(number: int, messages: int = 2) -> ExportBlock:
    first = number * FLOWS_A_BLOCK
    return record_block(range(first, first + FLOWS_A_BLOCK), per_message=FLOWS_A_BLOCK // messages)


def block_number(block: ExportBlock) -> int:
    reading = Reading(templates={256}, expected=None)
    for message in split(block.data):
        reading.take(message)
    assert len(reading.numbers) == FLOWS_A_BLOCK
    return reading.numbers[0] // FLOWS_A_BLOCK


def spool_at(directory: Path | None, *, memory_bytes: int = 10_000, disk_bytes: int = 100_000) -> Spool:
    return Spool(
        protocol="ipfix", memory_bytes=memory_bytes, templates=template_block(), directory=directory, disk_bytes=disk_bytes
    )


def take_all(spool: Spool) -> list[int]:
    numbers = []
    while (taken := spool.take(0)) is not None:
        numbers.append(block_number(taken.block))
        spool.done(1)
    return numbers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_what_fits_into_memory_leaves_no_file(directory: Path) -> None:
    spool = spool_at(directory)
    for number in range(5):
        assert spool.put(block_of(number))
    assert spool.status().waiting == Amount(messages=10, records=20, flows=20, packets=60, octets=3_600)
    assert list(directory.glob("*.spool")) == []
    assert take_all(spool) == list(range(5))
    assert spool.status().memory_bytes == 0


def test_order_holds_over_memory_disk_and_memory_again(directory: Path) -> None:
    spool = spool_at(directory, memory_bytes=3_000, disk_bytes=3_000)
    accepted = [number for number in range(40) if spool.put(block_of(number))]
    assert list(directory.glob("*.spool"))
    assert 5 < len(accepted) < 40
    assert accepted == list(range(len(accepted)))
    assert spool.status().lost.flows == (40 - len(accepted)) * FLOWS_A_BLOCK
    assert take_all(spool) == accepted
    assert list(directory.glob("*.spool")) == []
    assert spool.put(block_of(99))
    assert take_all(spool) == [99]


def test_what_was_dropped_is_told_with_the_next_block_that_is_taken(directory: Path) -> None:
    spool = spool_at(None, memory_bytes=1_000, disk_bytes=0)
    assert spool.put(block_of(0))
    assert not spool.put(block_of(1))
    assert not spool.put(block_of(2))
    assert take_all(spool) == [0]
    spool.put(block_of(3))
    taken = spool.take(0)
    assert taken is not None
    assert taken.gap == amount_of(block_of(1)) + amount_of(block_of(2))
    assert spool.status().lost == taken.gap
    assert spool.status().first_lost_ns > 0


def test_the_next_process_replays_with_the_templates_of_the_one_before(directory: Path) -> None:
    first = spool_at(directory)
    for number in range(8):
        first.put(block_of(number))
    taken = first.take(0)
    assert taken is not None
    first.close(keep=True, settled_messages=1)  # of block 0 one of two messages has arrived
    second = spool_at(directory)
    assert second.status().waiting.flows == 8 * FLOWS_A_BLOCK - 2
    rest = second.take(0)
    assert rest is not None
    assert rest.templates is not None
    assert (rest.templates.data, rest.is_replay) == (template_block().data, True)
    assert (rest.block.messages, rest.block.flows) == (1, 2)
    second.done(1)
    assert second.put(block_of(8))
    assert take_all(second) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_crash_loses_what_is_in_memory_and_repeats_nothing_from_the_disk(directory: Path) -> None:
    first = spool_at(directory, memory_bytes=2_000)
    for number in range(20):
        assert first.put(block_of(number))
    in_memory = 2_000 // first.status().memory_bytes if first.status().memory_bytes else 0
    assert in_memory >= 1
    taken = [first.take(0) for _ in range(10)]
    first.done(6)
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)  # as the crash leaves it: the process's own handles are gone
    copy.chmod(0o700)
    assert all(taken)
    assert take_all(spool_at(copy)) == list(range(6, 20))


def test_a_torn_end_is_cut_and_the_blocks_before_it_are_whole(directory: Path) -> None:
    first = spool_at(directory, memory_bytes=0)
    for number in range(3):
        first.put(block_of(number))
    first.close(keep=True)
    (file,) = directory.glob("*.spool")
    whole = file.read_bytes()
    for cut in range(1, len(whole), 37):
        file.write_bytes(whole[:-cut])
        (directory / "position").unlink()  # of the file that had this number
        spool = spool_at(directory)
        numbers = take_all(spool)
        spool.close(keep=False)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) < 3


def test_a_block_that_the_disk_damaged_is_counted_and_shows_as_a_gap(directory: Path) -> None:
    spool = spool_at(directory, memory_bytes=0)
    for number in range(3):
        spool.put(block_of(number))
    (file,) = directory.glob("*.spool")
    data = bytearray(file.read_bytes())
    place = data.find((1 * FLOWS_A_BLOCK).to_bytes(8, "big"))
    data[place] ^= 1
    with file.open("r+b") as handle:  # in place: the spool has the file open
        handle.write(data)
    first, third = spool.take(0), spool.take(0)
    assert first is not None
    assert third is not None
    assert [block_number(first.block), block_number(third.block)] == [0, 2]
    assert third.gap == amount_of(block_of(1)) == spool.status().lost
    spool.done(2)
    assert list(directory.glob("*.spool")) == []


def test_a_disk_that_fails_is_told_and_memory_goes_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_at(directory, memory_bytes=1_700)
    assert spool.put(block_of(0))

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    assert spool.put(block_of(1))
    assert not spool.put(block_of(2))
    assert "No space left on device" in spool.status().disk_error
    assert list(directory.glob("*.spool")) == []
    assert take_all(spool) == [0, 1]


def test_a_file_that_cannot_be_removed_is_not_sent_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = spool_at(directory, memory_bytes=0)
    first.put(block_of(0))

    def stuck(_path: Path, **_named: bool) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stuck)
        assert take_all(first) == [0]
        assert "Input/output error" in first.status().disk_error
        first.close(keep=True)
    assert len(list(directory.glob("*.spool"))) == 1
    assert take_all(spool_at(directory)) == []
    assert list(directory.glob("*.spool")) == []


def test_files_of_another_protocol_are_not_sent(directory: Path) -> None:
    first = spool_at(directory, memory_bytes=0)
    first.put(block_of(0))
    first.close(keep=True)
    second = Spool(protocol="netflow9", memory_bytes=0, templates=template_block(), directory=directory, disk_bytes=10_000)
    assert second.take(0) is None
    assert list(directory.glob("*.spool")) == []


def test_only_the_owner_can_read_what_waits(directory: Path) -> None:
    spool = spool_at(directory, memory_bytes=0)
    spool.put(block_of(0))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("fault", ["file", "link", "open to others", "in use", "no parent", "read-only"])
def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "spool"
    kept: list[Spool] = []
    match fault:
        case "file":
            directory.write_text("")
        case "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            directory.symlink_to(tmp_path / "elsewhere")
        case "open to others":
            directory.mkdir(mode=0o755)
        case "in use":
            kept.append(spool_at(directory))
        case "no parent":
            directory = tmp_path / "missing" / "spool"
        case "read-only":
            real = os.open

            def refuse(path: str, flags: int, *rest: int, **named: int) -> int:
                if flags & os.O_CREAT:
                    raise OSError(30, "Read-only file system")
                return real(path, flags, *rest, **named)

            directory.mkdir(mode=0o700)
            monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ExportError, match="spool") as raised:
        spool_at(directory)
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_SPOOL", True)


@dataclass
class Model:
    """What must come out, and what was lost."""

    waiting: deque[int] = field(default_factory=deque)
    taken: deque[int] = field(default_factory=deque)
    lost: int = 0


class SpoolAgainstAList(RuleBasedStateMachine):
    """Random puts, takes, ends and crashes; a list says what must come."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="spool-"))
        self.generation = 0
        self.next = 0
        self.model = Model()
        self.in_memory: set[int] = set()
        self.spool = self.open()

    def open(self) -> Spool:
        return spool_at(self.root / str(self.generation), memory_bytes=2_500, disk_bytes=6_000)

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(count=st.integers(1, 6))
    def put(self, count: int) -> None:
        for _ in range(count):
            before = self.spool.status().memory_bytes
            if self.spool.put(block_of(self.next)):
                self.model.waiting.append(self.next)
                if self.spool.status().memory_bytes > before:
                    self.in_memory.add(self.next)
            else:
                self.model.lost += 1
            self.next += 1

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        for _ in range(count):
            taken = self.spool.take(0)
            if taken is None:
                assert not self.model.waiting
                return
            assert block_number(taken.block) == self.model.waiting.popleft()
            self.model.taken.append(block_number(taken.block))

    @precondition(lambda self: self.model.taken)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.model.taken)))
        self.spool.done(count)
        for _ in range(count):
            self.in_memory.discard(self.model.taken.popleft())

    @rule()
    def end_and_start_again(self) -> None:
        before = self.spool.status().lost.flows
        self.spool.close(keep=True)
        dropped = (self.spool.status().lost.flows - before) // FLOWS_A_BLOCK
        everything = [*self.model.taken, *self.model.waiting]
        self.spool = self.open()
        kept = self.spool.status().waiting.flows // FLOWS_A_BLOCK
        assert kept + dropped == len(everything)
        # What does not fit on the disk is of what was in memory; the order of the rest stands.
        found = [block_number(taken.block) for taken in self.rest()]
        assert found == [number for number in everything if number in set(found)]
        assert set(everything) - set(found) <= self.in_memory
        self.model = Model()
        self.in_memory = set()

    @rule()
    def crash_and_start_again(self) -> None:
        copy = self.root / str(self.generation + 1)
        shutil.copytree(self.root / str(self.generation), copy)
        copy.chmod(0o700)
        self.spool.close(keep=False)
        self.generation += 1
        self.spool = self.open()
        expected = [number for number in [*self.model.taken, *self.model.waiting] if number not in self.in_memory]
        assert [block_number(taken.block) for taken in self.rest()] == expected
        self.model = Model()
        self.in_memory = set()

    def rest(self) -> Iterator[Taken]:
        while (taken := self.spool.take(0)) is not None:
            yield taken
            self.spool.done(1)

    @invariant()
    def nothing_takes_more_than_is_allowed(self) -> None:
        status = self.spool.status()
        assert status.memory_bytes <= 2_500
        assert status.disk_bytes <= 6_000
        on_disk = sum(path.stat().st_size for path in (self.root / str(self.generation)).glob("*.spool"))
        assert on_disk == status.disk_bytes
        assert status.waiting.flows == len(self.model.waiting) * FLOWS_A_BLOCK


TestSpoolAgainstAList = SpoolAgainstAList.TestCase
TestSpoolAgainstAList.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
