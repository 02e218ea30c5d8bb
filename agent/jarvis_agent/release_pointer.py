# SPDX-License-Identifier: Apache-2.0
"""Which release the agent loads: one small file, changed in one step, and the pure rules by which it changes.

    current R ──begin──▶ current R, trial S ──lease in time──▶ current S
                                  └─ no lease, two starts, reboot, refused ─▶ current R, rolled back S

At every instant the file names a release that may be loaded: the one before while nothing is known of the new one. A start of the
new release is counted before it is loaded, so that a crash loop ends whatever the new release does. Times are CLOCK_BOOTTIME, ns,
which no one sets; a deadline of another boot is over.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jarvis_trust.encoding import is_sha256_hex, parse_json_object
from jarvis_trust.keyfiles import replace_private

_LOG = logging.getLogger(__name__)

FORMAT = "jarvis-release-pointer-v1"
MAX_STARTS = 2
"""Of a release on trial."""
_MAX_BYTES = 16 * 1024
_MAX_MESSAGE = 1000

NO_LEASE = "RELEASE_TRIAL_NO_LEASE"
CRASHED = "RELEASE_TRIAL_CRASHED"
INTERRUPTED = "RELEASE_TRIAL_INTERRUPTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A release that has yet to get its first lease."""

    sha256: str
    """Of its manifest, hex."""
    version: str
    trial_ns: int
    """How long it may take."""
    boot_id: str
    """Hex, of the boot in which it was begun."""
    starts: int = 0
    deadline_ns: int = 0
    """Set by its first start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last trial that did not hold."""

    sha256: str
    version: str
    reason: str
    message: str
    is_told: bool = False
    """Whether its event was journalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The file's contents. Empty `current` is the configuration's firmware_directory."""

    current: str = ""
    trial: Trial | None = None
    failed: Failed | None = None

    @property
    def loads(self) -> str:
        """The release that a process started now loads."""
        return self.current if self.trial is None else self.trial.sha256

    def begin(self, sha256: str, version: str, *, trial_ns: int, boot_id: str) -> Pointer:
        """A release is to be tried by the next process."""
        return replace(self, trial=Trial(sha256=sha256, version=version, trial_ns=trial_ns, boot_id=boot_id))

    def start(self, *, boot_id: str, now_ns: int) -> Pointer:
        """A process starts: a trial is counted, or over."""
        trial = self.trial
        if trial is None:
            return self
        if trial.boot_id != boot_id:
            return self.roll_back(INTERRUPTED, "the host was restarted before the release had its first lease")
        if trial.starts and now_ns >= trial.deadline_ns:
            return self.roll_back(NO_LEASE, f"no lease within {trial.trial_ns / 1e9:g} s")
        if trial.starts >= MAX_STARTS:
            return self.roll_back(CRASHED, f"the agent ended {trial.starts} times before its first lease")
        deadline = trial.deadline_ns if trial.starts else now_ns + trial.trial_ns
        return replace(self, trial=replace(trial, starts=trial.starts + 1, deadline_ns=deadline))

    def confirm(self) -> Pointer:
        """The release on trial has its first lease."""
        return self if self.trial is None else Pointer(current=self.trial.sha256)

    def roll_back(self, reason: str, message: str) -> Pointer:
        """The release on trial does not hold."""
        if self.trial is None:
            return self
        failed = Failed(sha256=self.trial.sha256, version=self.trial.version, reason=reason, message=message[:_MAX_MESSAGE])
        return Pointer(current=self.current, failed=failed)

    def told(self) -> Pointer:
        """The roll-back's event is in the journal."""
        return self if self.failed is None else replace(self, failed=replace(self.failed, is_told=True))

    def to_bytes(self) -> bytes:
        """JSON."""
        trial, failed = self.trial, self.failed
        value = {
            "format": FORMAT,
            "current": self.current,
            "trial": None if trial is None else {name: getattr(trial, name) for name in Trial.__slots__},
            "failed": None if failed is None else {name: getattr(failed, name) for name in Failed.__slots__},
        }
        return json.dumps(value, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Pointer:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it did not write that.
        """
        value = parse_json_object(data, max_bytes=_MAX_BYTES, canonical=False)
        if value.keys() != {"format", "current", "trial", "failed"} or value["format"] != FORMAT:
            raise ValueError(f"not a {FORMAT}")
        current = value["current"]
        if current != "" and not is_sha256_hex(current):
            raise ValueError("current is neither empty nor 64 lower-case hex digits")
        trial, failed = value["trial"], value["failed"]
        return cls(
            current=current,
            trial=None if trial is None else Trial(**_fields(trial, _TRIAL)),
            failed=None if failed is None else Failed(**_fields(failed, _FAILED)),
        )


_TRIAL = {"sha256": str, "version": str, "trial_ns": int, "boot_id": str, "starts": int, "deadline_ns": int}
_FAILED = {"sha256": str, "version": str, "reason": str, "message": str, "is_told": bool}


def _fields(value: Any, kinds: dict[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ValueError(f"the fields {', '.join(kinds)} are accepted")
    for name, kind in kinds.items():
        if type(value[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}")
    if not is_sha256_hex(value["sha256"]):
        raise ValueError("sha256 is not 64 lower-case hex digits")
    return value


class PointerFile:
    """The pointer on disk."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the file, which need not be there."""
        self._path = path

    def read(self) -> Pointer:
        """What it says; the configuration's firmware when there is none, or none that can be read (then the log says so)."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            return Pointer.from_bytes(data)
        except FileNotFoundError:
            return Pointer()
        except (OSError, ValueError) as error:
            # Only somebody else's hand damages it; the configuration's firmware passes the same judgement as any other.
            _LOG.error("%s cannot be read (%s): the firmware of the configuration is loaded", self._path, error)
            return Pointer()

    def write(self, pointer: Pointer) -> None:
        """Replaces it in one step; on disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        replace_private(self._path, pointer.to_bytes())
