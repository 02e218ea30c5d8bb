# SPDX-License-Identifier: Apache-2.0
"""IPFIX files (RFC 5655): each begins with the templates that its records need, so that each can be read alone.

    ID-20261122T201500Z-000001.ipfix.part ──full, old, or the end──► ID-20261122T201500Z-000001.ipfix

A file is a session of its own. While it is written it has the suffix .part; what carries the name .ipfix is finished, on disk,
and is never touched again but to be removed as the oldest. What a crash left half written is finished by the next process, less
the message that was cut.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from jarvis_native.export import ExportBlock

from jarvis_agent.export.blocks import length_of, message
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import ExportTransport

_MODE: Final = 0o640
_PART: Final = ".part"
_HEADER = struct.Struct(">HH")  # version and length of a message


class FileTransport:
    """Files of one export in one directory.

    Args:
        directory: exists; nothing outside of it is touched, links are not followed.
        name: the export's id, at the beginning of each file's name: letters, digits, hyphens.
        file_bytes: a file is finished when it is so large,
        file_age_s: or when it is so old and has records.
        files_kept: finished files of this export, the oldest removed; 0 = all.
        clock: monotonic seconds.
        now: seconds since the epoch, for names.
    """

    kind: ExportTransport = "file"
    restarts = True
    message_max = 16_384
    burst = 0

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        file_bytes: int,
        file_age_s: float,
        files_kept: int = 0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory, self._name = directory, name
        self._file_bytes, self._file_age_s, self._files_kept = file_bytes, file_age_s, files_kept
        self._clock, self._now = clock, now
        self._finished_name = re.compile(rf"{re.escape(name)}-[0-9]{{8}}T[0-9]{{6}}Z-[0-9]{{6,}}\.ipfix")
        self._folder = -1
        self._file = -1
        self._file_name = ""
        self._size = 0
        self._opened_at = 0.0
        self._has_flows = False
        self._sent = 0
        self._number: int | None = None
        """Of the last file; None: what is there was not looked at yet."""

    @property
    def address(self) -> str:
        """Path of the file that is open; empty: none."""
        return str(self._directory / self._file_name) if self._file >= 0 else ""

    @property
    def sent(self) -> int:
        """Messages that were written since `connect`."""
        return self._sent

    def settled(self) -> int:
        """All that were written whole."""
        return self._sent

    def connect(self) -> None:
        """Begins a file.

        Raises:
            ExportError: EXPORT_FILE, there is none.
        """
        self.close()
        try:
            self._folder = open_directory(self._directory)
            if self._number is None:
                self._number = self._take_stock()
            self._number += 1
            moment = dt.datetime.fromtimestamp(self._now(), dt.UTC)
            self._file_name = f"{self._name}-{moment:%Y%m%dT%H%M%SZ}-{self._number:06d}.ipfix{_PART}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._file_name, flags, _MODE, dir_fd=self._folder)
            os.fchmod(self._file, _MODE)  # whatever the umask made of it
        except OSError as error:
            self._close_folder()
            self._refuse(error)
        self._size, self._sent, self._has_flows, self._opened_at = 0, 0, False, self._clock()

    def send(self, block: ExportBlock) -> None:
        """Writes a stamped block.

        Raises:
            ExportError: EXPORT_FILE; the file is as it was before.
        """
        if self._file < 0:
            raise _file_error(self._directory, "no file is open")
        if not block.messages:
            return
        start = message(block, 0).offset
        left = memoryview(block.data)[start : start + length_of(block, 0, block.messages)]
        size = len(left)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # then the next process cuts it off
                os.ftruncate(self._file, self._size)
            self._refuse(error)
        self._size += size
        self._sent += block.messages
        self._has_flows = self._has_flows or block.flows > 0

    def check(self) -> None:
        """Nothing comes back from a file."""

    def probe(self, timeout_s: float) -> None:
        """Nothing refuses later."""

    def is_stale(self) -> bool:
        """Whether it is full, or old and not empty."""
        is_old = self._clock() - self._opened_at >= self._file_age_s
        return self._file >= 0 and self._has_flows and (self._size >= self._file_bytes or is_old)

    def wait_settled(self, timeout_s: float) -> None:
        """What is written is settled."""

    def close(self) -> None:
        """Finishes the file; one without records is removed."""
        if self._file < 0:
            return
        try:
            if self._has_flows:
                os.fsync(self._file)
                os.rename(self._file_name, self._file_name.removesuffix(_PART), src_dir_fd=self._folder, dst_dir_fd=self._folder)
                os.fsync(self._folder)
                self._remove_oldest()
            else:
                os.unlink(self._file_name, dir_fd=self._folder)
        except OSError as error:
            self._refuse(error)
        finally:
            os.close(self._file)
            self._file = -1
            self._close_folder()

    def _take_stock(self) -> int:
        """Finishes what a crash left, and returns the highest number there is."""
        number = 0
        for name in os.listdir(self._folder):  # noqa: PTH208 - of the directory that was checked
            if self._finished_name.fullmatch(name.removesuffix(_PART)):
                number = max(number, int(name.removesuffix(_PART).rsplit("-", 1)[1].removesuffix(".ipfix")))
                if name.endswith(_PART):
                    self._finish_left_over(name)
        return number

    def _finish_left_over(self, name: str) -> None:
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            end = _whole_messages(file)
            os.ftruncate(file, end)
            os.fsync(file)
            if end:
                os.rename(name, name.removesuffix(_PART), src_dir_fd=self._folder, dst_dir_fd=self._folder)
            else:
                os.unlink(name, dir_fd=self._folder)
        finally:
            os.close(file)

    def _remove_oldest(self) -> None:
        finished = sorted(
            (name for name in os.listdir(self._folder) if self._finished_name.fullmatch(name)),  # noqa: PTH208
            key=lambda name: int(name.rsplit("-", 1)[1].removesuffix(".ipfix")),
        )
        for name in finished[: -self._files_kept] if self._files_kept else []:
            os.unlink(name, dir_fd=self._folder)

    def _close_folder(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1

    def _refuse(self, error: OSError) -> NoReturn:
        raise _file_error(self._directory, error.strerror or str(error)) from error


def open_directory(directory: Path) -> int:
    """A descriptor of a directory that this user can write and strangers cannot.

    Raises:
        OSError: it is none, or a link.
        ExportError: EXPORT_FILE; others can write there.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_IMODE(status.st_mode) & 0o002 or status.st_uid not in {0, os.geteuid()}:
        os.close(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        text = f"mode {mode:04o} of uid {status.st_uid}; accepted is a directory that only its owner and group can write"
        raise _file_error(directory, text, is_permanent=True)
    return descriptor


def check_export_directory(directory: Path) -> None:
    """Before an export to files starts.

    Raises:
        ExportError: EXPORT_FILE; nothing can be written there.
    """
    try:
        descriptor = open_directory(directory)
    except OSError as error:
        raise _file_error(directory, error.strerror or str(error), is_permanent=True) from error
    try:
        probe = ".probe"  # what the mode says is not all: a file system may be read-only
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=descriptor))
        os.unlink(probe, dir_fd=descriptor)
    except OSError as error:
        raise _file_error(directory, error.strerror or str(error), is_permanent=True) from error
    finally:
        os.close(descriptor)


def _whole_messages(file: int) -> int:
    """Where the last whole message ends."""
    size, place = os.fstat(file).st_size, 0
    while place + 16 <= size:
        version, length = _HEADER.unpack(os.pread(file, _HEADER.size, place))
        if version != 10 or length < 16 or place + length > size:
            break
        place += length
    return place


def _file_error(directory: Path, words: str, *, is_permanent: bool = False) -> ExportError:
    return ExportError("EXPORT_FILE", f"{directory}: cannot be exported to: {words}", is_permanent=is_permanent)
