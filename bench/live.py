# SPDX-License-Identifier: Apache-2.0
"""Live capture on a veth pair between two network namespaces of our own: what each program sees of a flood of 64-byte frames.

python -m bench.live [--frames 800000] [--flows 10000] [--rounds 3]

bench/generate.c sends a bounded number of frames as fast as one core can; our metering, tcpdump and softflowd capture them in
turn, on the other core. Seen and dropped are each program's own figures, so what neither names is shown too. CPU is that of the
capturing process while the frames came; the kernel's work for the ring is on the sender's core and in nobody's figure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jarvis_native import PacketCaptureEngine
from rich.console import Console
from rich.table import Table

from bench.captures import WORK
from testbed.netns import Namespace, is_available, join

DEVICE = "veth0"
BUFFER_MB = 64
FRAMES, FLOWS, ROUNDS = 800_000, 10_000, 3
_SETTLE_S = 0.4
"""After the last frame: the kernel hands a part-filled block over within 40 ms, libpcap within 1 s of its own timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A program's own account of the frames; None where it gives none."""

    frames: int | None
    dropped: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capturer:
    """One program under measurement."""

    name: str
    command: Callable[[Path], list[str]]
    """From an empty work directory to the command line."""
    seen: Callable[[str], Seen]
    """From what it printed up to its end, or was asked."""
    ask: Callable[[Path], list[str]] | None = None
    """A command that prints its counters while it runs, where it does not print them itself."""
    program: str = sys.executable
    """Left out where this is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One flood: frames a second offered, frames sent, what was seen of them, CPU seconds of the capturing process."""

    offered: float
    sent: int
    seen: Seen
    cpu: float


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _ours(printed: str) -> Seen:
    metrics = json.loads(printed.splitlines()[-1])
    return Seen(frames=metrics["metered"], dropped=metrics["dropped"])


CAPTURERS = (
    Capturer(
        name="jarvis afpacket (flow metering)",
        command=lambda _work: [sys.executable, "-m", "bench.live", "--capture", DEVICE],
        seen=_ours,
    ),
    Capturer(
        name="tcpdump -w /dev/null (capture only)",
        program="tcpdump",
        command=lambda _work: ["tcpdump", "-i", DEVICE, "-n", "-B", str(BUFFER_MB << 10), "-w", "/dev/null"],
        seen=lambda printed: Seen(
            frames=_number(r"(\d+) packets? captured", printed), dropped=_number(r"(\d+) packets? dropped by kernel", printed)
        ),
    ),
    Capturer(
        name="softflowd (flow metering)",
        program="softflowd",
        command=lambda work: [
            "softflowd", "-i", DEVICE, "-d", "-v", "10", "-b", "-m", "1048576", "-n", "127.0.0.1:29995",
            "-p", str(work / "pid"), "-c", str(work / "control"),
        ],
        ask=lambda work: ["softflowctl", "-c", str(work / "control"), "statistics"],
        seen=lambda printed: Seen(
            frames=_number(r"Packets processed: (\d+)", printed), dropped=_number(r"Packets dropped by libpcap: (\d+)", printed)
        ),
    ),
)  # fmt: skip


def capture(interface: str) -> None:
    """Our side: meters the interface until SIGINT, then prints the counters."""
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    with PacketCaptureEngine(interface, backend="afpacket", buffer_size_mb=BUFFER_MB, workers=1) as engine:
        engine.enable_flow_metering(max_flows=1_048_576, idle_timeout_s=30, active_timeout_s=300)
        engine.start()
        while not stopping:
            engine.poll(0.1)
        engine.stop()
        metrics = engine.get_metrics()
    print(json.dumps({"metered": metrics.metered, "dropped": metrics.dropped, "flows": metrics.flows_total}))


def build_generator() -> Path:
    """Compiles generate.c when it has changed."""
    source = Path(__file__).with_name("generate.c")
    binary = WORK / "generate"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        WORK.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-o", str(binary), str(source)], check=True)
    return binary


