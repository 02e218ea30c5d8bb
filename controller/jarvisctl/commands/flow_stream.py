# SPDX-License-Identifier: Apache-2.0
"""Following finished flows: one stream, kept up across lost connections, with everything that was lost said.

    WatchFlows -> batch      -> lines on stdout
                  loss       -> stderr, counted
                  status     -> stderr
                  watermark  -> only for programs
    connection lost -> wait -> again; for one agent after its last resume token, else from now on, and then the gap is said

The limit, Ctrl-C, or the end of what is kept ends it; the tally is the last line.
"""

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any

import grpc
from grpc import aio
from jarvis.capture.v1 import fleet_pb2, flow_pb2

from jarvisctl.client import Fleet
from jarvisctl.errors import ExitCode
from jarvisctl.format.flow_events import Tally, loss_object, loss_text, status_object, status_text, watermark_object
from jarvisctl.format.flows import FlowJson, FlowText, arrow_for_output
from jarvisctl.format.table import is_terminal
from jarvisctl.status import failure_of_call, translate

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 10.0
_SHOWN_OF_AGENT = 8
#: ErrorInfo reasons of a resume token that means nothing any more: a new capture, or a log that has gone round.
_REFUSALS = "RESUME_TOKEN_"
#: What a controller that went away, or does not answer, looks like from here.
_CONNECTION_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

_PLACE_LOST = "its stream goes on with all that it still keeps, flows that ended before and were not sent yet may be missing"


