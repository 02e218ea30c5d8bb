# SPDX-License-Identifier: Apache-2.0
"""How long `jarvis-agent meter` takes for a capture without packets, the whole process: what a small file costs at least."""

from __future__ import annotations

import statistics
import struct
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.meters import run_once
from bench.peers import OURS

RUNS = 20


def report(*, cpu: int, console: Console) -> dict[str, Any]:
    """Prints one line; returns the seconds of all runs."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        empty = Path(directory) / "empty.pcap"
        empty.write_bytes(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        seconds = [run_once(OURS, empty, cpu).wall for _ in range(RUNS)]
    median, low, high = statistics.median(seconds), min(seconds), max(seconds)
    console.print(f"start-up: {OURS.name} of an empty capture: median {median:.3f} s, {low:.3f} to {high:.3f} s over {RUNS} runs")
    return {"median_s": median, "seconds": seconds}
