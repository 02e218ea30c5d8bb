# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent meter --export` and `--output ipfix` as users start them: what collectors get, what is refused, what is told.

Collectors here are sockets on loopback that keep what they get; exported_flows.py reads it.
"""

from __future__ import annotations

import json
import runpy
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmdb_writer
import netaddr
import pytest
from jarvis_agent import meter as offline
from jarvis_agent import meter_export
from jarvis_agent.meter_export_options import ExportOptions

from testbed.exported_flows import FLOW_ID, SOURCE_AS, SOURCE_MAC, flows_in, messages_in, number_in, totals_of
from tests.support import DATA

CONNECTION = str(DATA / "connection.pcap")  # 3 biflows: TCP, ICMP, and IPv6 UDP; 11 packets, 1,740 octets
TOTALS = (6, 11, 1740)  # records (a direction each), packets, octets
OF_IPV4 = (4, 9, 1548)

Environment = dict[str, str]


def meter(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jarvis_agent", "meter", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


class Datagrams:
    """What arrives at a UDP port until the program has ended."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET) -> None:
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.port = int(self._socket.getsockname()[1])

    def take(self) -> list[bytes]:
        """All that is there."""
        self._socket.setblocking(False)
        found = []
        with self._socket:
            while True:
                try:
                    found.append(self._socket.recv(65_535))
                except BlockingIOError:
                    return found


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The summary, which is the last line of stderr."""
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("protocol", ["ipfix", "netflow9", "netflow5"])
def test_a_collector_gets_every_packet_and_octet(program_environment: Environment, protocol: str) -> None:
    sink = Datagrams()
    summary = told(meter(program_environment, CONNECTION, "--export", f"{protocol}:127.0.0.1:{sink.port}"))
    expected = OF_IPV4 if protocol == "netflow5" else TOTALS
    assert totals_of(flows_in(sink.take())) == expected
    assert (summary["exported_records"], summary["exported_packets"], summary["exported_octets"]) == expected
    unexportable = (1, 2, 192) if protocol == "netflow5" else (0, 0, 0)
    assert tuple(summary[f"unexportable_{what}"] for what in ("flows", "packets", "octets")) == unexportable
    assert summary["exported_flows"] == 3 - unexportable[0]
    assert summary["not_sent"] == 0


def test_times_of_netflow_v5_are_those_of_the_trace(program_environment: Environment) -> None:
    sink = Datagrams()
    told(meter(program_environment, CONNECTION, "--export", f"netflow5:127.0.0.1:{sink.port}"))
    [message] = sink.take()
    uptime_ms, seconds, nanoseconds, sequence = struct.unpack_from("!IIII", message, 4)
    base_ms = seconds * 1000 + nanoseconds // 1_000_000 - uptime_ms
    times = [struct.unpack_from("!II", message, 24 + 48 * number + 24) for number in range(4)]
    tcp, icmp = (1_700_000_000_100, 1_700_000_000_700), (1_700_000_000_800, 1_700_000_000_900)
    assert [(base_ms + first, base_ms + last) for first, last in times] == [tcp, tcp, icmp, icmp]
    assert sequence == 0


def test_without_output_an_export_prints_the_summary_alone(program_environment: Environment) -> None:
    sink = Datagrams()
    done = meter(program_environment, CONNECTION, "--export", f"ipfix:127.0.0.1:{sink.port}")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert json.loads(done.stdout)["exported_flows"] == 3


@pytest.mark.parametrize("output", ["json", "csv", "ipfix"])
def test_records_go_to_the_output_and_to_collectors_alike(program_environment: Environment, tmp_path: Path, output: str) -> None:
    first, second, path = Datagrams(), Datagrams(), tmp_path / "flows"
    exports = ["--export", f"ipfix:127.0.0.1:{first.port}", "--export", f"netflow9:127.0.0.1:{second.port}"]
    summary = told(meter(program_environment, CONNECTION, "--output", output, "-o", str(path), *exports))
    assert totals_of(flows_in(first.take())) == totals_of(flows_in(second.take())) == TOTALS
    if output == "ipfix":
        assert totals_of(flows_in(messages_in(path.read_bytes()))) == TOTALS
    else:
        assert len(path.read_text().splitlines()) == 3 + (output == "csv")
    ways = 3 if output == "ipfix" else 2
    assert [one["records"] for one in summary["exports"]] == [6] * ways
    assert summary["exported_octets"] == 1740 * ways


def test_an_ipfix_file_numbers_its_records_from_zero(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.ipfix"
    summary = told(meter(program_environment, CONNECTION, "--output", "ipfix", "-o", str(path)))
    sequences = [struct.unpack_from("!I", message, 8)[0] for message in messages_in(path.read_bytes())]
    assert sequences[0] == 0
    assert sequences == sorted(sequences)
    assert sequences[-1] > 6  # options count as well
    assert (summary["exported_records"], summary["not_sent"]) == (6, 0)
    assert "exports" not in summary
    assert list(tmp_path.iterdir()) == [path]


def test_standard_output_takes_ipfix_too(program_environment: Environment) -> None:
    command = [sys.executable, "-m", "jarvis_agent", "meter", CONNECTION, "--output", "ipfix"]
    done = subprocess.run(command, env=program_environment, capture_output=True, check=True, timeout=60)
    assert totals_of(flows_in(messages_in(done.stdout))) == TOTALS


def test_a_biflow_is_one_record_with_both_directions(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.ipfix"
    summary = told(meter(program_environment, CONNECTION, "--output", "ipfix", "-o", str(path), "--biflow"))
    assert (summary["exported_records"], summary["exported_packets"], summary["exported_octets"]) == (3, 11, 1740)


def test_profile_full_has_the_headers_that_it_needs(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.ipfix"
    done = meter(program_environment, CONNECTION, "--output", "ipfix", "-o", str(path), "--export-profile", "full")
    assert told(done)["statistics_bytes"] > 0
    [tcp, *_rest] = flows_in(messages_in(path.read_bytes()))
    assert any(tcp[SOURCE_MAC])


def test_as_numbers_come_from_the_database(program_environment: Environment, tmp_path: Path) -> None:
    database, path = tmp_path / "as.mmdb", tmp_path / "flows.ipfix"
    writer = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-ASN")
    writer.insert_network(netaddr.IPSet(["192.0.2.0/24"]), {"autonomous_system_number": mmdb_writer.MmdbU32(70_000)})
    writer.to_db_file(str(database))
    options = ["--export-profile", "full", "--export-asn-database", str(database)]
    told(meter(program_environment, CONNECTION, "--output", "ipfix", "-o", str(path), *options))
    [tcp, *_rest] = flows_in(messages_in(path.read_bytes()))
    assert number_in(tcp, SOURCE_AS) == 70_000
    sink = Datagrams()
    arguments = ["--export", f"netflow5:127.0.0.1:{sink.port}", "--export-asn-database", str(database)]
    told(meter(program_environment, CONNECTION, *arguments))
    assert struct.unpack_from("!HHB", sink.take()[0], 24 + 40) == (23_456, 23_456, 24)  # beyond 16 bits: AS_TRANS


def test_an_as_database_that_is_none_is_refused(program_environment: Environment) -> None:
    options = ["--output", "ipfix", "--export-profile", "full", "--export-asn-database", CONNECTION]
    done = meter(program_environment, CONNECTION, *options)
    assert done.returncode == 2
    assert "connection.pcap" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ipv6_collector_goes_in_brackets(program_environment: Environment) -> None:
    try:
        sink = Datagrams(socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on loopback")
    told(meter(program_environment, CONNECTION, "--export", f"ipfix:[::1]:{sink.port}"))
    assert totals_of(flows_in(sink.take())) == TOTALS


def test_balanced_collectors_share_the_flows(program_environment: Environment) -> None:
    sinks = [Datagrams(), Datagrams()]
    exports = [part for sink in sinks for part in ("--export", f"ipfix:127.0.0.1:{sink.port}")]
    told(meter(program_environment, CONNECTION, *exports, "--export-balance"))
    shares = [flows_in(sink.take()) for sink in sinks]
    ids = [{flow[FLOW_ID] for flow in share} for share in shares]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 3
    assert totals_of(shares[0] + shares[1]) == TOTALS


@contextmanager
def tcp_collector(*, pause_s: float = 0.0, limit: int = 1 << 30) -> Iterator[tuple[int, list[bytes]]]:
    """Port, and what one connection brought; it reads slowly, and hangs up after so many bytes and listens no more."""
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def serve() -> None:
        connection, _ = listener.accept()
        if limit < 1 << 30:
            listener.close()
        with connection:
            connection.settimeout(30)
            while sum(map(len, received)) < limit and (data := connection.recv(65_536)):
                received.append(data)
                time.sleep(pause_s)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        yield listener.getsockname()[1], received
        thread.join(30)


@pytest.fixture(scope="module")
def many_flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80,000 flows of one packet: more records than the core's log holds, so that metering waits for who reads them."""
    make = runpy.run_path(str(DATA / "make_captures.py"))
    frame = make["ethernet"](0x0800, make["ip4"]("192.0.2.1", "192.0.2.2", 17, make["udp"](0, 0)))
    packets = [(n * 1000, frame[:26] + (0x0A000000 + n).to_bytes(4, "big") + frame[30:]) for n in range(80_000)]
    path = tmp_path_factory.mktemp("captures") / "many.pcap"
    path.write_bytes(make["pcap"](packets))
    return path


