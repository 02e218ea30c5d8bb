# SPDX-License-Identifier: Apache-2.0
"""Exported messages as tshark reads them: every record, value by value, is a flow of the capture, and nothing is malformed.

The messages of NetFlow v5, v9 and IPFIX are put into UDP packets of a capture file, which tshark dissects by its own tables of
information elements.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from jarvis_native import PacketCaptureEngine
from jarvis_native.engine import Statistic
from jarvis_native.export import (
    ExportBlock,
    ExportInterface,
    ExportProfile,
    ExportProtocol,
    ExportSession,
    ExportStatistics,
    FlowExporter,
    TimeUnit,
)
from jarvis_native.loader import Firmware

from tests.support import DATA

TSHARK = shutil.which("tshark")
FILES = [DATA / name for name in ("connection.pcap", "fragments.pcap", "tagged.pcap", "tunnelled.pcap", "wireless.pcap")]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
PORTS: dict[ExportProtocol, int] = {"netflow5": 2055, "netflow9": 2055, "ipfix": 4739}
NOW_NS = 1_700_000_000 * 10**9
SYSTEM_INIT_NS = NOW_NS - 10**12
MESSAGE_BYTES = 48

Key = tuple[str, str, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the messages are like."""

    protocol: ExportProtocol
    profile: ExportProfile = "default"
    time_unit: TimeUnit = "ms"
    biflow: bool = False

    def __str__(self) -> str:
        return f"{self.protocol}-{self.profile}-{self.time_unit}{'-biflow' if self.biflow else ''}"


_VARIANTS: list[tuple[ExportProtocol, bool]] = [("netflow9", False), ("ipfix", False), ("ipfix", True)]
FORMS = [
    Form(protocol="netflow5"),
    *(
        Form(protocol=protocol, profile=profile, time_unit=unit, biflow=biflow)
        for profile, unit, (protocol, biflow) in itertools.product(get_args(ExportProfile), get_args(TimeUnit), _VARIANTS)
    ),
]

pytestmark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")

Record = dict[str, Any]
"""A flow record in JSON, from one direction's point of view: `packets`, `src_mac`, ... are that direction's."""


def metered(firmware: Firmware, form: Form) -> tuple[list[Record], list[ExportBlock]]:
    """The files' records, and the blocks of a session: templates, options, records."""
    with PacketCaptureEngine(files=FILES, firmware=firmware) as capture:
        capture.enable_flow_metering(idle_timeout_s=0, active_timeout_s=0, tunnel="both", statistics=STATISTICS)
        capture.start()
        while capture.poll():
            pass
        rows = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        with FlowExporter(
            firmware=firmware,
            protocol=form.protocol,
            profile=form.profile,
            time_unit=form.time_unit,
            biflow=form.biflow,
            statistics=STATISTICS,
            message_max=512,
            system_init_ns=SYSTEM_INIT_NS,
        ) as exporter:
            interfaces = [ExportInterface(index=1, name="eth0", description="the first one")]
            blocks = [
                exporter.templates(),
                exporter.options(ExportStatistics(observed_packets=5, exported_flows=7), interfaces),
                exporter.read(capture.open_flow_reader(), flush=True).data,
            ]
    session = ExportSession(firmware=firmware, protocol=form.protocol, system_init_ns=SYSTEM_INIT_NS)
    for block in blocks:
        session.stamp(block, NOW_NS)
    return rows, blocks


