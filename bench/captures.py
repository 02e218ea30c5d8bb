# SPDX-License-Identifier: Apache-2.0
"""The synthetic captures that benchmarks run on, made once and kept under build/bench/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
WORK = Path(__file__).resolve().parent.parent / "build" / "bench"


def capture_file(packets: int, flows: int, console: Console) -> tuple[Path, dict[str, int]]:
    """The synthetic capture and its totals, made once and kept under build/."""
    maker = SHARED / "mkpcap.py"
    target = WORK / f"traffic-{packets}-{flows}.pcap"
    totals = target.with_suffix(".json")
    if not totals.exists():
        if not maker.exists():
            own = """--capture FILE --truth '{"packets": N, "biflows": N}'"""
            sys.exit(f"{maker} is not there: give a capture of your own with {own}")
        WORK.mkdir(parents=True, exist_ok=True)
        console.print(f"making {target.name} ...")
        made = subprocess.run(
            [sys.executable, str(maker), str(target), "--packets", str(packets), "--flows", str(flows)],
            check=True,
            capture_output=True,
            text=True,
        )
        totals.write_text(made.stdout)
    return target, json.loads(totals.read_text())