def test_a_slow_collector_loses_nothing(program_environment: Environment, many_flows: Path) -> None:
    with tcp_collector(pause_s=0.002) as (port, received):
        summary = told(meter(program_environment, str(many_flows), "--export", f"ipfix/tcp:127.0.0.1:{port}"))
    messages = messages_in(b"".join(received))
    assert summary["exported_records"] == summary["flows"] == 80_000
    last = messages[-1]
    assert struct.unpack_from("!I", last, 8)[0] >= 80_000  # data records before it


def test_what_a_collector_that_goes_away_does_not_get_is_counted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], many_flows: Path, tmp_path: Path, firmware_directory: Path
) -> None:
    monkeypatch.setattr(meter_export, "_RETRY_S", 0.3)
    path = tmp_path / "flows.csv"
    with tcp_collector(limit=200_000) as (port, _received):
        options = offline.MeterOptions(
            files=(many_flows,),
            output="csv",
            output_path=path,
            export=ExportOptions(targets=(f"ipfix/tcp:127.0.0.1:{port}",)),
            firmware_directory=firmware_directory,
            release_root=firmware_directory / "root.json",
        )
        assert offline.meter(options) == offline.EXIT_FAILURE
    summary, error = capfd.readouterr().err.splitlines()
    figures = json.loads(summary)
    assert 0 < figures["exported_records"] < 80_000
    assert figures["exported_records"] + figures["not_sent"] == 80_000
    assert error.startswith(f"error: --export ipfix/tcp:127.0.0.1:{port}: EXPORT_UNREACHABLE: ")
    assert len(path.read_text().splitlines()) == 80_001  # the other output is whole


