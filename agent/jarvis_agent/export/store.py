# SPDX-License-Identifier: Apache-2.0
"""Exports across restarts: the controller's signed commands themselves, kept as they came and verified again when loaded.

    EnableExport, admitted → keep() → STATE/exports/ID.json (0600, atomically) → load() → verified once more → resumed

A file holds the request's bytes, its CommandAuthorization, and the session id that the signature covers besides (docs/trust.md),
so that whoever edits it has to sign like the controller. What no longer verifies is set aside as ID.refused. What this does not
stop: somebody with this user's rights who puts a command back that this agent was given once. The lease's allow-list still binds
that one.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from jarvis.capture.v1.agent_pb2 import EnableExportRequest
from jarvis.capture.v1.trust_pb2 import CommandAuthorization
from jarvis_trust.commands import AGENT_SERVICE, verify_authorization
from jarvis_trust.errors import TrustError
from jarvis_trust.keyfiles import read_private, replace_private, sync_directory

ENABLE_EXPORT: Final = f"{AGENT_SERVICE}EnableExport"
MAX_PAYLOAD_BYTES: Final = 32 * 1024
"""Of a request that is kept: with its frame it stays below what keyfiles reads."""
_SUFFIX, _REFUSED_SUFFIX = ".json", ".refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredExport:
    """An EnableExport command as it was admitted."""

    payload: bytes
    """The request's bytes."""
    authorization: bytes
    """Of its CommandAuthorization."""
    session_id: bytes
    """Of the process that admitted it."""
    enable_time_ns: int
    """Then, Unix ns."""

    def request(self) -> EnableExportRequest:
        """What was asked for.

        Raises:
            DecodeError: the bytes are no such request.
        """
        return EnableExportRequest.FromString(self.payload)

    @property
    def principal(self) -> str:
        """On whose behalf."""
        return CommandAuthorization.FromString(self.authorization).principal


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedExport:
    """A file that does not come back."""

    export_id: str
    """By its name."""
    message: str
    """Why: it is not what the controller signed, or cannot be read."""


class ExportStore:
    """The files. Every method blocks; one thread at a time."""

    def __init__(self, directory: Path, *, agent_id: str, command_public_pem: bytes) -> None:
        """Touches nothing yet.

        Args:
            directory: made with mode 0700 when something is kept.
            agent_id: this agent's, which each command must be for.
            command_public_pem: the fleet's command key, pinned.
        """
        self._directory = directory
        self._agent_id = agent_id
        self._key = command_public_pem

    def keep(self, export_id: str, stored: StoredExport) -> None:
        """Writes a command, in the place of one before.

        Raises:
            OSError: it is not on disk.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {
            "payload": _encode(stored.payload),
            "authorization": _encode(stored.authorization),
            "session_id": stored.session_id.hex(),
            "enable_time_ns": stored.enable_time_ns,
        }
        replace_private(self._path(export_id), json.dumps(values).encode("ascii") + b"\n")

    def remove(self, export_id: str) -> None:
        """Forgets one; nothing when there is none.

        Raises:
            OSError: it is still there.
        """
        with contextlib.suppress(FileNotFoundError):
            self._path(export_id).unlink()
            sync_directory(self._directory)

    def load(self) -> tuple[list[StoredExport], list[RefusedExport]]:
        """Everything that verifies, the oldest first, and the rest; what does not verify is set aside.

        Raises:
            OSError: the directory is there and cannot be read or written.
        """
        try:
            paths = sorted(path for path in self._directory.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return [], []
        kept: list[StoredExport] = []
        refused: list[RefusedExport] = []
        for path in paths:
            try:
                kept.append(self._verified(path))
            except (TrustError, ValueError, KeyError, TypeError, DecodeError) as error:
                path.rename(path.with_suffix(_REFUSED_SUFFIX))
                refused.append(RefusedExport(export_id=path.stem, message=f"it is not as the controller signed it: {error!r}"))
            except OSError as error:  # the next start may find it better
                refused.append(RefusedExport(export_id=path.stem, message=f"{path} cannot be read: {error.strerror}"))
        return sorted(kept, key=lambda stored: stored.enable_time_ns), refused

    def _verified(self, path: Path) -> StoredExport:
        stored = _parse(read_private(path))
        verify_authorization(
            CommandAuthorization.FromString(stored.authorization),
            self._key,
            agent_id=self._agent_id,
            method=ENABLE_EXPORT,
            session_id=stored.session_id,
            payload=stored.payload,
        )
        if stored.request().spec.export_id != path.stem:
            raise ValueError(f"it holds export {stored.request().spec.export_id[:60]!r}; {path.stem!r} is accepted")
        return stored

    def _path(self, export_id: str) -> Path:
        return self._directory / f"{export_id}{_SUFFIX}"


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _parse(data: bytes) -> StoredExport:
    values = json.loads(data)
    try:
        payload, authorization = (base64.b64decode(values[name], validate=True) for name in ("payload", "authorization"))
    except binascii.Error as error:
        raise ValueError("payload or authorization is no base64") from error
    enable_time_ns = values["enable_time_ns"]
    if type(enable_time_ns) is not int or enable_time_ns < 0:
        raise ValueError(f"enable_time_ns is {enable_time_ns!r}; nanoseconds since 1970 are accepted")
    return StoredExport(
        payload=payload,
        authorization=authorization,
        session_id=bytes.fromhex(values["session_id"]),
        enable_time_ns=enable_time_ns,
    )
