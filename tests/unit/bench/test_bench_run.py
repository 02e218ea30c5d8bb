# SPDX-License-Identifier: Apache-2.0
"""The command line of `make bench`: what it refuses, how tables come out."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from bench import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--capture", "own.pcap"], "--capture and --truth go together"),
        (["--capture", "own.pcap", "--truth", '{"packets": 5}'], "accepted is an object with packets and biflows"),
        (["--capture", "own.pcap", "--truth", "[5]"], "accepted is an object with packets and biflows"),
        (["--rounds", "0"], "--rounds is 0: accepted are 1 and up"),
        (["--only", "everything"], "invalid choice: 'everything'"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_runs(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.run", *arguments])
    with pytest.raises(SystemExit) as refused:
        run.main()
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_markdown_tables_are_those_of_the_documentation() -> None:
    table = Table("meter")
    table.add_column("packets", justify="right")
    table.add_row("nfpcapd", "1,000")
    text = io.StringIO()
    run.MarkdownConsole(width=100, file=text).print(table)
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    assert lines[0] == "| meter   | packets |"
    assert set(lines[1]) <= set("|-: ")
    assert lines[2] == "| nfpcapd |   1,000 |"
