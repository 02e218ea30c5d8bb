# SPDX-License-Identifier: Apache-2.0
"""Which policy is in force: that of the highest version, from the configuration's file or from an administrator.

    start:  policy.toml (controller.toml names it), policy.applied (state directory) -> the higher version -> current
    apply:  document -> judged as a whole -> policy.applied beside it, audited and told -> current -> every agent attested again

What is in force is kept in the state directory, not in the database: who edits the database must not lower what is demanded.
policy.applied holds AppliedPolicy, text and files whole, so that nothing else has to be there after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from jarvis.capture.v1 import policy_pb2
from jarvis_trust.errors import PolicyError
from jarvis_trust.keyfiles import rename_private, write_private
from jarvis_trust.policy_document import PolicyDocument, read_document

from jarvis_controller.audit_log import CONTROLLER
from jarvis_controller.policy import FleetPolicy
from jarvis_controller.policy_file import parse_policy, version_of
from jarvis_controller.release_policy import ReleasePolicy
from jarvis_controller.store import Store

_log = structlog.get_logger()

APPLIED_FILE = "policy.applied"


class PolicyKeeper:
    """The policy in force. One per controller; used from the event loop."""

    def __init__(self, file: Path, directory: Path, releases: ReleasePolicy) -> None:
        """Reads both files and takes the higher version; of the other one nothing else counts.

        Args:
            file: the configuration's policy.toml.
            directory: the state directory.
            releases: whose root reference sets must be signed by.

        Raises:
            PolicyError: POLICY_INVALID, POLICY_UNREADABLE, POLICY_TOO_LARGE; POLICY_VERSION_REUSED when the file was changed
                and its version was not.
            OSError: the state directory cannot be read.
        """
        self.releases = releases
        self._path = directory / APPLIED_FILE
        self._lock = asyncio.Lock()
        self.on_applied: Callable[[], None] = lambda: None
        """Called on the event loop when another policy has come into force."""
        offered, kept = read_document(file), self._read()
        with _named(file):
            version = version_of(offered)
        self._is_new = kept is None or version > kept.version
        self._had_other = kept is not None
        if kept is None or self._is_new:
            with _named(file):
                self.current = self.judge(offered)
            self.applied = _message(self.current, CONTROLLER)
            return
        with _named(self._path):
            document = PolicyDocument.from_message(kept.document)
        if version == kept.version and document.sha256 != offered.sha256:
            message = (
                f"{file}: version = {version}: another policy of this version is in force (it differs in "
                f"{_differing(document, offered)}); "
                "a higher version is accepted, or the policy that is in force (`jarvisctl policy show`)"
            )
            raise PolicyError("POLICY_VERSION_REUSED", message)
        with _named(self._path):
            self.current, self.applied = self.judge(document), kept

    async def start(self, store: Store) -> None:
        """Audits and keeps what came new from the configuration's file. Called once, when the store is open.

        Raises:
            OSError: it cannot be kept.
        """
        if self._is_new:
            await self._keep(store, self.current, self.applied, is_told=self._had_other)
        _log.info("policy in force", name=self.current.name, version=self.current.version)

    def judge(self, document: PolicyDocument) -> FleetPolicy:
        """What a document would demand. Blocks: it verifies signatures.

        Raises:
            PolicyError: POLICY_INVALID.
        """
        return parse_policy(document, self.releases.root)

    async def apply(self, store: Store, document: PolicyDocument, *, principal: str) -> policy_pb2.AppliedPolicy:
        """Puts a policy in force; says what is in force afterwards. The one in force is accepted again and changes nothing.

        Raises:
            PolicyError: POLICY_INVALID, POLICY_VERSION_OLD.
            OSError: it cannot be kept; the one before stays in force.
        """
        policy = await asyncio.to_thread(self.judge, document)
        async with self._lock:
            if document.sha256 == self.current.document.sha256:
                return self.applied
            if policy.version <= self.current.version:
                in_force = f"version {self.current.version} of {self.current.name!r} is in force"
                raise PolicyError("POLICY_VERSION_OLD", f"version = {policy.version}: {in_force}; a higher version is accepted")
            applied = _message(policy, principal)
            await self._keep(store, policy, applied, is_told=True)
            self.current, self.applied = policy, applied
        _log.info("policy in force", name=policy.name, version=policy.version, principal=principal)
        self.on_applied()
        return applied

    async def _keep(self, store: Store, policy: FleetPolicy, applied: policy_pb2.AppliedPolicy, *, is_told: bool) -> None:
        beside = self._path.with_name(f".{APPLIED_FILE}.{secrets.token_hex(8)}")
        await asyncio.to_thread(write_private, beside, applied.SerializeToString(deterministic=True))
        try:
            # Before it is in force: an entry too many is an attempt that failed, one too few would be a secret.
            await store.record_policy(policy, principal=applied.principal, is_told=is_told)
            await asyncio.to_thread(rename_private, beside, self._path)
        finally:
            beside.unlink(missing_ok=True)

    def _read(self) -> policy_pb2.AppliedPolicy | None:
        try:
            return policy_pb2.AppliedPolicy.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError as error:
            raise PolicyError("POLICY_INVALID", f"{self._path}: it holds no policy: {error}") from error


def _differing(one: PolicyDocument, other: PolicyDocument) -> str:
    """Where two documents are not the same, by name."""
    names = [name for name in sorted({*one.files, *other.files}) if one.files.get(name) != other.files.get(name)]
    return ", ".join((["its text"] if one.text != other.text else []) + names)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What a policy is refused for, with the file that it is in."""
    try:
        yield
    except PolicyError as error:
        raise PolicyError(error.reason, f"{path}: {error.message}") from error


def _message(policy: FleetPolicy, principal: str) -> policy_pb2.AppliedPolicy:
    applied = policy_pb2.AppliedPolicy(
        document=policy.document.to_message(),
        name=policy.name,
        version=policy.version,
        sha256=policy.document.sha256,
        principal=principal,
    )
    applied.apply_time.FromNanoseconds(time.time_ns())
    return applied
