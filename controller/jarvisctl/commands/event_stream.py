# SPDX-License-Identifier: Apache-2.0
"""Following events: one stream, kept up across lost connections by the token of the last answer.

WatchEvents -> event -> a line on stdout     loss -> stderr     connection lost -> wait -> again after the token
"""

import asyncio
import random
from typing import Any

import grpc
from grpc import aio
from jarvis.capture.v1 import fleet_pb2

from jarvisctl.client import Fleet
from jarvisctl.errors import ExitCode
from jarvisctl.format.events import event_line, event_object, loss_object, loss_text
from jarvisctl.status import failure_of_call, translate

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 10.0
_REFUSED = "RESUME_TOKEN_INVALID"
#: What a controller that went away, or does not answer, looks like from here.
_CONNECTION_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class EventStream:
    """One run of `jarvisctl events --follow`."""

    def __init__(self, fleet: Fleet, request: fleet_pb2.WatchEventsRequest, *, limit: int = 0) -> None:
        """limit: end after so many events; 0 = never."""
        self._fleet = fleet
        self._request = request
        self._limit = limit
        self._shown = 0
        #: Whether the controller ever answered, and whether it did in this call.
        self._reached = False
        self._answered = False
        self._is_lost = False

    async def run(self) -> ExitCode:
        """Until the limit is reached or the task is cancelled (Ctrl-C).

        The first connection must come about; after that every loss of it is said.
        """
        delay = _FIRST_DELAY_S
        while True:
            self._answered = False
            try:
                await self._stream()
            except aio.AioRpcError as error:
                if not self._may_retry(error):
                    raise
            if self._is_done:
                return ExitCode.OK
            delay = _FIRST_DELAY_S if self._answered else min(delay * 2, _LONGEST_DELAY_S)
            # Jitter: a controller that comes back is not met by all its operators at once.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)

    async def _stream(self) -> None:
        # The stream may be silent for long: a short call tells at once whether the controller is there.
        await self._fleet.stub.ListAgents(fleet_pb2.ListAgentsRequest(page_size=1), timeout=self._fleet.timeout_s)
        call = self._fleet.stub.WatchEvents(self._request)
        async for answer in call:
            self._answered = self._reached = True
            if self._is_lost:
                self._is_lost = False
                self._say_connection("resumed", "connected again, no event was missed or repeated unless a loss is said")
            self._take(answer)
            # Every answer has one; the first comes at once, with the place that was asked for.
            self._request.resume_token = answer.resume_token
            if self._is_done:
                call.cancel()
                return

    @property
    def _is_done(self) -> bool:
        return 0 < self._limit <= self._shown

    def _take(self, answer: fleet_pb2.WatchEventsResponse) -> None:
        output = self._fleet.output
        kind = answer.WhichOneof("event")
        self._shown += kind == "happened"
        if kind == "loss":
            self._say(loss_object(answer.loss), loss_text(answer.loss))
        elif kind == "happened" and output.json:
            output.line(event_object(answer.happened))
        elif kind == "happened":
            output.text(event_line(answer.happened))

    def _may_retry(self, error: aio.AioRpcError) -> bool:
        """Whether the stream goes on over another call."""
        if not self._reached:
            return False
        if self._request.resume_token and failure_of_call(error).reason == _REFUSED:
            self._say_connection("refused", "the controller's event log is another one now: all that it keeps follows")
            self._request.ClearField("start")
            return True
        if error.code() not in _CONNECTION_LOST:
            return False
        if not self._is_lost:
            cause = translate(error, self._fleet.config, self._fleet.timeout_s).message
            self._say_connection("lost", f"connection lost, trying again: {cause}")
        self._is_lost = True
        return True

    def _say(self, value: dict[str, Any], text: str) -> None:
        """Beside the events: an object among them for programs, a line on stderr for people."""
        if self._fleet.output.json:
            self._fleet.output.line(value)
        else:
            self._fleet.output.remark(text)

    def _say_connection(self, state: str, text: str) -> None:
        self._say({"event": "connection", "state": state, "message": text}, text)
