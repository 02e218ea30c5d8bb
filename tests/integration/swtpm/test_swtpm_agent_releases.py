# SPDX-License-Identifier: Apache-2.0
"""Update of a running agent: a real process and TPM, real releases, against a small controller."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import grpc.aio
import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import CAPTURE_STATE_RUNNING, CaptureSpec, FlowSubscription
from jarvis_native.loader import LIBRARY
from jarvis_trust.eventlog import parse_log
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE

from tests.integration.swtpm.checks import bad_fields_of, info_of, read_flows, reason_of, refusal_of, until
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController
from tests.support import ReleaseKey, make_release

Running = tuple[AgentProcess, AgentLine]
PART = 48 * 1024
FOLLOW = pb.StreamFlowsRequest(subscription=FlowSubscription(follow=True))


def parts(directory: Path, name: str, sha256: str) -> list[pb.StageReleaseRequest]:
    data = (directory / name).read_bytes()
    return [
        pb.StageReleaseRequest(
            manifest_sha256=bytes.fromhex(sha256), file_name=name, offset=at, data=data[at : at + PART], size=len(data)
        )
        for at in range(0, len(data), PART)
    ]


async def stage(line: AgentLine, directory: Path, sha256: str, *, only: tuple[str, ...] = ()) -> None:
    for name in only or (MANIFEST_FILE, SIGNATURE_FILE, LIBRARY):
        for part in parts(directory, name, sha256):
            await line.command("StageRelease", part)


def activation(sha256: str, *, trial_s: int = 0) -> pb.ActivateReleaseRequest:
    request = pb.ActivateReleaseRequest(manifest_sha256=bytes.fromhex(sha256))
    if trial_s:
        request.trial.FromSeconds(trial_s)
    return request


async def status_of(line: AgentLine) -> pb.GetStatusResponse:
    return pb.GetStatusResponse.FromString(await line.call("GetStatus", pb.GetStatusRequest()))


async def info(line: AgentLine) -> pb.GetAgentInfoResponse:
    return pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))


async def activate(agent: AgentProcess, line: AgentLine, sha256: str, *, trial_s: int = 0) -> pb.ActivateReleaseResponse:
    """Changes over, and waits until the new process serves."""
    served = agent.log.count("serving on")
    answer = await line.command("ActivateRelease", activation(sha256, trial_s=trial_s))
    await until("the new process", lambda: agent.log.count("serving on") > served)
    return pb.ActivateReleaseResponse.FromString(answer)


def told(agent: AgentProcess) -> bytes:
    return (agent.state_directory / "events.journal").read_bytes()


def pointer(agent: AgentProcess) -> dict[str, object]:
    value: dict[str, object] = json.loads((agent.state_directory / "releases" / "pointer.json").read_bytes())
    return value


async def reconnected(line: AgentLine, controller: SmallController, agent: AgentProcess) -> AgentLine:
    await line.close()
    return line_to(controller, agent)


async def test_a_release_takes_over_from_a_running_capture_that_ends_whole(
    running: Running, controller: SmallController, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    before = await info(line)
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    reading = asyncio.ensure_future(read_flows(line.stream("StreamFlows", FOLLOW)))
    sha256 = make_release(tmp_path / "new", release_key, version="0.2.0")
    await stage(line, tmp_path / "new", sha256)
    assert (await activate(agent, line, sha256)).version == "0.2.0"
    messages, error = await reading
    assert error is not None
    assert info_of(error).reason == "AGENT_STOPPING"
    assert sum(len(message.batch.records) for message in messages) > 0
    line = await reconnected(line, controller, agent)
    after = await info(line)
    assert (after.firmware.version, after.firmware.loaded) == ("0.2.0", True)
    assert after.session_id != before.session_id
    assert (await status_of(line)).release.on_trial
    await line.take_lease()
    release = (await status_of(line)).release
    assert (release.manifest_sha256.hex(), release.on_trial, release.rolled_back.reason) == (sha256, False, "")
    assert pointer(agent)["current"] == sha256
    await until("the event", lambda: b"is in force" in told(agent))
    _, evidence = await line.attest()
    events = [(event.type, event.sha256) for event in parse_log(evidence.event_log) if event.type != "mapping"]
    new = hashlib.sha256((tmp_path / "new" / LIBRARY).read_bytes()).digest()
    assert events[-2:] == [("trial", new), ("load-attempt", new)]
    assert hashlib.sha256(evidence.manifest).hexdigest() == sha256
    assert await agent.stop() == 0
    await agent.start()
    assert (await info(line)).firmware.version == "0.2.0"
    await line.close()


async def test_a_release_that_crashes_in_its_trial_costs_nothing(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    _, line = running
    await line.take_lease()
    before = await info(line)
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    sha256 = make_release(tmp_path / "bad", release_key, "-DFATE=abort")
    await stage(line, tmp_path / "bad", sha256)
    _, refusal = await refusal_of(line.command("ActivateRelease", activation(sha256)))
    assert refusal.reason == "RELEASE_TRIAL_FAILED"
    assert (await info(line)).session_id == before.session_id
    assert (await status_of(line)).capture.state == CAPTURE_STATE_RUNNING
    await line.take_lease()
    _, evidence = await line.attest()
    trials = [event for event in parse_log(evidence.event_log) if event.type == "trial"]
    bad = hashlib.sha256((tmp_path / "bad" / LIBRARY).read_bytes()).digest()
    assert [event.sha256 for event in trials] == [bad], "what was tried was measured before it ran"


@pytest.mark.timeout(120)
async def test_a_release_that_crashes_when_it_runs_is_left_after_two_starts(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "bad", release_key, "-DFATE_OF_RUN=abort")
    await stage(line, tmp_path / "bad", sha256)
    await line.command("ActivateRelease", activation(sha256))
    for start in (1, 2):
        assert await agent.ended() == -6
        assert pointer(agent)["trial"]["starts"] == start  # type: ignore[index]
        agent.spawn()
    await agent.serving()
    release = (await status_of(line)).release
    assert (release.rolled_back.reason, release.rolled_back.manifest_sha256.hex()) == ("RELEASE_TRIAL_CRASHED", sha256)
    assert (await info(line)).firmware.loaded
    assert b"RELEASE_TRIAL_CRASHED" in told(agent)
    await line.take_lease()


@pytest.mark.timeout(120)
async def test_a_release_that_hangs_and_holds_the_interpreter_is_ended_by_the_kernel(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "bad", release_key, "-DFATE_OF_RUN=hang")
    await stage(line, tmp_path / "bad", sha256)
    await line.command("ActivateRelease", activation(sha256, trial_s=5))
    if not await agent.restarted_or_ended(seconds=60):  # by SIGALRM; where dlopen lets go of the GIL, the thread was first
        agent.spawn()
        await agent.serving()
    assert (await status_of(line)).release.rolled_back.reason == "RELEASE_TRIAL_NO_LEASE"
    await line.take_lease()


@pytest.mark.timeout(120)
async def test_a_release_that_gets_no_lease_in_time_gives_way_to_the_old_one(
    running: Running, controller: SmallController, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    old = (await status_of(line)).release.manifest_sha256
    sha256 = make_release(tmp_path / "new", release_key)
    await stage(line, tmp_path / "new", sha256)
    pid = agent.pid
    await activate(agent, line, sha256, trial_s=5)
    served = agent.log.count("serving on")
    await until("the old release", lambda: agent.log.count("serving on") > served, seconds=60)
    assert agent.pid == pid
    line = await reconnected(line, controller, agent)
    release = (await status_of(line)).release
    assert (release.manifest_sha256, release.on_trial, release.rolled_back.reason) == (old, False, "RELEASE_TRIAL_NO_LEASE")
    assert b"RELEASE_TRIAL_NO_LEASE" in told(agent)
    await line.take_lease()
    await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
    await line.close()


async def test_a_release_that_is_refused_at_load_gives_way_to_the_old_one(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "new", release_key)
    await stage(line, tmp_path / "new", sha256)
    assert await agent.stop() == 0
    # As if the disk had gone bad between activation and load.
    trial = {"sha256": sha256, "version": "0.1.0", "trial_ns": 10**10, "boot_id": boot_id(), "starts": 0, "deadline_ns": 0}
    written = {"format": "jarvis-release-pointer-v1", "current": "", "trial": trial, "failed": None}
    (agent.state_directory / "releases" / "pointer.json").write_text(json.dumps(written))
    library = agent.state_directory / "releases" / sha256 / LIBRARY
    library.write_bytes(library.read_bytes() + b"\0")
    await agent.start()
    release = (await status_of(line)).release
    assert release.rolled_back.reason == "FIRMWARE_ALTERED"
    assert (await info(line)).firmware.loaded
    await line.take_lease()


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


async def test_what_is_not_whole_or_was_changed_after_staging_is_not_activated(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "new", release_key)
    assert await reason_of(line.command("ActivateRelease", activation(sha256))) == "RELEASE_INCOMPLETE"
    await stage(line, tmp_path / "new", sha256, only=(MANIFEST_FILE, SIGNATURE_FILE))
    for part in parts(tmp_path / "new", LIBRARY, sha256)[:-1]:
        await line.command("StageRelease", part)
    assert await reason_of(line.command("ActivateRelease", activation(sha256))) == "RELEASE_INCOMPLETE"
    await line.command("StageRelease", parts(tmp_path / "new", LIBRARY, sha256)[-1])
    staged = agent.state_directory / "releases" / sha256 / LIBRARY
    staged.write_bytes(staged.read_bytes()[:-1] + b"\1")
    assert await reason_of(line.command("ActivateRelease", activation(sha256))) == "RELEASE_ALTERED"
    running_now = (await status_of(line)).release.manifest_sha256.hex()
    assert await reason_of(line.command("ActivateRelease", activation(running_now))) == "RELEASE_RUNNING"
    assert not (await status_of(line)).release.on_trial


async def test_an_object_that_is_not_the_signed_one_is_not_kept(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "new", release_key)
    library = tmp_path / "new" / LIBRARY
    library.write_bytes(library.read_bytes()[:-1] + b"\1")
    assert await reason_of(stage(line, tmp_path / "new", sha256)) == "RELEASE_ALTERED"
    kept = (agent.state_directory / "releases" / sha256).iterdir()
    assert sorted(path.name for path in kept) == [MANIFEST_FILE, SIGNATURE_FILE]


async def test_a_release_below_the_floor_or_of_a_stranger_is_refused_with_its_signature(
    make_agent: MakeAgent, controller: SmallController, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent = make_agent(firmware_floor=1)
    await agent.start()
    line = line_to(controller, agent)
    await line.take_lease()
    old = make_release(tmp_path / "old", release_key, security_version=0)
    assert await reason_of(stage(line, tmp_path / "old", old)) == "FIRMWARE_BELOW_FLOOR"
    assert not (agent.state_directory / "releases" / old).exists()
    forged = make_release(tmp_path / "forged", release_key)
    signature = bytearray((tmp_path / "forged" / SIGNATURE_FILE).read_bytes())
    signature[len(signature) // 2] ^= 1
    (tmp_path / "forged" / SIGNATURE_FILE).write_bytes(signature)
    assert await reason_of(stage(line, tmp_path / "forged", forged)) == "FIRMWARE_SIGNATURE_INVALID"
    await line.close()


async def test_parts_that_do_not_fit_are_refused_with_what_would(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    await line.take_lease()
    sha256 = make_release(tmp_path / "new", release_key)
    (manifest,) = parts(tmp_path / "new", MANIFEST_FILE, sha256)
    library = parts(tmp_path / "new", LIBRARY, sha256)

    async def refused(part: pb.StageReleaseRequest, **changes: object) -> dict[str, str]:
        changed = pb.StageReleaseRequest()
        changed.CopyFrom(part)
        for field, value in changes.items():
            setattr(changed, field, value)
        return await bad_fields_of(line.command("StageRelease", changed))

    for name in ("../../agent.key", "/etc/passwd", "..", ".part-x", "manifest.json/../x", "lib\0", "pointer.json", ""):
        assert "manifest.json is accepted first" in (await refused(library[0], file_name=name))["file_name"]
    assert set(await refused(manifest, manifest_sha256=b"../../../../etc/passwd/../../../x")) == {"manifest_sha256"}
    assert set(await refused(manifest, size=2**63)) == {"size"}
    assert set(await refused(manifest, offset=2**63)) == {"offset"}
    assert set(await refused(manifest, data=b"")) == {"data"}
    await line.command("StageRelease", manifest)
    assert "manifest.sig is accepted next" in (await refused(library[0]))["file_name"]
    await stage(line, tmp_path / "new", sha256, only=(SIGNATURE_FILE,))
    assert LIBRARY in (await refused(library[0], file_name="libother.so"))["file_name"]
    assert set(await refused(library[0], data=bytes(PART + 1))) == {"data"}
    assert set(await refused(library[1])) == {"offset"}
    await line.command("StageRelease", library[0])
    assert f"{PART} is accepted" in (await refused(library[2]))["offset"]
    assert f"{library[0].size} is accepted" in (await refused(library[1], size=library[0].size + 1))["size"]
    names = {path.name for path in (agent.state_directory / "releases").rglob("*")}
    assert names == {sha256, MANIFEST_FILE, SIGNATURE_FILE, ".part-libjarvis_capture.so"}
    assert set(await bad_fields_of(line.command("ActivateRelease", activation(sha256, trial_s=601)))) == {"trial"}


async def test_nothing_is_staged_or_activated_without_a_lease_or_by_a_viewer(
    running: Running, release_key: ReleaseKey, tmp_path: Path
) -> None:
    agent, line = running
    sha256 = make_release(tmp_path / "new", release_key)
    (manifest,) = parts(tmp_path / "new", MANIFEST_FILE, sha256)
    for name, request in (("StageRelease", manifest), ("ActivateRelease", activation(sha256))):
        assert await reason_of(line.call(name, request)) == "AGENT_UNATTESTED"
    await line.take_lease()
    viewer = "spiffe://test.example/operator/viewer/vera"
    for name, request in (("StageRelease", manifest), ("ActivateRelease", activation(sha256))):
        assert await reason_of(line.command(name, request, principal=viewer)) == "ROLE_DENIED"
        assert await reason_of(line.command(name, request, method="/jarvis.capture.v1.AgentService/StopCapture")) == (
            "COMMAND_SIGNATURE_INVALID"
        )
    assert list((agent.state_directory / "releases").iterdir()) == []
    with pytest.raises(grpc.aio.AioRpcError):
        await line.command("ActivateRelease", activation("00" * 32))
