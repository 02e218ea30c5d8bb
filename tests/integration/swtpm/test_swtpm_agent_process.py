# SPDX-License-Identifier: Apache-2.0
"""The whole agent as a process, with a real TPM, against a small controller."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import CaptureSpec, FlowSubscription
from jarvis.capture.v1.trust_pb2 import Evidence
from jarvis_trust.ca import spki_sha256
from jarvis_trust.eventlog import parse_log, replay
from jarvis_trust.quote import quote_binding
from jarvis_trust.status import error_info
from jarvis_trust.tpm_structures import parse_attest_quote, parse_ecdsa_signature

from tests.integration.swtpm.conftest import AgentProcess, MakeAgent
from tests.integration.swtpm.small_controller import AgentLine, KnownAgent, SmallController
from tests.support import DATA


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has the same three methods
    assert status is not None, error
    info = error_info(status)
    assert info is not None
    return info


async def refused(call: Any) -> tuple[grpc.StatusCode, ErrorInfo]:
    """Code and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), info_of(caught.value)


def check_evidence(nonce: bytes, evidence: Evidence, agent: KnownAgent, controller: SmallController) -> None:
    """Every claim of the evidence, with the trust package's own parsers."""
    quote = parse_attest_quote(evidence.attest)
    _, der = parse_ecdsa_signature(evidence.signature)
    assert isinstance(agent.ak.key, ec.EllipticCurvePublicKey)
    agent.ak.key.verify(der, evidence.attest, ec.ECDSA(hashes.SHA256()))
    assert quote.extra_data == quote_binding(
        nonce=nonce,
        agent_spki_sha256=spki_sha256(agent.certificate_pem),
        controller_spki_sha256=spki_sha256(controller.certificate_pem),
        agent_id=agent.agent_id,
        boot_id=evidence.boot_id,
        session_id=evidence.session_id,
        manifest=evidence.manifest,
        event_log=evidence.event_log,
    )
    digests = {value.index: value.digest for value in evidence.pcrs}
    hasher = hashes.Hash(hashes.SHA256())
    for index in sorted(digests):
        hasher.update(digests[index])
    assert quote.pcr_digest == hasher.finalize()
    assert replay(parse_log(evidence.event_log)) == digests[14]


@pytest.fixture
async def running(make_agent: MakeAgent, controller: SmallController) -> Any:
    """A running, enrolled agent and the line to it."""
    agent = make_agent()
    await agent.start()
    line = line_to(controller, agent)
    yield agent, line
    await line.close()


def line_to(controller: SmallController, agent: AgentProcess) -> AgentLine:
    (agent_id,) = controller.enrollments.agents
    return controller.line_to(agent_id, agent.address)


async def test_an_agent_enrols_attests_and_proves_what_it_loaded(
    running: tuple[AgentProcess, AgentLine], controller: SmallController
) -> None:
    _, line = running
    nonce, evidence = await line.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[line.agent_id], controller)
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    events = parse_log(evidence.event_log)
    assert events[0].type == "load-attempt"
    assert events[0].sha256 == info.firmware.sha256
    assert info.firmware.loaded
    assert {event.type for event in events[1:]} == {"mapping"}
    assert any("libc.so" in event.subject for event in events[1:])


async def test_a_capture_verb_before_the_first_attestation_is_refused(running: tuple[AgentProcess, AgentLine]) -> None:
    _, line = running
    code, info = await refused(line.call("GetMetrics", pb.GetMetricsRequest()))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_UNATTESTED")


async def test_a_leased_agent_starts_streams_and_stops(running: tuple[AgentProcess, AgentLine]) -> None:
    _, line = running
    await line.take_lease()
    code, info = await refused(line.command("StopCapture", pb.StopCaptureRequest()))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CAPTURE_NOT_RUNNING")
    await asyncio.sleep(0)


async def test_a_replayed_file_reaches_its_subscriber_whole(running: tuple[AgentProcess, AgentLine]) -> None:
    agent, line = running
    shutil.copy(DATA / "connection.pcap", agent.directory / "replay" / "connection.pcap")
    await line.take_lease()
    stream = line.stream("StreamFlows", pb.StreamFlowsRequest(subscription=FlowSubscription(follow=True)))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.3)
    start = pb.StartCaptureRequest(spec=CaptureSpec(files=["connection.pcap"]))
    started = pb.StartCaptureResponse.FromString(await line.command("StartCapture", start))
    assert started.status.backend == "file"
    message = pb.StreamFlowsResponse.FromString(await first)
    while message.WhichOneof("event") == "watermark":
        message = pb.StreamFlowsResponse.FromString(await anext(stream))
    assert message.WhichOneof("event") == "batch", message
    metrics = pb.GetMetricsResponse.FromString(await line.command("GetMetrics", pb.GetMetricsRequest())).metrics
    packets = sum(record.fwd_packets + record.rev_packets for record in message.batch.records)
    assert (packets, metrics.in_flight, metrics.dropped_user) == (metrics.metered, 0, 0)
