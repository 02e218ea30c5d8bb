# SPDX-License-Identifier: Apache-2.0
"""Optional statistics of flows: the same in every format, absent where they are off, and equal to Python's own `statistics`."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics as reference
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis.capture.v1 import agent_pb2
from jarvis.capture.v1.flow_pb2 import FlowRecord
from jarvis_native import PacketCaptureEngine
from jarvis_native.engine import Statistic
from jarvis_native.errors import InvalidArgument
from jarvis_native.loader import Firmware

from tests.metering import meter_files
from tests.support import DATA

CONNECTION = DATA / "connection.pcap"
ALL: tuple[Statistic, ...] = ("tcp", "sizes", "intervals", "headers")
FIELDS = [field.name for field in FlowRecord.DESCRIPTOR.fields if 28 <= field.number <= 63]
MACS = FIELDS[24:28]
START_NS = 1_700_000_000 * 10**9
HEADERS = {6: 20, 17: 8, 132: 12, 1: 8, 47: 0}
"""Transport header bytes by IP protocol."""

PARTS = ("min", "max", "mean", "stddev")

Packet = tuple[bool, int, int, int]
"""Sent by the flow's first sender, ns after the packet before (may be negative), payload bytes, bytes that snaplen left."""


def ipv4(protocol: int, forward: bool, payload: int) -> bytes:
    """A packet between two fixed endpoints; its payload is zeros."""
    header = bytearray(HEADERS[protocol])
    if protocol in (6, 17, 132):
        struct.pack_into(">HH", header, 0, *((40_000, 53) if forward else (53, 40_000)))
    if protocol == 6:
        struct.pack_into(">IIHH", header, 4, 1, 1, 0x5010, 1000)
    ends = [bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))]
    source, destination = ends if forward else reversed(ends)
    total = 20 + len(header) + payload
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, total, 0, 0, 64, protocol, 0, source, destination) + header + bytes(payload)


def write_pcap(path: Path, protocol: int, packets: list[Packet]) -> list[int]:
    """A capture of raw IP packets with nanosecond stamps; returns the stamps."""
    out, now, stamps = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 101)], START_NS, []
    for forward, step, payload, cut in packets:
        now = max(now + step, 0)
        stamps.append(now)
        frame = ipv4(protocol, forward, payload)
        kept = frame[: 20 + cut]
        out.append(struct.pack("<IIII", now // 10**9, now % 10**9, len(kept), len(frame)) + kept)
    path.write_bytes(b"".join(out))
    return stamps


def spread(values: list[int]) -> tuple[int, int, float, float]:
    """min, max, mean and standard deviation of the population; 0 of nothing."""
    return (min(values), max(values), reference.fmean(values), reference.pstdev(values)) if values else (0, 0, 0.0, 0.0)


def expected_spreads(packets: list[Packet], stamps: list[int]) -> dict[str, tuple[int, int, float, float]]:
    """By direction, forward being the first packet's."""
    sizes: dict[str, list[int]] = defaultdict(list)
    intervals: dict[str, list[int]] = defaultdict(list)
    last: dict[str, int] = {}
    for (forward, _step, payload, _cut), stamp in zip(packets, stamps, strict=True):
        way = "fwd" if forward == packets[0][0] else "rev"
        sizes[way].append(payload)
        if way in last:
            intervals[way].append(max(stamp - last[way], 0))
        last[way] = stamp
    return {f"{way}_{name}": spread(values[way]) for way in ("fwd", "rev") for name, values in (("p", sizes), ("i", intervals))}


PACKETS = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(st.integers(0, 50), st.integers(-(10**10), 10**12), st.sampled_from((86_400 * 10**9, -1, 10**6))),
        st.one_of(st.integers(0, 4), st.integers(0, 60_000)),
        st.integers(4, 70_000),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(protocol=st.sampled_from(sorted(HEADERS)), packets=PACKETS, form=st.sampled_from(("json", "csv")))
def test_sizes_and_intervals_are_those_of_the_statistics_module(
    firmware: Firmware, tmp_path: Path, protocol: int, packets: list[Packet], form: Any
) -> None:
    stamps = write_pcap(tmp_path / "random.pcap", protocol, packets)
    (record,) = read(firmware, tmp_path / "random.pcap", form)
    wanted = expected_spreads(packets, stamps)
    for way in ("fwd", "rev"):
        for short, name, unit in (("p", "payload", ""), ("i", "interval", "_ns")):
            low, high, mean, deviation = (float(record[f"{way}_{name}_{part}{unit}"]) for part in PARTS)
            expected = wanted[f"{way}_{short}"]
            assert (low, high) == expected[:2]
            assert mean == pytest.approx(expected[2], rel=1e-12, abs=0.00051)
            assert deviation == pytest.approx(expected[3], rel=1e-12, abs=0.00051)


def read(firmware: Firmware, path: Path, form: Any) -> list[dict[str, Any]]:
    with PacketCaptureEngine(files=[path], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, idle_timeout_s=0, active_timeout_s=0, log_records=1024, statistics=ALL)
        capture.start()
        while capture.poll():
            pass
        reader = capture.open_flow_reader()
        text = reader.read_text(form).data.decode()
        return [json.loads(line) for line in text.splitlines()] if form == "json" else parse_csv(reader.csv_header(), text)


def parse_csv(header: bytes, text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader((header.decode() + text).splitlines()))


def write_connection(path: Path) -> None:
    """A handshake of 30 + 10 ms, data sent twice, a late segment, a window of 0."""
    out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 101)]
    segments = (
        (0, True, 99, 0, 0x02, 1000, 0), (30, False, 499, 100, 0x12, 1000, 0), (40, True, 100, 500, 0x10, 1000, 0),
        (50, True, 100, 500, 0x18, 1000, 10), (60, True, 100, 500, 0x18, 1000, 10), (65, False, 510, 110, 0x18, 0, 7),
        (70, False, 500, 110, 0x18, 1000, 10),
    )  # fmt: skip
    for milliseconds, forward, sequence, ack, flags, window, payload in segments:
        packet = bytearray(ipv4(6, forward, payload))
        struct.pack_into(">IIHH", packet, 24, sequence, ack, 0x5000 | flags, window)
        out.append(struct.pack("<IIII", 1_700_000_000, milliseconds * 10**6, len(packet), len(packet)) + packet)
    path.write_bytes(b"".join(out))


