# SPDX-License-Identifier: Apache-2.0
"""What a session has in hand: blocks that were given to it and are not settled, in the order in which they leave.

    settled ≤ left ≤ messages, for each block          counted: how many are in the counters, however often they left

Templates and options are in it too, because a transport counts messages of every kind. No I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from jarvis_native.export import ExportBlock

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of, length_of, part


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A block in the window."""

    block: ExportBlock
    is_control: bool = False
    """Templates or options: not sent again, each session has its own."""
    templates: ExportBlock | None = None
    gap: Amount = NOTHING
    is_replay: bool = False
    settled: int = 0
    """Messages that need not be sent again."""
    left: int = 0
    """Messages that left, in this connection or settled before it."""
    counted: int = 0
    """Messages that are in the counters."""
    is_begun: bool = False
    """It was stamped in this connection, whether it left or not."""
    base: int = 0
    """The message with which it began to leave in this connection,"""
    sequence: int = 0
    """and the session's sequence then, before the gap."""

    @property
    def has_left(self) -> bool:
        """All of it."""
        return self.left >= self.block.messages


class Window:
    """Entries of one session; one thread at a time."""

    def __init__(self) -> None:
        """Empty."""
        self._entries: deque[Entry] = deque()

    def add(self, entry: Entry) -> None:
        """A block, behind all others."""
        self._entries.append(entry)

    def insert(self, control: Entry, before: Entry | None = None) -> None:
        """Templates or options, before an entry, or before the first that has not left."""
        first = before or next((entry for entry in self._entries if not entry.has_left), None)
        self._entries.insert(len(self._entries) if first is None else self._entries.index(first), control)

    def blocks(self) -> Iterator[Entry]:
        """Entries of records, oldest first."""
        return iter([entry for entry in self._entries if not entry.is_control])

    def settle(self, messages: int) -> int:
        """So many more messages are settled, of those that left; returns how many blocks of records are done with that."""
        done = 0
        while self._entries:
            entry = self._entries[0]
            step = min(messages, entry.left - entry.settled)
            entry.settled += step
            messages -= step
            if entry.settled < entry.block.messages:
                break
            self._entries.popleft()
            done += 0 if entry.is_control else 1
        return done

    def first_begun(self) -> Entry | None:
        """The oldest entry that this connection was to carry and has not settled."""
        return next((entry for entry in self._entries if entry.is_begun), None)

    def take_back(self) -> None:
        """What is not settled has not left; templates and options are forgotten."""
        self._entries = deque(self.blocks())
        for entry in self._entries:
            entry.left, entry.is_begun = entry.settled, False

    def waiting(self) -> tuple[Amount, int, Amount]:
        """What has not left: all of it, its bytes, and what of it is in the counters."""
        waiting, octets, counted = NOTHING, 0, NOTHING
        for entry in self.blocks():
            if not entry.has_left:
                waiting += amount_of(part(entry.block, entry.left, entry.block.messages))
                octets += length_of(entry.block, entry.left, entry.block.messages)
                if entry.left < entry.counted:
                    counted += amount_of(part(entry.block, entry.left, entry.counted))
        return waiting, octets, counted
