# SPDX-License-Identifier: Apache-2.0
"""What others make of export messages: tshark's dissectors, libfixbuf's ipfixDump, the `netflow` package.

They get the very bytes that a sink received or a file holds; for tshark these are put into a capture as UDP over IPv4 again, or
dumpcap captures them on loopback (WireCapture).
"""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.collected import CollectedFlow, flow_key

LINKTYPE_RAW = 101
START_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dissection:
    """What tshark's cflow dissector sees in a capture."""

    messages: int
    records: int
    """Flow records: those with a count of packets."""
    packets: int
    octets: int
    complaints: list[str]
    """Malformed messages, data without template, gaps in sequences, expert information of a warning's weight or more."""


def write_capture(path: Path, datagrams: Iterable[bytes], *, port: int) -> None:
    """A pcap file with the datagrams, sent from 127.0.0.1:1024 to 127.0.0.1:port."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, LINKTYPE_RAW))
        for number, payload in enumerate(datagrams):
            udp = struct.pack(">HHHH", 1024, port, 8 + len(payload), 0) + payload
            home = IPv4Address("127.0.0.1").packed
            packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, home, home) + udp
            file.write(struct.pack("<IIII", number // 1000, number % 1000, len(packet), len(packet)) + packet)


class WireCapture:
    """dumpcap on loopback for one port, while the `with` block lasts."""

    def __init__(self, path: Path, *, transport: str, port: int) -> None:
        self.path = path
        self._command = ["dumpcap", "-q", "-i", "lo", "-B", "64", "-f", f"{transport} port {port}", "-w", str(path)]
        self._log = path.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        until = time.monotonic() + START_S
        while "File:" not in self._log.read_text(encoding="utf-8"):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"dumpcap did not start: {self._log.read_text(encoding='utf-8')}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is None:
            return
        time.sleep(0.5)  # the kernel gives it what it has at least every 100 ms
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_S)
        said = self._log.read_text(encoding="utf-8")
        lost = re.search(r"received/dropped on interface .*: \d+/(\d+)", said)
        if value is None and (lost is None or int(lost[1])):
            raise RuntimeError(f"dumpcap lost packets: {said}")


_FIELDS = [
    "cflow.version",
    "cflow.packets",
    "cflow.octets",
    "_ws.malformed",
    "cflow.no_template_found",
    "cflow.unknown_field_type",
    "cflow.sequence_analysis.expected_sn",
    "_ws.expert.severity",
    "_ws.expert.message",
]
_WARNING = 0x600000  # of expert information; a note is 0x400000


def dissect(capture: Path, *, port: int, transport: str = "udp") -> Dissection:
    """Runs tshark's cflow dissector over what was sent to `port`; reverse elements (RFC 5103) are packets and octets too."""
    return _dissect(capture, "-d", f"{transport}.port=={port},cflow")


def dissect_file(path: Path) -> Dissection:
    """Runs it over an IPFIX file (RFC 5655), which tshark reads as it is."""
    return _dissect(path)


