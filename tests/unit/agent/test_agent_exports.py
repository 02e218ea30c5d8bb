# SPDX-License-Identifier: Apache-2.0
"""The agent's exports: enabled, held against leases, disabled, brought back; with lines that only note what they are told."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_agent.errors import RequestError
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.gate import ExportGate
from jarvis_agent.export.manager import MAX_EXPORTS, ExportManager
from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.store import MAX_PAYLOAD_BYTES, ExportStore, StoredExport
from jarvis_native.errors import FilterError
from jarvis_native.loader import Firmware

from tests.unit.agent.export_commands import (
    ADA,
    AGENT_ID,
    PUBLIC_PEM,
    FakeCaptures,
    FakeJournal,
    FakeLease,
    FakeLine,
    FakeRun,
    command,
    spec,
)

ENABLED, DISABLED = event_pb2.EVENT_TYPE_EXPORT_ENABLED, event_pb2.EVENT_TYPE_EXPORT_DISABLED
NOT_ALLOWED = event_pb2.EVENT_TYPE_EXPORT_NOT_ALLOWED
ACTIVE, PAUSED, FAILED = pb.EXPORT_STATE_ACTIVE, pb.EXPORT_STATE_PAUSED, pb.EXPORT_STATE_FAILED
DENIED, ENDING = pb.EXPORT_STATE_NOT_ALLOWED, pb.EXPORT_STATE_ENDING


class Bench:
    """One agent process as far as exports go; another on the same directory is the next process."""

    def __init__(self, firmware: Firmware, directory: Path) -> None:
        self.lease, self.journal, self.captures = FakeLease(), FakeJournal(), FakeCaptures()
        self.lines: list[FakeLine] = []
        self.asked: list[bool] = []
        self.cannot: ExportError | None = None
        self.store = ExportStore(directory / "exports", agent_id=AGENT_ID, command_public_pem=PUBLIC_PEM)
        self.manager = ExportManager(
            firmware=firmware,
            captures=self.captures,  # type: ignore[arg-type]
            store=self.store,
            journal=self.journal,  # type: ignore[arg-type]
            lease=self.lease.terms,
            current_lease=self.lease.current,
            make_lines=self.make_lines,
        )

    def make_lines(self, plan: ExportPlan, gate: ExportGate, *, is_new: bool) -> list[Any]:
        self.asked.append(is_new)
        if self.cannot is not None:
            raise self.cannot
        made = [FakeLine(gate.is_open) for _ in plan.collectors or "f"]
        self.lines += made
        return list(made)

    def give_lease(self, *collectors: str) -> None:
        self.lease.sequence += 1
        self.lease.in_force, self.lease.collectors = True, collectors
        self.manager.lease_changed(self.lease.current())

    def states(self) -> list[int]:
        return [status.state for status in self.manager.list()]


@pytest.fixture
def bench(firmware: Firmware, tmp_path: Path) -> Bench:
    return Bench(firmware, tmp_path)


async def reason_of(call: Awaitable[object]) -> str:
    with pytest.raises(ExportError) as refused:
        await call
    return refused.value.reason


async def test_an_enabled_export_runs_is_listed_and_is_told(bench: Bench) -> None:
    status = await bench.manager.enable(command(at=5 * 10**9))
    assert (status.state, status.principal, status.enable_time.seconds) == (ACTIVE, ADA, 5)
    assert (status.spec, [collector.flows for collector in status.collectors]) == (spec(), [7])
    assert bench.manager.list() == [status]
    assert (bench.lines[0].started, bench.lines[0].may_leave(), bench.journal.kinds()) == (True, True, [ENABLED])


async def test_the_same_specification_again_changes_nothing_and_another_is_refused(bench: Bench) -> None:
    first = await bench.manager.enable(command())
    defaults_spelled_out = spec(export_interval_sec=1, collectors=[pb.ExportCollector(host="192.0.2.1", port=4739)])
    assert await bench.manager.enable(command(defaults_spelled_out, at=9)) == first
    assert len(bench.lines) == 1
    assert await reason_of(bench.manager.enable(command(spec(biflow=True)))) == "EXPORT_EXISTS"


async def test_there_are_sixteen_exports_at_most(bench: Bench) -> None:
    for number in range(MAX_EXPORTS):
        await bench.manager.enable(command(spec(f"e{number}")))
    assert await reason_of(bench.manager.enable(command(spec("more")))) == "EXPORT_LIMIT"
    await bench.manager.disable("e3", discard=False)
    await bench.manager.enable(command(spec("more")))


async def test_no_more_than_sixteen_come_back_the_oldest_first(bench: Bench) -> None:
    for number in range(MAX_EXPORTS + 2):
        bench.store.keep(f"e{number}", command(spec(f"e{number}"), at=number))
    await bench.manager.load()
    assert {status.spec.export_id for status in bench.manager.list()} == {f"e{number}" for number in range(MAX_EXPORTS)}
    assert sum("is one more than" in str(told) for told in bench.journal.told) == 2


async def test_what_the_lease_does_not_list_is_refused(bench: Bench) -> None:
    elsewhere = spec(collectors=[pb.ExportCollector(host="192.0.2.1"), pb.ExportCollector(host="203.0.113.1")])
    assert await reason_of(bench.manager.enable(command(elsewhere))) == "EXPORT_NOT_ALLOWED"
    files = spec(transport=pb.EXPORT_TRANSPORT_FILE, collectors=[])
    assert await reason_of(bench.manager.enable(command(files))) == "EXPORT_NOT_ALLOWED"
    named = spec(collectors=[pb.ExportCollector(host="siem.example")])
    bench.give_lease("192.0.2.0/24")
    assert await reason_of(bench.manager.enable(command(named))) == "EXPORT_NOT_ALLOWED"
    bench.give_lease("*.example:4739", "file")
    assert (await bench.manager.enable(command(named))).state == ACTIVE
    assert (await bench.manager.enable(command(spec("f", transport=pb.EXPORT_TRANSPORT_FILE, collectors=[])))).state == ACTIVE


async def test_what_could_not_work_is_refused_and_nothing_is_left_of_it(bench: Bench) -> None:
    bench.cannot = ExportError("EXPORT_UNRESOLVED", "siem.example does not resolve", is_permanent=True)
    assert await reason_of(bench.manager.enable(command())) == "EXPORT_UNRESOLVED"
    with pytest.raises(FilterError):
        await bench.manager.enable(command(spec(filter="no such filter")))
    with pytest.raises(RequestError):
        await bench.manager.enable(command(spec("-")))
    with pytest.raises(RequestError, match=str(MAX_PAYLOAD_BYTES)):
        await bench.manager.enable(StoredExport(payload=bytes(40_000), authorization=b"", session_id=b"", enable_time_ns=0))
    assert (bench.manager.list(), bench.store.load(), bench.journal.told) == ([], ([], []), [])


async def test_what_cannot_be_kept_does_not_run(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("a file in the directory's place")
    assert await reason_of(bench.manager.enable(command())) == "EXPORT_SPOOL"
    assert bench.manager.list() == []
    assert bench.lines[0].stopped == [{"drain_s": 0.0, "discard": True, "keep": False}]
    assert not bench.lines[0].started


async def test_a_lease_that_no_longer_lists_it_stops_it_at_once_until_one_does(bench: Bench) -> None:
    await bench.manager.enable(command())
    line = bench.lines[0]
    bench.give_lease("198.51.100.0/24")
    assert (bench.states(), line.may_leave()) == ([DENIED], False)
    assert "198.51.100.0/24" in bench.manager.list()[0].message
    bench.give_lease("198.51.100.0/24")
    assert bench.journal.kinds() == [ENABLED, NOT_ALLOWED]
    bench.give_lease("192.0.2.1:4739")
    assert (bench.states(), line.may_leave()) == ([ACTIVE], True)
    assert bench.journal.kinds() == [ENABLED, NOT_ALLOWED, ENABLED]
    assert line.stopped == []


async def test_nothing_leaves_while_no_lease_is_in_force_and_the_next_one_lets_it_go_on(bench: Bench) -> None:
    await bench.manager.enable(command())
    bench.lease.in_force = False
    assert (bench.states(), bench.lines[0].may_leave()) == ([PAUSED], False)
    bench.give_lease("192.0.2.0/24")
    assert (bench.states(), bench.lines[0].may_leave()) == ([ACTIVE], True)
    bench.lease.in_force = False
    bench.manager.lease_changed(None)
    assert (bench.states(), bench.lines[0].may_leave()) == ([PAUSED], False)
    assert bench.journal.kinds() == [ENABLED]


async def test_a_lease_that_nobody_has_judged_yet_admits_nothing(bench: Bench) -> None:
    await bench.manager.enable(command())
    bench.lease.sequence += 1  # the core has it, the event loop not yet
    assert not bench.lines[0].may_leave()


async def test_a_disabled_export_is_forgotten_and_says_how_it_ended(bench: Bench) -> None:
    await bench.manager.enable(command())
    status = await bench.manager.disable("siem", discard=True)
    assert (status.state, status.collectors[0].flows, bench.manager.list(), bench.store.load()) == (ENDING, 7, [], ([], []))
    assert bench.lines[0].stopped == [{"drain_s": 5.0, "discard": True, "keep": False}]
    assert bench.journal.kinds() == [ENABLED, DISABLED]
    assert await reason_of(bench.manager.disable("siem", discard=False)) == "EXPORT_NOT_FOUND"
    with pytest.raises(RequestError):
        await bench.manager.disable("../siem", discard=False)


async def test_a_line_that_does_not_end_in_order_holds_nothing_up(bench: Bench) -> None:
    two = [pb.ExportCollector(host="192.0.2.1"), pb.ExportCollector(host="192.0.2.2")]
    await bench.manager.enable(command(spec(collectors=two)))
    bench.lines[0].fails_to_stop = True
    await bench.manager.disable("siem", discard=False)
    assert [len(line.stopped) for line in bench.lines] == [1, 1]
    assert bench.manager.list() == []


async def test_every_capture_is_attached_before_it_starts_and_a_running_one_from_now_on(bench: Bench) -> None:
    await bench.manager.enable(command())
    run = FakeRun()
    bench.captures.begin(run)
    assert bench.lines[0].attached == [(run, True)]
    await bench.manager.enable(command(spec("late")))
    assert bench.lines[1].attached == [(run, False)]
    for over in (FakeRun(is_active=False), FakeRun(is_abandoned=True)):
        bench.captures.begin(over)
        await bench.manager.enable(command(spec(f"after-{over.is_active}".lower())))
        assert bench.lines[-1].attached == []


async def test_after_a_restart_it_waits_for_a_lease_that_allows_it(bench: Bench, firmware: Firmware, tmp_path: Path) -> None:
    await bench.manager.enable(command())
    await bench.manager.shut_down()
    assert bench.lines[0].stopped == [{"drain_s": 5.0, "discard": False, "keep": True}]
    after = Bench(firmware, tmp_path)
    after.lease.in_force = False
    await after.manager.load()
    assert (after.states(), after.lines[0].started, after.lines[0].may_leave()) == ([PAUSED], True, False)
    assert (bench.asked, after.asked) == ([True], [False])
    after.give_lease("198.51.100.0/24")
    assert (after.states(), after.lines[0].may_leave(), after.journal.kinds()) == ([DENIED], False, [NOT_ALLOWED])
    after.give_lease("192.0.2.0/24")
    assert (after.states(), after.lines[0].may_leave(), after.journal.kinds()) == ([ACTIVE], True, [NOT_ALLOWED, ENABLED])
    assert after.manager.list()[0].principal == ADA


async def test_what_cannot_work_after_a_restart_is_listed_as_failed_and_can_be_enabled_again(
    bench: Bench, firmware: Firmware, tmp_path: Path
) -> None:
    await bench.manager.enable(command())
    after = Bench(firmware, tmp_path)
    after.cannot = ExportError("EXPORT_CERTIFICATE_EXPIRED", "our certificate has expired", is_permanent=True)
    await after.manager.load()
    (status,) = after.manager.list()
    assert (status.state, status.message, after.journal.kinds()) == (FAILED, "our certificate has expired", [DISABLED])
    after.cannot = None
    assert (await after.manager.enable(command(at=9))).state == ACTIVE
    assert len(after.manager.list()) == 1


async def test_an_edited_file_brings_nothing_back_and_is_told(bench: Bench, firmware: Firmware, tmp_path: Path) -> None:
    await bench.manager.enable(command())
    path = tmp_path / "exports" / "siem.json"
    path.write_bytes(path.read_bytes().replace(SESSION_HEX, b"00" * 16))
    after = Bench(firmware, tmp_path)
    await after.manager.load()
    ((kind, message),) = after.journal.told
    assert (after.manager.list(), kind) == ([], DISABLED)
    assert "not as the controller signed it" in message


SESSION_HEX = (b"s" * 16).hex().encode()


async def test_a_store_that_cannot_be_read_is_told_and_the_agent_goes_on(bench: Bench, tmp_path: Path) -> None:
    await bench.manager.enable(command())
    (tmp_path / "exports" / "siem.json").unlink()
    (tmp_path / "exports").rmdir()
    (tmp_path / "exports").symlink_to(tmp_path / "exports")  # a loop
    bench.journal.told.clear()
    await bench.manager.load()
    ((kind, message),) = bench.journal.told
    assert (kind, "cannot be read" in message) == (DISABLED, True)
