# SPDX-License-Identifier: Apache-2.0
"""One file of a spool: blocks one behind the other, each with its length and a CRC, templates in front.

    magic, protocol; then frames: header (length, CRC-32, kind, what it holds, what was lost before it), index, messages

Frames are written with one write(2) each and synced only when the spool closes: a process that dies loses none of them, a power
cut those that the kernel had not yet written back. What a crash cut, or a disk damaged, ends what can be read: nothing behind it
is believed.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jarvis_native.errors import InvalidArgument
from jarvis_native.export import MESSAGE_BYTES, PROTOCOLS, ExportBlock, ExportProtocol, export_block

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of, part

_MAGIC: Final = b"JSPOOL1\0"
_FILE_HEADER = struct.Struct("=8sI4x")
# Length of index and messages; CRC of the rest of the header and of them; kind; messages; records, flows, packets, octets; the
# gap before: messages, records, flows, packets, octets.
_FRAME = struct.Struct("=IIII" + "IIQQ" + "QQQQQ")
_CHECKED_FROM = 8  # the CRC covers the header behind itself
_TEMPLATES, _RECORDS = 1, 2
_MAX_PAYLOAD = 64 << 20

FRAME_BYTES: Final = _FRAME.size
"""What a block takes on disk beside its index and messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a block lies, and what it holds: enough to count it without reading it."""

    offset: int
    length: int
    """With its header."""
    amount: Amount
    gap: Amount
    """Lost before it."""
    skip: int = 0
    """Messages at its beginning that need not be sent again."""


def frame_bytes(block: ExportBlock) -> int:
    """How much of a file a block takes."""
    return _FRAME.size + len(block.index) + len(block.data)


class SpoolFile:
    """A file that is written at its end and read anywhere. Every method blocks; the spool's lock is held."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = size
        """Bytes of whole frames, and the header's."""
        self.frames: deque[Frame] = deque()
        """Of records that are not done, oldest first."""
        self.templates: ExportBlock | None = None
        """That its records need; None when they are of this process."""

    @classmethod
    def create(cls, path: Path, protocol: ExportProtocol, templates: ExportBlock) -> SpoolFile:
        """A new file, mode 0600, with templates in front.

        Raises:
            OSError: there is none then.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        file = cls(path, descriptor, 0)
        try:
            file._write(_FILE_HEADER.pack(_MAGIC, PROTOCOLS[protocol]))
            if templates.messages:
                file._append(_TEMPLATES, templates, NOTHING)
        except BaseException:
            file.remove()
            raise
        return file

    @classmethod
    def load(cls, path: Path, protocol: ExportProtocol) -> SpoolFile:
        """A file of an earlier process; what is cut or damaged at its end is cut off.

        A file of another protocol, or of another form, is empty: nothing of it can be sent.

        Raises:
            OSError: it cannot be read.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        file = cls(path, descriptor, 0)
        try:
            file._scan(protocol)
            os.ftruncate(descriptor, file.size)
        except BaseException:
            file.close()
            raise
        return file

    def append(self, block: ExportBlock, gap: Amount) -> Frame:
        """Adds a block behind the others.

        Raises:
            OSError: it is not in the file, which is as it was.
        """
        offset = self.size
        self._append(_RECORDS, block, gap)
        frame = Frame(offset=offset, length=self.size - offset, amount=amount_of(block), gap=gap)
        self.frames.append(frame)
        return frame

    def read(self, frame: Frame) -> ExportBlock | None:
        """A block, without what of it is to be skipped; None when the disk has damaged it.

        Raises:
            OSError: the disk does not give it.
        """
        found = _checked(os.pread(self._descriptor, frame.length, frame.offset))
        return None if found is None else part(found[1], frame.skip, found[1].messages)

    def skip_to(self, offset: int, messages: int) -> None:
        """What lies before `offset`, and so many messages of the block there, were done by an earlier process."""
        while self.frames and self.frames[0].offset < offset:
            self.frames.popleft()
        if self.frames and self.frames[0].offset == offset and messages:
            frame = replace(self.frames[0], skip=messages, gap=NOTHING)
            block = self.read(frame)
            if block is not None and block.messages:
                self.frames[0] = replace(frame, amount=amount_of(block))

    def sync(self) -> None:
        """On disk when this returns.

        Raises:
            OSError: perhaps not.
        """
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Leaves it on disk."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Takes it from the disk."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _append(self, kind: int, block: ExportBlock, gap: Amount) -> None:
        payload_bytes = len(block.index) + len(block.data)
        lost = (gap.messages, gap.records, gap.flows, gap.packets, gap.octets)
        counted = (block.records, block.flows, block.packets, block.octets)
        header = bytearray(_FRAME.pack(payload_bytes, 0, kind, block.messages, *counted, *lost))
        checksum = zlib.crc32(block.data, zlib.crc32(block.index, zlib.crc32(memoryview(header)[_CHECKED_FROM:])))
        struct.pack_into("=I", header, 4, checksum)
        self._write(header, block.index, block.data)

    def _write(self, *pieces: bytes | bytearray) -> None:
        wanted = sum(map(len, pieces))
        try:
            written = os.pwritev(self._descriptor, pieces, self.size)
            while written < wanted:  # a signal, or a disk that is all but full
                rest = memoryview(b"".join(pieces))[written:]
                written += os.pwrite(self._descriptor, rest, self.size + written)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += wanted

    def _scan(self, protocol: ExportProtocol) -> None:
        header = os.pread(self._descriptor, _FILE_HEADER.size, 0)
        if header != _FILE_HEADER.pack(_MAGIC, PROTOCOLS[protocol]):
            return
        end = os.fstat(self._descriptor).st_size
        self.size = _FILE_HEADER.size
        while self.size + _FRAME.size <= end:
            length = struct.unpack("=I", os.pread(self._descriptor, 4, self.size))[0]
            if length > _MAX_PAYLOAD or self.size + _FRAME.size + length > end:
                return
            found = _checked(os.pread(self._descriptor, _FRAME.size + length, self.size))
            if found is None:
                return
            kind, block, gap = found
            if kind == _TEMPLATES:
                self.templates = block
            else:
                self.frames.append(Frame(offset=self.size, length=_FRAME.size + length, amount=amount_of(block), gap=gap))
            self.size += _FRAME.size + length


def _checked(data: bytes) -> tuple[int, ExportBlock, Amount] | None:
    """Kind, block and gap of a frame; None when its bytes are not what was written."""
    if len(data) < _FRAME.size:
        return None
    length, checksum, kind, messages, *numbers = _FRAME.unpack_from(data)
    if len(data) != _FRAME.size + length or messages * MESSAGE_BYTES > length or kind not in {_TEMPLATES, _RECORDS}:
        return None
    if zlib.crc32(memoryview(data)[_CHECKED_FROM:]) != checksum:
        return None
    index_end = _FRAME.size + messages * MESSAGE_BYTES
    try:
        block = export_block(bytearray(data[index_end:]), data[_FRAME.size : index_end])
    except InvalidArgument:
        return None
    lost = numbers[4:]
    return kind, block, Amount(messages=lost[0], records=lost[1], flows=lost[2], packets=lost[3], octets=lost[4])
