# SPDX-License-Identifier: Apache-2.0
"""IPFIX files: each whole by itself, rotated by size and age, kept by number; what a crash or a disk leaves."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.files import FileTransport, check_export_directory
from jarvis_agent.export.session import CollectorSession

from tests.export_messages import HandSource, HandStamp, Reading, record_block

NAME = re.compile(r"keep-[0-9]{8}T[0-9]{6}Z-([0-9]{6})\.ipfix")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def session_in(directory: Path, clock: Clock, **changes: int) -> CollectorSession:
    settings = {"file_bytes": 10_000, "file_age_s": 300, "files_kept": 0} | changes
    transport = FileTransport(directory, "keep", clock=clock, now=lambda: 1_795_000_000, **settings)  # type: ignore[arg-type]
    return CollectorSession(transport=transport, source=HandSource(), new_stamp=HandStamp, refresh_s=0, clock=clock)


def readings(directory: Path) -> list[Reading]:
    """Finished files in their order; each must be readable alone."""
    found = []
    for path in sorted(directory.glob("*.ipfix")):
        assert NAME.fullmatch(path.name)
        reading = Reading()
        data = path.read_bytes()
        assert reading.take_stream(data) == len(data)
        assert reading.missing == 0
        found.append(reading)
    return found


def test_a_file_has_its_name_only_when_it_is_finished(tmp_path: Path) -> None:
    session = session_in(tmp_path, Clock())
    session.send(record_block(range(10)))
    (part,) = tmp_path.iterdir()
    assert part.name.endswith(".ipfix.part")
    assert session.transport.address == str(part)
    assert session.finish(0)
    (done,) = tmp_path.iterdir()
    assert NAME.fullmatch(done.name)
    assert stat.S_IMODE(done.stat().st_mode) == 0o640
    assert readings(tmp_path)[0].numbers == list(range(10))


def test_files_are_finished_by_size_and_each_is_whole_by_itself(tmp_path: Path) -> None:
    session = session_in(tmp_path, Clock())
    for start in range(0, 2_000, 100):
        session.send(record_block(range(start, start + 100)))
    session.finish(0)
    found = readings(tmp_path)
    assert len(found) > 3
    assert [number for reading in found for number in reading.numbers] == list(range(2_000))
    assert all(path.stat().st_size < 10_000 + 100 * 24 + 13 * 20 for path in tmp_path.iterdir())


def test_files_are_finished_by_age_also_when_nothing_comes(tmp_path: Path) -> None:
    clock = Clock()
    session = session_in(tmp_path, clock)
    session.send(record_block(range(10)))
    clock.now = 299
    session.tick()
    assert readings(tmp_path) == []
    clock.now = 300
    session.tick()
    assert [reading.numbers for reading in readings(tmp_path)] == [list(range(10))]
    clock.now = 900  # the next one has no records: it stays open
    session.tick()
    assert len(list(tmp_path.iterdir())) == 2
    session.finish(0)
    assert len(list(tmp_path.iterdir())) == 1


def test_only_so_many_finished_files_are_kept_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other-20261122T000000Z-000001.ipfix").write_text("another export's")
    session = session_in(tmp_path, Clock(), file_bytes=1, files_kept=3)
    for start in range(0, 80, 8):
        session.send(record_block(range(start, start + 8)))
    session.finish(0)
    kept = sorted(path.name for path in tmp_path.glob("keep-*"))
    assert [int(name[-12:-6]) for name in kept] == [8, 9, 10]
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "other-20261122T000000Z-000001.ipfix").exists()


def test_what_a_crash_left_is_finished_without_the_message_that_was_cut(tmp_path: Path) -> None:
    session = session_in(tmp_path, Clock())
    session.send(record_block(range(16)))
    (part,) = tmp_path.iterdir()
    left = tmp_path / "left.copy"
    shutil.copy(part, left)
    session.close()
    for path in tmp_path.glob("*.ipfix"):
        path.unlink()
    part.write_bytes(left.read_bytes()[:-5])
    left.unlink()
    again = session_in(tmp_path, Clock())
    again.send(record_block(range(16, 24)))
    again.finish(0)
    assert [reading.numbers for reading in readings(tmp_path)] == [list(range(8)), list(range(16, 24))]
    assert [int(path.name[-12:-6]) for path in sorted(tmp_path.iterdir())] == [1, 2]


def test_a_full_disk_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_in(tmp_path, Clock())
    session.send(record_block(range(16)))
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(descriptor, data[: len(data) // 2])

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(ExportError, match="No space left on device") as raised:
        session.send(record_block(range(16, 32)))
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_FILE", False)
    monkeypatch.setattr(os, "write", write)
    session.open()
    session.finish(0)
    assert [number for reading in readings(tmp_path) for number in reading.numbers] == list(range(32))


@pytest.mark.parametrize("fault", ["missing", "file", "link", "open to all"])
def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path, fault: str) -> None:
    directory = tmp_path / "flows"
    match fault:
        case "file":
            directory.write_text("")
        case "link":
            directory.symlink_to(tmp_path)
        case "open to all":
            directory.mkdir()
            directory.chmod(0o777)
    with pytest.raises(ExportError, match="cannot be exported to") as raised:
        check_export_directory(directory)
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_FILE", True)


@pytest.mark.skipif(shutil.which("ipfixDump") is None, reason="ipfixDump (libfixbuf-tools) is not installed")
def test_libfixbuf_reads_the_files(tmp_path: Path) -> None:
    session = session_in(tmp_path, Clock(), file_bytes=1 << 20)
    for start in range(0, 500, 100):
        session.send(record_block(range(start, start + 100)))
    session.finish(0)
    (path,) = tmp_path.iterdir()
    done = subprocess.run(["ipfixDump", "--in", str(path)], capture_output=True, text=True, check=True)
    assert re.findall(r"flowId\S*\s*:\s*([0-9]+)", done.stdout) == [str(number) for number in range(500)], done.stdout[:2_000]
    assert "packetDeltaCount" in done.stdout
