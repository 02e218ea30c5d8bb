# SPDX-License-Identifier: Apache-2.0
"""What a host or a controller trusts of releases, across restarts: release root and revocation list, neither ever going back.

    configured file -> verified -> compared with what was trusted before (state directory) -> kept there -> in force

What is kept is replaced only after every check has passed, in one step; so what an attacker leaves at the configured place spoils
nothing, and a state directory that was wiped makes the configured file the first one again.
"""

from __future__ import annotations

from pathlib import Path

from jarvis_trust.errors import FirmwareError
from jarvis_trust.keyfiles import replace_private
from jarvis_trust.release_root import MAX_ROOT_BYTES, ReleaseRoot, check_successor
from jarvis_trust.revocations import MAX_REVOCATIONS_BYTES, Revocations, read_revocations_file

TRUSTED_ROOT_FILE = "release-root.json"
TRUSTED_REVOCATIONS_FILE = "revoked.json"


def load_root(path: Path, state_directory: Path) -> ReleaseRoot:
    """The release root of the configured file, which goes on from the one that was trusted before; it is trusted from now on.

    Raises:
        FirmwareError: RELEASE_ROOT_MISSING, RELEASE_ROOT_INVALID, RELEASE_ROOT_UNSIGNED, RELEASE_ROOT_ROLLBACK,
            RELEASE_ROOT_NOT_SUCCESSOR.
        OSError: the state directory cannot be used.
    """
    root = ReleaseRoot.from_bytes(_read(path, "RELEASE_ROOT_MISSING", "release root", MAX_ROOT_BYTES))
    trusted = state_directory / TRUSTED_ROOT_FILE
    if trusted.exists():
        before = ReleaseRoot.from_bytes(trusted.read_bytes())
        check_successor(root, before)
        if root.data == before.data:
            return root
    replace_private(trusted, root.data)
    return root


def load_revocations(path: Path, root: ReleaseRoot, state_directory: Path) -> Revocations:
    """The revocation list of the configured file, not older than the one before; none below it is taken from now on.

    Raises:
        FirmwareError: REVOCATIONS_MISSING, REVOCATIONS_INVALID, REVOCATIONS_UNSIGNED, REVOCATIONS_ROLLBACK.
        OSError: the state directory cannot be used.
    """
    data = _read(path, "REVOCATIONS_MISSING", "revocation list", MAX_REVOCATIONS_BYTES)
    revocations = Revocations.from_bytes(data, root)
    trusted = state_directory / TRUSTED_REVOCATIONS_FILE
    before = _revocations_before(trusted)
    revocations.check_newer(before)
    if before is None or before.version != revocations.version:
        replace_private(trusted, data)
    return revocations


def _revocations_before(trusted: Path) -> Revocations | None:
    """What was kept; its signatures held when it was kept, and the root may have moved on since."""
    return read_revocations_file(trusted.read_bytes())[0] if trusted.exists() else None


def _read(path: Path, reason: str, what: str, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)  # one more than is accepted: the parser says so
    except OSError as error:
        raise FirmwareError(reason, f"{what} {path} cannot be read: {error.strerror}") from error
