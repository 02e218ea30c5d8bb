# SPDX-License-Identifier: Apache-2.0
"""A DPDK capture started through a whole agent, from a device that the agent's own configuration makes."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import grpc.aio
import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import CAPTURE_STATE_STOPPED, CaptureSpec
from jarvis_native import PacketCaptureEngine
from jarvis_native.loader import Firmware

from tests.integration.swtpm.checks import read_flows
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController
from tests.metering import meter_files
from tests.support import DATA

CAPTURE = DATA / "connection.pcap"
EAL = ["--no-huge", "-m", "512", "--no-pci", f"--vdev=net_pcap0,rx_pcap={CAPTURE}"]


@pytest.fixture(autouse=True)
def dpdk_is_here(firmware: Firmware) -> None:
    row = {row.name: row for row in PacketCaptureEngine.get_available_backends(firmware=firmware)}["dpdk"]
    if not row.usable:
        pytest.skip(f"backend dpdk: {row.reason}")


async def wait_for_frames(line: AgentLine, frames: int) -> None:
    async with asyncio.timeout(20):
        async for message in line.stream("StreamMetrics", pb.StreamMetricsRequest()):
            if pb.StreamMetricsResponse.FromString(message).metrics.received >= frames:
                return


async def leased(make_agent: MakeAgent, controller: SmallController) -> tuple[AgentProcess, AgentLine]:
    agent = make_agent(dpdk_eal_args=EAL)
    await agent.start()
    line = line_to(controller, agent)
    await line.take_lease()
    return agent, line


async def test_frames_of_a_configured_device_become_the_flows_of_its_file(
    make_agent: MakeAgent, controller: SmallController, firmware: Firmware
) -> None:
    want = meter_files(firmware, [CAPTURE])
    agent, line = await leased(make_agent, controller)
    spec = CaptureSpec(interfaces=["net_pcap0"], backend="dpdk")
    started = pb.StartCaptureResponse.FromString(await line.command("StartCapture", pb.StartCaptureRequest(spec=spec)))
    assert started.status.backend == "dpdk"
    await wait_for_frames(line, want.metrics.received)
    stopped = pb.StopCaptureResponse.FromString(await line.command("StopCapture", pb.StopCaptureRequest()))
    assert stopped.status.state == CAPTURE_STATE_STOPPED
    metrics = stopped.status.metrics
    assert (metrics.received, metrics.metered, metrics.metered_octets, metrics.in_flight) == (
        want.metrics.received,
        want.metrics.metered,
        want.metrics.metered_octets,
        0,
    )
    messages, error = await read_flows(line.stream("StreamFlows", pb.StreamFlowsRequest()))
    assert error is None
    flows = Counter((flow.flow_id, flow.fwd_packets, flow.rev_packets) for message in messages for flow in message.batch.records)
    assert flows == Counter((int(row["flow_id"], 16), row["fwd_packets"], row["rev_packets"]) for row in want.records)
    await line.close()
    assert await agent.stop() == 0


async def test_a_device_that_the_configuration_does_not_make_is_refused_by_name(
    make_agent: MakeAgent, controller: SmallController
) -> None:
    _, line = await leased(make_agent, controller)
    spec = CaptureSpec(interfaces=["net_pcap1"], backend="dpdk")
    with pytest.raises(grpc.aio.AioRpcError, match="net_pcap1") as refused:
        await line.command("StartCapture", pb.StartCaptureRequest(spec=spec))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    await line.close()
