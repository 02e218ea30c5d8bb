# SPDX-License-Identifier: Apache-2.0
"""Programs that benchmarks run: built from C where they are ours, pinned, timed as whole processes, their CPU time read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
_IDLE_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One whole process: wall and CPU seconds (its children's too), the largest resident set in MiB, what it printed."""

    wall: float
    cpu: float
    rss_mib: float
    printed: str


def pinned(cpus: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command, kept to these CPUs; numbers past the last one begin again at 0."""
    allowed = sorted({cpu % (os.cpu_count() or 1) for cpu in cpus})
    return ["taskset", "-c", ",".join(map(str, allowed)), *command]


def run_to_end(command: Sequence[str], *, log: Path, limit_s: float, stop_when_idle: bool = False) -> Finished:
    """Runs a program and measures it; raises RuntimeError with its output when it fails or takes longer than the limit.

    With `stop_when_idle` it is one that does not end by itself: it gets SIGINT once it has used no CPU for some seconds.
    """
    with log.open("wb") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        timer, ended = threading.Timer(limit_s, process.kill), threading.Event()
        timer.start()
        if stop_when_idle:
            threading.Thread(target=_interrupt_when_idle, args=(process.pid, ended), daemon=True).start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            ended.set()
            timer.cancel()
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = log.read_text(errors="replace")
    if wall >= limit_s:
        raise RuntimeError(f"stopped after {limit_s:.0f} s, the limit")
    if process.returncode != 0:
        raise RuntimeError(f"exited with {process.returncode}: {printed[-2000:]}")
    return Finished(wall=wall, cpu=usage.ru_utime + usage.ru_stime, rss_mib=usage.ru_maxrss / 1024, printed=printed)


def _interrupt_when_idle(pid: int, ended: threading.Event) -> None:
    """Ends the process after _IDLE_S seconds in which it and its children used next to no CPU."""
    used, since = -1.0, time.monotonic()
    while not ended.wait(0.25):
        now = cpu_seconds(pid)
        if now > used + 0.02:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > _IDLE_S:
            os.kill(pid, signal.SIGINT)
            return


def output(*command: str) -> str:
    """What a short command prints, on either stream, whatever its exit code."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def beside_python(program: str) -> str:
    """Path of a program of this environment."""
    return str(Path(sys.executable).with_name(program))


def not_installed(program: str) -> Callable[[], str]:
    """A check: why the program cannot be run, or nothing."""
    return lambda: "" if shutil.which(program) else f"{program} is not installed"


def nfstream_missing() -> str:
    """Why NFStream cannot be run, or nothing."""
    done = subprocess.run([sys.executable, "-c", "import nfstream"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "nfstream is not installed in this environment"


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants that still run."""
    found, look = [], [pid]
    while look:
        one = look.pop()
        if not Path(f"/proc/{one}").exists():
            continue
        found.append(one)
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
                look += [int(child) for child in path.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time (user and system) of all threads of the process and its descendants, by the scheduler's clock."""
    total = 0
    for one in process_tree(pid):
        for path in Path(f"/proc/{one}/task").glob("*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
                total += int(path.read_text().split()[0])
    return total / 1e9


def softirq_seconds(cpu: int) -> float:
    """Time the CPU has spent in soft interrupts, in clock ticks of the kernel: work that belongs to no process."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{cpu} "))
    return int(line.split()[7]) / os.sysconf("SC_CLK_TCK")
