# SPDX-License-Identifier: Apache-2.0
"""The dead-man's switch of an agent process: stopped beyond its lease, and left alone by its controller.

Datagrams go to a port of loopback that only these tests use; the filter meters them alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator

import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import (
    CAPTURE_STATE_PAUSED,
    CAPTURE_STATE_RUNNING,
    CaptureMetrics,
    CaptureSpec,
    FlowSubscription,
)

from tests.integration.swtpm.checks import info_of, packets_in, read_flows
from tests.integration.swtpm.conftest import AgentProcess, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController

Running = tuple[AgentProcess, AgentLine]
BEFORE, BEYOND, AFTER = 40, 70, 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="live capture needs root")


class Datagrams:
    """A port of loopback that nobody else sends to."""

    def __init__(self) -> None:
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", 0))
        self.port = self.receiver.getsockname()[1]

    def send(self, count: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(count):
                sender.sendto(b"datagram", ("127.0.0.1", self.port))

    @property
    def capture(self) -> pb.StartCaptureRequest:
        return pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"], filter=f"udp and dst port {self.port}"))


@pytest.fixture
async def datagrams() -> AsyncIterator[Datagrams]:
    made = Datagrams()
    yield made
    made.receiver.close()


async def status_of(line: AgentLine) -> pb.GetStatusResponse:
    return pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))


async def metered(line: AgentLine, count: int) -> CaptureMetrics:
    """Once so many were metered; and a moment later, for those that should not be."""
    until = time.monotonic() + 20
    while (await status_of(line)).capture.metrics.metered < count:
        assert time.monotonic() < until, "waited 20 s"
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    return (await status_of(line)).capture.metrics


async def check_resumed(line: AgentLine, datagrams: Datagrams) -> None:
    """What was sent beyond the end is not metered; what comes now is, once the worker has put aside what was in its ring."""
    assert (await metered(line, BEFORE)).metered == BEFORE
    probes, until = 0, time.monotonic() + 20
    while (found := (await metered(line, BEFORE)).metered) == BEFORE:
        assert time.monotonic() < until, "waited 20 s"
        datagrams.send(1)
        probes += 1
    assert found <= BEFORE + probes
    datagrams.send(AFTER)
    assert found + AFTER <= (await metered(line, found + AFTER)).metered <= BEFORE + probes + AFTER


async def captured_until(line: AgentLine, datagrams: Datagrams) -> float:
    """A capture that has metered BEFORE; its lease is then cut short: when it ends, on the boot clock, in seconds."""
    nonce, evidence = await line.attest()
    quoted_by = time.clock_gettime(time.CLOCK_BOOTTIME)
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))

    async def give(duration_s: float) -> None:
        changes = {"firmware_sha256": info.firmware.sha256, "duration_ns": int(duration_s * 1e9)}
        await line.call("RenewLease", pb.RenewLeaseRequest(lease=line.make_lease(nonce, evidence, **changes)))

    await give(3600)
    await line.command("StartCapture", datagrams.capture)
    datagrams.send(BEFORE)
    assert (await metered(line, BEFORE)).metered == BEFORE
    left = time.clock_gettime(time.CLOCK_BOOTTIME) - quoted_by + 1
    await give(left)
    return quoted_by + left


async def over(end: float) -> None:
    await asyncio.sleep(max(0.0, end - time.clock_gettime(time.CLOCK_BOOTTIME)))


async def test_an_agent_that_was_stopped_beyond_its_lease_meters_nothing_of_that_time(
    running: Running, datagrams: Datagrams
) -> None:
    agent, line = running
    end = await captured_until(line, datagrams)
    os.kill(agent.pid, signal.SIGSTOP)
    await over(end)
    datagrams.send(BEYOND)
    os.kill(agent.pid, signal.SIGCONT)
    await line.take_lease()
    await check_resumed(line, datagrams)
    stopped = pb.StopCaptureResponse.FromString(await line.command("StopCapture", pb.StopCaptureRequest())).status.metrics
    assert stopped.paused >= BEYOND
    flows, error = await read_flows(line.stream("StreamFlows", pb.StreamFlowsRequest()))
    assert error is None
    assert packets_in(flows) == stopped.metered


async def test_an_agent_whose_controller_is_gone_pauses_when_its_lease_is_over(
    running: Running, controller: SmallController, datagrams: Datagrams
) -> None:
    agent, line = running
    end = await captured_until(line, datagrams)
    follow = pb.StreamFlowsRequest(subscription=FlowSubscription(follow=True))
    reading = asyncio.ensure_future(read_flows(line.stream("StreamFlows", follow)))
    await controller.stop()
    await over(end)
    _, error = await asyncio.wait_for(reading, 20)
    assert error is not None
    assert info_of(error).reason == "LEASE_EXPIRED"
    await line.close()
    datagrams.send(BEYOND)
    await asyncio.sleep(0.5)
    back = line_to(controller, agent)
    status = await status_of(back)
    assert (status.capture.state, status.capture.metrics.metered) == (CAPTURE_STATE_PAUSED, BEFORE)
    assert status.capture.metrics.paused >= BEYOND
    await back.take_lease()
    await check_resumed(back, datagrams)
    assert (await status_of(back)).capture.state == CAPTURE_STATE_RUNNING
    await back.close()
