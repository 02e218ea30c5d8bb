# SPDX-License-Identifier: Apache-2.0
"""The whole agent as a process, with a real TPM, against a small controller: identity, evidence, captures, ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import (
    CAPTURE_STATE_PAUSED,
    CAPTURE_STATE_RUNNING,
    CAPTURE_STATE_STOPPED,
    INTERFACE_STATE_UP,
    CaptureSpec,
    CaptureStatus,
    FlowSubscription,
)
from jarvis_trust.eventlog import parse_log
from jarvis_trust.tpm_structures import parse_attest_quote

from testbed.swtpm import Swtpm, TpmVendor
from tests.integration.swtpm.checks import (
    bad_fields_of,
    check_evidence,
    info_of,
    packets_in,
    read_flows,
    reason_of,
    refusal_of,
    until,
)
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController
from tests.support import DATA

Running = tuple[AgentProcess, AgentLine]
FOLLOW = pb.StreamFlowsRequest(subscription=FlowSubscription(follow=True))


def replayable(agent: AgentProcess, name: str = "connection.pcap") -> pb.StartCaptureRequest:
    shutil.copy(DATA / name, agent.directory / "replay" / name)
    return pb.StartCaptureRequest(spec=CaptureSpec(files=[name]))


async def test_an_agent_enrols_attests_and_proves_what_it_loaded(running: Running, controller: SmallController) -> None:
    _, line = running
    nonce, evidence = await line.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[line.agent_id], controller)
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    events = parse_log(evidence.event_log)
    assert events[0].type == "load-attempt"
    assert events[0].sha256 == info.firmware.sha256
    assert info.firmware.loaded
    others = [event for event in events if event.type == "mapping"]
    loads = [event for event in events if event.type == "load-attempt"]
    assert events == loads + others  # what is measured before it may run, then what the process has mapped besides
    assert [event.subject for event in loads] == sorted(json.loads(evidence.manifest)["objects"])
    assert any("libc.so" in event.subject for event in others)
    assert not any("libjarvis_capture" in event.subject for event in others)


async def capture_status(line: AgentLine) -> CaptureStatus:
    return pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest())).capture


async def test_a_replayed_file_reaches_its_subscriber_whole(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    stream = line.stream("StreamFlows", FOLLOW)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.3)
    started = pb.StartCaptureResponse.FromString(await line.command("StartCapture", replayable(agent)))
    assert started.status.backend == "file"
    message = pb.StreamFlowsResponse.FromString(await first)
    metrics = pb.GetMetricsResponse.FromString(await line.command("GetMetrics", pb.GetMetricsRequest())).metrics
    assert packets_in([message]) == metrics.metered > 0
    assert (metrics.in_flight, metrics.dropped_user) == (0, 0)


async def test_what_is_kept_can_be_read_again_and_from_a_token(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    await line.command("StartCapture", replayable(agent, "pauses.pcap"))
    async with asyncio.timeout(20):
        while (await capture_status(line)).state == CAPTURE_STATE_RUNNING:  # noqa: ASYNC110 - until the file is read to its end
            await asyncio.sleep(0.02)
    kept, error = await read_flows(line.stream("StreamFlows", pb.StreamFlowsRequest()))
    assert error is None
    assert packets_in(kept) > 0
    one_each = pb.StreamFlowsRequest(subscription=FlowSubscription(max_batch_records=1))
    batches, _ = await read_flows(line.stream("StreamFlows", one_each))
    assert len(batches) == sum(len(message.batch.records) for message in kept) > 1
    token = batches[0].batch.resume_token
    resumed = pb.StreamFlowsRequest(subscription=FlowSubscription(resume_token=token))
    rest, _ = await read_flows(line.stream("StreamFlows", resumed))
    assert [flow for message in rest for flow in message.batch.records][-1].flow_id == batches[-1].batch.records[0].flow_id
    assert packets_in(rest) == packets_in(batches[1:])


async def test_a_live_capture_pauses_with_its_lease_and_long_streams_end(running: Running) -> None:
    _, line = running
    await line.take_lease(duration_ns=2_500_000_000)
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])), expires_ns=2 * 10**9)
    messages, error = await read_flows(line.stream("StreamFlows", FOLLOW, expires_ns=2 * 10**9))
    assert error is not None
    assert (error.code(), info_of(error).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_EXPIRED")
    assert "watermark" in {message.WhichOneof("event") for message in messages}
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))
    assert status.capture.state == CAPTURE_STATE_PAUSED
    assert status.lease_sequence == 0
    assert await reason_of(line.command("GetMetrics", pb.GetMetricsRequest())) == "LEASE_EXPIRED"
    await line.take_lease()
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))
    assert status.capture.state == CAPTURE_STATE_RUNNING
    metered = status.capture.metrics.metered

    async for message in line.stream("StreamMetrics", pb.StreamMetricsRequest()):
        if pb.StreamMetricsResponse.FromString(message).metrics.metered > metered:
            break
    stopped = pb.StopCaptureResponse.FromString(await line.command("StopCapture", pb.StopCaptureRequest()))
    assert stopped.status.state == CAPTURE_STATE_STOPPED
    assert stopped.status.metrics.in_flight == 0


async def test_a_lease_that_the_controller_ends_pauses_the_capture_at_once_and_ends_streams(running: Running) -> None:
    agent, line = running
    nonce, evidence = await line.attest()
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))

    async def give(duration_ns: int) -> None:
        lease = line.make_lease(nonce, evidence, firmware_sha256=info.firmware.sha256, duration_ns=duration_ns)
        await line.call("RenewLease", pb.RenewLeaseRequest(lease=lease))

    await give(60 * 10**9)
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    reading = asyncio.ensure_future(read_flows(line.stream("StreamFlows", FOLLOW)))
    await asyncio.sleep(0.5)
    await give(1)
    _, error = await asyncio.wait_for(reading, 5)
    assert error is not None
    assert info_of(error).reason == "LEASE_EXPIRED"
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))
    assert (status.capture.state, status.lease_sequence) == (CAPTURE_STATE_PAUSED, 0)
    assert "the controller ended it" in agent.log
    await line.take_lease()
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))
    assert status.capture.state == CAPTURE_STATE_RUNNING


async def test_sigterm_in_mid_stream_gives_every_flow_and_then_says_unavailable(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    reading = asyncio.ensure_future(read_flows(line.stream("StreamFlows", FOLLOW)))
    await asyncio.sleep(0.5)
    metered = pb.GetMetricsResponse.FromString(await line.command("GetMetrics", pb.GetMetricsRequest())).metrics.metered
    assert metered > 0
    assert await agent.stop() == 0
    messages, error = await reading
    assert error is not None
    assert (error.code(), info_of(error).reason) == (grpc.StatusCode.UNAVAILABLE, "AGENT_STOPPING")
    assert packets_in(messages) >= metered


async def test_streams_that_their_readers_leave_make_room_for_others(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    await line.command("StartCapture", replayable(agent))
    for _ in range(70):  # more than may be open at a time
        method = line.channel.unary_stream(
            "/jarvis.capture.v1.AgentService/StreamFlows", request_serializer=None, response_deserializer=None
        )
        call = method(FOLLOW.SerializeToString(), metadata=line.authorization("StreamFlows", FOLLOW))
        await call.read()
        call.cancel()
    await anext(line.stream("StreamFlows", FOLLOW))


async def test_metrics_stream_at_their_interval(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    await line.command("StartCapture", replayable(agent))
    request = pb.StreamMetricsRequest()
    request.interval.FromMilliseconds(100)
    stream = line.stream("StreamMetrics", request)
    received = [pb.StreamMetricsResponse.FromString(await anext(stream)).metrics.metered for _ in range(3)]
    assert received[-1] > 0
    request.interval.FromMilliseconds(10)
    assert set(await bad_fields_of(anext(line.stream("StreamMetrics", request)))) == {"interval"}


async def test_bad_capture_requests_name_the_field_the_value_and_what_is_accepted(running: Running) -> None:
    agent, line = running
    await line.take_lease()
    (agent.directory / "replay" / "escape.pcap").symlink_to(DATA / "connection.pcap")
    for spec, field, words in (
        (CaptureSpec(), "spec.interfaces", "exactly one"),
        (CaptureSpec(interfaces=["lo"], files=["a.pcap"]), "spec.interfaces", "exactly one"),
        (CaptureSpec(interfaces=["lo"], snaplen=1), "spec.snaplen", "64"),
        (CaptureSpec(interfaces=["lo"], buffer_size_mb=63), "spec.buffer_size_mb", "64"),
        (CaptureSpec(interfaces=["lo"], max_flows=5), "spec.max_flows", "4096"),
        (CaptureSpec(interfaces=["lo"], filter="nonsense ]["), "spec.filter", "syntax error"),
        (CaptureSpec(files=["../../../etc/passwd"]), "spec.files[0]", "below the replay directory"),
        (CaptureSpec(files=["escape.pcap"]), "spec.files[0]", "below the replay directory"),
        (CaptureSpec(files=["missing.pcap"]), "spec.files[0]", "missing.pcap"),
    ):
        fields = await bad_fields_of(line.command("StartCapture", pb.StartCaptureRequest(spec=spec)))
        assert list(fields) == [field], spec
        assert words in fields[field], fields
    unknown = pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["no-such-port"]))
    code, info = await refusal_of(line.command("StartCapture", unknown))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "INTERFACE_NOT_FOUND")
    wrong_backend = pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"], backend="quantum"))
    assert await reason_of(line.command("StartCapture", wrong_backend)) == "BACKEND_UNAVAILABLE"
    (agent.directory / "replay" / "garbage.pcap").write_bytes(b"this is no capture file" * 10)
    garbage = pb.StartCaptureRequest(spec=CaptureSpec(files=["garbage.pcap"]))
    assert await reason_of(line.command("StartCapture", garbage)) == "CAPTURE_FILE_INVALID"


async def test_interfaces_of_a_running_capture_are_added_and_removed_and_refused_by_field(running: Running) -> None:
    _, line = running
    await line.take_lease()
    add_any = pb.UpdateInterfacesRequest(add=["any"])
    assert await reason_of(line.command("UpdateInterfaces", add_any)) == "CAPTURE_NOT_RUNNING"
    started = await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    assert [row.name for row in pb.StartCaptureResponse.FromString(started).status.interfaces] == ["lo"]
    status = pb.UpdateInterfacesResponse.FromString(await line.command("UpdateInterfaces", add_any)).status
    assert [(row.name, row.state) for row in status.interfaces] == [("lo", INTERFACE_STATE_UP), ("any", INTERFACE_STATE_UP)]
    for request, field, words in (
        (pb.UpdateInterfacesRequest(), "add", "at least one"),
        (pb.UpdateInterfacesRequest(add=["lo"]), "add[0]", "captured already"),
        (pb.UpdateInterfacesRequest(remove=["lo", "any"]), "remove[1]", "the last one"),
        (pb.UpdateInterfacesRequest(remove=["lo"]), "remove[0]", "is not captured"),
        (pb.UpdateInterfacesRequest(add=["a,b"]), "add[0]", "device arguments"),
    ):
        fields = await bad_fields_of(line.command("UpdateInterfaces", request))
        assert list(fields) == [field], request
        assert words in fields[field], fields
    absent = pb.UpdateInterfacesRequest(add=["no-such-port"])
    assert await reason_of(line.command("UpdateInterfaces", absent)) == "INTERFACE_NOT_FOUND"
    status = pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest())).capture
    assert ([row.name for row in status.interfaces], status.state) == (["any"], CAPTURE_STATE_RUNNING)


async def test_one_capture_runs_at_a_time(running: Running) -> None:
    _, line = running
    await line.take_lease()
    live = pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"]))
    assert await reason_of(line.command("GetMetrics", pb.GetMetricsRequest())) == "CAPTURE_NOT_RUNNING"
    await line.command("StartCapture", live)
    assert await reason_of(line.command("StartCapture", live)) == "CAPTURE_RUNNING"
    await line.command("StopCapture", pb.StopCaptureRequest())
    assert await reason_of(line.command("StopCapture", pb.StopCaptureRequest())) == "CAPTURE_NOT_RUNNING"
    await line.command("StartCapture", live)


async def test_an_agent_killed_in_mid_stream_comes_back_without_its_token(running: Running, controller: SmallController) -> None:
    agent, line = running
    await line.take_lease()
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    reading = asyncio.ensure_future(read_flows(line.stream("StreamFlows", FOLLOW)))
    await asyncio.sleep(0.3)
    _, before = await line.attest()
    agent.kill()
    _, error = await reading
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    await agent.start()
    again = line_to(controller, agent)
    nonce, evidence = await again.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[again.agent_id], controller)
    assert controller.enrollments.enrolled_with_token == [True]
    assert evidence.session_id != before.session_id
    events = parse_log(evidence.event_log)
    added = events[len(parse_log(before.event_log)) :]  # a load attempt an object; the mappings are on the log already
    assert [event.subject for event in added] == sorted(json.loads(evidence.manifest)["objects"])
    assert await reason_of(line.command("GetMetrics", pb.GetMetricsRequest())) == "AGENT_UNATTESTED"
    await again.close()


async def test_a_reboot_starts_a_new_event_log_and_keeps_the_old_one_aside(
    running: Running, controller: SmallController, tpm: Swtpm
) -> None:
    agent, line = running
    _, before = await line.attest()
    agent.kill()
    tpm.reboot()
    await agent.start()
    again = line_to(controller, agent)
    nonce, evidence = await again.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[again.agent_id], controller)
    assert parse_attest_quote(evidence.attest).reset_count == parse_attest_quote(before.attest).reset_count + 1
    assert len(list(agent.state_directory.glob("firmware-events-*.jsonl"))) == 2
    await again.close()


async def test_a_lost_certificate_comes_back_by_activation_alone(running: Running, controller: SmallController) -> None:
    agent, line = running
    await agent.stop()
    (agent.state_directory / "tls" / "agent.crt").unlink()
    await agent.start()
    assert controller.enrollments.enrolled_with_token == [True, False]
    assert "TOKEN_REUSED" in agent.log
    again = line_to(controller, agent)
    await again.attest()
    await again.close()
    await line.close()


async def test_a_token_that_another_tpm_used_gets_nothing(
    running: Running, make_agent: MakeAgent, vendor: TpmVendor, tmp_path: Path, controller: SmallController
) -> None:
    first, _ = running
    with Swtpm(vendor.copy_of("second", tmp_path / "tpm2")) as other:
        thief = make_agent("thief", tcti=other.tcti)
        shutil.copy(first.directory / "join.json", thief.directory / "join.json")
        starting = asyncio.ensure_future(thief.start())
        await until("the refusal", lambda: "without a token: this EK is not enrolled" in thief.log)
        assert "TOKEN_REUSED" in thief.log
        starting.cancel()
        thief.clean_up()
    assert len(controller.enrollments.agents) == 1


async def test_an_agent_that_cannot_start_says_why_and_with_which_exit_status(
    make_agent: MakeAgent, tpm: Swtpm, program_environment: dict[str, str]
) -> None:
    agent = make_agent()
    command = [sys.executable, "-m", "jarvis_agent", "run", "--config", str(agent.directory / "agent.toml")]

    def run() -> tuple[int, str]:
        done = subprocess.run(command, env=program_environment, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    tpm.kill()
    status, said = await asyncio.to_thread(run)
    assert (status, "TPM_UNAVAILABLE" in said) == (1, True)
    (agent.directory / "join.json").chmod(0o644)
    status, said = await asyncio.to_thread(run)
    assert status == 2
    assert "join_file: " in said
    assert "mode 0644" in said
    (agent.directory / "agent.toml").write_text("pcr = 23\n")
    status, said = await asyncio.to_thread(run)
    assert status == 2
    assert "pcr: 23 is not accepted" in said


async def test_a_second_agent_on_the_same_port_fails_instead_of_sharing_it(
    running: Running, make_agent: MakeAgent, vendor: TpmVendor, tmp_path: Path
) -> None:
    first, _ = running
    with Swtpm(vendor.copy_of("second", tmp_path / "tpm2")) as other:
        second = make_agent("second", tcti=other.tcti, listen=first.address)
        starting = asyncio.ensure_future(second.start())
        await until("the refusal", lambda: f"listen: {first.address}: cannot be bound" in second.log)
        with pytest.raises(AssertionError):
            await starting


async def test_a_renewed_certificate_is_served_without_a_restart(make_agent: MakeAgent, controller: SmallController) -> None:
    controller.enrollments.lifetime = timedelta(seconds=6)
    agent = make_agent()
    await agent.start()
    (agent_id,) = controller.enrollments.agents
    first = controller.enrollments.agents[agent_id].certificate_pem
    await until("the renewal", lambda: "was renewed" in agent.log)
    await asyncio.sleep(2.5)  # beyond the end of the first certificate
    assert controller.enrollments.agents[agent_id].certificate_pem != first
    line = line_to(controller, agent)
    nonce, evidence = await line.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[agent_id], controller)
    await line.close()
