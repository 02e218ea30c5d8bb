# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl audit export`: what is written, and going on where an earlier export ended."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from jarvis_trust.audit import entry_hash
from jarvis_trust.audit_syslog import syslog_message

from tests.unit.jarvisctl.conftest import FLEET, Controller, start_ctl


def fill(controller: Controller, count: int = 5) -> None:
    for index in range(count):
        controller.service.add_event("agent.state", "a" * 32, json.dumps({"n": index}))


async def test_json_lines_hold_all_that_an_entrys_hash_covers(controller: Controller) -> None:
    fill(controller)
    result = await controller.ctl("audit", "export")
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        fields = [line[name] for name in ("sequence", "time_unix_ns", "principal", "action", "agent_id", "detail", "request_id")]
        assert entry_hash(bytes.fromhex(line["previous_hash"]), *fields).hex() == line["hash"]


async def test_syslog_messages_are_one_a_line(controller: Controller) -> None:
    fill(controller, 2)
    result = await controller.ctl("audit", "export", "--format", "rfc5424", "--sd-id", "audit@1", "--after", "1")
    assert result.code == 0, result.err
    expected = syslog_message(controller.service.events[1], hostname=f"controller.{FLEET}", sd_id="audit@1")
    assert result.out.encode() == expected + b"\n"


async def test_a_file_is_gone_on_with_and_a_line_cut_in_the_middle_is_made_whole(controller: Controller, tmp_path: Path) -> None:
    for form in ("jsonl", "rfc5424"):
        file = tmp_path / form
        controller.service.events.clear()
        fill(controller, 3)
        options = ("audit", "export", "--format", form, "--output", str(file))
        assert (await controller.ctl(*options)).code == 0
        whole = file.read_bytes()
        file.write_bytes(whole[:-10])
        fill(controller, 2)
        assert (await controller.ctl(*options)).code == 0
        assert file.read_bytes().startswith(whole)
        assert len(file.read_bytes().splitlines()) == 5


async def test_a_chain_that_was_rewritten_is_not_gone_on_with(controller: Controller, tmp_path: Path) -> None:
    fill(controller, 3)
    file = tmp_path / "audit.jsonl"
    options = ("--output", "json", "audit", "export", "--output", str(file))
    assert (await controller.ctl(*options)).code == 0
    before = file.read_bytes()
    controller.service.events.clear()
    for _ in range(5):
        controller.service.add_event("agent.forged")
    result = await controller.ctl(*options)
    assert (result.code, json.loads(result.err)["error"]["reason"]) == (4, "AUDIT_CHAIN_BROKEN")
    assert file.read_bytes() == before


async def test_another_file_is_left_alone(controller: Controller, tmp_path: Path) -> None:
    fill(controller, 1)
    file = tmp_path / "notes.txt"
    file.write_bytes(b"my notes\n")
    result = await controller.ctl("audit", "export", "--output", str(file))
    assert result.code == 2
    assert "its last line is no exported audit entry" in result.err
    assert file.read_bytes() == b"my notes\n"


async def test_following_goes_on_with_what_is_added_also_after_the_controller_was_away(controller: Controller) -> None:
    fill(controller, 2)
    process = await start_ctl("audit", "export", "--follow", config=controller.config)
    assert process.stdout is not None

    async def sequence() -> int:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        return int(json.loads(line)["sequence"])

    assert [await sequence(), await sequence()] == [1, 2]
    fill(controller, 1)
    assert await sequence() == 3
    await controller.restart()
    fill(controller, 1)
    assert await sequence() == 4
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 130
