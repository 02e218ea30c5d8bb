# SPDX-License-Identifier: Apache-2.0
"""The files of a spool: which there are, where reading goes on, and that they never take more than was allowed.

    00000000004294967297.spool, ...298.spool, ...   in the order of their numbers; a file is removed when its last block is done
    position                                        where the first block lies that is not done: file, offset, messages of it

The position is written at every block, not synced: a process that dies repeats nothing, after a power cut some blocks may be sent
twice. The directory is locked while it is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jarvis_native.export import ExportBlock, ExportProtocol

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of, part
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.spool_file import FRAME_BYTES, Frame, SpoolFile, frame_bytes

_FILE_BYTES = 8 << 20
"""A file is full at this size, or at an eighth of what the spool may take."""

_RETRY_S = 5.0
"""After an error of the disk nothing is written for so long."""

_FIRST_NUMBER = 1 << 32
"""Leaves room for files that go before others."""

_SUFFIX: Final = ".spool"
_POSITION_FILE: Final = "position"
_POSITION = struct.Struct("=QQII")  # file, offset, messages, CRC-32 of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A block on disk."""

    file: SpoolFile
    frame: Frame


class SpoolDisk:
    """Files of one spool; its lock is held in every call.

    Args:
        directory: made when missing, mode 0700; used by this process alone from now on.
        protocol: of the blocks; files of another one are removed.
        limit: bytes at most.
        templates: put in front of each new file.
        clock: monotonic seconds.

    Raises:
        ExportError: EXPORT_SPOOL.
    """

    def __init__(
        self, directory: Path, *, protocol: ExportProtocol, limit: int, templates: ExportBlock, clock: Callable[[], float]
    ) -> None:
        self._directory, self._protocol, self._limit = directory, protocol, limit
        self._templates = templates
        self._clock = clock
        self._files: deque[SpoolFile] = deque()
        self._untaken: deque[Place] = deque()
        self._writes_to: SpoolFile | None = None
        self._retry_at = float("-inf")
        self.error = ""
        """Why nothing could be written or read when that was last tried."""
        self._lock = _lock_directory(directory)
        try:
            self._position = os.open(directory / _POSITION_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._load()
        except OSError as error:
            os.close(self._lock)
            raise _refused(directory, error) from error

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files)

    @property
    def is_in_use(self) -> bool:
        """Whether there are blocks that are not done."""
        return bool(self._files)

    @property
    def has_more(self) -> bool:
        """Whether there are blocks that were not taken."""
        return bool(self._untaken)

    def waiting(self) -> Amount:
        """What was not taken."""
        return sum((place.frame.amount for place in self._untaken), NOTHING)

    def append(self, block: ExportBlock, gap: Amount) -> bool:
        """Writes a block behind the others; False: there is no room, or the disk fails."""
        if self._clock() < self._retry_at:
            return False
        try:
            file = self._file_with_room(frame_bytes(block))
            if file is None:
                return False
            self._untaken.append(Place(file=file, frame=file.append(block, gap)))
        except OSError as error:
            self._failed(error)
            return False
        self.error = ""
        return True

    def take(self) -> tuple[Place, ExportBlock | None]:
        """The oldest block that was not taken; None for one that the disk has damaged or does not give."""
        place = self._untaken.popleft()
        try:
            return place, place.file.read(place.frame)
        except OSError as error:
            self._failed(error)
            return place, None

    def done(self, place: Place) -> None:
        """The oldest block is not needed any more."""
        file = place.file
        file.frames.popleft()
        # Behind the last block too: should the file not go, nothing of it is sent again.
        self._write_position(file, file.frames[0].offset if file.frames else file.size, 0)
        if file.frames:
            return
        if file is self._writes_to:
            self._writes_to = None
        self._files.remove(file)
        self._remove(file)

    def shorten(self, place: Place, block: ExportBlock, messages: int) -> None:
        """Of the oldest block, so many messages are done."""
        frame = Frame(
            offset=place.frame.offset,
            length=place.frame.length,
            amount=amount_of(part(block, messages, block.messages)),
            gap=NOTHING,
            skip=place.frame.skip + messages,
        )
        place.file.frames[0] = frame
        self._write_position(place.file, frame.offset, frame.skip)

    def keep(self, before: Sequence[tuple[ExportBlock, Amount]], after: Sequence[tuple[ExportBlock, Amount]]) -> list[Amount]:
        """Writes what was in memory before and behind what is here; returns what of it has no room."""
        lost = self._put_before(before) if before else []
        self._retry_at = float("-inf")
        for block, gap in after:
            if lost or not self.append(block, gap):
                lost.append(amount_of(block))
        return lost

    def discard(self) -> Amount:
        """Removes all files; returns what was in them."""
        lost = sum((frame.amount for file in self._files for frame in file.frames), NOTHING)
        for file in self._files:
            self._remove(file)
        self._files.clear()
        self._untaken.clear()
        return lost

    def close(self) -> None:
        """Leaves the files for the next process."""
        for file in self._files:
            with contextlib.suppress(OSError):  # it is not less there for that
                file.sync()
            file.close()
        self._files.clear()
        self._untaken.clear()
        os.close(self._position)
        os.close(self._lock)

    def _load(self) -> None:
        stored = os.pread(self._position, _POSITION.size, 0)
        number = offset = messages = 0
        if len(stored) == _POSITION.size and zlib.crc32(stored[:-4]) == _POSITION.unpack(stored)[3]:
            number, offset, messages, _checksum = _POSITION.unpack(stored)
        self._position_number = number
        names = sorted(name for name in os.listdir(self._directory) if _number(name) is not None)  # noqa: PTH208 - names only
        for name in names:
            file = SpoolFile.load(self._directory / name, self._protocol)
            if _number(name) == number:
                file.skip_to(offset, messages)
            if not file.frames:
                self._remove(file)
                continue
            self._files.append(file)
            self._untaken.extend(Place(file=file, frame=frame) for frame in file.frames)
        self._next_number = max([_FIRST_NUMBER, number + 1, *(_number(name) or 0 for name in names[-1:])]) + 1

    def _file_with_room(self, wanted: int) -> SpoolFile | None:
        """The file that is written to, or the next one; None: that would be more than is allowed."""
        file = self._writes_to
        if file is not None and file.size + wanted > min(_FILE_BYTES, self._limit // 8):
            file = self._writes_to = None
        room = self._limit - self.used
        if file is None:
            room -= frame_bytes(self._templates) + FRAME_BYTES  # at least what stands in front
        if wanted > room:
            return None
        if file is None:
            path = self._directory / f"{self._next_number:020d}{_SUFFIX}"
            file = self._writes_to = SpoolFile.create(path, self._protocol, self._templates)
            self._next_number += 1
            self._files.append(file)
        return file

    def _put_before(self, blocks: Sequence[tuple[ExportBlock, Amount]]) -> list[Amount]:
        number = (_number(self._files[0].path.name) or self._next_number) - 1 if self._files else self._next_number
        room = self._limit - self.used - frame_bytes(self._templates) - FRAME_BYTES
        written = 0
        try:
            file = SpoolFile.create(self._directory / f"{number:020d}{_SUFFIX}", self._protocol, self._templates)
            self._files.appendleft(file)
            if self._position_number == number:  # of a file that had this number before
                self._write_position(file, 0, 0)
            self._next_number = max(self._next_number, number + 1)
            for block, gap in blocks:
                room -= frame_bytes(block)
                if room < 0:
                    break
                file.append(block, gap)
                written += 1
        except OSError as error:
            self._failed(error)
        return [amount_of(block) for block, _gap in blocks[written:]]

    def _write_position(self, file: SpoolFile, offset: int, messages: int) -> None:
        self._position_number = _number(file.path.name) or 0
        entry = _POSITION.pack(self._position_number, offset, messages, 0)[:-4]
        try:
            os.pwrite(self._position, entry + struct.pack("=I", zlib.crc32(entry)), 0)
        except OSError as error:
            self._failed(error)

    def _remove(self, file: SpoolFile) -> None:
        try:
            file.remove()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.error = f"{self._directory}: {error.strerror or error}"
        self._retry_at = self._clock() + _RETRY_S


def _lock_directory(directory: Path) -> int:
    """Makes the directory of a spool when it is missing, and locks it. Returns the descriptor that holds the lock.

    Raises:
        ExportError: EXPORT_SPOOL; it is no directory of this user, cannot be written, or is in use.
    """
    descriptor = _open_directory(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ExportError("EXPORT_SPOOL", f"{directory}: another spool uses it", is_permanent=True) from error
    return descriptor


def remove_spool(directory: Path) -> None:
    """Removes a spool that no process uses, with what waits in it. Nothing is removed where anything but a spool's files is.

    Raises:
        OSError: it is there still, or a part of it.
    """
    files = list(directory.iterdir())
    if all(file.name == _POSITION_FILE or file.suffix == _SUFFIX for file in files):
        for file in files:
            file.unlink()
        directory.rmdir()


def _open_directory(directory: Path) -> int:
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(directory, error) from error
    try:
        _check_directory(directory, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise _refused(directory, error) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_directory(directory: Path, descriptor: int) -> None:
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077:
        text = f"{directory}: has mode {mode:04o} and belongs to uid {status.st_uid}; accepted is 0700 of uid {os.geteuid()}"
        raise ExportError("EXPORT_SPOOL", text, is_permanent=True)
    probe = ".probe"  # what the mode says is not all: a file system may be read-only
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(probe, flags, 0o600, dir_fd=descriptor))
    os.unlink(probe, dir_fd=descriptor)


def _refused(directory: Path, error: OSError) -> ExportError:
    text = f"{directory}: cannot be used to spool: {error.strerror or error}; accepted is a directory that this user can write"
    return ExportError("EXPORT_SPOOL", text, is_permanent=True)


def _number(name: str) -> int | None:
    digits = name.removesuffix(_SUFFIX)
    return int(digits) if name.endswith(_SUFFIX) and digits.isdigit() and len(digits) == 20 else None
