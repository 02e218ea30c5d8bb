# SPDX-License-Identifier: Apache-2.0
"""What is kept of an agent's IMA list between attestations: how far it was read, PCR 10 there, and the files that are judged.

    state (of entries 0..n) + the list from entry n on -> state (of entries 0..m), where PCR 10 is as quoted

So no list is sent twice, and an old entry is judged again by the policy of today. Nothing that needs no judgement is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jarvis.capture.v1 import audit_pb2
from jarvis_trust.errors import AttestationError
from jarvis_trust.ima_log import BOOT_AGGREGATE, ImaEntry
from jarvis_trust.ima_policy import ImaPolicy

MAX_FILES: Final = 4096
"""Different files (path and digest) that are judged of one host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaFile:
    """A file that is judged, as the kernel measured it once or more often."""

    path: bytes
    algorithm: str
    digest: bytes
    is_violation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaState:
    """An agent's IMA list up to an entry. The empty one is that of a host that just came up."""

    boot_id: bytes = b""
    scope_sha256: bytes = b""
    """Of the policy by which `files` were picked."""
    entries: int = 0
    pcr: bytes = bytes(32)
    """PCR 10 of the SHA-256 bank after them."""
    boot_aggregate: ImaFile | None = None
    """What the first entry says; None while there is none, or when it is not the boot aggregate."""
    violations: int = 0
    files: tuple[ImaFile, ...] = ()
    """Each once, in their order."""

    def advanced(self, entries: Sequence[ImaEntry], policy: ImaPolicy) -> ImaState:
        """After these entries, which follow.

        Raises:
            AttestationError: IMA_TOO_MANY_FILES.
        """
        pcr, violations, files = self.pcr, self.violations, dict.fromkeys(self.files)
        first = self.boot_aggregate
        for entry in entries:
            pcr = hashlib.sha256(pcr + entry.extended).digest()
            violations += entry.is_violation
            if entry.number == 0 and entry.path == BOOT_AGGREGATE:
                first = _file(entry)
            if policy.covers(entry.path):
                files[_file(entry)] = None
        if len(files) > MAX_FILES:
            message = f"IMA list: more than {MAX_FILES} different files are below the policy's paths, or were measured too often"
            raise AttestationError("IMA_TOO_MANY_FILES", message)
        return ImaState(
            boot_id=self.boot_id,
            scope_sha256=self.scope_sha256,
            entries=self.entries + len(entries),
            pcr=pcr,
            boot_aggregate=first,
            violations=violations,
            files=tuple(files),
        )

    def to_message(self) -> audit_pb2.CaseIma:
        """As it is kept."""
        message = audit_pb2.CaseIma(
            boot_id=self.boot_id,
            scope_sha256=self.scope_sha256,
            entries=self.entries,
            pcr=self.pcr,
            violations=self.violations,
            files=[_message(file) for file in self.files],
        )
        if self.boot_aggregate is not None:
            message.boot_aggregate.CopyFrom(_message(self.boot_aggregate))
        return message

    @classmethod
    def from_message(cls, message: audit_pb2.CaseIma) -> ImaState:
        """As it was kept."""
        return cls(
            boot_id=message.boot_id,
            scope_sha256=message.scope_sha256,
            entries=message.entries,
            pcr=message.pcr,
            boot_aggregate=_read(message.boot_aggregate) if message.HasField("boot_aggregate") else None,
            violations=message.violations,
            files=tuple(_read(file) for file in message.files),
        )


def _file(entry: ImaEntry) -> ImaFile:
    return ImaFile(path=entry.path, algorithm=entry.algorithm, digest=entry.digest, is_violation=entry.is_violation)


def _message(file: ImaFile) -> audit_pb2.CaseImaFile:
    return audit_pb2.CaseImaFile(path=file.path, algorithm=file.algorithm, digest=file.digest, violation=file.is_violation)


def _read(file: audit_pb2.CaseImaFile) -> ImaFile:
    return ImaFile(path=file.path, algorithm=file.algorithm, digest=file.digest, is_violation=file.violation)
