# SPDX-License-Identifier: Apache-2.0
"""Exports of an agent: the real core under leases, captures from files, sockets to collectors on loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1 import export_pb2 as pb
from jarvis.capture.v1.capture_pb2 import (
    FLOW_STATISTICS_INTERVALS,
    FLOW_STATISTICS_SIZES,
    FLOW_STATISTICS_TCP,
    CaptureSpec,
)
from jarvis_agent.captures import CaptureManager
from jarvis_agent.export import ways
from jarvis_agent.export.assembly import make_lines
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.line import LineParts, drop_spools
from jarvis_agent.export.manager import ExportManager
from jarvis_agent.export.store import ExportStore
from jarvis_agent.export.ways import ExportWays
from jarvis_agent.lease import ActiveLease
from jarvis_native.loader import Firmware

from testbed.collectors import DatagramSink, StreamSink, missing
from testbed.dissectors import dissect
from testbed.dissectors import write_capture as write_datagrams
from tests.commander import Commander
from tests.unit.agent.export_commands import AGENT_ID, PUBLIC_PEM, FakeJournal, command, spec

LOCAL = "127.0.0.1"
FLOWS = 3000


def write_capture(path: Path, flows: int = FLOWS) -> None:
    """UDP flows of one packet of 60 bytes each, all different."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number in range(flows):
            payload = bytes(18)
            udp = struct.pack(">HHHH", 1024 + number, 53, 8 + len(payload), 0) + payload
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
            frame = b"\2" * 6 + b"\4" * 6 + b"\x08\x00" + ip + udp
            file.write(struct.pack("<IIII", 1_700_000_000, number % 1_000_000, len(frame), len(frame)) + frame)


def messages(data: bytes) -> list[bytes]:
    """IPFIX messages of a stream."""
    found = []
    while data:
        (length,) = struct.unpack_from(">H", data, 2)
        found.append(data[:length])
        data = data[length:]
    return found


def records_by_sequence(messages_: list[bytes]) -> int:
    """Data records, those of options too: what IPFIX's sequence numbers count, up to the last message's own."""
    return max((int(struct.unpack_from(">I", message, 8)[0]) for message in messages_), default=0)


class Process:
    """One agent process as far as captures and exports go."""

    def __init__(self, firmware: Firmware, directory: Path, **parts: Any) -> None:
        self.commander = Commander(firmware)
        self.journal = FakeJournal()
        self.entries: tuple[str, ...] = ("127.0.0.0/8", "file")
        self.directory = directory
        self.captures = CaptureManager(
            firmware=firmware,
            replay_directory=directory,
            worker_cpus=(),
            dpdk_eal_args=(),
            flow_log_records=65_536,
            journal=self.journal,  # type: ignore[arg-type]
            authority=self.commander.authority,
        )
        settings: dict[str, Any] = {"spool_memory_bytes": 8 << 20, "spool_disk_bytes": 64 << 20}
        self.parts = LineParts(
            firmware=firmware,
            ways=ExportWays(firmware=firmware, tls=None, directory=directory / "files"),
            journal=self.journal,  # type: ignore[arg-type]
            system_init_ns=time.time_ns(),
            spool_directory=directory / "spool",
            **(settings | parts),
        )
        self.exports = ExportManager(
            firmware=firmware,
            captures=self.captures,
            store=ExportStore(directory / "exports", agent_id=AGENT_ID, command_public_pem=PUBLIC_PEM),
            journal=self.journal,  # type: ignore[arg-type]
            lease=self.commander.authority.lease,
            current_lease=self.current,
            make_lines=partial(make_lines, self.parts, lambda _plan: None),
            drop_spools=partial(drop_spools, directory / "spool"),
        )

    def current(self) -> ActiveLease | None:
        terms = self.commander.authority.lease()
        if not terms.in_force:
            return None
        return ActiveLease(
            sequence=terms.sequence, methods=frozenset(), quoted_ns=terms.quoted_ns, end_ns=terms.end_ns, nonce=b"",
            export_collectors=self.entries,
        )  # fmt: skip

    def lease(self, **changes: Any) -> None:
        """The next lease."""
        self.commander.give(**changes)
        self.exports.lease_changed(self.current())

    async def replay(self, name: str, **changes: Any) -> None:
        """A capture of a file, to its end."""
        capture = CaptureSpec(files=[name], **changes)
        await self.captures.start(capture, self.commander.order(capture))
        run = self.captures.require_run()
        await until(lambda: not run.is_active)

    def collector(self) -> pb.CollectorStatus:
        """The only export's only collector."""
        (export,) = self.exports.list()
        (collector,) = export.collectors
        return collector

    async def end(self) -> None:
        await self.captures.shut_down()
        await self.exports.shut_down()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def to(port: int, export_id: str = "siem", **changes: Any) -> pb.ExportSpec:
    return spec(export_id, collectors=[pb.ExportCollector(host=LOCAL, port=port)], **changes)


