# SPDX-License-Identifier: Apache-2.0
"""Releases as they arrive in parts, on the controller and on every agent: one directory each, named by their manifest.

    part (release, file, offset, bytes, size) -> <root>/<SHA-256 of manifest.json>/.part-FILE -> whole, its digest right -> FILE

manifest.json comes first and must have the digest that names the release, its signature second; both are judged before any
object is accepted, an object only under a name that the manifest gives, and each file's digest when it is whole. So nothing
unsigned grows on the disk beyond those two small files, and what has its final name was right when it got it. `open` hashes
everything again.

Nothing here is loaded or trusted for having been here. Blocking; one caller at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from jarvis.capture.v1.agent_pb2 import StageReleaseRequest
from jarvis.capture.v1.release_pb2 import AddReleaseRequest

from jarvis_trust.encoding import is_sha256_hex
from jarvis_trust.errors import FirmwareError, TrustError
from jarvis_trust.firmware import MANIFEST_FILE, MAX_MANIFEST_BYTES, SIGNATURE_FILE, Manifest
from jarvis_trust.keyfiles import sync_directory

MAX_SIGNATURE_BYTES = 64 * 1024
MAX_OBJECT_BYTES = 256 << 20
"""As the loader's own bound."""
MAX_RELEASE_BYTES = 512 << 20
DISK_RESERVE_BYTES = 64 << 20
"""What staging leaves free on the disk."""

_PARTIAL = ".part-"
"""No object's name begins with a dot."""


class ReleaseError(TrustError):
    """A release that cannot be taken or used.

    Reasons: RELEASE_INCOMPLETE, RELEASE_ALTERED, RELEASE_LIMIT, RELEASE_DISK_FULL, RELEASE_IO;
    on an agent also RELEASE_BUSY, RELEASE_RUNNING, RELEASE_TRIAL_FAILED.
    """


