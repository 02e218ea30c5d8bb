# SPDX-License-Identifier: Apache-2.0
"""Audits who looked at what, and what was refused to whom, without letting either fill the disk.

    the first of its kind in a minute -> an entry at once;  the rest of that minute -> counted -> one entry at the minute's end

Kinds are told apart up to 256 a minute, then all others share one: at most 516 entries a minute, whatever is asked. Data is given
out only after its entry is stored. Used from the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from google.protobuf.message import Message

from jarvis_controller.audit_log import CONTROLLER, AuditEntry

_log = structlog.get_logger()
_WINDOW_S = 60.0
_MOST_KINDS = 256
_MOST_AGENTS = 100
_OTHERS = ("", "", "others")
_Kind = tuple[str, ...]


@dataclass(slots=True)
class _Repeats:
    entry: AuditEntry
    count: int = 0


class AccessLog:
    """One per controller; `run` belongs among its tasks."""

    def __init__(self, append: Callable[[AuditEntry], Awaitable[object]], *, window_s: float = _WINDOW_S) -> None:
        """Args: append: stores one entry. window_s: how long repeats are counted."""
        self._append = append
        self._window_s = window_s
        self._kinds: dict[_Kind, _Repeats] = {}

    async def read(self, principal: str, method: str, agent_ids: Sequence[str], request: Message) -> None:
        """Data of these agents is about to be given to `principal` by `method`, as `request` asks."""
        agents = sorted(agent_ids)
        detail: dict[str, object] = {"agents": agents[:_MOST_AGENTS], "count": len(agents), "method": method}
        agent_id = agents[0] if len(agents) == 1 else ""
        entry = AuditEntry(principal=principal, action="data.read", agent_id=agent_id, detail=detail)
        asked = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        await self._note((principal, method, asked), entry)

    async def refused(self, principal: str, method: str, reason: str, message: str, peer: str) -> None:
        """A call was refused before it was served; `principal` is empty where it has not shown who it is."""
        host = peer.rpartition(":")[0]
        detail: dict[str, object] = {"message": message, "method": method, "peer": host, "reason": reason}
        entry = AuditEntry(principal=principal or CONTROLLER, action="access.refused", detail=detail)
        await self._note((principal or host, method, reason), entry)

    async def run(self) -> None:
        """Ends a minute every minute until it is cancelled."""
        while True:
            await asyncio.sleep(self._window_s)
            try:
                await self.flush()
            except Exception:  # noqa: BLE001 - logged with its trace; what was counted is lost, what comes is not
                _log.exception("repeated accesses could not be audited")

    async def flush(self) -> None:
        """Stores what was counted, and begins anew."""
        kinds, self._kinds = self._kinds, {}
        for repeats in kinds.values():
            if repeats.count:
                detail = {**repeats.entry.detail, "repeats": repeats.count}
                await self._append(replace(repeats.entry, detail=detail))

    async def _note(self, kind: _Kind, entry: AuditEntry) -> None:
        known = self._kinds.get(kind)
        if known is None and len(self._kinds) >= _MOST_KINDS:
            kind = (entry.action, *_OTHERS)
            entry = AuditEntry(principal=CONTROLLER, action=entry.action, detail={"others": True})
            known = self._kinds.get(kind)
        if known is not None:
            known.count += 1
            return
        self._kinds[kind] = _Repeats(entry=entry)
        try:
            await self._append(entry)
        except BaseException:
            self._kinds.pop(kind, None)  # nothing was said of it: the next one says it
            raise
