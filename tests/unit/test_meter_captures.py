# SPDX-License-Identifier: Apache-2.0
"""The captures of tests/data: what the meter makes of each is what expected.jsonl says, which was worked out by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from jarvis_native.loader import Firmware

from tests.metering import meter_files
from tests.support import DATA

EXPECTED: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "expected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("expected", EXPECTED, ids=[line["file"] for line in EXPECTED])
def test_a_capture_gives_the_totals_worked_out_by_hand(firmware: Firmware, expected: dict[str, Any]) -> None:
    metered = meter_files(firmware, [DATA / expected["file"]])
    assert metered.metrics.received == expected["packets"]
    assert metered.metrics.metered == expected["ip_packets"]
    assert metered.metrics.metered_octets == expected["octets"]
    for name in ("non_ip", "malformed", "fragments_matched", "fragments_unmatched"):
        assert getattr(metered.metrics, name) == expected.get(name, 0), name
    assert metered.totals() == {key: tuple(value) for key, value in expected["flows"].items()}


TUNNELLED = [line for line in EXPECTED if "inner_flows" in line]


@pytest.mark.parametrize("expected", TUNNELLED, ids=[line["file"] for line in TUNNELLED])
def test_inner_flows_of_every_tunnel_are_those_worked_out_by_hand(firmware: Firmware, expected: dict[str, Any]) -> None:
    metered = meter_files(firmware, [DATA / expected["file"]], tunnel="inner")
    inner = {key: tuple(value) for key, value in expected["inner_flows"].items()}
    assert metered.tunnel_totals() == inner
    assert (metered.metrics.received, metered.metrics.metered) == (expected["packets"], expected["ip_packets"])
    assert metered.metrics.metered_octets == sum(octets for _, octets in inner.values())
    assert (metered.metrics.tunnelled, metered.metrics.tunnelled_octets) == (expected["tunnelled"], expected["tunnelled_octets"])


@pytest.mark.parametrize("expected", TUNNELLED, ids=[line["file"] for line in TUNNELLED])
def test_both_is_the_outer_flows_and_the_inner_ones_with_every_frame_metered_once(
    firmware: Firmware, expected: dict[str, Any]
) -> None:
    metered = meter_files(firmware, [DATA / expected["file"]], tunnel="both")
    outer = {f"0:0|{key}": tuple(value) for key, value in expected["flows"].items()}
    inner = {key: tuple(value) for key, value in expected["inner_flows"].items() if not key.startswith("0:0|")}
    assert metered.tunnel_totals() == outer | inner
    assert (metered.metrics.received, metered.metrics.metered) == (expected["packets"], expected["ip_packets"])
    assert metered.metrics.metered_octets == expected["octets"]
    assert (metered.metrics.tunnelled, metered.metrics.tunnelled_octets) == (expected["tunnelled"], expected["tunnelled_octets"])
    assert metered.metrics.flow_records_ended == len(metered.records)


def test_by_default_no_flow_is_seen_inside_a_tunnel(firmware: Firmware) -> None:
    metered = meter_files(firmware, [DATA / "tunnelled.pcap"])
    assert {(record["tunnel_type"], record["tunnel_id"]) for record in metered.records} == {(0, 0)}
    assert (metered.metrics.tunnelled, metered.metrics.tunnelled_octets) == (0, 0)


def test_every_capture_has_its_totals_and_is_what_the_generator_writes(tmp_path: Path) -> None:
    runpy.run_path(str(DATA / "make_captures.py"))["write_captures"](tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {line["file"]: (DATA / line["file"]).read_bytes() for line in EXPECTED}


def test_idle_and_active_timeouts_split_a_flow_before_the_packet_that_finds_them_out(firmware: Firmware) -> None:
    records = meter_files(firmware, [DATA / "pauses.pcap"], idle_s=30, active_s=300).records
    start = 1_700_000_000
    assert [(r["fwd_packets"], r["end_reason"]) for r in records] == [(2, 1), (15, 2), (7, 4)]
    assert [r["start_time_unix_ns"] // 10**9 - start for r in records] == [0, 60, 360]
    assert [r["end_time_unix_ns"] // 10**9 - start for r in records] == [29, 340, 480]


def test_a_connection_is_one_bidirectional_record(firmware: Firmware) -> None:
    records = meter_files(firmware, [DATA / "connection.pcap"], idle_s=30, active_s=300).records
    tcp = next(record for record in records if record["ip_protocol"] == 6)
    assert (tcp["src_addr"], tcp["src_port"], tcp["dst_addr"], tcp["dst_port"]) == ("192.0.2.1", 40000, "192.0.2.2", 80)
    assert (tcp["fwd_packets"], tcp["fwd_octets"], tcp["rev_packets"], tcp["rev_octets"]) == (4, 260, 3, 1120)
    assert tcp["tcp_flags"] == tcp["fwd_tcp_flags"] | tcp["rev_tcp_flags"] == 0x1B  # FIN SYN PSH ACK
    assert (tcp["end_reason"], tcp["dscp"]) == (3, 10)
    ping = next(record for record in records if record["ip_protocol"] == 1)
    assert (ping["icmp_type"], ping["icmp_code"], ping["src_port"], ping["dst_port"]) == (8, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "first_time_ns"),
    [("connection.pcap", 100_000_000), ("connection-be-ns.pcap", 100_000_000), ("several-interfaces.pcapng", 1_000)],
)
def test_times_are_exact_in_every_byte_order_and_resolution(firmware: Firmware, name: str, first_time_ns: int) -> None:
    records = meter_files(firmware, [DATA / name]).records
    assert min(record["start_time_unix_ns"] for record in records) == 1_700_000_000_000_000_000 + first_time_ns


def test_interfaces_of_a_pcapng_file_keep_their_own_clock_and_number(firmware: Firmware) -> None:
    records = meter_files(firmware, [DATA / "several-interfaces.pcapng"]).records
    udp4 = next(record for record in records if record["src_port"] == 1000)
    assert udp4["end_time_unix_ns"] == 1_700_000_000_000_004_003  # nanosecond interface of the big-endian section
    assert udp4["interface_index"] == 1
    assert next(record for record in records if record["src_port"] == 1)["interface_index"] == 2
