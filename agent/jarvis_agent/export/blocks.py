# SPDX-License-Identifier: Apache-2.0
"""ExportBlocks in parts: their messages by number, sums over some of them, and blocks that only say what is missing.

The index is read as struct capture_export_message of jarvis_capture_export.h (host byte order). Nothing is copied but index
entries: a part shares its block's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from jarvis_native.export import MESSAGE_BYTES, ExportBlock, export_block

_MESSAGE = struct.Struct("=IIIIQQQQ")
assert _MESSAGE.size == MESSAGE_BYTES  # noqa: S101 - two descriptions of one struct

_GAP_MESSAGES = 4096
"""Messages that one block of a gap stands for at most: 192 KiB of index."""


class Message(NamedTuple):
    """One entry of ExportBlock.index; units as in struct capture_export_message."""

    offset: int
    length: int
    records: int
    flows: int
    packets: int
    octets: int
    newest_ns: int
    base_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """So much of an export: sent, waiting or lost."""

    messages: int = 0
    records: int = 0
    """Data records, those of options too."""
    flows: int = 0
    packets: int = 0
    octets: int = 0
    """That the flows count, not bytes of messages."""

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            messages=self.messages + other.messages,
            records=self.records + other.records,
            flows=self.flows + other.flows,
            packets=self.packets + other.packets,
            octets=self.octets + other.octets,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            messages=self.messages - other.messages,
            records=self.records - other.records,
            flows=self.flows - other.flows,
            packets=self.packets - other.packets,
            octets=self.octets - other.octets,
        )

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING: Final = Amount()


def messages_of(block: ExportBlock, first: int = 0, last: int | None = None) -> Iterator[Message]:
    """Entries of messages first..last (exclusive; None: to the end)."""
    end = block.messages if last is None else last
    return map(Message._make, _MESSAGE.iter_unpack(memoryview(block.index)[first * MESSAGE_BYTES : end * MESSAGE_BYTES]))


def message(block: ExportBlock, number: int) -> Message:
    """The entry of one message."""
    return Message._make(_MESSAGE.unpack_from(block.index, number * MESSAGE_BYTES))


def message_bytes(block: ExportBlock, number: int) -> memoryview:
    """The bytes of one message, as they are in the block."""
    entry = message(block, number)
    return memoryview(block.data)[entry.offset : entry.offset + entry.length]


def amount_of(block: ExportBlock) -> Amount:
    """All of a block."""
    return Amount(messages=block.messages, records=block.records, flows=block.flows, packets=block.packets, octets=block.octets)


def part(block: ExportBlock, first: int, last: int) -> ExportBlock:
    """Messages first..last (exclusive) of a block, in the same bytes; the block itself when that is all of it."""
    if first == 0 and last == block.messages:
        return block
    return export_block(block.data, block.index[first * MESSAGE_BYTES : last * MESSAGE_BYTES])


def length_of(block: ExportBlock, first: int, last: int) -> int:
    """Bytes of messages first..last (exclusive): messages lie one behind the other."""
    if first >= last:
        return 0
    end = message(block, last - 1)
    return end.offset + end.length - message(block, first).offset


def gap_blocks(gap: Amount) -> Iterator[ExportBlock]:
    """Blocks without bytes that count what was lost, for ExportSession.skip: each protocol counts something else of it."""
    left, records, flows = gap.messages, gap.records, gap.flows
    while left > 0:
        count = min(left, _GAP_MESSAGES)
        rows = bytearray(count * MESSAGE_BYTES)
        # One entry takes what it can of the records: a session sees sums only.
        now_records, now_flows = min(records, 0xFFFFFFFF), min(flows, 0xFFFFFFFF)
        _MESSAGE.pack_into(rows, 0, 0, 0, now_records, now_flows, 0, 0, 0, 0)
        yield ExportBlock(
            data=bytearray(), index=bytes(rows), messages=count, records=now_records, flows=now_flows, packets=0, octets=0
        )
        left, records, flows = left - count, records - now_records, flows - now_flows
