# SPDX-License-Identifier: Apache-2.0
"""Meters files in process and adds the records up per flow key, as the lines of expected.jsonl and truth.jsonl do."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_native import CaptureMetrics, FlowReader, PacketCaptureEngine
from jarvis_native.engine import Statistic, Tunnel
from jarvis_native.errors import CaptureError
from jarvis_native.loader import Firmware


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What came out of some files."""

    metrics: CaptureMetrics
    records: list[dict[str, Any]]
    error: CaptureError | None

    def totals(self) -> dict[str, tuple[int, int]]:
        """Packets and octets per KEY = vlan|proto|lowaddr,port|highaddr,port."""
        return self._sums(flow_key)

    def tunnel_totals(self) -> dict[str, tuple[int, int]]:
        """Packets and octets per TYPE:ID|KEY, where type and id are the tunnel's: 0:0 for what is in none."""
        return self._sums(lambda record: f"{record['tunnel_type']}:{record['tunnel_id']}|{flow_key(record)}")

    def _sums(self, key_of: Callable[[dict[str, Any]], str]) -> dict[str, tuple[int, int]]:
        sums: dict[str, tuple[int, int]] = {}
        for record in self.records:
            packets, octets = sums.get(key_of(record), (0, 0))
            sums[key_of(record)] = (
                packets + record["fwd_packets"] + record["rev_packets"],
                octets + record["fwd_octets"] + record["rev_octets"],
            )
        return sums


def meter_files(
    firmware: Firmware,
    files: Sequence[Path],
    *,
    idle_s: float = 0,
    active_s: float = 0,
    tunnel: Tunnel = "outer",
    statistics: Sequence[Statistic] = (),
    **engine: Any,
) -> Metered:
    """Meters to the end; with the default timeouts of 0 nothing splits a flow."""
    with PacketCaptureEngine(files=files, firmware=firmware, **engine) as capture:
        capture.enable_flow_metering(
            max_flows=65_536, idle_timeout_s=idle_s, active_timeout_s=active_s, tunnel=tunnel, statistics=statistics
        )
        with capture.open_flow_reader(lossless=True) as reader:
            capture.start()
            records = list(json_records(capture, reader))
        return Metered(metrics=capture.get_metrics(), records=records, error=capture.last_error())


def json_records(capture: PacketCaptureEngine, reader: FlowReader) -> Iterator[dict[str, Any]]:
    """Runs the capture to its end and yields every record."""
    more = True
    while more:
        more = capture.poll()
        batch_follows = True
        while batch_follows:
            batch = reader.read_text("json")
            assert batch.lost == 0
            yield from map(json.loads, batch.data.splitlines())
            batch_follows = batch.more


def flow_key(record: dict[str, Any]) -> str:
    """The key of expected.jsonl and truth.jsonl."""
    ends = sorted(
        ((ipaddress.ip_address(record[f"{side}_addr"]), record[f"{side}_port"]) for side in ("src", "dst")),
        key=lambda end: (end[0].packed, end[1]),
    )
    return f"{record['vlan_id']}|{record['ip_protocol']}|" + "|".join(f"{address},{port}" for address, port in ends)
