# SPDX-License-Identifier: Apache-2.0
"""Exports across restarts: only what the controller signed comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis_agent.export.store import ENABLE_EXPORT, ExportStore
from jarvis_trust.commands import AGENT_SERVICE, generate_command_key

from tests.unit.agent.export_commands import ADA, AGENT_ID, PUBLIC_PEM, command, spec


def store(directory: Path, **changes: Any) -> ExportStore:
    return ExportStore(directory / "exports", **({"agent_id": AGENT_ID, "command_public_pem": PUBLIC_PEM} | changes))


def test_what_was_kept_comes_back_the_oldest_first(tmp_path: Path) -> None:
    late, early = command(spec("a"), at=2), command(spec("b"), at=1)
    store(tmp_path).keep("a", late)
    store(tmp_path).keep("b", early)
    assert store(tmp_path).load() == ([early, late], [])
    assert early.principal == ADA


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store(tmp_path).keep("siem", command())
    assert (tmp_path / "exports").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "exports" / "siem.json").stat().st_mode & 0o777 == 0o600


def test_without_a_directory_there_is_nothing_and_none_is_made(tmp_path: Path) -> None:
    assert store(tmp_path).load() == ([], [])
    store(tmp_path).remove("siem")
    assert not (tmp_path / "exports").exists()


def test_a_removed_export_does_not_come_back_and_a_kept_one_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    kept, again = command(at=1), command(at=2)
    store(tmp_path).keep("siem", kept)
    store(tmp_path).keep("siem", again)
    assert store(tmp_path).load() == ([again], [])
    store(tmp_path).remove("siem")
    assert store(tmp_path).load() == ([], [])


def edit(tmp_path: Path, **changes: Any) -> None:
    path = tmp_path / "exports" / "siem.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def payload_of(**changes: Any) -> str:
    return base64.b64encode(command(spec(**changes)).payload).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": payload_of(export_id="siem", filter="tcp")},
        {"authorization": base64.b64encode(command(agent_id="b" * 32).authorization).decode()},
        {"authorization": base64.b64encode(command(method=AGENT_SERVICE + "DisableExport").authorization).decode()},
        {"authorization": ""},
        {"session_id": "00" * 16},
        {"session_id": "xyz"},
        {"payload": "not base64!"},
        {"payload": 5},
        {"enable_time_ns": "now"},
        {"enable_time_ns": -1},
    ],
    ids=["payload", "agent", "method", "unsigned", "session", "hex", "base64", "type", "time", "past"],
)
def test_an_edited_file_is_refused_once_and_set_aside(tmp_path: Path, changes: dict[str, Any]) -> None:
    store(tmp_path).keep("siem", command())
    edit(tmp_path, **changes)
    kept, refused = store(tmp_path).load()
    assert (kept, [(one.export_id, bool(one.message)) for one in refused]) == ([], [("siem", True)])
    assert store(tmp_path).load() == ([], [])
    assert (tmp_path / "exports" / "siem.refused").exists()


def test_a_command_of_another_export_or_fleet_or_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keeper = store(tmp_path)
    keeper.keep("other", command())
    keeper.keep("siem", command())
    (tmp_path / "exports" / "siem.json").chmod(0o644)
    kept, refused = keeper.load()
    assert (kept, sorted(one.export_id for one in refused)) == ([], ["other", "siem"])
    keeper.keep("siem", command())
    _, foreign = generate_command_key()
    kept, refused = store(tmp_path, command_public_pem=foreign).load()
    assert (kept, [one.export_id for one in refused]) == ([], ["siem"])


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0), value=st.integers(0, 255))
def test_no_changed_byte_brings_back_anything_else(tmp_path: Path, place: int, value: int) -> None:
    kept = command()
    keeper = store(tmp_path)
    keeper.keep("siem", kept)
    path = tmp_path / "exports" / "siem.json"
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(bytes(data))
    for found in keeper.load()[0]:
        assert (found.payload, found.authorization, found.session_id) == (kept.payload, kept.authorization, kept.session_id)


def test_what_is_kept_is_the_method_that_enables() -> None:
    assert ENABLE_EXPORT == "/jarvis.capture.v1.AgentService/EnableExport"
