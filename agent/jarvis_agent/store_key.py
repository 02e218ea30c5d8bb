# SPDX-License-Identifier: Apache-2.0
"""The master key of packet stores: random, sealed in the TPM, given out by it in boot states that the controller approved.

    first approval        → 32 random bytes → sealed under PolicyAuthorize(store policy key, this agent) → store/master.json
    start, next approvals → the newest approval that was taken (store/approval.bin) opens the same blob while the PCRs fit

    ABSENT  no approval came yet, nothing is sealed      SEALED  sealed, and no approval fits this boot      READY  in memory

The approval is no secret and stays on disk, so that a host opens its store without its controller. After a firmware update the
old approval fails and the next attestation brings one that opens the same blob. What is sealed is never made anew by itself: it
may be all that opens what was captured.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import mmap
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_trust.errors import IdentityError, StoreKeyError, TrustError
from jarvis_trust.keyfiles import read_private, replace_private, write_private
from jarvis_trust.store_policy import check_store_approval, policy_authorize_digest, policy_ref

from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_seal import SealedBlob

_LOG = logging.getLogger(__name__)

KEY_BYTES = 32
_BLOB_FILE, _APPROVAL_FILE = "master.json", "approval.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePolicy:
    """Whose approvals are taken, and over what."""

    agent_id: str
    command_public_pem: bytes
    """The fleet's, from the join file: it endorses the store policy key."""
    pcrs: tuple[int, ...]
    """An approval has to be over these; it may be over more."""
    firmware_pcr: int
    """Extended at every start: an approval over it would never fit again, and none is taken."""