def test_the_pace_is_kept(program_environment: Environment, many_flows: Path) -> None:
    sink = Datagrams()
    arguments = ["--export", f"netflow5:127.0.0.1:{sink.port}", "--export-rate", "100000"]
    summary = told(meter(program_environment, str(many_flows), *arguments))
    assert summary["exported_records"] == 80_000
    assert summary["seconds"] > 0.5  # 80,000 at 100,000 a second, less what may leave at once


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--export", "netflow:192.0.2.1"], 2, "'netflow' is no protocol: accepted are ipfix, netflow9, netflow5"),
        (["--export", "ipfix:192.0.2.1:0"], 2, "'0' is no port: accepted are 1 to 65535"),
        (["--export", "ipfix:192.0.2.1:65536"], 2, "'65536' is no port"),
        (["--export", "ipfix:no.such.host.invalid"], 2, "EXPORT_UNRESOLVED: no.such.host.invalid"),
        (["--export", "ipfix/tcp:127.0.0.1:1"], 1, "EXPORT_UNREACHABLE: 127.0.0.1:1"),
        (["--export", "ipfix:127.0.0.1:1"], 1, "nothing listens there"),
        (["--export", "ipfix/tls:127.0.0.1"], 2, "--export-tls-ca is not given"),
        (["--export", "netflow5:127.0.0.1", "--sampling", "systematic:20000"], 2, "--sampling"),
        (["--export-rate", "5"], 2, "nothing is exported"),
        (["--export", "ipfix:127.0.0.1", "--export-time", "s"], 2, "--export-time"),
    ],
)
def test_what_cannot_be_exported_is_an_error_before_anything_is_metered(
    program_environment: Environment, arguments: list[str], code: int, why: str
) -> None:
    done = meter(program_environment, CONNECTION, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert '"packets"' not in done.stderr