class FlowStream:
    """One run of `jarvisctl flows` over finished flows."""

    def __init__(self, fleet: Fleet, request: fleet_pb2.WatchFlowsRequest, *, limit: int = 0) -> None:
        """limit: end after so many flows; 0 = never."""
        self._fleet = fleet
        self._request = request
        self._limit = limit
        self._format = (
            FlowJson()
            if fleet.output.json
            else FlowText(agent_width=_SHOWN_OF_AGENT if is_terminal() else 0, arrow=arrow_for_output())
        )
        self._tally = Tally()
        self._token = b""
        self._place_lost = False
        #: When the connection was lost, seconds since the epoch; None while it is there.
        self._lost_at: float | None = None
        #: Whether this call has brought a message, and whether the controller ever answered.
        self._answered = False
        self._reached = False
        #: What was last said of each agent: True while its flows arrive.
        self._streaming: dict[str, bool] = {}

    async def run(self) -> ExitCode:
        """Until the stream ends, the limit is reached or the task is cancelled (Ctrl-C); says the tally in every case.

        Returns:
            FAILED when what agents keep was asked for and one of them could not give it. Agents that come and go while a stream
            is followed are no failure of the command.
        """
        try:
            await self._keep_up()
        except asyncio.CancelledError:
            self._say_tally()
            raise
        except aio.AioRpcError:
            # A tally of nothing would only hide the error of a stream that never began.
            if self._tally.flows or self._tally.lost:
                self._say_tally()
            raise
        self._say_tally()
        incomplete = not self._request.subscription.follow and not all(self._streaming.values())
        return ExitCode.FAILED if incomplete else ExitCode.OK

    async def _keep_up(self) -> None:
        delay = _FIRST_DELAY_S
        while True:
            self._answered = False
            try:
                await self._stream()
            except aio.AioRpcError as error:
                if not self._may_retry(error):
                    raise
            else:
                return
            delay = _FIRST_DELAY_S if self._answered else min(delay * 2, _LONGEST_DELAY_S)
            # Jitter: a controller that comes back is not met by all its operators at once.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            self._set_start_again()

    async def _stream(self) -> None:
        if self._request.subscription.follow:
            await self._reach()
        timeout = None if self._request.subscription.follow else self._fleet.timeout_s
        call = self._fleet.stub.WatchFlows(self._request, timeout=timeout)
        async for answer in call:
            self._answered = self._reached = True
            self._take(answer)
            if self._limit and self._tally.flows >= self._limit:
                call.cancel()
                return

    async def _reach(self) -> None:
        """A stream may be silent for long: a short call tells at once whether the controller is there and who is selected."""
        request = fleet_pb2.ListAgentsRequest(selector=self._request.selector, page_size=1)
        await self._fleet.stub.ListAgents(request, timeout=self._fleet.timeout_s)
        self._reached = True
        self._say_connected_again()

    def _take(self, answer: fleet_pb2.WatchFlowsResponse) -> None:
        output, agent_id = self._fleet.output, answer.agent_id
        kind = answer.WhichOneof("event")
        if kind == "batch":
            self._take_batch(agent_id, answer.batch)
        elif kind == "loss":
            self._tally.loss(answer.loss)
            self._say(loss_object(agent_id, answer.loss), loss_text(agent_id, answer.loss))
        elif kind == "status":
            self._streaming[agent_id] = answer.status.streaming
            self._say(status_object(agent_id, answer.status), status_text(agent_id, answer.status))
        elif kind == "watermark" and output.json:
            output.line(watermark_object(agent_id, answer.watermark))

    def _take_batch(self, agent_id: str, batch: flow_pb2.FlowBatch) -> None:
        if self._limit and self._tally.flows + len(batch.records) > self._limit:
            del batch.records[self._limit - self._tally.flows :]
        self._tally.flow(agent_id, len(batch.records))
        self._fleet.output.text(self._format.lines(agent_id, batch))
        if batch.resume_token:
            self._token = batch.resume_token

    @property
    def _one_agent(self) -> bool:
        """Resume tokens are an agent's own: they can be used only when exactly one is addressed."""
        return len(self._request.selector.agent_ids) == 1

    def _may_retry(self, error: aio.AioRpcError) -> bool:
        """Whether the stream goes on over another call. The first connection must come about: its failure ends the command."""
        subscription = self._request.subscription
        if not subscription.follow or not self._reached:
            return False
        if subscription.resume_token and failure_of_call(error).reason.startswith(_REFUSALS):
            # What the agent keeps now is all new to us: see flow_relay of the controller, which does the same for its streams.
            self._token, self._place_lost = b"", True
            self._say_connection("refused", f"the agent lost the place ({error.details()}): {_PLACE_LOST}")
            return True
        if error.code() not in _CONNECTION_LOST:
            return False
        cause = translate(error, self._fleet.config, self._fleet.timeout_s).message
        self._lost_at = self._lost_at or time.time()
        self._say_connection("lost", f"connection lost, trying again: {cause}")
        return True

    def _set_start_again(self) -> None:
        """Where the next call starts: after the token if possible; as asked if nothing came yet; else with what is new."""
        subscription = self._request.subscription
        if self._token and self._one_agent:
            subscription.resume_token = self._token
        elif self._place_lost:
            self._place_lost = False
            subscription.ClearField("start")
        elif self._tally.flows:
            subscription.only_new = True

    def _say_connected_again(self) -> None:
        """What a lost connection that is back means for the flows."""
        if self._lost_at is None:
            return
        lost_at, self._lost_at = datetime.fromtimestamp(self._lost_at, UTC).astimezone(), None
        if not self._request.subscription.only_new:
            self._say_connection("resumed", "connected again, no flow was missed or repeated unless a loss is said")
            return
        hint = "" if self._one_agent else " (a stream of one --agent takes up again where it stopped)"
        self._say_connection("gap", f"connected again: flows that ended from {lost_at:%H:%M:%S} until now may be missing{hint}")

    def _say(self, value: dict[str, Any], text: str) -> None:
        """Beside the flows: an object among them for programs, a line on stderr for people."""
        if self._fleet.output.json:
            self._fleet.output.line(value)
        else:
            self._fleet.output.remark(text)

    def _say_connection(self, state: str, text: str) -> None:
        self._say({"event": "connection", "state": state, "message": text}, text)

    def _say_tally(self) -> None:
        self._say(self._tally.to_object(), self._tally.text())
