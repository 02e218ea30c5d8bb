# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl releases`: stages as operators write them, files in their order, outcomes as sentences."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st
from jarvis.capture.v1 import release_pb2 as pb
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from jarvis_trust.status import error_status
from jarvisctl.commands.release_roll_out import _line, parse_stages
from jarvisctl.commands.releases import _files
from jarvisctl.errors import CtlError


def test_stages_are_numbers_of_agents_and_percentages() -> None:
    one, tenth, everyone = parse_stages("1, 10%,100%")
    assert (one.agents, tenth.percent, everyone.percent) == (1, 10, 100)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1,,2", "1.5", "-1", "ten", "10 %x", "\u0661", "999999999"])
def test_what_is_no_stage_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(CtlError, match="accepted are numbers from 1, and 1% to 100%"):
        parse_stages(text)


@given(st.text(max_size=20))
def test_whatever_is_written_is_stages_or_a_sentence(text: str) -> None:
    try:
        stages = parse_stages(text)
    except CtlError as error:
        assert error.message.startswith("--stages is ")  # noqa: PT017 - either outcome is right
        return
    assert all(stage.agents >= 1 or 1 <= stage.percent <= 100 for stage in stages)


def test_the_files_of_a_release_are_handed_over_manifest_first_signature_second(tmp_path: Path) -> None:
    objects = {"libjarvis_capture.so": b"the library", "a-module.so": b"a module"}
    manifest = Manifest(
        name="jarvis-capture",
        version="1.2.3",
        security_version=1,
        architecture="x86_64",
        objects={name: hashlib.sha256(data).hexdigest() for name, data in objects.items()},
        created="2026-11-22T10:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )
    (tmp_path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    (tmp_path / SIGNATURE_FILE).write_bytes(b"signature")
    with pytest.raises(CtlError, match=r"a-module\.so cannot be read"):
        _files(tmp_path)
    for name, data in objects.items():
        (tmp_path / name).write_bytes(data)
    assert list(_files(tmp_path)) == [MANIFEST_FILE, SIGNATURE_FILE, "a-module.so", "libjarvis_capture.so"]
    (tmp_path / MANIFEST_FILE).write_bytes(b"{}")
    with pytest.raises(CtlError, match="FIRMWARE_MANIFEST_INVALID"):
        _files(tmp_path)


def test_an_agents_outcome_is_a_line_with_its_reason_and_its_captures_gap() -> None:
    status = error_status(code_pb2.ABORTED, "RELEASE_TRIAL_CRASHED", "it went back: it ended\n2 times")
    agent = pb.RollOutAgent(agent_id="abcd", result=pb.ROLL_OUT_RESULT_ROLLED_BACK, status=status)
    agent.capture.SetInParent()
    agent.capture_gap.FromMilliseconds(2500)
    line = _line(pb.RollOutReleaseResponse(agent=agent))
    assert line == (
        "abcd  rolled back  it went back: it ended\\x0a2 times [RELEASE_TRIAL_CRASHED]  capture goes on after at most 2.50s"
    )


def test_the_end_counts_what_there_is() -> None:
    end = pb.RollOutReleaseResponse(ended=pb.RollOutEnded(updated=1200, rolled_back=1, untouched=3, stopped=True))
    assert _line(end) == "stopped: 1,200 updated, 1 rolled back, 3 untouched"
    assert _line(pb.RollOutReleaseResponse(ended=pb.RollOutEnded())) == "done: nothing to do"
