# SPDX-License-Identifier: Apache-2.0
"""The releases that the controller holds for its agents, below <state_directory>/releases, each judged at entry and at every use.

    AddRelease parts -> jarvis_trust.release_files -> StoredRelease -> listed, or read in parts for delivery

The judgement is the verifier's own (release root, expiry, revocations, floor): what an agent would be quarantined for is not
delivered to it. One thread of its own, so that hashing a release holds up neither the event loop nor the database.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jarvis.capture.v1 import release_pb2
from jarvis_trust.errors import FirmwareError, TrustError
from jarvis_trust.firmware import MANIFEST_FILE, Manifest, verify_manifest
from jarvis_trust.release_files import Part, ReleaseFiles, StoredRelease

from jarvis_controller.case import ReleaseTrust

MAX_PART_BYTES = 512 * 1024
MAX_RELEASES = 32

T = TypeVar("T")


def verify_release(
    manifest: bytes, signature: bytes, *, trust: ReleaseTrust, floor: int, versions: frozenset[str] = frozenset()
) -> Manifest:
    """As the verifier judges the manifest in evidence; for any architecture.

    Args:
        manifest: the bytes of manifest.json.
        signature: those of its signature file.
        trust: release root, revocations and time.
        floor: least security_version that is accepted.
        versions: those that policy accepts; empty = any.

    Raises:
        FirmwareError: it is refused.
    """
    judged = verify_manifest(manifest, signature, trust.root, floor=floor, now_ns=trust.time_ns)
    if trust.revocations is not None:
        named = [(MANIFEST_FILE, hashlib.sha256(manifest).hexdigest()), *judged.objects.items()]
        trust.revocations.check(named)
    if versions and judged.version not in versions:
        message = f"version {judged.version} is not one that the policy accepts: {', '.join(sorted(versions))}"
        raise FirmwareError("FIRMWARE_VERSION_NOT_ACCEPTED", message)
    return judged


class ReleaseStore:
    """Coroutines for the one event loop."""

    def __init__(self, root: Path, judge: Callable[[bytes, bytes], Manifest]) -> None:
        """Args: root: made when it is not there. judge: verifies manifest.json and its signature; raises FirmwareError."""
        self._files = ReleaseFiles(
            root, judge=judge, max_part=MAX_PART_BYTES, limit=MAX_RELEASES, may_evict=lambda _, is_whole: not is_whole
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="releases")

    async def add(self, part: Part) -> tuple[int, release_pb2.Release | None]:
        """Takes a part; octets of its file that are there, and the release once it is whole.

        Raises:
            PartError, ReleaseError, FirmwareError: as ReleaseFiles.add and open.
        """

        def add() -> tuple[int, release_pb2.Release | None]:
            received = self._files.add(part)
            name = part.manifest_sha256.hex()
            if received < part.size or not self._files.is_whole(name):
                return received, None
            return received, self._message(self._files.open(name))

        return await self._run(add)

    async def get(self, sha256: str) -> StoredRelease:
        """A release, every file hashed and judged now.

        Raises:
            PartError, ReleaseError, FirmwareError: as ReleaseFiles.open.
        """
        return await self._run(lambda: self._files.open(sha256))

    async def message(self, release: StoredRelease) -> release_pb2.Release:
        """The wire's form."""
        return await self._run(lambda: self._message(release))

    async def listed(self) -> list[release_pb2.Release]:
        """Every whole release, newest first; one that could not be rolled out now says why."""

        def listed() -> list[release_pb2.Release]:
            return [self._listed(name) for name in self._files.names() if self._files.is_whole(name)]

        return await self._run(listed)

    async def remove(self, sha256: str) -> bool:
        """Deletes a release; False: there was none.

        Raises:
            PartError: the name is none.
        """

        def remove() -> bool:
            there = self._files.directory(sha256).exists()
            self._files.remove(sha256)
            return there

        return await self._run(remove)

    async def read(self, release: StoredRelease, name: str, offset: int, octets: int) -> tuple[bytes, int]:
        """A part of one of its files, and the file's size.

        Raises:
            OSError: it is gone, or cannot be read.
        """

        def read() -> tuple[bytes, int]:
            with (release.directory / name).open("rb") as file:
                file.seek(0, 2)
                size = file.tell()
                file.seek(offset)
                return file.read(octets), size

        return await self._run(read)

    def close(self) -> None:
        """Ends the thread after what is queued."""
        self._thread.shutdown()

    async def _run(self, operation: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, operation)

    def _listed(self, name: str) -> release_pb2.Release:
        try:
            return self._message(self._files.open(name))
        except TrustError as error:
            return release_pb2.Release(
                manifest_sha256=bytes.fromhex(name), refused_reason=error.reason, refused_message=error.message
            )

    def _message(self, release: StoredRelease) -> release_pb2.Release:
        manifest = release.manifest
        message = release_pb2.Release(
            manifest_sha256=bytes.fromhex(release.sha256),
            name=manifest.name,
            version=manifest.version,
            security_version=manifest.security_version,
            architecture=manifest.architecture,
            objects=dict(manifest.objects),
            size=release.size,
        )
        message.add_time.FromNanoseconds(release.directory.stat().st_mtime_ns)
        return message