@pytest.fixture
async def process(firmware: Firmware, tmp_path: Path) -> AsyncIterator[Process]:
    write_capture(tmp_path / "a.pcap")
    made = Process(firmware, tmp_path)
    yield made
    await made.end()


async def test_every_record_of_a_capture_reaches_its_collector_over_udp(process: Process) -> None:
    process.lease()
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == FLOWS)
        status = process.collector()
        assert (status.state, status.dropped_flows, status.spooled_flows) == (pb.COLLECTOR_STATE_CONNECTED, 0, 0)
        assert (status.flow_packets, status.address, status.connects) == (FLOWS, f"{LOCAL}:{sink.port}", 1)
        assert records_by_sequence(sink.datagrams()) >= FLOWS - 100


async def test_a_tcp_collector_gets_the_templates_first_and_then_every_record(process: Process) -> None:
    process.lease()
    with StreamSink() as sink:
        await process.exports.enable(command(to(sink.port, transport=pb.EXPORT_TRANSPORT_TCP)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == FLOWS)
        await process.exports.disable("siem", discard=False)
        (stream,) = sink.streams()
    first = messages(stream)[0]
    assert struct.unpack_from(">HH", first, 16)[0] in {2, 3}


async def test_nothing_leaves_while_no_lease_is_in_force_and_all_of_it_afterwards(process: Process) -> None:
    process.lease()
    nonce = process.commander.challenge()
    process.lease(nonce=nonce)
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port)))
        await until(lambda: process.collector().state == pb.COLLECTOR_STATE_CONNECTED)
        process.lease(nonce=nonce, duration_ns=1)  # the controller took the trust away
        await until(lambda: process.collector().state == pb.COLLECTOR_STATE_IDLE)
        (export,) = process.exports.list()
        assert export.state == pb.EXPORT_STATE_PAUSED
        process.lease()
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == FLOWS)


async def test_a_collector_that_the_policy_strikes_gets_nothing_more_until_it_is_listed_again(process: Process) -> None:
    process.lease()
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port)))
        await until(lambda: process.collector().state == pb.COLLECTOR_STATE_CONNECTED)
        process.entries = ("192.0.2.0/24",)
        process.lease()
        await process.replay("a.pcap")
        await until(lambda: process.collector().spooled_flows == FLOWS)
        assert process.collector().flows == 0
        assert event_pb2.EVENT_TYPE_EXPORT_NOT_ALLOWED in process.journal.kinds()
        process.entries = (f"127.0.0.1:{sink.port}",)
        process.lease()
        await until(lambda: process.collector().flows == FLOWS)


