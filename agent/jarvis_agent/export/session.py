# SPDX-License-Identifier: Apache-2.0
"""A session with one collector: templates and options first, then blocks, stamped as they leave; what broke off is sent again.

    block ──► window (left, not settled) ──stamp──pace──► transport

Once a block was given to `send` it is the session's: when the connection breaks, what of it is not settled stays in the window
and is the first that the next `open` sends, in order, with the sequence numbers that the new session has for it (over UDP, which
goes on, those it had). No thread of its own: the meter calls it from its only one, in the agent a sender thread does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from jarvis_native.export import ExportBlock

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of, gap_blocks, length_of, part
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.pace import Pace
from jarvis_agent.export.transport import Interrupt, Transport, always, never
from jarvis_agent.export.window import Entry, Window

_EARLY_REFRESH_S = 5.0
"""Over UDP the templates at the beginning may be lost: they come again once after so long."""

_PROBE_S = 0.1
"""How long a collector that was away has to refuse the first messages of a new try."""

_PACED_MESSAGES = 32
"""Messages between two looks at the pace where the transport has no bursts of its own."""


class Stamp(Protocol):
    """What gives messages sequence and time: jarvis_native.export.ExportSession."""

    sequence: int

    def stamp(self, block: ExportBlock, now_ns: int) -> None:
        """Writes sequence and time into messages that leave now."""

    def skip(self, block: ExportBlock) -> None:
        """Moves the sequence on past messages that never leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCounters:
    """What a collector has got, since the session was made."""

    amount: Amount = NOTHING
    """Messages of records that left and do not wait to be sent again."""
    messages: int = 0
    """All that left: templates and options and those sent again too."""
    octets: int = 0
    """Bytes of them."""
    waiting: Amount = NOTHING
    """Given to `send` and not on its way: what broke off before it was settled is sent by the next connection."""
    waiting_octets: int = 0
    """Bytes of them."""
    connects: int = 0


class MessageSource(Protocol):
    """What a session asks for besides records; called in the session's thread."""

    def templates(self) -> ExportBlock:
        """All templates; no messages where the protocol has none."""

    def options(self, exported: SessionCounters) -> ExportBlock:
        """Options records; no messages where there are none."""


