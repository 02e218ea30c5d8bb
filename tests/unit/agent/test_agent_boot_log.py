# SPDX-License-Identifier: Apache-2.0
"""The boot log's file: whole, bounded, and empty where the host has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from jarvis_agent.boot_log import BootLogFile
from jarvis_agent.errors import EventLogError
from jarvis_trust.boot_log import MAX_BOOT_LOG_BYTES


def test_the_log_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(range(256)))
    assert BootLogFile(path=tmp_path / "log").read() == bytes(range(256))


def test_a_host_without_a_log_shows_an_empty_one(tmp_path: Path) -> None:
    assert BootLogFile(path=tmp_path / "log").read() == b""


def test_a_log_that_no_verifier_accepts_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(MAX_BOOT_LOG_BYTES + 1))
    with pytest.raises(EventLogError, match="more than 2097152 bytes"):
        BootLogFile(path=tmp_path / "log").read()


def test_a_log_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match="Is a directory"):
        BootLogFile(path=tmp_path).read()
