# SPDX-License-Identifier: Apache-2.0
"""Real captures with known totals: the meter counts what tshark counts, per flow.

The captures are not part of the repository: $JARVIS_SHARED names the folder that holds pcaps/ and pcaps/truth.jsonl (by default
../shared beside the repository). A line's `compare` says what its maker vouches for; we hold every file to all of it.

No file differs on purpose. Two could: fuzz-2020-02-16-11740.pcap (damaged; vouched for packets only) and
quic-fuzz-overflow.pcapng (a fragment; vouched for all but the split per flow). Neither has a non-first fragment whose first one
is there, which is what we would count otherwise than tshark: under its flow's ports instead of ports 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jarvis_native.loader import Firmware

from tests.metering import flow_key, meter_files
from tests.support import ROOT

PCAPS = Path(os.environ.get("JARVIS_SHARED", ROOT.parent / "shared")) / "pcaps"
TRUTH_FILE = PCAPS / "truth.jsonl"
TRUTH: list[dict[str, Any]] = (
    [json.loads(line) for line in TRUTH_FILE.read_text(encoding="utf-8").splitlines()] if TRUTH_FILE.is_file() else []
)
BY_NAME = {line["file"]: line for line in TRUTH}

pytestmark = pytest.mark.skipif(not TRUTH, reason=f"{TRUTH_FILE} is not there: name its folder with JARVIS_SHARED")


@pytest.mark.parametrize("truth", TRUTH, ids=[line["file"] for line in TRUTH])
def test_a_real_capture_gives_its_known_totals(firmware: Firmware, truth: dict[str, Any]) -> None:
    metered = meter_files(firmware, [PCAPS / truth["file"]])
    assert metered.metrics.received == truth["packets"]
    assert metered.metrics.metered == truth["ip_packets"]
    assert metered.metrics.metered_octets == truth["octets"]
    assert metered.totals() == {key: tuple(value) for key, value in truth["flows"].items()}


def test_all_captures_as_one_trace_give_the_sum_of_their_totals(firmware: Firmware) -> None:
    metered = meter_files(firmware, [PCAPS / line["file"] for line in TRUTH])
    assert metered.metrics.received == sum(line["packets"] for line in TRUTH)
    assert metered.metrics.metered == sum(line["ip_packets"] for line in TRUTH)
    assert metered.metrics.metered_octets == sum(line["octets"] for line in TRUTH)


@pytest.mark.parametrize(
    "name", ["6in4tunnel.pcap", "quic-fuzz-overflow.pcapng", "fuzz-2020-02-16-11740.pcap", "false_positives.pcapng"]
)
def test_the_program_says_the_same_as_the_engine(program_environment: dict[str, str], name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jarvis_agent", "meter", str(PCAPS / name), "--idle", "0", "--active", "0"],
        env=program_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    truth, summary = BY_NAME[name], json.loads(done.stderr.splitlines()[0])
    assert {key: summary[key] for key in ("packets", "ip_packets", "octets")} == {
        key: truth[key] for key in ("packets", "ip_packets", "octets")
    }
    totals = {
        flow_key(record): record["fwd_packets"] + record["rev_packets"] for record in map(json.loads, done.stdout.splitlines())
    }
    assert totals == {key: packets for key, (packets, _) in truth["flows"].items()}
    assert summary["flows"] == len(done.stdout.splitlines())