def test_all_formats_say_the_same(firmware: Firmware, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write_connection(tmp_path / "handshake.pcap")
    with PacketCaptureEngine(files=[CONNECTION, tmp_path / "handshake.pcap"], firmware=firmware) as capture:
        capture.enable_flow_metering(statistics=ALL)
        capture.start()
        while capture.poll():
            pass
        rows = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        reader = capture.open_flow_reader()
        texts = parse_csv(reader.csv_header(), reader.read_text("csv").data.decode())
        arrow = capture.open_flow_reader().read_arrow(max_records=100).data
        batch = agent_pb2.StreamFlowsResponse.FromString(capture.open_flow_reader().read_batch().data).batch
    arrow.validate(full=True)
    assert len(rows) == len(texts) == len(batch.records) == 4
    for name in MACS:
        exact = [getattr(record, name) for record in batch.records]
        assert arrow.column(name).to_pylist() == [value or bytes(6) for value in exact], name
        assert [row[name] for row in rows] == [row[name] for row in texts] == [value.hex(":") for value in exact], name
    for name in set(FIELDS) - set(MACS):
        exact = [getattr(record, name) for record in batch.records]
        assert arrow.column(name).to_pylist() == exact, name
        assert [row[name] for row in rows] == [pytest.approx(value, abs=0.00051) for value in exact], name
        assert [float(row[name]) for row in texts] == [row[name] for row in rows], name
    (connection,) = (row for row in rows if row["syn_to_synack_ns"])
    assert [connection[name] for name in FIELDS[:8]] == [1, 0, 0, 1, 0, 1, 30_000_000, 10_000_000]
    assert connection["rev_payload_mean"] == 5.667
    assert connection["rev_interval_max_ns"] == 35_000_000
    assert (connection["fwd_src_mac"], connection["fwd_min_ttl"], connection["rev_max_ttl"]) == ("", 64, 64)
    assert any(row["rev_src_mac"] for row in rows)


def test_live_flows_carry_their_statistics(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.enable_flow_metering(idle_timeout_s=0, active_timeout_s=0, statistics=ALL)
        capture.start()
        capture.poll(0)
        flows = capture.get_flows(sort_by="octets")
        encoded = agent_pb2.ListFlowsResponse.FromString(capture.encode_flows(sort_by="octets")).batch.records
        assert flows
        for flow, record in zip(flows, encoded, strict=True):
            assert flow.statistics is not None
            assert capture.lookup_flow(flow.flow_id) == [flow]
            spreads = {"payload": "", "interval": "_ns"}
            for way in ("fwd", "rev"):
                for name, unit in spreads.items():
                    value = getattr(flow.statistics, f"{way}_{name}")
                    for part in PARTS:
                        assert getattr(value, part) == getattr(record, f"{way}_{name}_{part}{unit}")
            assert flow.statistics.syn_to_synack_ns == record.syn_to_synack_ns
            for way in ("fwd", "rev"):
                for name, value in dataclasses.asdict(getattr(flow.statistics, f"{way}_headers")).items():
                    encoded_value = getattr(record, f"{way}_{name}")
                    assert value == (encoded_value.hex(":") if name.endswith("mac") else encoded_value)
        assert any(flow.statistics is not None and flow.statistics.fwd_payload.max for flow in flows)


def test_what_is_off_is_absent_and_takes_nothing(firmware: Firmware) -> None:
    metered = meter_files(firmware, [CONNECTION])
    assert metered.metrics.statistics_bytes == 0
    assert not set(FIELDS) & set(metered.records[0])
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.enable_flow_metering(idle_timeout_s=0, active_timeout_s=0)
        capture.start()
        capture.poll(0)
        assert {flow.statistics for flow in capture.get_flows()} == {None}


@pytest.mark.parametrize(
    ("kind", "names"), [("tcp", FIELDS[:8]), ("sizes", FIELDS[8:16]), ("intervals", FIELDS[16:24]), ("headers", FIELDS[24:])]
)
def test_each_statistic_adds_its_own_columns_and_memory(firmware: Firmware, kind: Statistic, names: list[str]) -> None:
    metered = meter_files(firmware, [CONNECTION], statistics=(kind,))
    assert [key for key in metered.records[0] if key in FIELDS] == names
    assert metered.metrics.statistics_bytes == 65_536 * {"tcp": 160, "sizes": 64, "intervals": 96, "headers": 48}[kind]
    assert metered.metrics.flow_table_bytes > metered.metrics.statistics_bytes


@pytest.mark.parametrize("wrong", ["tcp", ["tcp", "rtt"], [""]])
def test_an_unknown_statistic_is_refused_by_name(firmware: Firmware, wrong: Any) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        with pytest.raises(InvalidArgument, match="tcp, sizes, intervals, headers") as caught:
            capture.enable_flow_metering(statistics=wrong)
        assert caught.value.field == "statistics"


@pytest.mark.parametrize("active_s", [1, 2, 60])
def test_totals_of_tcp_do_not_depend_on_the_active_timeout(firmware: Firmware, tmp_path: Path, active_s: int) -> None:
    """Segments of one connection over 5 s, each third one sent again later and each fifth one late."""
    path = tmp_path / "split.pcap"
    order = [number for number in range(200) if number % 5 != 3]
    for number in range(3, 200, 5):
        order.insert(order.index(number - 1) + 3, number)
    for number in range(0, 180, 3):
        order.insert(order.index(number) + 11, number)
    frames = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 101)]
    for index, number in enumerate(order):
        packet = bytearray(ipv4(6, forward=True, payload=100))
        struct.pack_into(">I", packet, 24, 2**32 - 5_000 + number * 100 & 0xFFFFFFFF)
        frames.append(struct.pack("<IIII", 1000 + index // 50, index % 50 * 20_000_000, len(packet), len(packet)) + packet)
    path.write_bytes(b"".join(frames))

    def totals(active: float) -> tuple[int, int, int]:
        records = meter_files(firmware, [path], idle_s=30, active_s=active, statistics=("tcp",)).records
        repeated, late = (sum(record[name] for record in records) for name in ("fwd_retransmissions", "fwd_out_of_order"))
        return repeated, late, len(records)

    whole = totals(0)
    assert whole == (60, 40, 1)
    assert totals(active_s)[:2] == whole[:2]
    assert totals(active_s)[2] == {1: 6, 2: 3, 60: 1}[active_s]