class PartError(ValueError):
    """A part that is not acceptable as it stands.

    Attributes:
        field: of the request.
        description: the value found and what would be accepted.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of one file, as the wire's AddRelease and StageRelease carry it."""

    manifest_sha256: bytes
    file_name: str
    offset: int
    data: bytes
    size: int

    @classmethod
    def of(cls, request: StageReleaseRequest | AddReleaseRequest) -> Part:
        """The part that a request brings."""
        return cls(
            manifest_sha256=request.manifest_sha256,
            file_name=request.file_name,
            offset=request.offset,
            data=request.data,
            size=request.size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRelease:
    """A release whose every file is there and has its digest."""

    sha256: str
    """Of manifest.json, 64 lower-case hex digits."""
    directory: Path
    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    size: int
    """Octets of all its files."""

    @property
    def file_names(self) -> tuple[str, ...]:
        """In the order in which they must be handed over."""
        return (MANIFEST_FILE, SIGNATURE_FILE, *sorted(self.manifest.objects))


class ReleaseFiles:
    """The releases below one directory."""

    def __init__(
        self,
        root: Path,
        *,
        judge: Callable[[bytes, bytes], Manifest],
        max_part: int,
        limit: int,
        may_evict: Callable[[str, bool], bool],
    ) -> None:
        """Makes the directory (0700) and removes parts that a crash left.

        Args:
            root: where the directories are.
            judge: verifies manifest.json and its signature; raises FirmwareError.
            max_part: octets of a part.
            limit: releases that are kept, whole or not.
            may_evict: told a release's name and whether it is whole: whether it may go for a new one.

        Raises:
            OSError: the directory cannot be made or read.
        """
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = root
        self._judge = judge
        self._max_part = max_part
        self._limit = limit
        self._may_evict = may_evict
        self._sizes: dict[Path, int] = {}
        """Partial file -> the size that it was begun with."""
        for partial in root.glob(f"*/{_PARTIAL}*"):
            partial.unlink()

    def names(self) -> list[str]:
        """The releases that have a directory, whole or not, newest first."""
        found = [path for path in self._root.iterdir() if is_sha256_hex(path.name) and path.is_dir() and not path.is_symlink()]
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]

    def directory(self, sha256: str) -> Path:
        """Where a release lies."""
        if not is_sha256_hex(sha256):
            raise PartError("manifest_sha256", f"{sha256[:80]!r}; 64 lower-case hex digits are accepted")
        return self._root / sha256

    def is_whole(self, sha256: str) -> bool:
        """Whether every file is there; says nothing of what is in them."""
        directory = self.directory(sha256)
        try:
            manifest = Manifest.from_bytes(_read(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        except (FirmwareError, ReleaseError, OSError):
            return False
        return all((directory / name).is_file() for name in (SIGNATURE_FILE, *manifest.objects))

    def add(self, part: Part) -> int:
        """Writes a part; returns the octets of the file that are there now.

        Raises:
            PartError: a field is not acceptable.
            ReleaseError: RELEASE_ALTERED (the file is whole and not what its digest says; it is gone), RELEASE_LIMIT,
                RELEASE_DISK_FULL, RELEASE_IO.
            FirmwareError: manifest or signature are refused; the release is gone.
        """
        directory = self._check(part)
        target = directory / part.file_name
        partial = directory / (_PARTIAL + part.file_name)
        try:
            if part.offset == 0:
                self._begin(part, directory, partial)
            self._append(part, partial)
            received = part.offset + len(part.data)
            if received == part.size:
                self._finish(part, partial, target)
        except OSError as error:
            raise ReleaseError("RELEASE_IO", f"{part.file_name} cannot be written: {error.strerror}") from error
        return received

    def open(self, sha256: str) -> StoredRelease:
        """A whole release, every file hashed and manifest and signature judged now.

        Raises:
            PartError: the name is none.
            ReleaseError: RELEASE_INCOMPLETE, RELEASE_ALTERED, RELEASE_IO.
            FirmwareError: what the judge refuses.
        """
        directory = self.directory(sha256)
        try:
            manifest_bytes = _read(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES)
            signature = _read(directory / SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
            if hashlib.sha256(manifest_bytes).hexdigest() != sha256:
                raise ReleaseError("RELEASE_ALTERED", f"release {sha256}: {MANIFEST_FILE} has another digest")
            manifest = self._judge(manifest_bytes, signature)
            size = len(manifest_bytes) + len(signature)
            for name, digest in manifest.objects.items():
                found, octets = _hash(directory / name)
                size += octets
                if found != digest:
                    raise ReleaseError("RELEASE_ALTERED", f"release {sha256}: {name} has SHA-256 {found}; {digest} is signed")
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise ReleaseError("RELEASE_INCOMPLETE", f"release {sha256}: {missing} is not here, or not whole yet") from error
        except OSError as error:
            raise ReleaseError("RELEASE_IO", f"release {sha256} cannot be read: {error.strerror}") from error
        return StoredRelease(
            sha256=sha256, directory=directory, manifest=manifest, manifest_bytes=manifest_bytes, signature=signature, size=size
        )

    def remove(self, sha256: str) -> None:
        """Deletes a release, whole or not.

        Raises:
            OSError: it cannot be deleted.
        """
        directory = self.directory(sha256)
        for path in [path for path in self._sizes if path.parent == directory]:
            del self._sizes[path]
        if directory.exists():
            shutil.rmtree(directory)

    def _check(self, part: Part) -> Path:
        """What can be said of a part without the disk, and the release's directory."""
        if len(part.manifest_sha256) != 32:
            raise PartError("manifest_sha256", f"{len(part.manifest_sha256)} bytes; 32 are accepted")
        if not part.data or len(part.data) > self._max_part:
            raise PartError("data", f"{len(part.data)} bytes; 1 to {self._max_part} are accepted")
        directory = self.directory(part.manifest_sha256.hex())
        most = self._most(part.file_name, directory)
        if not 1 <= part.size <= most:
            raise PartError("size", f"{part.size} octets of {part.file_name}; 1 to {most} are accepted")
        if part.offset + len(part.data) > part.size:
            raise PartError("offset", f"{part.offset} with {len(part.data)} bytes goes beyond size {part.size}")
        return directory

    def _most(self, file_name: str, directory: Path) -> int:
        """Octets that a file of this name may have."""
        if file_name == MANIFEST_FILE:
            return MAX_MANIFEST_BYTES
        if not (directory / MANIFEST_FILE).is_file():
            raise PartError("file_name", f"{file_name[:80]!r}; {MANIFEST_FILE} is accepted first")
        if file_name == SIGNATURE_FILE:
            return MAX_SIGNATURE_BYTES
        if not (directory / SIGNATURE_FILE).is_file():
            raise PartError("file_name", f"{file_name[:80]!r}; {SIGNATURE_FILE} is accepted next")
        manifest = Manifest.from_bytes(_read(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        if file_name not in manifest.objects:
            accepted = ", ".join((MANIFEST_FILE, SIGNATURE_FILE, *sorted(manifest.objects)))
            raise PartError("file_name", f"{file_name[:80]!r}; {accepted} are accepted")
        return MAX_OBJECT_BYTES

    def _begin(self, part: Part, directory: Path, partial: Path) -> None:
        if not directory.exists():
            self._make_room()
            directory.mkdir(mode=0o700)
        others = sum(path.stat().st_size for path in directory.iterdir() if path.name not in {part.file_name, partial.name})
        if others + part.size > MAX_RELEASE_BYTES:
            raise PartError("size", f"{part.size}, which makes {others + part.size} octets; a release has {MAX_RELEASE_BYTES}")
        disk = os.statvfs(directory)
        free = disk.f_bavail * disk.f_frsize
        if free < part.size + DISK_RESERVE_BYTES:
            needed = part.size + DISK_RESERVE_BYTES
            raise ReleaseError("RELEASE_DISK_FULL", f"{free} octets are free at {self._root}; {needed} are needed")
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self._sizes[partial] = part.size

    def _append(self, part: Part, partial: Path) -> None:
        begun = self._sizes.get(partial)
        if begun is None:
            raise PartError("offset", f"{part.offset}; 0 is accepted: {part.file_name} was not begun")
        if part.size != begun:
            raise PartError("size", f"{part.size}; {begun} is accepted, as {part.file_name} was begun")
        fd = os.open(partial, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "ab") as file:
            there = os.fstat(file.fileno()).st_size
            if there != part.offset:
                raise PartError("offset", f"{part.offset}; {there} is accepted, or 0 to begin {part.file_name} anew")
            file.write(part.data)
            if there + len(part.data) == part.size:
                file.flush()
                os.fsync(file.fileno())

    def _finish(self, part: Part, partial: Path, target: Path) -> None:
        """A file is whole: it gets its name, or goes."""
        del self._sizes[partial]
        found, _ = _hash(partial)
        name = part.file_name
        if name == MANIFEST_FILE:
            if found != part.manifest_sha256.hex():
                self._refuse_file(partial, found, part.manifest_sha256.hex())
        elif name == SIGNATURE_FILE:
            self._judge_or_remove(target.parent, partial)
        else:
            expected = Manifest.from_bytes(_read(target.parent / MANIFEST_FILE, MAX_MANIFEST_BYTES)).objects[name]
            if found != expected:
                self._refuse_file(partial, found, expected)
        partial.replace(target)
        sync_directory(target.parent)

    def _refuse_file(self, partial: Path, found: str, expected: str) -> NoReturn:
        partial.unlink()
        name = partial.name.removeprefix(_PARTIAL)
        raise ReleaseError("RELEASE_ALTERED", f"{name} has SHA-256 {found}; {expected} is accepted")

    def _judge_or_remove(self, directory: Path, signature: Path) -> None:
        try:
            self._judge(_read(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES), _read(signature, MAX_SIGNATURE_BYTES))
        except TrustError:
            signature.unlink()
            if not self.is_whole(directory.name):  # what was good before stays
                shutil.rmtree(directory)
            raise

    def _make_room(self) -> None:
        names = self.names()
        while len(names) >= self._limit:
            evictable = [name for name in names if self._may_evict(name, self.is_whole(name))]
            if not evictable:
                raise ReleaseError("RELEASE_LIMIT", f"{len(names)} releases are kept here, and none of them may go for another")
            self.remove(evictable[-1])
            names.remove(evictable[-1])


def _read(path: Path, most: int) -> bytes:
    with open(path, "rb", opener=_open_plain) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ReleaseError("RELEASE_ALTERED", f"{path.name} is larger than {most} octets")
    return data


def _hash(path: Path) -> tuple[str, int]:
    with open(path, "rb", opener=_open_plain) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def _open_plain(path: str, flags: int) -> int:
    """No link is followed, and no FIFO waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
