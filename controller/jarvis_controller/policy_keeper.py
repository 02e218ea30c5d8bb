# SPDX-License-Identifier: Apache-2.0
"""Which policy is in force: that of the highest version, from the configuration's file or from an administrator.

    start:  policy.toml (controller.toml names it), policy.applied (state directory) -> the higher version -> current
    apply:  document -> judged as a whole -> policy.applied beside it, audited and told -> current -> every agent attested again

What is in force is kept in the state directory, not in the database: who edits the database must not lower what is demanded.
policy.applied holds AppliedPolicy, text and files whole, so that nothing else has to be there after a restart.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from jarvis.capture.v1 import policy_pb2
from jarvis_trust.errors import PolicyError
from jarvis_trust.keyfiles import rename_private, write_private
from jarvis_trust.policy_document import PolicyDocument, read_document
from jarvis_trust.release_root import ReleaseRoot

from jarvis_controller.audit_log import CONTROLLER
from jarvis_controller.policy import FleetPolicy
from jarvis_controller.policy_file import parse_policy
from jarvis_controller.release_policy import ReleasePolicy
from jarvis_controller.store import Store

_log = structlog.get_logger()

APPLIED_FILE = "policy.applied"


class PolicyKeeper:
    """The policy in force. One per controller; used from the event loop."""

    def __init__(self, file: Path, directory: Path, releases: ReleasePolicy) -> None:
        """Reads both files and takes the higher version.

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
        offered = _parse(read_document(file), releases.root, str(file))
        kept = self._read()
        self.current = offered
        self.applied = kept[1] if kept is not None else _message(offered, CONTROLLER)
        self._is_new = kept is None or offered.version > kept[0].version
        self._had_other = kept is not None
        if kept is None:
            return
        if kept[0].version == offered.version and kept[0].document.sha256 != offered.document.sha256:
            message = (
                f"{file}: version = {offered.version}: another policy of this version is in force; a higher version is accepted, "
                "or the policy that is in force (`jarvisctl policy show`)"
            )
            raise PolicyError("POLICY_VERSION_REUSED", message)
        if self._is_new:
            self.applied = _message(offered, CONTROLLER)
        else:
            self.current = kept[0]

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

    def _read(self) -> tuple[FleetPolicy, policy_pb2.AppliedPolicy] | None:
        try:
            applied = policy_pb2.AppliedPolicy.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError as error:
            raise PolicyError("POLICY_INVALID", f"{self._path}: it holds no policy: {error}") from error
        return _parse(PolicyDocument.from_message(applied.document), self.releases.root, str(self._path)), applied


def _parse(document: PolicyDocument, root: ReleaseRoot, where: str) -> FleetPolicy:
    try:
        return parse_policy(document, root)
    except PolicyError as error:
        raise PolicyError(error.reason, f"{where}: {error.message}") from error


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
