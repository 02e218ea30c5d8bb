# SPDX-License-Identifier: Apache-2.0
"""Durations, numbers, times, JSON objects and tables: the small parts that every command uses."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import jarvisctl
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st
from jarvis.capture.v1 import capture_pb2, fleet_pb2
from jarvisctl.cli import COMMANDS, app
from jarvisctl.errors import CtlError, ExitCode
from jarvisctl.format.objects import to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.terminal import render
from jarvisctl.format.units import age, interval, printable, scaled, span
from jarvisctl.options import make_selector, parse_duration, parse_labels, to_duration
from jarvisctl.status import failure_of
from rich.console import Console
from typer.testing import CliRunner

from tests.fakes.fleet_service import status


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("250ms", 0.25),
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
    ],
)
def test_a_duration_is_a_number_with_units_or_plain_seconds(text: str, seconds: float) -> None:
    assert parse_duration("--x", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 m", "5x", "1e3", "30s5", "nan", "inf", "5m "])
def test_what_is_no_duration_is_refused_with_option_value_and_forms(text: str) -> None:
    with pytest.raises(CtlError, match=re.escape(f"--idle is {text!r}: accepted are forms like 30s")) as caught:
        parse_duration("--idle", text)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_duration_that_protobuf_cannot_hold_is_refused() -> None:
    with pytest.raises(CtlError, match="accepted are 0 to 315,576,000,000 s"):
        parse_duration("--idle", "999999999999999")


def test_zero_stays_a_duration_that_is_set() -> None:
    spec = capture_pb2.CaptureSpec(idle_timeout=to_duration(0.0))
    assert spec.HasField("idle_timeout")


def test_a_label_given_twice_is_refused() -> None:
    with pytest.raises(CtlError, match="names 'role' twice, as 'web' and 'lab'"):
        parse_labels("--label", ["role=web", "role=lab"])


def test_ids_and_labels_are_joined_in_one_selector() -> None:
    selector = make_selector(["abcd", "efgh2"], "role=web", False, changes=True)
    assert list(selector.agent_ids) == ["abcd", "efgh2"]
    assert selector.label_selector == "role=web"


@given(st.floats(min_value=0, max_value=1e19))
def test_a_scaled_number_is_never_longer_than_six_characters_and_keeps_three_digits(value: float) -> None:
    text = scaled(value, "")
    match = re.fullmatch(r"(\d{1,3}(?:\.\d)?|1000|\d{4,5}\.\d)([kMGTPE]?)", text)
    assert match is not None, text
    shown = float(match[1]) * 1000.0 ** " kMGTPE".index(match[2] or " ")
    assert shown == pytest.approx(value, rel=0.05, abs=0.51)


def test_numbers_at_the_edge_of_a_prefix_take_the_next_one() -> None:
    assert [scaled(value, "B") for value in (0, 999, 1000, 999_949, 999_950, 1_500_000)] == [
        "0B",
        "999B",
        "1.0kB",
        "999.9kB",
        "1.0MB",
        "1.5MB",
    ]


def test_lengths_of_time_are_short() -> None:
    assert [span(value) for value in (0.014, 42, 303, 7_800, 273_600)] == ["0.01s", "42.0s", "5m03s", "2h10m", "3d04h"]


def test_differences_of_clocks_keep_their_sign_and_few_digits() -> None:
    shown = {0: "0ns", -999: "-999ns", 1000: "1.0us", 999_949: "999.9us", 999_951: "1.0ms", -37_000_000_000: "-37.0s"}
    assert {value: interval(value) for value in shown} == shown


def test_ages_tell_past_from_future_and_unset_from_both() -> None:
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    base = int(now.timestamp())
    assert age(Timestamp(seconds=base - 303), now) == "5m03s ago"
    assert age(Timestamp(seconds=base + 598), now) == "in 9m58s"
    assert age(Timestamp(), now) == "-"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", printable(text))


def test_objects_hold_every_field_with_enums_times_durations_and_bytes_as_text() -> None:
    capture = capture_pb2.CaptureStatus(state=capture_pb2.CAPTURE_STATE_PAUSED)
    capture.spec.timestamp_source = capture_pb2.TIMESTAMP_SOURCE_HARDWARE
    capture.spec.idle_timeout.FromMilliseconds(1500)
    capture.start_time.FromNanoseconds(1_795_348_801_123_456_789)
    value = to_object(capture)
    assert value["state"] == "paused"
    assert value["start_time"] == "2026-11-22T12:00:01.123456789Z"
    assert value["uptime_s"] is None
    assert value["metrics"] is None
    assert value["spec"]["timestamp_source"] == "hardware"
    assert value["spec"]["idle_timeout_s"] == 1.5
    assert value["spec"]["files"] == []
    assert to_object(fleet_pb2.Agent(firmware_sha256=b"\x01\xff"))["firmware_sha256"] == "01ff"
    assert to_object(capture_pb2.CaptureStatus(state=99))["state"] == "99"  # type: ignore[arg-type]


def test_a_status_becomes_one_sentence_that_says_nothing_twice() -> None:
    said = status(code_pb2.INVALID_ARGUMENT, "spec.snaplen: 5 is below 64", "INVALID_ARGUMENT", {"spec.snaplen": "5 is below 64"})
    failure = failure_of(said)
    assert failure is not None
    assert failure.sentence == "spec.snaplen: 5 is below 64 [INVALID_ARGUMENT]"
    assert failure_of(status(code_pb2.OK, "")) is None


def test_a_table_on_a_terminal_is_coloured_and_cuts_ids_but_never_takes_text_for_markup() -> None:
    table = Table(columns=[Column(title="AGENT", cut=8), Column(title="STATE", states=True), Column(title="REASON", fold=True)])
    table.add("a" * 32, "quarantined", "[red]PCR[/red] differs")
    console = Console(force_terminal=True, color_system="standard", width=80, record=True, no_color=False)
    with console.capture() as capture:
        console.print(render(table))
    shown = capture.get()
    assert "\x1b[1;31mquarantined" in shown
    assert "a" * 9 not in shown
    assert "[red]PCR[/red] differs" in shown


def test_a_table_refuses_a_row_of_another_width() -> None:
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table(columns=[Column(title="A")]).add("1", "2")


def test_help_names_every_command_and_every_exit_code() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for name in COMMANDS:
        assert f" {name} " in shown
    for code in ExitCode:
        assert re.search(rf"^\s*{int(code)} \S", shown, re.MULTILINE), code
    assert "--install-completion" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"jarvisctl {name}" in result.stdout or f"{name} [OPTIONS]" in result.stdout


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant() -> None:
    result = CliRunner().invoke(app, ["agnets"])
    assert result.exit_code == 2
    assert "Did you mean 'agents'?" in result.stderr


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert jarvisctl.__version__ == project["project"]["version"]
    assert CliRunner().invoke(app, ["version"]).stdout == f"jarvisctl {jarvisctl.__version__}\n"
