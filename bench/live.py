# SPDX-License-Identifier: Apache-2.0
"""Live capture on a veth pair between two network namespaces of our own: what each program sees of a flood of 64-byte frames.

python -m bench.live [--frames 2000000] [--flows 10000] [--train 16] [--rounds 3]

testbed/generate.c sends a bounded number of frames as fast as one core can (or two, where there are more than two); our metering
over both kernel interfaces, tcpdump, softflowd and NFStream capture them in turn, on a core of their own. Seen and dropped are
each program's own figures, so what neither names is shown too. CPU is user and system time of the capturing processes until they
have digested the flood. What the kernel does to hand a frame over it does in a soft interrupt on the sender's core, which belongs
to no process: it is the sender's time per frame less that of a round in which nobody captured.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.live_programs import CAPTURERS, NOBODY, Capturer
from bench.outputs import Seen
from bench.programs import cpu_seconds, pinned, process_tree, softirq_seconds
from bench.rounds import Measured, in_rounds, median_of
from testbed.generator import Link, Traffic
from testbed.netns import Namespace, is_available

FRAMES, FLOWS, TRAIN, ROUNDS = 2_000_000, 10_000, 16, 3
CAPTURE_CPU = 0
SEND_CPUS = tuple(range(1, min(os.cpu_count() or 1, 3))) or (0,)
"""Two senders where there is a core for each besides the capturing one."""
_READY_S = 20.0
_DIGESTED_S = 1.2
"""Without CPU use after the flood: longer than any program's timeout for a part-filled block, and than NFStream's reports."""
_DIGEST_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One flood."""

    sent: int
    seconds: float
    """The sender's, for all frames."""
    dropped_by_link: int
    """Frames that the sending device dropped: they came to no program."""
    seen: Seen
    cpu: float
    """User and system seconds of the capturing processes."""
    softirq: float
    """Seconds in soft interrupts on the capturing core, of whatever cause."""

    @property
    def sender_ns(self) -> float:
        """A sending core's time per frame."""
        return self.seconds * len(SEND_CPUS) / self.sent * 1e9

    @property
    def arrived(self) -> int:
        """Frames that came to the receiving device."""
        return self.sent - self.dropped_by_link


