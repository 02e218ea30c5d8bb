# SPDX-License-Identifier: Apache-2.0
"""IMA's list on the host: what is new of it, bounded, and empty where the kernel has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from jarvis_agent.errors import EventLogError
from jarvis_agent.ima_log import ImaLogFile, ImaPart

from testbed.ima import Measured, ima_log

FILES = [Measured(path=f"/file/{number}") for number in range(5)]


def test_only_what_the_controller_does_not_know_is_read(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(ima_log(FILES))
    log = ImaLogFile(path=tmp_path / "list")
    assert log.read(0) == ImaPart(data=ima_log(FILES), first=0)
    assert log.read(3) == ImaPart(data=ima_log(FILES[3:]), first=3)
    assert log.read(5) == ImaPart(data=b"", first=5)


def test_a_list_with_fewer_entries_than_are_known_is_sent_whole(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(ima_log(FILES))
    assert ImaLogFile(path=tmp_path / "list").read(6) == ImaPart(data=ima_log(FILES), first=0)
    (tmp_path / "list").write_bytes(b"\xff" * 64)
    assert ImaLogFile(path=tmp_path / "list").read(6) == ImaPart(data=b"\xff" * 64, first=0)


def test_a_kernel_without_ima_shows_an_empty_list(tmp_path: Path) -> None:
    assert ImaLogFile(path=tmp_path / "list").read(3) == ImaPart(data=b"", first=0)


def test_a_list_that_is_too_long_for_one_attestation_says_so_and_its_rest_is_not(tmp_path: Path) -> None:
    files = [Measured(path=f"/{number}/" + "x" * 4000) for number in range(1700)]
    (tmp_path / "list").write_bytes(ima_log(files))
    log = ImaLogFile(path=tmp_path / "list")
    with pytest.raises(EventLogError, match="measure less") as refused:
        log.read(0)
    assert refused.value.reason == "IMA_LOG_TOO_LONG"
    assert log.read(1600).first == 1600


def test_a_list_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match="Is a directory"):
        ImaLogFile(path=tmp_path).read(0)
