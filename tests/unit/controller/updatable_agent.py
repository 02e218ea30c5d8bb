# SPDX-License-Identifier: Apache-2.0
"""A fake agent that takes releases: it changes over, goes back or comes back as something else, as a test has told it to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from google.rpc import code_pb2
from jarvis.capture.v1 import agent_pb2, capture_pb2
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE

from tests.unit.controller.fake_agent import Context, FakeAgent, refuse
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import LIBRARY

GOOD, REFUSES, GOES_BACK, TURNS_BAD, VANISHES = "good", "refuses", "goes back", "turns bad", "vanishes"


@dataclass(slots=True, kw_only=True)
class UpdatableAgent(FakeAgent):
    """One host that can be updated."""

    fate: str = GOOD
    """What becomes of an activation."""
    staged: dict[str, bytes] = field(default_factory=dict)
    """Of the release that is being staged: file -> what came."""
    refuse_file: tuple[str, str] = ("", "")
    """A file's name, and the reason that its parts are refused with."""
    lose_parts: int = 0
    """So many parts are taken and their answer lost."""
    activations: int = 0
    hold: asyncio.Event | None = None
    """ActivateRelease waits for it."""
    rolled_back: agent_pb2.RolledBack | None = None
    changing: asyncio.Task[None] | None = None

    async def _get_status(self, _request: agent_pb2.GetStatusRequest, _context: Context) -> agent_pb2.GetStatusResponse:
        manifest = hashlib.sha256(self.release.manifest).digest()
        release = agent_pb2.ReleaseStatus(manifest_sha256=manifest, rolled_back=self.rolled_back)
        return agent_pb2.GetStatusResponse(capture=self.capture, release=release)

    def _commands(self) -> dict[str, Callable[[bytes, Context], Awaitable[bytes]]]:
        return {**FakeAgent._commands(self), "StageRelease": self._stage, "ActivateRelease": self._activate}

    async def _stage(self, payload: bytes, context: Context) -> bytes:
        part = agent_pb2.StageReleaseRequest.FromString(payload)
        if part.file_name == self.refuse_file[0]:
            await refuse(context, code_pb2.FAILED_PRECONDITION, self.refuse_file[1])
        there = b"" if part.offset == 0 else self.staged[part.file_name]
        if len(there) != part.offset:
            await refuse(context, code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        self.staged[part.file_name] = there + part.data
        if self.lose_parts:
            self.lose_parts -= 1
            await refuse(context, code_pb2.DEADLINE_EXCEEDED, "NETWORK_LOST")
        return agent_pb2.StageReleaseResponse(received=part.offset + len(part.data)).SerializeToString()

    async def _activate(self, _payload: bytes, context: Context) -> bytes:
        self.activations += 1
        if self.hold is not None:
            await self.hold.wait()
        sha256 = hashlib.sha256(self.staged[LIBRARY]).digest()
        self.tpm.measure(sha256, is_trial=True)
        if self.fate == REFUSES:
            await refuse(context, code_pb2.FAILED_PRECONDITION, "RELEASE_TRIAL_FAILED")
        release = Release(manifest=self.staged[MANIFEST_FILE], signature=self.staged[SIGNATURE_FILE], sha256=sha256)
        self.changing = asyncio.create_task(self._change_over(release))
        return agent_pb2.ActivateReleaseResponse(version="9").SerializeToString()

    async def _change_over(self, release: Release) -> None:
        await asyncio.sleep(0.05)
        await self.stop()
        self.capture = capture_pb2.CaptureStatus()
        old = self.release
        if self.fate == VANISHES:
            return
        if self.fate == GOES_BACK:
            self.tpm.restart_process()
            self.tpm.measure(release.sha256)
            manifest = hashlib.sha256(release.manifest).digest()
            self.rolled_back = agent_pb2.RolledBack(
                manifest_sha256=manifest, reason="RELEASE_TRIAL_CRASHED", message="it crashed"
            )
        else:
            self.release = release
        if self.fate == TURNS_BAD:
            self.tpm.measure(hashlib.sha256(b"evil").digest())
        assert self.release is old or self.fate != GOES_BACK
        await self.start()
