# SPDX-License-Identifier: Apache-2.0
"""Counters of many agents: once from each, or followed as one stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import agent_pb2, fleet_pb2

from jarvis_controller.agent_client import Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.commander import Commander, fan_out
from jarvis_controller.rpc_status import RpcError, malformed_answer, refuse

_RETRY_S = 1.0
_QUEUE_MESSAGES = 256

_Queue = asyncio.Queue[fleet_pb2.WatchMetricsResponse | None]


class MetricsRelay:
    """One operator's request for counters."""

    def __init__(self, *, commander: Commander, principal: str, concurrency: int) -> None:
        self._commander = commander
        self._principal = principal
        self._concurrency = concurrency

    async def once(self, agents: Sequence[AgentRecord]) -> AsyncGenerator[fleet_pb2.WatchMetricsResponse, None]:
        """One answer per agent, as they come."""
        command = Command(rpc="GetMetrics", request=agent_pb2.GetMetricsRequest(), principal=self._principal)

        async def one(agent: AgentRecord) -> fleet_pb2.WatchMetricsResponse:
            try:
                answer = agent_pb2.GetMetricsResponse.FromString(await self._commander.call(agent.agent_id, command))
            except RpcError as error:
                return fleet_pb2.WatchMetricsResponse(agent_id=agent.agent_id, status=error.status)
            except DecodeError:
                return fleet_pb2.WatchMetricsResponse(agent_id=agent.agent_id, status=malformed_answer().status)
            return fleet_pb2.WatchMetricsResponse(agent_id=agent.agent_id, metrics=answer.metrics)

        async with contextlib.aclosing(fan_out(agents, one, concurrency=self._concurrency)) as answers:
            async for answer in answers:
                yield answer

    async def follow(
        self, agents: Sequence[AgentRecord], request: fleet_pb2.WatchMetricsRequest, draining: asyncio.Event
    ) -> AsyncGenerator[fleet_pb2.WatchMetricsResponse, None]:
        """Every agent's counters at the interval, until the caller closes or the controller drains."""
        message = agent_pb2.StreamMetricsRequest()
        if request.HasField("interval"):
            message.interval.CopyFrom(request.interval)
        command = Command(rpc="StreamMetrics", request=message, principal=self._principal)
        queue: _Queue = asyncio.Queue(_QUEUE_MESSAGES)
        tasks = [asyncio.ensure_future(self._follow_one(agent.agent_id, command, queue)) for agent in agents]
        tasks.append(asyncio.ensure_future(_end(queue, draining)))
        try:
            while (answer := await queue.get()) is not None:
                yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_one(self, agent_id: str, command: Command, queue: _Queue) -> None:
        """One agent's counters for as long as it takes; a break is told once, then retried. A slow caller holds it back."""
        told: status_pb2.Status | None = None
        while True:
            try:
                async with contextlib.aclosing(self._commander.stream(agent_id, command)) as stream:
                    async for data in stream:
                        told = None
                        metrics = agent_pb2.StreamMetricsResponse.FromString(data).metrics
                        await queue.put(fleet_pb2.WatchMetricsResponse(agent_id=agent_id, metrics=metrics))
                status = refuse(code_pb2.UNAVAILABLE, "STREAM_ENDED", "the agent ended the stream").status
            except RpcError as error:
                status = error.status
            except DecodeError:
                status = malformed_answer().status
            if status != told:
                told = status
                await queue.put(fleet_pb2.WatchMetricsResponse(agent_id=agent_id, status=status))
            await asyncio.sleep(_RETRY_S)


async def _end(queue: _Queue, draining: asyncio.Event) -> None:
    await draining.wait()
    await queue.put(None)
