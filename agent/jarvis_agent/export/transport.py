# SPDX-License-Identifier: Apache-2.0
"""What every way out has in common: a connection, messages that left, and those of them that are safe.

    session ──send──► transport ──► kernel ──► collector
               sent: messages that left       settled: messages that need not be sent again

Both are numbers of messages since `connect`, first in first out; the session keeps what lies between them and sends it again when
the connection breaks. A message is safe over TCP and TLS when the collector's host has acknowledged it, over UDP when nothing
has come back for a while, in a file when it is written.

One thread uses a transport. Nothing here waits longer than its time limits, and `interrupt` ends every wait early.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol

from jarvis_native.export import ExportBlock

from jarvis_agent.export.plan import ExportTransport

CONNECT_TIMEOUT_S = 10.0
"""For each address of a collector: until connected, TLS handshake included."""

SEND_TIMEOUT_S = 30.0
"""A collector that takes no byte for so long is away."""

_SLICE_S = 0.2
"""How often a wait looks whether it is to end."""

Interrupt = Callable[[], bool]
"""True: give up waiting now."""


def never() -> bool:
    """An Interrupt for programs whose signals end the process."""
    return False


def always() -> bool:
    """For programs that may send whatever they have."""
    return True


class StopTime:
    """An Interrupt that somebody else sets: waits end when its time has come. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = float("inf")

    def set(self, in_s: float) -> None:
        """Waits end so much later; setting it again brings it forward only."""
        self._at = min(self._at, self._clock() + in_s)

    def left(self) -> float:
        """Seconds until then, 0: it is over."""
        return max(0.0, self._at - self._clock())

    def __call__(self) -> bool:
        """Whether it is over."""
        return self._clock() >= self._at


class Transport(Protocol):
    """A way to one collector."""

    @property
    def kind(self) -> ExportTransport:
        """Which transport it is."""

    @property
    def restarts(self) -> bool:
        """A connection begins a new session: sequence numbers at 0, the collector knows no template."""

    @property
    def address(self) -> str:
        """Of the collector, `192.0.2.1:4739`, or the file's path; empty: not connected."""

    @property
    def message_max(self) -> int:
        """Bytes that a message should have at most on the way to it; may shrink while connected."""

    @property
    def burst(self) -> int:
        """Messages that are sent between two looks at the pace; 0 = a whole block."""

    @property
    def sent(self) -> int:
        """Messages that left since `connect`."""

    def settled(self) -> int:
        """Messages since `connect` that need not be sent again. Also after a failure, until `close` or `connect`."""

    def connect(self) -> None:
        """Resolves, connects.

        Raises:
            ExportError: nothing is connected.
        """

    def send(self, block: ExportBlock) -> None:
        """Sends all messages of a stamped block.

        Raises:
            ExportError: `sent` says how far it came; the connection is of no more use.
        """

    def check(self) -> None:
        """Takes what came back: an end of the connection, a refusal.

        Raises:
            ExportError: the connection is of no more use.
        """

    def probe(self, timeout_s: float) -> None:
        """Gives a collector that was away so much time to refuse what was sent last.

        Raises:
            ExportError: it did.
        """

    def is_stale(self) -> bool:
        """Whether to connect anew: another address, a file that is full. Asked between blocks."""

    def wait_settled(self, timeout_s: float) -> None:
        """Waits until all that left is safe, or so long.

        Raises:
            ExportError: the connection broke.
        """

    def close(self) -> None:
        """Ends the connection; what is not settled may or may not arrive. Without effect when there is none."""


def wait_for(descriptor: int, events: int, timeout_s: float, interrupt: Interrupt) -> bool:
    """Waits for poll events (errors and hang-ups included); False: the time is over, or it was interrupted."""
    poller = select.poll()
    poller.register(descriptor, events)
    end = time.monotonic() + timeout_s
    while not interrupt():
        left = end - time.monotonic()
        if poller.poll(max(0.0, min(left, _SLICE_S)) * 1000):
            return True
        if left <= 0:
            return False
    return False