def _dissect(path: Path, *options: str) -> Dissection:
    command = ["tshark", "-r", str(path), "-2", *options, "-Y", "cflow", "-T", "fields"]
    command += ["-E", "occurrence=a", "-E", "separator=/t", "-E", "aggregator=,"]
    command += [part for field in _FIELDS for part in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    packets: list[int] = []
    octets: list[int] = []
    messages, complaints = 0, []
    for number, line in enumerate(done.stdout.splitlines(), 1):
        values = dict(zip(_FIELDS, line.split("\t"), strict=True))
        messages += len(values["cflow.version"].split(","))
        packets += _numbers(values["cflow.packets"])
        octets += _numbers(values["cflow.octets"])
        complaints += [f"frame {number}: {complaint}" for complaint in _complaints(values)]
    return Dissection(
        messages=messages,
        records=sum(1 for count in packets if count),
        packets=sum(packets),
        octets=sum(octets),
        complaints=complaints,
    )


def _numbers(field: str) -> list[int]:
    return [int(number, 0) for number in field.split(",") if number]


def _complaints(values: dict[str, str]) -> Iterator[str]:
    severities = _numbers(values["_ws.expert.severity"])
    if any(severity >= _WARNING for severity in severities):
        yield values["_ws.expert.message"]
    for field in _FIELDS[3:7]:
        if values[field]:
            yield f"{field} {values[field]}"


_DUMPED_FIELD = re.compile(r"\t\((?:(\d+)/)?(\d+)\)\s+\S+ : (.*)")


def ipfix_dump(path: Path) -> tuple[list[dict[tuple[int, int], str]], list[str]]:
    """Data records of an IPFIX file (RFC 5655) as libfixbuf reads them, (enterprise, element) -> value; and its complaints."""
    done = subprocess.run(["ipfixDump", "--data", "--in", str(path)], capture_output=True, text=True, check=False)
    records: list[dict[tuple[int, int], str]] = []
    for line in done.stdout.splitlines():
        if line.startswith(("--- data record", "--- options data record")):
            records.append({})
        elif found := _DUMPED_FIELD.match(line):
            records[-1].setdefault((int(found[1] or 0), int(found[2])), found[3])
    return records, done.stderr.splitlines() + ([f"exit code {done.returncode}"] if done.returncode else [])


def ipfix_messages(data: bytes) -> Iterator[bytes]:
    """The messages of an IPFIX file or stream."""
    while data:
        length = int.from_bytes(data[2:4])
        yield data[:length]
        data = data[max(length, 16) :]


_REVERSE_PEN = 29305


def dumped_flows(records: Iterable[dict[tuple[int, int], str]]) -> Iterator[CollectedFlow]:
    """The flow records among those of ipfix_dump, by direction."""
    for record in records:
        if (0, 2) not in record or (0, 4) not in record:
            continue
        source, destination = (record.get((0, v4)) or record[(0, v6)] for v4, v6 in ((8, 27), (12, 28)))
        ends = (source, int(record.get((0, 7), "0"))), (destination, int(record.get((0, 11), "0")))
        for enterprise, (one, other) in ((0, ends), (_REVERSE_PEN, ends[::-1])):
            packets = int(record.get((enterprise, 2), "0"))
            if packets:
                yield CollectedFlow(
                    key=flow_key(int(record[(0, 4)]), *one, *other), packets=packets, octets=int(record[(enterprise, 1)])
                )


def decode(messages: Iterable[bytes]) -> list[CollectedFlow]:
    """Flow records as the PyPI package `netflow` decodes them; it knows no reverse elements."""
    import netflow  # noqa: PLC0415 - of the tests' packages

    templates: dict[str, dict[int, Any]] = {"netflow": {}, "ipfix": {}}
    return [
        flow
        for message in messages
        for record in netflow.parse_packet(message, templates).flows
        for flow in _decoded_flow({name.lower(): value for name, value in record.data.items()})
    ]


def _decoded_flow(record: dict[str, Any]) -> Iterator[CollectedFlow]:
    def first(*names: str) -> Any:
        return next((record[name] for name in names if name in record), None)

    packets = first("in_pkts", "in_packets", "packetdeltacount")
    if packets is None:
        return
    source, destination = (
        str(IPv4Address(v4))
        if (v4 := first(f"ipv4_{short}_addr", f"{long}ipv4address")) is not None
        # The package gives IPv6 addresses as text in NetFlow v9 and as numbers in IPFIX.
        else str(IPv6Address(first(f"ipv6_{short}_addr", f"{long}ipv6address")))
        for short, long in (("src", "source"), ("dst", "destination"))
    )
    source_port = first("l4_src_port", "src_port", "sourcetransportport") or 0
    destination_port = first("l4_dst_port", "dst_port", "destinationtransportport") or 0
    protocol = first("protocol", "proto", "protocolidentifier")
    yield CollectedFlow(
        key=flow_key(protocol, source, source_port, destination, destination_port),
        packets=packets,
        octets=first("in_octets", "in_bytes", "octetdeltacount"),
    )
