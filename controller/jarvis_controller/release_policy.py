# SPDX-License-Identifier: Apache-2.0
"""What this controller trusts of releases: the root and the revocation list, read anew when their files change.

    release_root, revocations (controller.toml) -> jarvis_trust.release_store -> ReleasePolicy, which the attester asks each time

A file that is refused changes nothing: what was in force stays, and the refusal is logged at every attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from jarvis_trust.errors import TrustError
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.release_store import load_revocations, load_root
from jarvis_trust.revocations import Revocations

from jarvis_controller.case import ReleaseTrust

_log = structlog.get_logger()
_LOOK_EVERY_S = 2.0


class ReleasePolicy:
    """Root and revocations in force, for one event loop."""

    def __init__(self, *, root_path: Path, revocations_path: Path | None, state_directory: Path) -> None:
        """Reads both.

        Raises:
            FirmwareError: one of them cannot be used; see jarvis_trust.release_store.
            OSError: the state directory cannot be used.
        """
        self._root_path, self._revocations_path, self._directory = root_path, revocations_path, state_directory
        self._seen = self._fingerprint()
        self.root: ReleaseRoot = load_root(root_path, state_directory)
        self.revocations: Revocations | None = self._load_revocations(self.root)

    def now(self) -> ReleaseTrust:
        """What is in force, for a judgement now."""
        return ReleaseTrust(root=self.root, revocations=self.revocations, time_ns=time.time_ns())

    def reload(self) -> bool:
        """Takes over files that have changed. True: something else is in force now.

        Raises:
            FirmwareError: a file is refused; nothing has changed.
            OSError: the state directory cannot be used.
        """
        root = load_root(self._root_path, self._directory)
        revocations = self._load_revocations(root)
        changed = root.data != self.root.data or revocations != self.revocations
        self.root, self.revocations = root, revocations
        return changed

    async def watch(self, changed: Callable[[], Awaitable[object]], *, every_s: float = _LOOK_EVERY_S) -> None:
        """Looks at the files for ever, and tells when something else is in force: every agent has to be attested anew then."""
        while True:
            await asyncio.sleep(every_s)
            found = await asyncio.to_thread(self._fingerprint)
            if found == self._seen:
                continue
            self._seen = found
            try:
                if not self.reload():
                    continue
            except TrustError as error:
                _log.error("release files refused: what was in force stays", reason=error.reason, message=error.message)
                continue
            except OSError as error:
                _log.error("release files cannot be kept: what was in force stays", message=str(error))
                continue
            version = None if self.revocations is None else self.revocations.version
            _log.info("release policy changed", root=self.root.current.version, revocations=version)
            await changed()

    def _load_revocations(self, root: ReleaseRoot) -> Revocations | None:
        return None if self._revocations_path is None else load_revocations(self._revocations_path, root, self._directory)

    def _fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever one of the files is replaced or written."""
        return tuple(_fingerprint(path) for path in (self._root_path, self._revocations_path) if path is not None)


def _fingerprint(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
