# SPDX-License-Identifier: Apache-2.0
"""A collector's reading of NetFlow v5, v9 and IPFIX: templates as they come, flow records by information element."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

Record = dict[tuple[int, int], bytes]
"""(enterprise, number) -> value as it was sent; NetFlow v5's counters under their numbers in v9."""

OCTETS, PACKETS, SOURCE_AS, SOURCE_MAC, FLOW_ID = (0, 1), (0, 2), (0, 16), (0, 56), (0, 148)
REVERSE_OCTETS, REVERSE_PACKETS = (29305, 1), (29305, 2)

_VARIABLE = 65_535
_ENTERPRISE_BIT = 0x8000
_FIRST_SETS = {9: (20, 0), 10: (16, 2)}  # version: length of the header, id of sets of templates


def messages_in(stream: bytes) -> list[bytes]:
    """IPFIX messages of a file or a TCP connection."""
    found = []
    while stream:
        length = struct.unpack_from("!H", stream, 2)[0]
        found.append(stream[:length])
        stream = stream[length:]
    return found


def flows_in(messages: Iterable[bytes]) -> list[Record]:
    """Flow records, those of options left out; a record whose template did not come before it is a KeyError."""
    templates: dict[int, list[tuple[tuple[int, int], int]]] = {}
    found: list[Record] = []
    for message in messages:
        version = struct.unpack_from("!H", message)[0]
        if version == 5:
            found += _records_of_v5(message)
            continue
        offset, template_set = _FIRST_SETS[version]
        for set_id, body in _sets(message, offset):
            if set_id == template_set:
                templates |= _templates(body)
            elif set_id == template_set + 1:  # of options: known, and left out
                templates |= {template_id: [] for template_id in _options_ids(body, version)}
            else:
                found += _records(body, templates[set_id])
    return found


def number_in(record: Record, element: tuple[int, int]) -> int:
    """An unsigned integer; 0 where the record has none."""
    return int.from_bytes(record.get(element, b""), "big")


def totals_of(flows: Iterable[Record]) -> tuple[int, int, int]:
    """Records, packets and octets, of both directions."""
    records = packets = octets = 0
    for flow in flows:
        records += 1
        packets += number_in(flow, PACKETS) + number_in(flow, REVERSE_PACKETS)
        octets += number_in(flow, OCTETS) + number_in(flow, REVERSE_OCTETS)
    return records, packets, octets


def _records_of_v5(message: bytes) -> Iterator[Record]:
    count = struct.unpack_from("!H", message, 2)[0]
    if len(message) != 24 + 48 * count:
        raise ValueError(f"a message of NetFlow v5 has {len(message)} bytes and {count} records")
    for at in range(24, len(message), 48):
        yield {PACKETS: message[at + 16 : at + 20], OCTETS: message[at + 20 : at + 24]}


def _sets(message: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset < len(message):
        set_id, length = struct.unpack_from("!HH", message, offset)
        if length < 4:
            raise ValueError(f"a set has {length} bytes")
        yield set_id, message[offset + 4 : offset + length]
        offset += length


def _templates(body: bytes) -> dict[int, list[tuple[tuple[int, int], int]]]:
    found = {}
    at = 0
    while at + 4 <= len(body):
        template_id, count = struct.unpack_from("!HH", body, at)
        if template_id == 0:  # padding
            break
        at += 4
        fields = []
        for _ in range(count):
            number, length = struct.unpack_from("!HH", body, at)
            at += 4
            enterprise = 0
            if number & _ENTERPRISE_BIT:
                enterprise = struct.unpack_from("!I", body, at)[0]
                at += 4
            fields.append(((enterprise, number & ~_ENTERPRISE_BIT), length))
        found[template_id] = fields
    return found


def _options_ids(body: bytes, version: int) -> Iterator[int]:
    at = 0
    while at + 6 <= len(body):
        template_id, first, second = struct.unpack_from("!HHH", body, at)
        if template_id == 0:
            return
        yield template_id
        at += 6
        if version == 9:  # lengths of scopes and of options
            at += first + second
            continue
        for _ in range(first):  # fields, scopes among them
            number = struct.unpack_from("!H", body, at)[0]
            at += 8 if number & _ENTERPRISE_BIT else 4


def _records(body: bytes, fields: list[tuple[tuple[int, int], int]]) -> Iterator[Record]:
    if not fields:
        return
    shortest = sum(1 if length == _VARIABLE else length for _, length in fields)
    at = 0
    while at + shortest <= len(body):
        record: Record = {}
        for element, length in fields:
            if length == _VARIABLE:
                length = body[at]  # noqa: PLW2901
                at += 1
                if length == 255:
                    length = struct.unpack_from("!H", body, at)[0]  # noqa: PLW2901
                    at += 2
            record[element] = body[at : at + length]
            at += length
        yield record
