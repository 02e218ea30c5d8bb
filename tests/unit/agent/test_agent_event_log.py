# SPDX-License-Identifier: Apache-2.0
"""The event log on disk against a TPM that fails at the worst moments."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from jarvis_agent.errors import EventLogError, TpmError
from jarvis_agent.event_log import EventLog
from jarvis_agent.tpm_device import TpmDevice
from jarvis_trust.eventlog import load_attempt, mapping, parse_log, replay

from tests.unit.agent.fakes import FakePcrs

IDS: dict[str, Any] = {"time": datetime(2026, 11, 22, tzinfo=UTC), "boot_id": bytes(16), "session_id": bytes(range(16))}


def content(name: str) -> dict[str, str]:
    return load_attempt(object_name=name, sha256=hashlib.sha256(name.encode()).digest(), **IDS)


def opened(directory: Path, pcrs: FakePcrs) -> EventLog:
    log = EventLog(directory, 14)
    log.open(device(pcrs))
    return log


def device(pcrs: FakePcrs) -> TpmDevice:
    return cast(TpmDevice, pcrs)


def test_an_event_is_on_disk_before_it_is_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    order: list[str] = []
    real_fsync, real_extend = os.fsync, pcrs.extend_pcr

    def fsync(fd: int) -> None:
        order.append(f"fsync of {len(log.read().splitlines())} records")
        real_fsync(fd)

    def extend(pcr: int, digest: bytes) -> None:
        order.append("extend")
        real_extend(pcr, digest)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(pcrs, "extend_pcr", extend)
    log.record(device(pcrs), content("a.so"))
    assert order == ["fsync of 1 records", "extend"]


def test_a_log_that_cannot_be_written_extends_nothing(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(EventLogError) as refused:
        log.record(device(pcrs), content("a.so"))
    assert refused.value.reason == "EVENT_LOG_IO"
    assert pcrs.extended == []


def test_an_event_that_was_logged_but_not_extended_is_extended_at_the_next_start(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    log.record(device(pcrs), content("a.so"))
    pcrs.fail_next_extend = TpmError("TPM_UNAVAILABLE", "gone")
    with pytest.raises(TpmError):
        log.record(device(pcrs), content("b.so"))
    assert replay(parse_log(log.read())) != pcrs.value
    again = opened(tmp_path, pcrs)
    assert replay(parse_log(again.read())) == pcrs.value
    again.record(device(pcrs), content("c.so"))
    assert [event.subject for event in parse_log(again.read())] == ["a.so", "b.so", "c.so"]
    assert replay(parse_log(again.read())) == pcrs.value


def test_the_very_first_event_is_recovered_too(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    pcrs.fail_next_extend = TpmError("TPM_UNAVAILABLE", "gone")
    with pytest.raises(TpmError):
        log.record(device(pcrs), content("a.so"))
    assert replay(parse_log(opened(tmp_path, pcrs).read())) == pcrs.value


def test_a_torn_last_line_is_cut_because_it_was_never_extended(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    log.record(device(pcrs), content("a.so"))
    whole = log.read()
    with log.path.open("ab") as file:
        file.write(b'{"content":{"boot')
    again = opened(tmp_path, pcrs)
    assert again.read() == whole
    again.record(device(pcrs), content("b.so"))
    assert replay(parse_log(again.read())) == pcrs.value


def test_a_log_that_was_edited_is_kept_and_served_as_it_is(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    for name in ("a.so", "b.so", "c.so"):
        log.record(device(pcrs), content(name))
    lines = log.read().splitlines(keepends=True)
    shortened = lines[0]
    log.path.write_bytes(shortened)
    value = pcrs.value
    again = opened(tmp_path, pcrs)
    assert (again.read(), pcrs.value) == (shortened, value)
    log.path.write_bytes(b"rubbish\n")
    assert opened(tmp_path, pcrs).read() == b"rubbish\n"
    assert pcrs.value == value


def test_an_edited_log_still_gets_the_events_to_come(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    log.record(device(pcrs), content("a.so"))
    log.record(device(pcrs), content("b.so"))
    log.path.write_bytes(b"rubbish\n")
    again = opened(tmp_path, pcrs)
    again.record(device(pcrs), content("c.so"))
    assert again.read().startswith(b"rubbish\n")
    assert len(pcrs.extended) == 3


def test_a_new_boot_starts_a_new_log_and_leaves_the_old_one(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    old = opened(tmp_path, pcrs)
    old.record(device(pcrs), content("a.so"))
    pcrs.reset()
    new = opened(tmp_path, pcrs)
    assert new.path != old.path
    assert new.read() == b""
    assert len(parse_log(old.read())) == 1


def test_a_restart_of_the_tpm_without_a_reset_sets_the_log_aside(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    log.record(device(pcrs), content("a.so"))
    log.record(device(pcrs), content("b.so"))
    pcrs.value = bytes(32)  # hibernation: PCRs reset, resetCount as before
    again = opened(tmp_path, pcrs)
    again.record(device(pcrs), content("c.so"))
    assert replay(parse_log(again.read())) == pcrs.value
    assert len(parse_log(again.path.with_name(f"{again.path.name}.restart-1").read_bytes())) == 2


def test_a_mapping_that_this_boot_has_logged_is_known_over_restarts(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    log = opened(tmp_path, pcrs)
    digest = hashlib.sha256(b"libc").digest()
    log.record(device(pcrs), mapping(path="/lib/libc.so", sha256=digest, **IDS))
    again = opened(tmp_path, pcrs)
    assert again.holds_mapping("/lib/libc.so", digest)
    assert not again.holds_mapping("/lib/libc.so", bytes(32))


def test_only_the_newest_old_logs_are_kept(tmp_path: Path) -> None:
    pcrs = FakePcrs()
    for _ in range(20):
        opened(tmp_path, pcrs)
        pcrs.reset()
    newest = opened(tmp_path, pcrs)
    assert len(list(tmp_path.glob("firmware-events-*"))) == 17
    assert newest.path.exists()