@contextmanager
def _capturing(capturer: Capturer, namespace: Namespace, work: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The program, once it captures; it and its children are killed if they are still there at the end."""
    log = work / "log"
    process = namespace.start(pinned([CAPTURE_CPU], capturer.command(work)), log=log)
    try:
        deadline = time.monotonic() + _READY_S
        while not capturer.ready(namespace, log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"does not capture: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        _wait_until_digested(process.pid)
        yield process, log
    finally:
        if process.poll() is None:  # else its number may be another process's by now
            for pid in reversed(process_tree(process.pid)):
                signal_quietly(pid, signal.SIGKILL)
        process.wait()


def signal_quietly(pid: int, number: int) -> None:
    """Signals a process of ours that may have ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until_digested(pid: int) -> None:
    """Until the processes use no more than a trickle of CPU; bounded."""
    deadline = time.monotonic() + _DIGEST_LIMIT_S
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(_DIGESTED_S)
        if cpu_seconds(pid) - before < 0.05 * _DIGESTED_S:
            return


def flood(capturer: Capturer, link: Link, traffic: Traffic) -> Run:
    """One program, one flood."""
    with tempfile.TemporaryDirectory(prefix="jarvis-live-") as directory:
        work = Path(directory)
        with _capturing(capturer, link.receiver, work) as (process, log):
            cpu, softirq, dropped = cpu_seconds(process.pid), softirq_seconds(CAPTURE_CPU), link.dropped()
            sent = link.send(traffic, cpus=SEND_CPUS)
            softirq = softirq_seconds(CAPTURE_CPU) - softirq
            _wait_until_digested(process.pid)
            cpu = cpu_seconds(process.pid) - cpu
            late = 0
            if capturer.late:
                late = link.send(Traffic(frames=1)).sent
                _wait_until_digested(process.pid)
            dropped = link.dropped() - dropped
            answer = link.receiver.run(*capturer.ask(work)) if capturer.ask else ""
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired as error:
                raise RuntimeError("does not end on SIGINT") from error
        seen = capturer.seen(log.read_text(errors="replace") + answer)
    return Run(sent=sent.sent + late, seconds=sent.seconds, dropped_by_link=dropped, seen=seen, cpu=cpu, softirq=softirq)


def measure(*, frames: int, flows: int, train: int, rounds: int, console: Console) -> Measured[Run]:
    """Every usable program once a round."""
    traffic = Traffic(frames=frames, flows=flows, train=train)
    with Link() as link:
        return in_rounds(
            CAPTURERS,
            lambda capturer: flood(capturer, link, traffic),
            rounds=rounds,
            console=console,
        )


def _row(name: str, runs: Sequence[Run], nobody: Sequence[Run]) -> dict[str, Any]:
    arrived, seen, dropped = (
        sum(run.arrived for run in runs), _total([run.seen.frames for run in runs]), _total([run.seen.dropped for run in runs])
    )  # fmt: skip
    extra = [one.sender_ns - alone.sender_ns for one, alone in zip(runs, nobody, strict=False)]
    return {
        "name": name,
        "offered_per_second": median_of(runs, lambda run: run.sent / run.seconds),
        "sent": sum(run.sent for run in runs),
        "arrived": arrived,
        "seen": seen,
        "dropped": dropped,
        "unaccounted": None if seen is None else arrived - seen - (dropped or 0),
        "cpu_ns_per_packet": median_of(runs, lambda run: run.cpu / (run.seen.frames or run.sent) * 1e9),
        "kernel_ns_per_packet": statistics.median(extra) if extra and name != NOBODY.name else None,
        "softirq_ns_per_packet_capturing_core": median_of(runs, lambda run: run.softirq / run.sent * 1e9),
        "rounds": [asdict(run) for run in runs],
    }


def _table(rows: Sequence[dict[str, Any]], *, flows: int, train: int) -> Table:
    rounds = max((len(row["rounds"]) for row in rows), default=0)
    pattern = f"trains of {train}" if train > 1 else "no two of a flow in a row"
    result = Table(
        title=f"live capture on a veth pair: 64-byte frames of {flows:,} flows, {pattern}, "
        f"sending cores: {len(SEND_CPUS)}, {rounds} rounds"
    )
    result.add_column("program")
    for heading in (
        "offered kpackets/s", "arrived", "seen", "dropped by the kernel", "unaccounted for", "lost", "CPU ns a packet",
        "kernel ns a packet",
    ):  # fmt: skip
        result.add_column(heading, justify="right")
    for row in rows:
        lost = None if row["seen"] is None else f"{100 * (row['arrived'] - row['seen']) / row['arrived']:.2f} %"
        result.add_row(
            row["name"],
            f"{row['offered_per_second'] / 1e3:,.0f}",
            f"{row['arrived']:,}",
            _figure(row["seen"]),
            _figure(row["dropped"]),
            _figure(row["unaccounted"]),
            lost or "",
            "" if row["seen"] is None else f"{row['cpu_ns_per_packet']:.0f}",
            "" if row["kernel_ns_per_packet"] is None else f"{row['kernel_ns_per_packet']:.0f}",
        )
    return result


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _figure(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def report(
    console: Console, *, frames: int = FRAMES, flows: int = FLOWS, train: int = TRAIN, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Prints the table, or why there is none; returns everything for JSON."""
    if obstacle := is_available():
        console.print(f"left out: live capture: {obstacle}")
        return {"left_out": obstacle}
    measured = measure(frames=frames, flows=flows, train=train, rounds=rounds, console=console)
    nobody = measured.runs.get(NOBODY.name, [])
    rows = [_row(name, runs, nobody) for name, runs in measured.runs.items()]
    console.print(_table(rows, flows=flows, train=train))
    return {
        "frames": frames,
        "flows": flows,
        "train": train,
        "sending_cores": len(SEND_CPUS),
        "programs": rows,
        "left_out": measured.left_out,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.live", description="live capture on a veth pair, side by side")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames a flood (default: %(default)s)")
    parser.add_argument("--flows", type=int, default=FLOWS, help="flows among them (default: %(default)s)")
    parser.add_argument("--train", type=int, default=TRAIN, help="frames of a flow in a row, 1 to 64 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    report(Console(width=170), frames=arguments.frames, flows=arguments.flows, train=arguments.train, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
