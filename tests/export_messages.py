# SPDX-License-Identifier: Apache-2.0
"""IPFIX by hand, for tests of what carries it: numbered records in blocks like the native core's, and a collector's reading."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jarvis_native.export import MESSAGE_BYTES, ExportBlock

TEMPLATE = 256
OPTIONS_TEMPLATE = 700
_HEADER = struct.Struct(">HHIII")  # version, length, export time, sequence, observation domain
_SET = struct.Struct(">HH")
_RECORD = struct.Struct(">QQQ")  # flowId, packetDeltaCount, octetDeltaCount
_INDEX = struct.Struct("=IIIIQQQQ")
_PACKETS, _OCTETS = 3, 180


def record_block(numbers: Sequence[int], per_message: int = 8, template: int = TEMPLATE) -> ExportBlock:
    """Records with these flow ids, each of 3 packets and 180 octets."""
    chunks = [numbers[at : at + per_message] for at in range(0, len(numbers), per_message)]
    sets = []
    for chunk in chunks:
        body = b"".join(_RECORD.pack(number, _PACKETS, _OCTETS) for number in chunk)
        sets.append((_SET.pack(template, _SET.size + len(body)) + body, len(chunk), len(chunk)))
    return _block(sets)


def template_block(*templates: int) -> ExportBlock:
    """One message with templates, and an options template."""
    body = b""
    for template in templates or (TEMPLATE,):
        fields = struct.pack(">HHHHHHHH", template, 3, 148, 8, 2, 8, 1, 8)
        body += _SET.pack(2, _SET.size + len(fields)) + fields
    options = struct.pack(">HHHHHHH", OPTIONS_TEMPLATE, 2, 1, 149, 4, 42, 8)
    return _block([(body + _SET.pack(3, _SET.size + len(options)) + options, 0, 0)])


def options_block() -> ExportBlock:
    """One message with one options record."""
    record = struct.pack(">IQ", 0, 0)
    return _block([(_SET.pack(OPTIONS_TEMPLATE, _SET.size + len(record)) + record, 1, 0)])


def _block(sets: Iterable[tuple[bytes, int, int]]) -> ExportBlock:
    data, index = bytearray(), b""
    messages = records = flows = 0
    for body, records_here, flows_here in sets:
        length = _HEADER.size + len(body)
        index += _INDEX.pack(
            len(data), length, records_here, flows_here, flows_here * _PACKETS, flows_here * _OCTETS, flows_here and 1, 0
        )
        data += _HEADER.pack(10, length, 0, 0, 0) + body
        messages, records, flows = messages + 1, records + records_here, flows + flows_here
    assert len(index) == messages * MESSAGE_BYTES
    return ExportBlock(
        data=data,
        index=index,
        messages=messages,
        records=records,
        flows=flows,
        packets=flows * _PACKETS,
        octets=flows * _OCTETS,
    )


class HandStamp:
    """ExportSession's work for IPFIX, in Python."""

    def __init__(self) -> None:
        self.sequence = 0

    def stamp(self, block: ExportBlock, now_ns: int) -> None:
        for offset, _length, records, *_rest in _INDEX.iter_unpack(block.index):
            struct.pack_into(">II", block.data, offset + 4, now_ns // 1_000_000_000 & 0xFFFFFFFF, self.sequence)
            self.sequence = (self.sequence + records) & 0xFFFFFFFF

    def skip(self, block: ExportBlock) -> None:
        self.sequence = (self.sequence + block.records) & 0xFFFFFFFF


@dataclass
class Reading:
    """What a collector makes of the messages of one session; a template that is missing or a length that lies fails."""

    expected: int | None = 0
    """Sequence of the next message; None: whatever it is."""
    missing: int = 0
    """Records that the sequence says were lost."""
    numbers: list[int] = field(default_factory=list)
    """Flow ids in their order."""
    options: int = 0
    templates: set[int] = field(default_factory=set)

    def take(self, message: bytes | bytearray | memoryview) -> None:
        version, length, _time, sequence, _domain = _HEADER.unpack_from(message)
        assert (version, length) == (10, len(message))
        if self.expected is not None:
            self.missing += (sequence - self.expected) & 0xFFFFFFFF
        records, place = 0, _HEADER.size
        while place < length:
            kind, size = _SET.unpack_from(message, place)
            body = bytes(message[place + _SET.size : place + size])
            if kind in {2, 3}:
                self.templates.add(struct.unpack_from(">H", body)[0])
            else:
                assert kind in self.templates, f"records of template {kind} before the template"
                if kind == OPTIONS_TEMPLATE:
                    self.options += 1
                    records += 1
                else:
                    found = [number for number, _packets, _octets in _RECORD.iter_unpack(body)]
                    self.numbers += found
                    records += len(found)
            place += size
        self.expected = (sequence + records) & 0xFFFFFFFF

    def take_stream(self, data: bytes | bytearray) -> int:
        """Whole messages one behind the other; returns the bytes taken, the last message may be cut."""
        taken = 0
        for message in split(data):
            self.take(message)
            taken += len(message)
        return taken


def split(data: bytes | bytearray) -> Iterator[bytes]:
    """Whole messages of a stream."""
    place = 0
    while place + _HEADER.size <= len(data):
        length = struct.unpack_from(">H", data, place + 2)[0]
        if place + length > len(data):
            return
        yield bytes(data[place : place + length])
        place += length


class HandSource:
    """Templates and options as blocks made by hand."""

    def __init__(self, *templates: int) -> None:
        self._templates = templates
        self.options_told: list[object] = []

    def templates(self) -> ExportBlock:
        return template_block(*self._templates)

    def options(self, exported: object) -> ExportBlock:
        self.options_told.append(exported)
        return options_block()
