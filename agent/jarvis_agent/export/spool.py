# SPDX-License-Identifier: Apache-2.0
"""Where blocks wait for a collector: in memory, then on disk, in their order, and never more than was allowed.

    feed ──put──► head (memory) ─► files (disk) ─► tail (memory) ──take──► sender ──done──► gone

A block stays the spool's until it is `done`: an orderly end of the process leaves it on disk, and what the next process finds on
disk, after a crash too, is replayed first, with the templates that were in front of it. Once something is on disk, what comes
goes behind it; memory is for the time before and, when the disk is full or fails, for what comes after.

When nothing more fits, the block that comes is dropped, not one that waits: what is kept is then one stretch of time without
holes (the beginning of the outage, which is what one looks for afterwards), what is on disk need not be rewritten, and the
collector sees one gap in the sequence, at its place. Nothing here raises into the feed: a disk that fails is told in the status.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jarvis_native.export import ExportBlock, ExportProtocol

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of, part
from jarvis_agent.export.spool_disk import Place, SpoolDisk

_BLOCK_OVERHEAD = 512
"""What a block takes in memory beside its bytes: objects."""

_REPLAY_AGE_S = 5.0
"""A block that waited longer is not live any more: the replay's pace holds for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A block on its way; the arguments of CollectorSession.send."""

    block: ExportBlock
    templates: ExportBlock | None
    """Of an earlier process, that its records need."""
    gap: Amount
    """Lost before it."""
    is_replay: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """A spool now."""

    waiting: Amount = NOTHING
    """Not taken yet."""
    taken: Amount = NOTHING
    """All that was, since the spool was opened."""
    memory_bytes: int = 0
    disk_bytes: int = 0
    lost: Amount = NOTHING
    """Dropped since the spool was opened."""
    first_lost_ns: int = 0
    """Unix ns, 0: nothing was lost."""
    last_lost_ns: int = 0
    disk_error: str = ""
    """Why nothing could be written to, or read from the disk when that was last tried; empty: it could."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """A block that was taken, or waits in memory."""

    block: ExportBlock | None
    """None: the disk has damaged it."""
    amount: Amount
    gap: Amount
    put_at: float
    on_disk: Place | None = None

    @property
    def memory_bytes(self) -> int:
        """What it takes of the memory that is allowed."""
        if self.on_disk is not None or self.block is None:
            return 0
        return len(self.block.data) + len(self.block.index) + _BLOCK_OVERHEAD


class Spool:
    """The spool of one collector. Any thread; one puts, one takes.

    Args:
        protocol: of the blocks.
        memory_bytes: at most, blocks on their way included.
        directory: for files, made when missing; None: memory only.
        disk_bytes: at most; 0: memory only.
        templates: what records of this process need, for files.
        clock: monotonic seconds.
        now_ns: Unix ns.

    Raises:
        ExportError: EXPORT_SPOOL, the directory cannot be used.
    """

    def __init__(
        self,
        *,
        protocol: ExportProtocol,
        memory_bytes: int,
        templates: ExportBlock,
        directory: Path | None = None,
        disk_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._memory_limit = memory_bytes
        self._clock, self._now_ns = clock, now_ns
        self._changed = threading.Condition()
        self._head: deque[_Held] = deque()
        self._tail: deque[_Held] = deque()
        self._taken: deque[_Held] = deque()
        self._memory_bytes = 0
        self._waiting = self._given = NOTHING
        self._gap = NOTHING
        """Lost since the last block that was accepted."""
        self._read_gap = NOTHING
        """Lost on the disk since the last block that was taken."""
        self._lost, self._first_lost_ns, self._last_lost_ns = NOTHING, 0, 0
        self._is_closed = False
        self._disk: SpoolDisk | None = None
        if directory is not None and disk_bytes > 0:
            self._disk = SpoolDisk(directory, protocol=protocol, limit=disk_bytes, templates=templates, clock=clock)
            self._waiting = self._disk.waiting()

    def put(self, block: ExportBlock) -> bool:
        """Takes over a block; False: it was dropped, and is counted. Waits for no network, but may write to the disk."""
        with self._changed:
            held = _Held(block=block, amount=amount_of(block), gap=self._gap, put_at=self._clock())
            if self._is_closed or not self._place(held):
                self._lose(held.amount)
                self._gap += held.amount
                return False
            self._gap = NOTHING
            self._waiting += held.amount
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> Taken | None:
        """The oldest block that was not taken; waits for one so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_more(), timeout_s)
            while not self._is_closed and self._has_more():
                taken = self._take_next()
                if taken is not None:
                    return taken
        return None

    def wake(self) -> None:
        """Lets `take` return early, with or without a block."""
        with self._changed:
            self._changed.notify_all()

    def done(self, blocks: int) -> None:
        """The oldest so many of those that were taken need not be kept any more."""
        with self._changed:
            while self._taken and (blocks > 0 or self._taken[0].block is None):
                held = self._taken.popleft()
                blocks -= 0 if held.block is None else 1
                self._memory_bytes -= held.memory_bytes
                if held.on_disk is not None and self._disk is not None:
                    self._disk.done(held.on_disk)
            if self._tail and (self._disk is None or not self._disk.is_in_use):
                self._head.extend(self._tail)
                self._tail.clear()

    def status(self) -> SpoolStatus:
        """Counters now."""
        with self._changed:
            disk = self._disk
            return SpoolStatus(
                waiting=self._waiting,
                taken=self._given,
                memory_bytes=self._memory_bytes,
                disk_bytes=disk.used if disk is not None else 0,
                lost=self._lost,
                first_lost_ns=self._first_lost_ns,
                last_lost_ns=self._last_lost_ns,
                disk_error=disk.error if disk is not None else "",
            )

    def close(self, *, keep: bool, settled_messages: int = 0) -> None:
        """Nothing goes in or out any more. May be called again.

        Args:
            keep: what waits, and what was taken and is not done, stays on disk for the next process, as far as there is a disk
                with room; what does not is dropped and counted. False: all is dropped and counted.
            settled_messages: of the oldest block that is not done, so many messages need not be sent again.
        """
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._shorten_oldest(settled_messages)
            before, after = self._in_memory()
            if self._disk is None:
                lost = [held.amount for held in before + after]
            elif keep:
                lost = self._disk.keep(
                    [(held.block, held.gap) for held in before if held.block is not None],
                    [(held.block, held.gap) for held in after if held.block is not None],
                )
            else:
                lost = [held.amount for held in before + after] + [self._disk.discard()]
            for amount in lost:
                self._lose(amount)
            if self._disk is not None:
                self._disk.close()
            self._waiting, self._memory_bytes = NOTHING, 0
            self._changed.notify_all()

    def _place(self, held: _Held) -> bool:
        """Puts a block where its turn is; False: there is no room."""
        has_memory = self._memory_bytes + held.memory_bytes <= self._memory_limit
        disk = self._disk
        if disk is None or not disk.is_in_use:
            if has_memory:
                self._head.append(held)
                self._memory_bytes += held.memory_bytes
                return True
            return disk is not None and held.block is not None and disk.append(held.block, held.gap)
        if not self._tail and held.block is not None and disk.append(held.block, held.gap):
            return True
        if has_memory:
            self._tail.append(held)
            self._memory_bytes += held.memory_bytes
        return has_memory

    def _has_more(self) -> bool:
        return bool(self._head or self._tail or (self._disk is not None and self._disk.has_more))

    def _take_next(self) -> Taken | None:
        """None: the disk has damaged it, and it is counted."""
        if self._head:
            held = self._head.popleft()
        elif self._disk is not None and self._disk.has_more:
            place, block = self._disk.take()
            held = _Held(block=block, amount=place.frame.amount, gap=place.frame.gap, put_at=float("-inf"), on_disk=place)
        else:
            held = self._tail.popleft()
        self._taken.append(held)
        self._waiting -= held.amount
        gap, self._read_gap = held.gap + self._read_gap, NOTHING
        if held.block is None:
            self._lose(held.amount)
            self._read_gap = gap + held.amount
            return None
        self._given += held.amount
        return Taken(
            block=held.block,
            templates=held.on_disk.file.templates if held.on_disk is not None else None,
            gap=gap,
            is_replay=self._clock() - held.put_at > _REPLAY_AGE_S,
        )

    def _shorten_oldest(self, messages: int) -> None:
        oldest = next((held for held in self._taken if held.block is not None), None)
        if messages <= 0 or oldest is None or oldest.block is None:
            return
        if oldest.on_disk is not None and self._disk is not None:
            self._disk.shorten(oldest.on_disk, oldest.block, messages)
        oldest.block = part(oldest.block, messages, oldest.block.messages)
        oldest.amount, oldest.gap = amount_of(oldest.block), NOTHING

    def _in_memory(self) -> tuple[list[_Held], list[_Held]]:
        """What is not done and not on disk: older than what is on disk, newer than that."""
        taken = list(self._taken)
        first_on_disk = next((n for n, held in enumerate(taken) if held.on_disk is not None), len(taken))
        before = [*taken[:first_on_disk], *self._head]
        after = [*(held for held in taken[first_on_disk:] if held.on_disk is None), *self._tail]
        return before, after

    def _lose(self, amount: Amount) -> None:
        if amount:
            self._lost += amount
            self._last_lost_ns = self._now_ns()
            self._first_lost_ns = self._first_lost_ns or self._last_lost_ns
