# SPDX-License-Identifier: Apache-2.0
"""The part of AgentService that exports: EnableExport, DisableExport, ListExports, after the service's checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
from jarvis.capture.v1 import agent_pb2 as pb

from jarvis_agent import wire
from jarvis_agent.authorization import authorization_bytes
from jarvis_agent.export.manager import ExportManager
from jarvis_agent.export.store import ENABLE_EXPORT, StoredExport

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:  # generic in the stubs only
    Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportVerbs:
    """The handlers, bytes in, bytes out; used on the event loop."""

    manager: ExportManager | None
    """None while firmware was refused: there is nothing to export."""
    session_id: bytes
    """Of this process, which the commands' signatures cover."""

    def handlers(self) -> dict[str, tuple[Callable[[bytes, Context], Awaitable[bytes]], str]]:
        """By method: what answers it, and where in the request the core's fields are."""
        return {
            "EnableExport": (self._enable, "spec"),
            "DisableExport": (self._disable, ""),
            "ListExports": (self._list, ""),
        }

    async def _enable(self, payload: bytes, context: Context) -> bytes:
        wire.parse(pb.EnableExportRequest, payload)
        metadata = context.invocation_metadata() or ()
        command = StoredExport(
            payload=payload,
            # The one that was just admitted: it is kept with the request.
            authorization=authorization_bytes(ENABLE_EXPORT, tuple((str(key), value) for key, value in metadata)),
            session_id=self.session_id,
            enable_time_ns=time.time_ns(),
        )
        return pb.EnableExportResponse(status=await self._exports().enable(command)).SerializeToString()

    async def _disable(self, payload: bytes, _context: Context) -> bytes:
        request = wire.parse(pb.DisableExportRequest, payload)
        status = await self._exports().disable(request.export_id, discard=request.discard)
        return pb.DisableExportResponse(status=status).SerializeToString()

    async def _list(self, payload: bytes, _context: Context) -> bytes:
        wire.parse(pb.ListExportsRequest, payload)
        # Spools are asked, which may be waiting for the disk.
        exports = await asyncio.to_thread(self._exports().list)
        return pb.ListExportsResponse(exports=exports).SerializeToString()

    def _exports(self) -> ExportManager:
        if self.manager is None:
            raise AssertionError("admitted without firmware")
        return self.manager
