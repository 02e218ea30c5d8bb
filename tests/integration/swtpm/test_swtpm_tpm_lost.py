# SPDX-License-Identifier: Apache-2.0
"""A TPM that is lost, comes back, or is reset under the running agent: a clear state each time, and work that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import CAPTURE_STATE_RUNNING, CaptureSpec
from jarvis_trust.tpm_structures import parse_attest_quote

from testbed.swtpm import Swtpm
from tests.integration.swtpm.checks import check_evidence, refusal_of
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController
from tests.integration.swtpm.test_swtpm_agent_events import journal_of
from tests.integration.swtpm.tpm_cable import TpmCable

Running = tuple[AgentProcess, AgentLine]


@pytest.fixture
async def cable(tpm: Swtpm) -> AsyncIterator[TpmCable]:
    """Plugged in."""
    made = TpmCable(tpm)
    await made.plug_in()
    yield made
    await made.pull_out()


@pytest.fixture
async def cabled(make_agent: MakeAgent, controller: SmallController, cable: TpmCable) -> AsyncIterator[Running]:
    """A running agent whose TPM can be taken away and given back."""
    agent = make_agent(tcti=cable.tcti)
    await agent.start()
    line = line_to(controller, agent)
    yield agent, line
    await line.close()


async def info_of(line: AgentLine) -> pb.GetAgentInfoResponse:
    return pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))


async def until_state(line: AgentLine, state: pb.TpmState.ValueType) -> pb.GetAgentInfoResponse:
    async with asyncio.timeout(30):
        while True:
            info = await info_of(line)
            if info.tpm_state == state:
                return info
            await asyncio.sleep(0.1)


async def test_a_lost_tpm_is_a_state_with_a_reason_and_capture_goes_on_until_it_is_back(
    cabled: Running, controller: SmallController, cable: TpmCable
) -> None:
    _, line = cabled
    await line.take_lease()
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    before = await until_state(line, pb.TPM_STATE_READY)
    assert before.tpm_message == "store key: no approval has come yet"

    await cable.pull_out()
    code, refusal = await refusal_of(line.attest())
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "TPM_UNAVAILABLE")
    lost = await until_state(line, pb.TPM_STATE_LOST)
    assert "does not answer" in lost.tpm_message
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))
    assert status.capture.state == CAPTURE_STATE_RUNNING

    await cable.plug_in()
    back = await until_state(line, pb.TPM_STATE_READY)
    assert (back.session_id, back.tpm_message) == (before.session_id, before.tpm_message)
    nonce, evidence = await line.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[line.agent_id], controller)
    await line.take_lease()
    async with journal_of(line) as journal:
        await journal.until("tpm_returned")
        assert [kind for kind in journal.types if kind.startswith("tpm_")] == ["tpm_lost", "tpm_returned"]


async def test_an_agent_whose_tpm_was_reset_says_so_and_measures_itself_again_in_the_same_process(
    running: Running, controller: SmallController, tpm: Swtpm
) -> None:
    agent, line = running
    _, before = await line.attest()
    served, pid = agent.log.count("serving on"), agent.pid
    tpm.reboot()
    reasons = set()
    async with asyncio.timeout(20):
        while "TPM_RESET" not in reasons:  # the connection that the power cut ended is noticed first
            _, refusal = await refusal_of(line.attest())
            reasons.add(refusal.reason)
    assert reasons <= {"TPM_UNAVAILABLE", "TPM_RESET"}
    await agent.serving(served)
    assert agent.pid == pid
    again = line_to(controller, agent)
    nonce, evidence = await again.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[again.agent_id], controller)
    assert evidence.session_id != before.session_id
    assert parse_attest_quote(evidence.attest).reset_count == parse_attest_quote(before.attest).reset_count + 1
    async with journal_of(again) as journal:
        await journal.until("tpm_reset")
    assert (await info_of(again)).tpm_state == pb.TPM_STATE_READY
    await again.close()


async def test_a_reset_is_noticed_without_anybody_asking_for_a_quote(running: Running, tpm: Swtpm) -> None:
    agent, _ = running
    served = agent.log.count("serving on")
    tpm.reboot()
    await agent.serving(served)
    assert "resetCount went from" in agent.log


async def test_a_tpm_that_was_suspended_in_order_keeps_its_pcrs_and_the_agent_goes_on(
    cabled: Running, controller: SmallController, cable: TpmCable, tpm: Swtpm
) -> None:
    _, line = cabled
    _, before = await line.attest()
    await cable.pull_out()
    tpm.suspend()
    tpm.start(resume=True)
    await cable.plug_in()
    await until_state(line, pb.TPM_STATE_READY)
    nonce, after = await line.attest()
    check_evidence(nonce, after, controller.enrollments.agents[line.agent_id], controller)
    quotes = parse_attest_quote(before.attest), parse_attest_quote(after.attest)
    assert (quotes[1].reset_count, quotes[1].restart_count) == (quotes[0].reset_count, quotes[0].restart_count + 1)
    assert after.session_id == before.session_id


async def test_a_tpm_that_restarted_after_hibernation_is_a_reset_though_its_reset_count_is_the_same(
    cabled: Running, controller: SmallController, cable: TpmCable, tpm: Swtpm
) -> None:
    agent, line = cabled
    _, before = await line.attest()
    served = agent.log.count("serving on")
    await cable.pull_out()
    tpm.suspend()
    tpm.start()
    await cable.plug_in()
    await agent.serving(served)
    assert "restarted (restartCount" in agent.log
    nonce, after = await line.attest()
    check_evidence(nonce, after, controller.enrollments.agents[line.agent_id], controller)
    assert after.session_id != before.session_id
