# SPDX-License-Identifier: Apache-2.0
"""The meters that are measured on a capture file: one row each, how it is run and how what it counted is read back.

Each runs with the same timeouts (idle 30 s, active 300 s) where it has them, and with a table that holds every flow.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import outputs
from bench.outputs import Counted, version
from bench.programs import HERE, beside_python, nfstream_missing, not_installed, output
from testbed.generator import built

SINK_PORT = 29995  # loopback; softflowd exports there
TABLE_FLOWS = 1_048_576

Clock = Literal["wall", "cpu"]


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
    cpus: int = 1
    """How many cores it is given."""
    clock: Clock = "wall"
    """Which time is compared with the same one of ours: CPU time where the program sleeps of its own accord."""
    ends: bool = True
    """Ends at the end of the file; else it is told to, once it is idle."""
    slow: bool = False
    """Takes minutes on a large capture: one round there."""


def _ours(name: str, *options: str, cpus: int = 1, missing: Callable[[], str] = lambda: "") -> Meter:
    return Meter(
        name=name,
        version=lambda: output(beside_python("jarvis-agent"), "version").split()[1],
        command=lambda capture, _work: [beside_python("jarvis-agent"), "meter", str(capture), "--output", "none", *options],
        counted=lambda printed, _work: outputs.jarvis_summary(printed),
        missing=missing,
        cpus=cpus,
    )


def _no_workers() -> str:
    return "" if "--workers" in output(beside_python("jarvis-agent"), "meter", "--help") else "this build has no --workers"


OURS = _ours("jarvis-agent meter")

TWO_WORKERS = _ours("jarvis-agent meter --workers 2", "--workers", "2", cpus=2, missing=_no_workers)

FLOOR = Meter(
    name="floor (bench/floor.c)",
    version=lambda: "",
    command=lambda capture, _work: [str(built(HERE / "floor.c")), str(capture)],
    counted=lambda printed, _work: outputs.floor_result(printed),
    missing=lambda: "" if (HERE / "floor.c").exists() else "bench/floor.c is not there",
)

NFPCAPD = Meter(
    name="nfpcapd",
    version=lambda: version(r"Version: ([\d.]*\d)", output("nfpcapd", "-V")),
    command=lambda capture, work: ["nfpcapd", "-r", str(capture), "-w", str(work)],
    counted=lambda _printed, work: outputs.nfdump_statistics(output("nfdump", "-R", str(work), "-I")),
    missing=not_installed("nfpcapd"),
)

_TIMEOUTS = [part for kind in ("maxlife=300", "general=30", "tcp=30", "udp=30") for part in ("-t", kind)]

SOFTFLOWD = Meter(
    name="softflowd",
    version=lambda: version(r"softflowd version ([\d.]*\d)", output("softflowd", "-h")),
    command=lambda capture, work: [
        "softflowd", "-r", str(capture), "-v", "10", "-b", "-m", str(TABLE_FLOWS), "-d", "-c", "none", "-p", str(work / "pid"),
        *_TIMEOUTS, "-n", f"127.0.0.1:{SINK_PORT}",
    ],
    counted=lambda printed, _work: outputs.softflowd_statistics(printed),
    missing=not_installed("softflowd"),
)  # fmt: skip


def _pmacctd(capture: Path, work: Path) -> list[str]:
    """One row a flow and direction, written when its table is full or at the end; in this mode it knows no flow timeouts.

    Each entry of the table is 4 KiB, cleared beforehand; half a million of them hold the flows of the large capture by chaining.
    It waits at the end of the file, because otherwise its reading half ends its counting half, whatever that has still to count.
    (Its last buffer, of at most 64 KiB, may then be counted twice.)
    """
    (work / "pmacctd.conf").write_text(
        "daemonize: false\n"
        f"pcap_savefile: {capture.absolute()}\n"
        "pcap_savefile_wait: true\n"
        "aggregate: src_host,dst_host,src_port,dst_port,proto\n"
        "plugins: print\n"
        "print_output: csv\n"
        f"print_output_file: {work / 'flows.csv'}\n"
        "print_output_file_append: true\n"
        "print_refresh_time: 86400\n"
        "print_cache_entries: 524309\n"
        "plugin_pipe_size: 268435456\n"
        "plugin_buffer_size: 65536\n"
    )
    return ["pmacctd", "-f", str(work / "pmacctd.conf")]


def _pmacctd_counted(_printed: str, work: Path) -> Counted:
    written = work / "flows.csv"
    if not written.exists():
        return Counted(packets=None, flows=None, biflows=False)
    with written.open() as lines:
        return outputs.pmacctd_records(lines)


PMACCTD = Meter(
    name="pmacctd (print)",
    version=lambda: version(r"pmacctd ([\d.]*\d)", output("pmacctd", "-V")),
    command=_pmacctd,
    counted=_pmacctd_counted,
    missing=not_installed("pmacctd"),
    clock="cpu",
    ends=False,
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

NFSTREAM = Meter(
    name="NFStream",
    version=lambda: output(sys.executable, "-c", "import nfstream; print(nfstream.__version__)").strip().splitlines()[-1],
    command=lambda capture, _work: [sys.executable, "-c", _NFSTREAM, str(capture)],
    counted=lambda printed, _work: outputs.nfstream_totals(printed),
    missing=nfstream_missing,
    slow=True,
)

METERS = (OURS, TWO_WORKERS, FLOOR, NFPCAPD, SOFTFLOWD, PMACCTD, NFSTREAM)
"""In the table's order; the first is the one that the others are compared with."""


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