async def test_a_collector_that_is_away_costs_nothing_and_gets_everything_when_it_returns(process: Process) -> None:
    process.lease()
    with socket.socket() as held:  # a port where nobody answers
        held.bind((LOCAL, 0))
        port = held.getsockname()[1]
        await process.exports.enable(command(to(port, transport=pb.EXPORT_TRANSPORT_TCP)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().spooled_flows == FLOWS)
        await until(lambda: event_pb2.EVENT_TYPE_COLLECTOR_LOST in process.journal.kinds())
        assert process.collector().state == pb.COLLECTOR_STATE_CONNECTING
        held.listen()
        connection, _ = held.accept()
        with connection:
            await until(lambda: process.collector().flows == FLOWS)
        assert process.journal.kinds()[-1] == event_pb2.EVENT_TYPE_COLLECTOR_RETURNED


async def test_after_a_restart_what_the_spool_held_is_delivered_under_the_next_lease(
    process: Process, firmware: Firmware, tmp_path: Path
) -> None:
    process.lease()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((LOCAL, 0))
        port = closed.getsockname()[1]
    tcp = to(port, transport=pb.EXPORT_TRANSPORT_TCP)
    await process.exports.enable(command(tcp))
    await process.replay("a.pcap")
    await until(lambda: process.collector().spooled_flows == FLOWS)
    await process.exports.shut_down(drain_s=0.0)
    after = Process(firmware, tmp_path)
    await after.exports.load()
    assert after.collector().spooled_flows == FLOWS
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOCAL, port))
        listening.listen()
        listening.settimeout(0.5)
        with pytest.raises(TimeoutError):  # no lease yet
            listening.accept()
        after.lease()
        listening.settimeout(10)
        connection, _ = listening.accept()
        with connection:
            await until(lambda: after.collector().flows == FLOWS)
            await after.end()
    assert after.exports.list()[0].collectors[0].dropped_flows == 0


async def test_what_finds_no_room_is_counted_and_told_exactly(firmware: Firmware, tmp_path: Path) -> None:
    write_capture(tmp_path / "a.pcap")
    process = Process(firmware, tmp_path, spool_memory_bytes=65_536, spool_disk_bytes=0)
    process.lease()
    with socket.socket() as held:
        held.bind((LOCAL, 0))
        asked = to(held.getsockname()[1], transport=pb.EXPORT_TRANSPORT_TCP)
        await process.exports.enable(command(asked))
        await process.replay("a.pcap")
        await until(lambda: process.collector().spooled_flows + process.collector().dropped_flows == FLOWS)
        assert process.collector().dropped_flows > 0
        status = await process.exports.disable("siem", discard=True)
    assert status.collectors[0].dropped_flows == FLOWS
    assert event_pb2.EVENT_TYPE_EXPORT_LOSS in process.journal.kinds()
    await process.end()


async def test_balanced_collectors_share_the_flows_and_mirrored_ones_get_each(process: Process) -> None:
    process.lease()
    with DatagramSink() as one, DatagramSink() as two:
        both = [pb.ExportCollector(host=LOCAL, port=sink.port) for sink in (one, two)]
        await process.exports.enable(command(spec("mirror", collectors=both)))
        shared = spec("share", collectors=both, distribution=pb.EXPORT_DISTRIBUTION_BALANCE)
        await process.exports.enable(command(shared))
        await process.replay("a.pcap")

        def flows(number: int) -> list[int]:
            return [collector.flows for collector in process.exports.list()[number].collectors]

        await until(lambda: flows(0) == [FLOWS, FLOWS] and sum(flows(1)) == FLOWS)
        assert min(flows(1)) > FLOWS / 4


@pytest.mark.skipif(bool(missing("tshark")), reason=missing("tshark"))
async def test_captures_with_other_statistics_have_their_templates_in_one_session(process: Process, tmp_path: Path) -> None:
    process.lease()
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port, profile=pb.EXPORT_PROFILE_FULL)))
        for statistics in ([], [FLOW_STATISTICS_SIZES], [FLOW_STATISTICS_TCP, FLOW_STATISTICS_SIZES, FLOW_STATISTICS_INTERVALS]):
            await process.replay("a.pcap", statistics=statistics)
        await until(lambda: process.collector().flows == 3 * FLOWS)
        write_datagrams(tmp_path / "sent.pcap", sink.datagrams(), port=sink.port)
    seen = dissect(tmp_path / "sent.pcap", port=sink.port)
    assert (seen.complaints, seen.records, seen.packets) == ([], 3 * FLOWS, 3 * FLOWS)