class StoreKey:
    """One agent's master key. Used on the event loop."""

    def __init__(self, worker: TpmWorker, directory: Path, policy: StorePolicy) -> None:
        """Nothing is read or asked yet.

        Args:
            worker: the TPM's thread.
            directory: for blob and approval, made 0700 when the first approval comes.
            policy: what is taken.
        """
        self._worker = worker
        self._directory = directory
        self._policy = policy
        self._memory: _LockedMemory | None = None
        self._message = "no approval has come yet"
        self._state: pb.StoreKeyState.ValueType = pb.STORE_KEY_STATE_ABSENT
        self._lock = asyncio.Lock()
        self._offered: set[asyncio.Task[None]] = set()

    def status(self) -> tuple[pb.StoreKeyState.ValueType, str]:
        """State, and why it is not READY."""
        return self._state, self._message

    def master(self) -> bytes:
        """The key, 32 bytes.

        Raises:
            StoreKeyError: STORE_KEY_ABSENT, STORE_KEY_SEALED.
        """
        if self._memory is None:
            absent = self._state == pb.STORE_KEY_STATE_ABSENT
            raise StoreKeyError("STORE_KEY_ABSENT" if absent else "STORE_KEY_SEALED", self._message)
        return self._memory.read()

    async def open(self) -> None:
        """Tries the approval that is on disk. What goes wrong is the state's message: an agent without the key still meters."""
        async with self._lock:
            await self._guarded(self._open_kept)

    def offer(self, approval: StoreApproval) -> None:
        """An approval came: it is looked at while the caller goes on."""
        task = asyncio.get_running_loop().create_task(self.take(approval))
        self._offered.add(task)
        task.add_done_callback(self._offered.discard)

    async def take(self, approval: StoreApproval) -> None:
        """Keeps an approval that is for this agent, and opens the key with it, or makes the key when there is none.

        What goes wrong is the state's message; the key that is open stays so.
        """
        async with self._lock:
            await self._guarded(lambda: self._take(approval))

    def close(self) -> None:
        """Wipes the key from memory and ends what is under way."""
        for task in self._offered:
            task.cancel()
        if self._memory is not None:
            self._memory.wipe()
            self._memory = None

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except (TrustError, OSError) as error:
            reason = error.reason if isinstance(error, TrustError) else type(error).__name__
            _LOG.warning("the store's master key: %s: %s", reason, error)
            if self._memory is None:
                self._message = f"{reason}: {error}"

    async def _open_kept(self) -> None:
        blob = self._read_blob()
        if blob is None:
            return
        self._state = pb.STORE_KEY_STATE_SEALED
        self._message = "no approval has come yet"
        approval = self._read_approval()
        if approval is not None:
            self._check(approval)
            await self._unseal(blob, approval)

    async def _take(self, approval: StoreApproval) -> None:
        self._check(approval)
        kept = self._read_approval()
        blob = self._read_blob()
        if blob is None:
            blob = await self._make(approval)
        elif self._memory is not None and kept == approval:
            return
        if kept != approval:
            replace_private(self._directory / _APPROVAL_FILE, approval.SerializeToString(deterministic=True))
        if self._memory is None:
            self._state = pb.STORE_KEY_STATE_SEALED
            await self._unseal(blob, approval)

    def _check(self, approval: StoreApproval) -> bytes:
        """The Name of the key that signed it."""
        policy = self._policy
        key = check_store_approval(
            approval,
            agent_id=policy.agent_id,
            command_public_pem=policy.command_public_pem,
            demanded=policy.pcrs,
            never=policy.firmware_pcr,
        )
        return key.name

    async def _make(self, approval: StoreApproval) -> SealedBlob:
        """Seals a new key. It is on disk before it is used, and written once: FileExistsError otherwise."""
        auth_policy = policy_authorize_digest(self._check(approval), policy_ref(self._policy.agent_id))
        secret = os.urandom(KEY_BYTES)
        blob = await self._worker.run(TpmPriority.SEAL, lambda device: device.seal(secret, auth_policy))
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"public": blob.public.hex(), "private": blob.private.hex()}, sort_keys=True)
        write_private(self._directory / _BLOB_FILE, text.encode())
        _LOG.info("a master key for packet stores was made and sealed")
        return blob

    async def _unseal(self, blob: SealedBlob, approval: StoreApproval) -> None:
        secret = await self._worker.run(TpmPriority.SEAL, lambda device: device.unseal(blob, approval))
        if len(secret) != KEY_BYTES:
            raise StoreKeyError("STORE_KEY_INVALID", f"the TPM gave {len(secret)} bytes; {KEY_BYTES} are accepted")
        self._memory = _LockedMemory(secret)
        self._state, self._message = pb.STORE_KEY_STATE_READY, ""
        _LOG.info("the store's master key is open, PCRs %s", list(approval.pcrs))

    def _read_blob(self) -> SealedBlob | None:
        path = self._directory / _BLOB_FILE
        if not path.exists():
            return None
        try:
            values = json.loads(read_private(path))
            return SealedBlob(public=bytes.fromhex(values["public"]), private=bytes.fromhex(values["private"]))
        except (ValueError, KeyError, TypeError) as error:
            self._state = pb.STORE_KEY_STATE_SEALED
            raise StoreKeyError("STORE_KEY_INVALID", f"{path} is not what this agent wrote: {error}") from error

    def _read_approval(self) -> StoreApproval | None:
        path = self._directory / _APPROVAL_FILE
        if not path.exists():
            return None
        try:
            return StoreApproval.FromString(read_private(path))
        except (DecodeError, IdentityError) as error:
            _LOG.warning("%s is no approval and is not used: %s", path, error)
            return None


class _LockedMemory:
    """A page that is not swapped out and not in core dumps. The TPM library and Python leave copies of their own behind."""

    def __init__(self, secret: bytes) -> None:
        self._size = len(secret)
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE)) != 0:
            why = os.strerror(ctypes.get_errno())
            _LOG.warning("the store's master key could not be locked in memory: %s (LimitMEMLOCK)", why)
        self._page.madvise(mmap.MADV_DONTDUMP)
        self._page[: self._size] = secret

    def read(self) -> bytes:
        """A copy."""
        return self._page[: self._size]

    def wipe(self) -> None:
        """Zeros; the mapping goes with the object."""
        self._page[: self._size] = bytes(self._size)
