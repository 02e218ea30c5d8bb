# SPDX-License-Identifier: Apache-2.0
"""The offline meter and who sits before it: Ctrl-C, a line of progress, a reader of standard output that went away."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jarvis_native.engine import PacketCaptureEngine

_PROGRESS_S = 1.0


class Interrupt:
    """Ctrl-C as a flag, so that no block of records is cut in two; the second one breaks off."""

    def __init__(self) -> None:
        self.seen = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    @contextmanager
    def armed(self) -> Iterator[None]:
        """SIGINT is noted meanwhile."""
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


class Progress:
    """One line on a terminal, rewritten every second; nothing when stderr is no terminal."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _PROGRESS_S if sys.stderr.isatty() else float("inf")
        self._shown = False

    def show(self, engine: PacketCaptureEngine) -> None:
        """Writes it when a second has passed."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due, self._shown = now + _PROGRESS_S, True
        metrics = engine.get_metrics()
        rate = metrics.received / (metrics.elapsed_ns / 1e9) if metrics.elapsed_ns else 0.0
        line = f"{metrics.received:,} packets ({rate / 1e6:.1f} M/s), {metrics.flows_active:,} flows active"
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Takes it away again."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def silence_stdout() -> None:
    """Whoever read standard output is gone: what Python flushes at exit must not complain about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
