# SPDX-License-Identifier: Apache-2.0
"""Tells whoever listens that an agent changed: streams end with a quarantine and grow with a newcomer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from jarvis_controller.agent_record import AgentRecord


class StateFeed:
    """In-process publish and subscribe, for one event loop. What a listener has not seen is each agent's newest record only."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def publish(self, record: AgentRecord) -> None:
        """Says that this is what is known of the agent now."""
        for listener in self._listeners:
            listener.offer(record)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Changes from now on, until the block ends."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class Listener:
    """One listener's view: the newest unseen record of each agent that changed."""

    def __init__(self) -> None:
        self._changed: dict[str, AgentRecord] = {}
        self._wake = asyncio.Event()

    def offer(self, record: AgentRecord) -> None:
        """Replaces an unseen older record of the same agent."""
        self._changed[record.agent_id] = record
        self._wake.set()

    async def changed(self) -> list[AgentRecord]:
        """Waits for changes and takes them."""
        await self._wake.wait()
        self._wake.clear()
        records, self._changed = list(self._changed.values()), {}
        return records