def write_capture(path: Path, blocks: list[ExportBlock], port: int) -> int:
    """Each message in a UDP packet of its own; returns how many."""
    out, messages = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 101)], 0
    for block in blocks:
        for number in range(block.messages):
            offset, length = struct.unpack_from("=II", block.index, number * MESSAGE_BYTES)
            udp = struct.pack(">HHHH", 50_000, port, 8 + length, 0) + block.data[offset : offset + length]
            ends = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
            packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, *ends) + udp
            out.append(struct.pack("<IIII", NOW_NS // 10**9, 0, len(packet), len(packet)) + packet)
            messages += 1
    path.write_bytes(b"".join(out))
    return messages


def dissected(path: Path, port: int) -> list[dict[str, Any]]:
    """What tshark says of each message; asserts that it understood all of it."""
    command = [str(TSHARK), "-n", "-r", str(path), "-d", f"udp.port=={port},cflow"]

    def run(*options: str) -> str:
        return subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout

    assert run("-Y", "_ws.malformed || _ws.expert || !cflow") == ""
    packets = json.loads(run("-T", "json", "--no-duplicate-keys", "-J", "cflow"))
    return [packet["_source"]["layers"]["cflow"] for packet in packets]


def flows_in(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The flow records of a message: those with addresses, in sets or, in version 5, in the message itself."""
    for name, part in message.items():
        if isinstance(part, dict):
            if "cflow.srcaddr" in part or "cflow.srcaddrv6" in part:
                yield part
            elif name.startswith(("FlowSet", "Set ", "pdu")):
                yield from flows_in(part)
        elif isinstance(part, list):
            yield from (entry for entry in part if isinstance(entry, dict) and "cflow.srcaddr" in entry)


def one_way(row: Record, way: str) -> Record:
    """The record as that direction has it, `rev_` meaning the other one."""
    other = "rev" if way == "fwd" else "fwd"
    turned = {f"rev_{key[4:]}": value for key, value in row.items() if key.startswith(f"{other}_")}
    own = {key[4:]: value for key, value in row.items() if key.startswith(f"{way}_")}
    ends = {f"{end}_{part}": row[f"{end}_{part}"] for end in ("src", "dst") for part in ("addr", "port")}
    if way == "rev":
        ends = {
            f"{end}_{part}": row[f"{source}_{part}"]
            for end, source in (("src", "dst"), ("dst", "src"))
            for part in ("addr", "port")
        }
    return row | turned | own | ends


def number(of: Callable[[Record], int]) -> Callable[[Record], str]:
    return lambda record: str(of(record))


_NOBODY = "00:00:00:00:00:00"
# tshark's field -> what it is of a direction; of a biflow the field comes twice, first the other direction's.
VALUES: dict[str, Callable[[Record], str]] = {
    "cflow.srcport": number(lambda r: r["src_port"]),
    "cflow.protocol": number(lambda r: r["ip_protocol"]),
    "cflow.packets": number(lambda r: r["packets"]),
    "cflow.octets": number(lambda r: r["octets"]),
    "cflow.ip_version": number(lambda r: 6 if ":" in r["src_addr"] else 4),
    "cflow.vlanid": number(lambda r: r["vlan_id"]),
    "cflow.inputint": number(lambda r: r["interface_index"]),
    "cflow.outputint": number(lambda r: r["second_interface_index"]),
    "cflow.tos": lambda r: f"0x{r['dscp'] << 2:02x}",
    "cflow.flow_end_reason": number(lambda r: r["end_reason"]),
    "cflow.flow_id": number(lambda r: int(r["flow_id"], 16)),
    "cflow.dot1q_vlan_id": number(lambda r: r["vlan_id"]),
    "cflow.dot1q_customer_vlan_id": number(lambda r: r["inner_vlan_id"]),
    "cflow.srcmac": lambda r: str(r["src_mac"] or _NOBODY),
    "cflow.dstmac": lambda r: str(r["dst_mac"] or _NOBODY),
    "cflow.ttl_min": number(lambda r: r["min_ttl"]),
    "cflow.ttl_max": number(lambda r: r["max_ttl"]),
    "cflow.ipv6flowlabel": number(lambda r: r["flow_label"]),
    "cflow.pie.ntop.retransmitted_in_pkts": number(lambda r: r["retransmissions"]),
    "cflow.pie.ntop.ooorder_in_pkts": number(lambda r: r["out_of_order"]),
}


def values_of(flow: dict[str, Any]) -> dict[str, list[str]]:
    """Of the fields above those that the record has."""
    return {name: value if isinstance(value, list) else [value] for name, value in flow.items() if name in VALUES}


def check_flow(flow: dict[str, Any], row: Record, *, biflow: bool) -> None:
    ways = [one_way(row, "fwd"), one_way(row, "rev")]
    if not biflow and (flow.get("cflow.srcaddr", flow.get("cflow.srcaddrv6")), int(flow["cflow.srcport"])) != (
        ways[0]["src_addr"],
        ways[0]["src_port"],
    ):
        ways.reverse()
    for name, values in values_of(flow).items():
        assert values == [VALUES[name](way) for way in reversed(ways[: len(values)])], (name, row)


def key_of(flow: dict[str, Any]) -> Key:
    """Addresses, source port, packets, octets; of a biflow the forward ones."""
    v6 = "v6" if "cflow.srcaddrv6" in flow else ""
    packets, octets = (
        int(value[-1] if isinstance(value := flow[name], list) else value) for name in ("cflow.packets", "cflow.octets")
    )
    return flow[f"cflow.srcaddr{v6}"], flow[f"cflow.dstaddr{v6}"], int(flow["cflow.srcport"]), packets, octets


def times_of(flow: dict[str, Any]) -> tuple[int, int]:
    """First and last packet, Unix ns, as tshark reckons them."""
    times = flow["cflow.timedelta_tree"]
    if "cflow.timestart" in times:  # NetFlow v5: since the system's start, which is what export time and uptime make of it
        return tuple(SYSTEM_INIT_NS + nanoseconds(times[f"cflow.time{name}"]) for name in ("start", "end"))  # type: ignore[return-value]
    return absolute(times["cflow.abstimestart"]), absolute(times["cflow.abstimeend"])


def nanoseconds(seconds: str) -> int:
    whole, part = seconds.split(".")
    return int(whole) * 10**9 + int(part)


def absolute(text: str) -> int:
    date, _, part = text.removesuffix(" UTC").partition(".")
    return int(datetime.strptime(date, "%b %d, %Y %H:%M:%S").replace(tzinfo=UTC).timestamp()) * 10**9 + int(part)


def check_times(flow: dict[str, Any], row: Record, unit: TimeUnit) -> None:
    """Cut to the unit; NTP's fractions may be a little beyond."""
    step, beyond = {"ms": (10**6, 0), "us": (1000, 477), "ns": (1, 1)}[unit]
    for read, wanted in zip(times_of(flow), (row["start_time_unix_ns"], row["end_time_unix_ns"]), strict=True):
        assert 0 <= read - wanted // step * step <= beyond


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_tshark_reads_the_flows_of_the_capture(firmware: Firmware, tmp_path: Path, form: Form) -> None:
    rows, blocks = metered(firmware, form)
    path, port = tmp_path / "export.pcap", PORTS[form.protocol]
    written = write_capture(path, blocks, port)
    messages = dissected(path, port)
    assert len(messages) == written
    flows = [flow for message in messages for flow in flows_in(message)]
    wanted: dict[Key, list[Record]] = defaultdict(list)
    for row in rows:
        for way in ("fwd", "rev"):
            if (
                row[f"{way}_packets"]
                and not (form.biflow and way == "rev")
                and not (form.protocol == "netflow5" and ":" in row["src_addr"])
            ):
                record = one_way(row, way)
                wanted[tuple(record[name] for name in ("src_addr", "dst_addr", "src_port", "packets", "octets"))].append(row)
    assert Counter(map(key_of, flows)) == {key: len(found) for key, found in wanted.items()}
    assert sum(block.flows for block in blocks) == len(flows)
    by_id = {str(int(row["flow_id"], 16)): row for row in rows}
    for flow in flows:
        if "cflow.flow_id" in flow:
            check_flow(flow, by_id[flow["cflow.flow_id"]], biflow=form.biflow)
            check_times(flow, by_id[flow["cflow.flow_id"]], form.time_unit)
        elif len(rows_of := wanted[key_of(flow)]) == 1:
            check_flow(flow, rows_of[0], biflow=form.biflow)
            check_times(flow, rows_of[0], form.time_unit)
