# SPDX-License-Identifier: Apache-2.0
"""One operator's view of the event log: a reader with a place of its own, woken when something was kept.

    event log -> page after the place -> agents that are meant -> WatchEventsResponse with the token of the new place

Nothing is queued: an operator that reads slowly is behind in the log, and costs neither agents nor other operators anything. One
that is overtaken by the log's oldest event is told how many events went in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial

from jarvis.capture.v1 import event_pb2, fleet_pb2, flow_pb2
from sqlalchemy.orm import Session

from jarvis_controller import event_log
from jarvis_controller.event_log import Extent, KeptEvent
from jarvis_controller.event_request import EventWatch, make_token, read_token
from jarvis_controller.store import Store

_PAGE = 500
_TOKEN_EVERY = 1_000
"""Positions without an event for this operator after which the place alone is told."""


class EventRelay:
    """One call of WatchEvents; iterate over `messages` once."""

    def __init__(self, store: Store, watch: EventWatch) -> None:
        self._store = store
        self._watch = watch
        self._meant: dict[str, bool] = {}
        """Agent id -> whether the selector means it."""
        self._told = 0
        """Position of the last token given."""

    async def messages(self, draining: asyncio.Event) -> AsyncGenerator[fleet_pb2.WatchEventsResponse, None]:
        """What is kept from the start on, and with `follow` what comes, until the caller closes or the controller drains.

        Raises:
            RpcError: INVALID_ARGUMENT for a token of another log.
        """
        extent = await self._store.run(event_log.extent)
        place = self._told = await self._start(extent)
        end = extent.newest
        if self._watch.follow:
            yield fleet_pb2.WatchEventsResponse(resume_token=make_token(extent.log_id, place))
        while True:
            changed = self._store.events_changed
            extent, page = await self._store.run(partial(self._read, place=place))
            if place < extent.oldest - 1:
                yield self._loss(extent, place)
            for kept in page:
                if await self._is_meant(kept):
                    yield self._answer(extent, kept)
            place = page[-1].position if len(page) == _PAGE else extent.newest
            if place - self._told >= _TOKEN_EVERY:
                self._told = place
                yield fleet_pb2.WatchEventsResponse(resume_token=make_token(extent.log_id, place))
            if place < extent.newest and (self._watch.follow or place < end):
                continue
            if not self._watch.follow or not await _either(changed, draining):
                return

    def _read(self, session: Session, *, place: int) -> tuple[Extent, list[KeptEvent]]:
        """What is kept, and the next page of it: at one moment, so that nothing goes in between uncounted."""
        extent = event_log.extent(session)
        return extent, event_log.page(session, place, _PAGE, self._watch.criteria)

    async def _start(self, extent: Extent) -> int:
        """The position before the first event that is wanted."""
        watch = self._watch
        if watch.start == "new":
            return extent.newest
        if watch.start == "token":
            return read_token(watch.token, extent.log_id, extent.newest)
        if watch.start == "since":
            first = await self._store.run(lambda session: event_log.first_since(session, watch.since_ns))
            return extent.newest if first is None else first - 1
        if watch.start == "last":
            return await self._before_last(extent)
        return extent.oldest - 1

    async def _before_last(self, extent: Extent) -> int:
        """The position before the newest so many events that are meant."""
        before, found = extent.newest + 1, 0
        back = partial(event_log.page_back, limit=_PAGE, criteria=self._watch.criteria)
        while True:
            page = await self._store.run(partial(back, before=before))
            for kept in page:
                found += await self._is_meant(kept)
                if found == self._watch.last_events:
                    return kept.position - 1
            if len(page) < _PAGE:
                return extent.oldest - 1
            before = page[-1].position

    async def _is_meant(self, kept: KeptEvent) -> bool:
        if self._watch.selector.is_everything:
            return True
        # With a new membership an agent gets new labels.
        if kept.agent_id not in self._meant or _is_enrolment(kept):
            agent = await self._store.agent(kept.agent_id)
            self._meant[kept.agent_id] = agent is not None and self._watch.selector.covers(agent)
        return self._meant[kept.agent_id]

    def _answer(self, extent: Extent, kept: KeptEvent) -> fleet_pb2.WatchEventsResponse:
        self._told = kept.position
        event = event_pb2.Event.FromString(kept.data)
        return fleet_pb2.WatchEventsResponse(happened=event, resume_token=make_token(extent.log_id, kept.position))

    def _loss(self, extent: Extent, place: int) -> fleet_pb2.WatchEventsResponse:
        first, last = place + 1, extent.oldest - 1
        self._told = last
        loss = flow_pb2.LossNotice(
            point=flow_pb2.LOSS_POINT_CONTROLLER_QUEUE, lost=last + 1 - first, first_sequence=first, last_sequence=last
        )
        loss.first_time.FromNanoseconds(time.time_ns())
        loss.last_time.CopyFrom(loss.first_time)
        return fleet_pb2.WatchEventsResponse(loss=loss, resume_token=make_token(extent.log_id, last))


def _is_enrolment(kept: KeptEvent) -> bool:
    return kept.type == event_pb2.EVENT_TYPE_AGENT_ENROLLED


async def _either(changed: asyncio.Event, draining: asyncio.Event) -> bool:
    """Waits for one of them; whether it was the first alone."""
    waiters = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(draining.wait())]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waiters, return_exceptions=True)
    return not draining.is_set()
