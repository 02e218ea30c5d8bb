# SPDX-License-Identifier: Apache-2.0
"""The meters that are measured: how each is run on a capture file, and how the flows it counted are read back.

Each runs with the same timeouts (idle 30 s, active 300 s) where it has them, and with a table that holds every flow.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a meter says it saw; None where it does not say."""

    packets: int | None
    flows: int | None
    biflows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """One program under measurement."""

    name: str
    version: Callable[[], str]
    command: Callable[[Path, Path], list[str]]
    """From capture and an empty work directory to the command line."""
    counted: Callable[[str, Path], Counted]
    """From what it printed and its work directory."""
    missing: Callable[[], str] = lambda: ""
    """Why it cannot be measured here; empty when it can."""


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _not_installed(program: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(program) else f"{program} is not installed"


def _agent() -> str:
    return str(Path(sys.executable).with_name("jarvis-agent"))


def _ours(printed: str, _work: Path) -> Counted:
    summary = json.loads(printed.splitlines()[0])
    return Counted(packets=summary["packets"], flows=summary["flows"], biflows=True)


def _nfpcapd(_printed: str, work: Path) -> Counted:
    text = _output("nfdump", "-R", str(work), "-I")
    return Counted(packets=_number(r"(?m)^Packets: (\d+)", text), flows=_number(r"(?m)^Flows: (\d+)", text), biflows=False)


def _softflowd(printed: str, _work: Path) -> Counted:
    return Counted(
        packets=_number(r"Packets processed: (\d+)", printed), flows=_number(r"Flows exported: (\d+)", printed), biflows=True
    )


_NFSTREAM = """
import sys
from nfstream import NFStreamer
flows = packets = 0
for flow in NFStreamer(source=sys.argv[1], n_dissections=0, n_meters=1, accounting_mode=1, idle_timeout=30, active_timeout=300):
    flows += 1
    packets += flow.bidirectional_packets
print(f"flows={flows} packets={packets}")
"""


def _nfstream_missing() -> str:
    done = subprocess.run([sys.executable, "-c", "import nfstream"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else "nfstream is not installed in this environment"


SINK_PORT = 29995  # loopback; softflowd exports there

METERS = (
    Meter(
        name="jarvis-agent meter",
        version=lambda: _output(_agent(), "version").split()[1],
        command=lambda capture, _work: [_agent(), "meter", str(capture), "--output", "none"],
        counted=_ours,
    ),
    Meter(
        name="nfpcapd",
        version=lambda: _number_text(r"Version: ([\d.]*\d)", _output("nfpcapd", "-V")),
        command=lambda capture, work: ["nfpcapd", "-r", str(capture), "-w", str(work)],
        counted=_nfpcapd,
        missing=_not_installed("nfpcapd"),
    ),
    Meter(
        name="softflowd",
        version=lambda: _number_text(r"softflowd version ([\d.]*\d)", _output("softflowd", "-h")),
        command=lambda capture, work: [
            "softflowd",
            "-r",
            str(capture),
            "-v",
            "10",
            "-b",
            "-m",
            "1048576",
            "-d",
            "-c",
            "none",
            "-p",
            str(work / "pid"),
            "-t",
            "maxlife=300",
            "-t",
            "general=30",
            "-t",
            "tcp=30",
            "-t",
            "udp=30",
            "-n",
            f"127.0.0.1:{SINK_PORT}",
        ],
        counted=_softflowd,
        missing=_not_installed("softflowd"),
    ),
    Meter(
        name="NFStream",
        version=lambda: _output(sys.executable, "-c", "import nfstream; print(nfstream.__version__)").strip().splitlines()[-1],
        command=lambda capture, _work: [sys.executable, "-c", _NFSTREAM, str(capture)],
        counted=lambda printed, _work: Counted(
            packets=_number(r"packets=(\d+)", printed), flows=_number(r"flows=(\d+)", printed), biflows=True
        ),
        missing=_nfstream_missing,
    ),
)


def _number_text(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else "?"


@contextmanager
def udp_sink() -> Iterator[None]:
    """A collector that reads and drops, so that exporters meet a listening port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sink.bind(("127.0.0.1", SINK_PORT))
        sink.settimeout(0.2)
        done = threading.Event()

        def drain() -> None:
            while not done.is_set():
                try:
                    sink.recv(65536)
                except TimeoutError:
                    continue

        thread = threading.Thread(target=drain, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
