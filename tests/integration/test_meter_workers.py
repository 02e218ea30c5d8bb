# SPDX-License-Identifier: Apache-2.0
"""Files metered by several workers: the same records as by one, over every capture at hand and with timeouts that split flows."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from jarvis_native.engine import Tunnel
from jarvis_native.loader import Firmware

from tests.metering import Metered, meter_files
from tests.support import DATA, ROOT

SHARED = Path(os.environ.get("JARVIS_SHARED", ROOT.parent / "shared")) / "pcaps"
OWN = sorted(path for path in DATA.iterdir() if path.suffix in {".pcap", ".pcapng"})
CAPTURES = OWN + sorted(path for path in (SHARED.iterdir() if SHARED.is_dir() else ()) if ".pcap" in path.name)
WORKERS = (2, 3)
MEASURED = ("time_unix_ns", "elapsed_ns", "throughput_bps", "throughput_pps", "ring_usage", "flow_table_bytes")


def records(metered: Metered) -> Counter[str]:
    return Counter(json.dumps(record, sort_keys=True) for record in metered.records)


def counters(metered: Metered) -> dict[str, Any]:
    """The whole snapshot but for what a clock or a size decides."""
    return {name: value for name, value in asdict(metered.metrics).items() if name not in MEASURED}


def test_there_are_captures_to_compare() -> None:
    assert len(OWN) > 10


@pytest.mark.parametrize("tunnel", ["outer", "inner"])
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_several_workers_give_the_records_of_one(firmware: Firmware, path: Path, tunnel: Tunnel) -> None:
    one = meter_files(firmware, [path], idle_s=1, active_s=2, tunnel=tunnel)
    for workers in WORKERS:
        several = meter_files(firmware, [path], idle_s=1, active_s=2, tunnel=tunnel, workers=workers)
        assert records(several) == records(one)
        assert counters(several) == counters(one)
        assert str(several.error) == str(one.error)


def test_several_workers_give_the_records_of_one_over_all_captures_as_one_trace(firmware: Firmware) -> None:
    one = meter_files(firmware, CAPTURES, idle_s=1, active_s=2)
    several = meter_files(firmware, CAPTURES, idle_s=1, active_s=2, workers=2)
    assert records(several) == records(one)
    assert counters(several) == counters(one)


def test_where_time_steps_back_again_and_again_several_workers_still_count_every_packet_once(firmware: Firmware) -> None:
    """A table follows a large step back once in as many packets as it holds flows: when flows end may differ, nothing else."""
    one = meter_files(firmware, CAPTURES[::-1], idle_s=1, active_s=2)
    several = meter_files(firmware, CAPTURES[::-1], idle_s=1, active_s=2, workers=2)
    assert several.totals() == one.totals()
    assert several.metrics.received == one.metrics.received
