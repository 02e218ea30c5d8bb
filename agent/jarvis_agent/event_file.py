# SPDX-License-Identifier: Apache-2.0
"""The journal's file: Event messages one after the other, each with its length and CRC-32, on disk when a call returns.

    magic, then for each event: u32 length, u32 CRC-32 of the bytes (both big-endian), the bytes

What a crash left half written, or a disk damaged, ends what can be read. Every method blocks; one thread at a time.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from jarvis.capture.v1.event_pb2 import Event
from jarvis_trust.keyfiles import replace_private

_MAGIC = b"JEVENTS1"
_FRAME = struct.Struct(">II")
_MAX_EVENT_BYTES = 64 * 1024


class EventFile:
    """Events on disk, oldest first."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet. `path` is made with mode 0600."""
        self.path = path
        self.size = 0
        """Events in the file."""

    def load(self) -> tuple[list[Event], bool]:
        """What can be read, and whether that is all there is.

        Raises:
            OSError: the file is there and cannot be opened.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], True
        events, end = _parse(data)
        self.size = len(events)
        return events, end == len(data)

    def append(self, events: Sequence[Event]) -> None:
        """Adds events to a file that `load` found whole or `rewrite` made.

        Raises:
            OSError: they are not on disk, or only a part of them.
        """
        with self.path.open("ab") as file:
            file.write(b"".join(map(_frame, events)))
            file.flush()
            os.fsync(file.fileno())
        self.size += len(events)

    def rewrite(self, events: Sequence[Event]) -> None:
        """Puts exactly these in its place, in one step.

        Raises:
            OSError: the file is as it was.
        """
        replace_private(self.path, _MAGIC + b"".join(map(_frame, events)))
        self.size = len(events)


def _frame(event: Event) -> bytes:
    data = event.SerializeToString()
    return _FRAME.pack(len(data), zlib.crc32(data)) + data


def _parse(data: bytes) -> tuple[list[Event], int]:
    """The events, and where the readable part ends."""
    if not data.startswith(_MAGIC):
        return [], 0 if data else -1  # an empty file is no file of ours either
    events: list[Event] = []
    place = len(_MAGIC)
    while place + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, place)
        start, end = place + _FRAME.size, place + _FRAME.size + length
        if length > _MAX_EVENT_BYTES or end > len(data) or zlib.crc32(data[start:end]) != checksum:
            break
        try:
            events.append(Event.FromString(data[start:end]))
        except DecodeError:
            break
        place = end
    return events, place