def _pinned(cpu: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(cpu % (os.cpu_count() or 1)), *command]


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, by the scheduler's clock."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextmanager
def _capturing(capturer: Capturer, namespace: Namespace, work: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The program, once its packet socket is bound; killed if it is still there at the end."""
    log = work / "log"
    process = namespace.start(_pinned(0, capturer.command(work)), log=log)
    try:
        deadline = time.monotonic() + 10
        while not re.search(r"(?m)^\S+ \d+ +\d+ +0003 +[1-9]", namespace.run("cat", "/proc/net/packet")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{capturer.name} does not capture:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        time.sleep(_SETTLE_S)
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def flood(capturer: Capturer, sender: Namespace, receiver: Namespace, *, frames: int, flows: int) -> Run:
    """One program, one flood."""
    generator = str(build_generator())
    with tempfile.TemporaryDirectory(prefix="jarvis-live-") as directory:
        work = Path(directory)
        with _capturing(capturer, receiver, work) as (process, log):
            before = _cpu_seconds(process.pid)
            sent = json.loads(sender.run(*_pinned(1, [generator, DEVICE, str(frames), str(flows)])))
            time.sleep(_SETTLE_S)
            cpu = _cpu_seconds(process.pid) - before
            answer = receiver.run(*capturer.ask(work)) if capturer.ask else ""
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
        printed = log.read_text(errors="replace") + answer
    return Run(offered=sent["sent"] / sent["seconds"], sent=sent["sent"], seen=capturer.seen(printed), cpu=cpu)


def measure(*, frames: int, flows: int, rounds: int, console: Console) -> dict[str, list[Run]]:
    """Every usable program once a round."""
    capturers = [capturer for capturer in CAPTURERS if shutil.which(capturer.program)]
    for capturer in CAPTURERS:
        if capturer not in capturers:
            console.print(f"left out: {capturer.name}: {capturer.program} is not installed")
    runs: dict[str, list[Run]] = {capturer.name: [] for capturer in capturers}
    with Namespace("send") as sender, Namespace("see") as receiver:
        for namespace in (sender, receiver):  # no neighbour discovery among the frames that are counted
            namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        join(sender, receiver, device=DEVICE, addresses=((), ()))
        for number in range(rounds):
            for capturer in capturers:
                console.print(f"round {number + 1}/{rounds}: {capturer.name}", style="dim")
                runs[capturer.name].append(flood(capturer, sender, receiver, frames=frames, flows=flows))
    return runs


def table(runs: dict[str, list[Run]], *, flows: int) -> Table:
    """Medians of the rates, sums of the counts."""
    rounds = max(len(own) for own in runs.values())
    result = Table(title=f"live capture on a veth pair: 64-byte frames of {flows:,} flows, one sending core, {rounds} rounds")
    result.add_column("program")
    for heading in ("offered kpackets/s", "sent", "seen", "dropped by the kernel", "unaccounted for", "CPU s per M frames"):
        result.add_column(heading, justify="right")
    for name, own in runs.items():
        sent = sum(run.sent for run in own)
        seen, dropped = _total([run.seen.frames for run in own]), _total([run.seen.dropped for run in own])
        result.add_row(
            name,
            f"{statistics.median(run.offered for run in own) / 1e3:,.0f}",
            f"{sent:,}",
            _figure(seen),
            _figure(dropped),
            _figure(None if seen is None else sent - seen - (dropped or 0)),
            f"{statistics.median(run.cpu / (run.seen.frames or run.sent) for run in own) * 1e6:.2f}",
        )
    return result


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _figure(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def report(console: Console, *, frames: int = FRAMES, flows: int = FLOWS, rounds: int = ROUNDS) -> None:
    """Prints the table, or why there is none."""
    if obstacle := is_available():
        console.print(f"left out: live capture: {obstacle}")
        return
    console.print(table(measure(frames=frames, flows=flows, rounds=rounds, console=console), flows=flows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.live", description="live capture on a veth pair, side by side")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames a flood (default: %(default)s)")
    parser.add_argument("--flows", type=int, default=FLOWS, help="flows among them (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--capture", metavar="INTERFACE", help="only meter this interface until SIGINT")
    arguments = parser.parse_args()
    if arguments.capture:
        capture(arguments.capture)
    else:
        report(Console(width=170), frames=arguments.frames, flows=arguments.flows, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