class CollectorSession:
    """One collector; one thread at a time.

    Args:
        transport: connects and sends.
        source: of templates and options.
        new_stamp: a new session's stamp: sequence 0.
        refresh_s: options records are sent again so often, over UDP templates too; 0: never.
        refresh_messages: over UDP templates and options also after so many messages; 0: never.
        records_per_second: at most; 0 = as fast as they come.
        replay_records_per_second: for blocks that have waited, where records_per_second says nothing; 0 = as fast as they come.
        interrupt: ends waits early.
        may_send: asked before each piece of a block: False leaves the rest of it for later.
        clock: monotonic seconds.
        now_ns: Unix ns.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        source: MessageSource,
        new_stamp: Callable[[], Stamp],
        refresh_s: float = 60.0,
        refresh_messages: int = 4096,
        records_per_second: int = 0,
        replay_records_per_second: int = 0,
        interrupt: Interrupt = never,
        may_send: Callable[[], bool] = always,
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._transport = transport
        self._source = source
        self._new_stamp = new_stamp
        self._stamp = new_stamp()
        self._clock, self._now_ns = clock, now_ns
        self._may_send = may_send
        self._refresh_s, self._refresh_messages = refresh_s, refresh_messages
        ends_wait = partial(_is_to_end, interrupt, may_send)
        self._pace = Pace(records_per_second, interrupt=ends_wait, clock=clock)
        self._replay_pace = self._pace
        if replay_records_per_second and not self._pace.is_limited:
            self._replay_pace = Pace(replay_records_per_second, interrupt=ends_wait, clock=clock)
        self._window = Window()
        self._seen_settled = 0
        self._done_blocks = 0
        self._announced: ExportBlock | None = None
        """Templates of an earlier process that the collector has been told in this session."""
        self._is_open = False
        self._was_refused = False
        self._opened_at = self._refreshed_at = 0.0
        self._is_early_refresh_due = False
        self._messages_since_refresh = 0
        self._amount, self._messages, self._octets, self._connects = NOTHING, 0, 0, 0

    @property
    def is_open(self) -> bool:
        """Connected, templates sent."""
        return self._is_open

    @property
    def transport(self) -> Transport:
        """For its address and message_max."""
        return self._transport

    @property
    def sequence(self) -> int:
        """Of the next message."""
        return self._stamp.sequence

    @property
    def opened_at(self) -> float:
        """Clock time of the last `open`."""
        return self._opened_at

    def counters(self) -> SessionCounters:
        """Counters now; from the session's thread, or while it is not at work."""
        waiting, waiting_octets, counted = self._window.waiting()
        return SessionCounters(
            amount=self._amount - counted,
            messages=self._messages,
            octets=self._octets,
            waiting=waiting,
            waiting_octets=waiting_octets,
            connects=self._connects,
        )

    def open(self) -> None:
        """Connects, sends templates, options and what is left of blocks that were given before.

        It is not open afterwards when nothing may be sent any more.

        Raises:
            ExportError: there is no session; what was given before is kept.
        """
        self._end()
        self._transport.connect()
        if not self._may_send():
            self._transport.close()
            return
        self._connects += 1
        if self._transport.restarts:
            self._stamp = self._new_stamp()
        self._seen_settled, self._announced = 0, None
        self._opened_at = self._clock()
        self._is_early_refresh_due = not self._transport.restarts
        self._is_open = True
        try:
            self._send_control(with_templates=True)
            if self._was_refused:
                self._probe()
            self._push()
        except ExportError:
            self._break_off()
            raise
        self._was_refused = False

    def send(
        self,
        block: ExportBlock,
        *,
        templates: ExportBlock | None = None,
        gap: Amount = NOTHING,
        is_replay: bool = False,
    ) -> None:
        """Takes over a block and sends it.

        Args:
            block: of records; its bytes are stamped.
            templates: of an earlier process, that its records need.
            gap: what was lost before it; the sequence moves on by that.
            is_replay: it has waited: the replay's pace holds for it.

        Raises:
            ExportError: the connection is over; the block, as far as it is not settled, goes out with the next `open`.
        """
        self._window.add(Entry(block=block, templates=templates, gap=gap, is_replay=is_replay))
        if not self._is_open:
            self.open()
            return
        try:
            self._go_on()
        except ExportError:
            self._break_off()
            raise

    def tick(self) -> None:
        """To be called about once a second while there is nothing to send.

        Hears what came back, refreshes, finishes files, and sends what was left when nothing might be sent any more.

        Raises:
            ExportError: the connection is over.
        """
        if not self._is_open:
            return
        try:
            self._transport.check()
            self._note_settled()
            self._go_on()
        except ExportError:
            self._break_off()
            raise

    def take_settled(self) -> int:
        """Blocks given to `send` that became settled since the last call: the oldest ones."""
        if self._is_open:
            self._note_settled()
        done, self._done_blocks = self._done_blocks, 0
        return done

    def settled_messages(self) -> int:
        """Of the oldest block that is not settled, the messages that are."""
        return next((entry.settled for entry in self._window.blocks()), 0)

    def finish(self, timeout_s: float) -> bool:
        """Waits until everything that left is settled, or so long, and closes. Returns whether it all is.

        Raises:
            ExportError: the connection broke; nothing is closed that was not.
        """
        if self._is_open:
            try:
                self._transport.wait_settled(timeout_s)
            finally:
                self._break_off(is_refusal=False)
        return next(self._window.blocks(), None) is None

    def close(self) -> None:
        """Ends the connection; what is not settled stays for the next `open`."""
        if self._is_open:
            self._break_off(is_refusal=False)

    def _go_on(self) -> None:
        """Refreshes and sends what there is. Templates stand between blocks, never within one that may go on only now."""
        if not self._may_send():
            return
        if self._transport.is_stale():
            self._renew()
        elif self._has_ended_block():
            self._refresh_if_due()
            self._push()

    def _has_ended_block(self) -> bool:
        begun = next((entry for entry in self._window.blocks() if entry.is_begun and not entry.has_left), None)
        if begun is not None:
            self._push_entry(begun)
        return begun is None or begun.has_left

    def _renew(self) -> None:
        """Another address, another file."""
        self._transport.wait_settled(0.0)
        self._break_off(is_refusal=False)
        self.open()

    def _push(self) -> None:
        """Sends what has not left, in order, as long as it may."""
        for entry in self._window.blocks():
            if not entry.has_left:
                self._push_entry(entry)
                if not entry.has_left:
                    return

    def _push_entry(self, entry: Entry) -> None:
        if not self._may_send():
            return
        if entry.templates is not None and entry.templates is not self._announced:
            # In front of it in the window as well: the window is in the order of leaving.
            self._leave_control(entry.templates, before=entry)
            self._announced = entry.templates
        if not entry.is_begun:
            entry.is_begun, entry.base, entry.sequence = True, entry.left, self._stamp.sequence
            if entry.base == 0:
                self._skip(entry.gap)
        pace = self._replay_pace if entry.is_replay else self._pace
        run = self._transport.burst or (_PACED_MESSAGES if pace.is_limited else entry.block.messages)
        while entry.left < entry.block.messages:
            size = 1 if self._was_refused else run  # risk one until it is known to be there
            piece = part(entry.block, entry.left, min(entry.left + size, entry.block.messages))
            pace.wait(piece.records)
            if not self._may_send():
                return
            self._leave(entry, piece)
            if self._was_refused:  # no templates came first: these are the first messages of a new try
                self._probe()

    def _send_control(self, *, with_templates: bool) -> None:
        blocks = [self._source.templates()] if with_templates else []
        if with_templates and self._announced is not None:
            blocks.append(self._announced)
        blocks.append(self._source.options(self.counters()))
        self._refreshed_at, self._messages_since_refresh = self._clock(), 0
        for block in blocks:
            if block.messages:
                self._leave_control(block)

    def _leave_control(self, block: ExportBlock, before: Entry | None = None) -> None:
        """Sends templates or options, in front of what has not left."""
        entry = Entry(block=block, is_control=True, is_begun=True, sequence=self._stamp.sequence)
        self._window.insert(entry, before)
        self._leave(entry, block)

    def _leave(self, entry: Entry, piece: ExportBlock) -> None:
        """Sends a piece of an entry's block, from its message `left` on, and counts."""
        self._stamp.stamp(piece, self._now_ns())
        before = self._transport.sent
        try:
            self._transport.send(piece)
        finally:
            count = self._transport.sent - before
            first, entry.left = entry.left, entry.left + count
            self._octets += length_of(entry.block, first, entry.left)
            self._messages += count
            self._messages_since_refresh += count
            if not entry.is_control and entry.left > entry.counted:
                self._amount += amount_of(part(entry.block, entry.counted, entry.left))
                entry.counted = entry.left
            self._note_settled()

    def _probe(self) -> None:
        if self._transport.sent:
            self._transport.probe(_PROBE_S)
            self._was_refused = False

    def _refresh_if_due(self) -> None:
        now = self._clock()
        over_udp = not self._transport.restarts
        early = self._is_early_refresh_due and now - self._opened_at >= _EARLY_REFRESH_S
        by_time = self._refresh_s > 0 and now - self._refreshed_at >= self._refresh_s
        by_messages = over_udp and 0 < self._refresh_messages <= self._messages_since_refresh
        if early or by_time or by_messages:
            self._is_early_refresh_due = self._is_early_refresh_due and not early
            self._send_control(with_templates=over_udp)

    def _note_settled(self) -> None:
        """Carries the transport's count of settled messages over to the window."""
        settled = self._transport.settled()
        new, self._seen_settled = settled - self._seen_settled, settled
        self._done_blocks += self._window.settle(new)

    def _break_off(self, *, is_refusal: bool = True) -> None:
        """The connection is over: what is not settled has not left."""
        if not self._is_open:
            return
        self._note_settled()
        self._rewind()
        self._window.take_back()
        self._was_refused = is_refusal and not self._transport.restarts
        self._end()

    def _rewind(self) -> None:
        """A session that goes on takes the sequence back to the first message that is to be sent again."""
        first = self._window.first_begun()
        if first is None or self._transport.restarts:
            return
        self._stamp.sequence = first.sequence
        if first.settled > first.base:
            if first.base == 0:
                self._skip(first.gap)
            self._stamp.skip(part(first.block, first.base, first.settled))

    def _skip(self, gap: Amount) -> None:
        for missing in gap_blocks(gap):
            self._stamp.skip(missing)

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._transport.close()


def _is_to_end(interrupt: Interrupt, may_send: Callable[[], bool]) -> bool:
    return interrupt() or not may_send()


NO_MESSAGES: Final = ExportBlock(data=bytearray(), index=b"", messages=0, records=0, flows=0, packets=0, octets=0)
"""What sources return that have no templates or options."""
