# SPDX-License-Identifier: Apache-2.0
"""Sends the audit chain to a syslog collector, from the last entry that it took, for as long as the controller runs.

    store.audit_page -> (at most 100 entries in memory) -> syslog_message, octet-counted -> SyslogConnection -> store.exported

At least once: the position is kept in the database once the collector has taken a page; after a connection that broke, the last
page is sent again, for what the collector's kernel took may not have reached the collector. Nobody else waits for any of this.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog
from jarvis_trust.audit_syslog import framed_message, syslog_message

from jarvis_controller.store import Store
from jarvis_controller.syslog_sender import SyslogConnection, SyslogTarget

_log = structlog.get_logger()
T = TypeVar("T")

PAGE = 100
_LOOK_S = 1.0
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 60.0


class AuditExporter:
    """One collector's task. Used from the event loop."""

    def __init__(
        self,
        store: Store,
        target: SyslogTarget,
        *,
        look_s: float = _LOOK_S,
        first_backoff_s: float = _FIRST_BACKOFF_S,
        longest_backoff_s: float = _LONGEST_BACKOFF_S,
    ) -> None:
        self._store = store
        self._target = target
        self._look_s = look_s
        self._first_backoff_s = first_backoff_s
        self._longest_backoff_s = longest_backoff_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="syslog")
        self._connection: SyslogConnection | None = None
        self._draw = random.SystemRandom().uniform
        self._broke = False
        self._failures = 0

    async def run(self) -> None:
        """Sends until it is cancelled; what cannot be sent now is sent when the collector is back."""
        try:
            while True:
                try:
                    await self._connected()
                except OSError as error:
                    if self._failures == 0:
                        _log.warning("audit entries cannot be sent", collector=self._target.name, error=str(error))
                    self._failures += 1
                delay = min(self._longest_backoff_s, self._first_backoff_s * 2.0 ** min(self._failures, 10))
                await asyncio.sleep(self._draw(0.0, delay))
        finally:
            if self._connection is not None:
                self._connection.abort()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _connected(self) -> None:
        self._connection = connection = await self._in_thread(lambda: SyslogConnection(self._target))
        try:
            await self._pump(connection)
        except OSError:
            self._broke = True
            raise
        finally:
            connection.abort()
            self._connection = None
            self._thread.submit(connection.close)

    async def _pump(self, connection: SyslogConnection) -> None:
        after = await self._store.exported_up_to(self._target.name)
        if self._broke:
            after, self._broke = max(0, after - PAGE), False
        while True:
            events = await self._store.audit_page(after, PAGE)
            if not events:
                await self._in_thread(connection.check)
                await asyncio.sleep(self._look_s)
                continue
            messages = (syslog_message(event, hostname=self._target.hostname, sd_id=self._target.sd_id) for event in events)
            frames = b"".join(framed_message(message) for message in messages)
            await self._in_thread(lambda frames=frames: connection.send(frames))  # type: ignore[misc]
            after = events[-1].sequence
            await self._store.exported(self._target.name, after)
            if self._failures:
                _log.info("audit entries are sent again", collector=self._target.name, sequence=after)
            self._failures = 0

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
