# SPDX-License-Identifier: Apache-2.0
"""The programs that capture live: one row each, how it is started, how it says that it captures, how its counts are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import outputs
from bench.live_capture import BUFFER_MB
from bench.outputs import Seen
from bench.programs import nfstream_missing, not_installed
from testbed.generator import DEVICE
from testbed.netns import Namespace

Ready = Callable[[Namespace, str], bool]
"""From the namespace and what was printed so far to whether frames are captured."""


def says(pattern: str) -> Ready:
    """Ready by the program's own word."""
    return lambda _namespace, printed: re.search(pattern, printed) is not None


def _packet_socket(namespace: Namespace, _printed: str) -> bool:
    """A packet socket for all protocols is bound to an interface: for a program that says nothing."""
    return re.search(r"(?m)^\S+ \d+ +\d+ +0003 +[1-9]", namespace.run("cat", "/proc/net/packet")) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capturer:
    """One program under measurement."""

    name: str
    command: Callable[[Path], list[str]]
    """From an empty work directory to the command line."""
    ready: Ready
    seen: Callable[[str], Seen]
    """From what it printed up to its end, or was asked."""
    ask: Callable[[Path], list[str]] | None = None
    """A command that prints its counters while it runs, where it does not print them itself."""
    late: bool = False
    """Brings its counters up to date only when a frame comes a second after the others: it is sent one more."""
    missing: Callable[[], str] = lambda: ""
    """Why it cannot be measured here; empty when it can."""


def _ours(backend: str) -> Capturer:
    return Capturer(
        name=f"jarvis {backend} (flow metering)",
        command=lambda _work: [sys.executable, "-m", "bench.live_capture", DEVICE, backend],
        ready=says(r"(?m)^ready"),
        seen=outputs.jarvis_seen,
    )


NOBODY = Capturer(
    name="nobody (the sender alone)",
    command=lambda _work: ["sleep", "600"],
    ready=lambda _namespace, _printed: True,
    seen=lambda _printed: Seen(frames=None, dropped=None),
)
"""What a frame costs the sender when no one captures: the difference is the kernel's work for the capture."""

_NFSTREAM = f"""
from nfstream import NFStreamer
flows = NFStreamer(source="{DEVICE}", n_dissections=0, n_meters=1, accounting_mode=1, idle_timeout=30, active_timeout=300,
                   promiscuous_mode=True, socket_buffer_size={BUFFER_MB << 20}, performance_report=1)
try:
    for flow in flows:
        pass
except KeyboardInterrupt:
    pass
"""

CAPTURERS = (
    NOBODY,
    _ours("afpacket"),
    _ours("xdp"),
    Capturer(
        name="tcpdump -w /dev/null (capture only)",
        command=lambda _work: ["tcpdump", "-i", DEVICE, "-n", "-B", str(BUFFER_MB << 10), "-w", "/dev/null"],
        ready=says("listening on"),
        seen=outputs.tcpdump_seen,
        missing=not_installed("tcpdump"),
    ),
    Capturer(
        name="softflowd (flow metering)",
        command=lambda work: [
            "softflowd", "-i", DEVICE, "-d", "-v", "10", "-b", "-m", "1048576", "-n", "127.0.0.1:29995",
            "-p", str(work / "pid"), "-c", str(work / "control"),
        ],
        ready=_packet_socket,
        ask=lambda work: ["softflowctl", "-c", str(work / "control"), "statistics"],
        seen=outputs.softflowctl_seen,
        missing=not_installed("softflowd"),
    ),
    Capturer(
        name="NFStream (flow metering)",
        command=lambda _work: [sys.executable, "-u", "-c", _NFSTREAM],
        ready=_packet_socket,
        seen=outputs.nfstream_seen,
        late=True,
        missing=nfstream_missing,
    ),
)  # fmt: skip