async def test_a_filtered_export_has_only_what_it_asked_for(process: Process) -> None:
    process.lease()
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port, filter="udp port 2000")))
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == 1)


async def test_files_get_every_record(process: Process) -> None:
    process.lease()
    (process.directory / "files").mkdir(mode=0o700)
    await process.exports.enable(command(spec(transport=pb.EXPORT_TRANSPORT_FILE, collectors=[])))
    await process.replay("a.pcap")
    await until(lambda: process.collector().flows == FLOWS)
    assert process.collector().collector.host.startswith(str(process.directory / "files"))
    await process.exports.disable("siem", discard=False)
    written = b"".join(path.read_bytes() for path in sorted((process.directory / "files").rglob("*")) if path.is_file())
    assert sum(1 for _ in messages(written)) > FLOWS * 20 // 16_384


async def test_sflow_has_samples_of_frames_and_is_never_on_disk(process: Process) -> None:
    process.lease()
    with DatagramSink() as sink:
        await process.exports.enable(command(to(sink.port, protocol=pb.EXPORT_PROTOCOL_SFLOW_V5, sampling_rate=1)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == FLOWS)
        assert {data[:4] for data in sink.datagrams()} == {b"\0\0\0\5"}
    assert not (process.directory / "spool").exists()


async def refusal(process: Process, asked: pb.ExportSpec) -> str:
    with pytest.raises(ExportError) as refused:
        await process.exports.enable(command(asked))
    assert process.exports.list() == []
    return refused.value.reason


async def test_what_cannot_work_on_this_host_is_refused_before_anything_starts(process: Process, tmp_path: Path) -> None:
    process.entries = ("*.invalid", "127.0.0.0/8", "file")
    process.lease()
    named = spec(collectors=[pb.ExportCollector(host="no-such-host.invalid")])
    assert await refusal(process, named) == "EXPORT_UNRESOLVED"
    assert await refusal(process, to(9, transport=pb.EXPORT_TRANSPORT_TLS)) == "EXPORT_TLS_CERTIFICATE"
    assert await refusal(process, spec(transport=pb.EXPORT_TRANSPORT_FILE, collectors=[])) == "EXPORT_FILE"
    (tmp_path / "spool").write_text("a file where a directory is to be")
    assert await refusal(process, to(9)) == "EXPORT_SPOOL"
    assert process.journal.told == []


async def test_nothing_of_an_ended_export_stays_on_disk_and_nothing_else_goes(process: Process, firmware: Firmware) -> None:
    process.lease()
    with socket.socket() as held:  # nobody answers there
        held.bind((LOCAL, 0))
        for export_id in ("one", "two", "three"):
            asked = to(held.getsockname()[1], export_id=export_id, transport=pb.EXPORT_TRANSPORT_TCP)
            await process.exports.enable(command(asked))
        await process.replay("a.pcap")
        await until(lambda: all(export.collectors[0].spooled_flows == FLOWS for export in process.exports.list()))
        await process.exports.shut_down(drain_s=0.0)
    spools = process.directory / "spool"
    (spools / "somebody_else").mkdir()
    (spools / "somebody_else" / "notes.txt").write_text("not a spool's file")
    (process.directory / "exports" / "two.json").unlink()
    after = Process(firmware, process.directory)
    await after.exports.load()
    names = {path.name.partition("_")[0] for path in spools.iterdir()}
    assert names == {"one", "three", "somebody"}
    await after.exports.disable("one", discard=True)
    assert {path.name.partition("_")[0] for path in spools.iterdir()} == {"three", "somebody"}
    await after.end()


async def test_a_collector_with_the_longest_of_names_has_a_spool_too(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = ".".join(["c" * 63] * 3 + ["c" * 57, "cc"])
    process.entries = ("*." + "c" * 57 + ".cc",)
    process.lease()
    monkeypatch.setattr(ways, "resolve", lambda _host, _port: [])
    await process.exports.enable(command(spec(collectors=[pb.ExportCollector(host=longest, port=9)])))
    (spool,) = (process.directory / "spool").iterdir()
    assert (len(longest), spool.name.startswith("siem_")) == (252, True)
