# SPDX-License-Identifier: Apache-2.0
"""Every fleet command against a fake controller over real mTLS: requests, tables, JSON objects, exit codes."""

from __future__ import annotations

import json
import re
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2
from jarvis.capture.v1 import capture_pb2, fleet_pb2
from jarvisctl.commands.capture import complete_statistics

from tests.fakes.fleet_service import status
from tests.unit.jarvisctl.conftest import Controller, run_ctl

ROOT = Path(__file__).resolve().parents[3]
_BACKEND = re.compile(r'struct capture_backend_ops \w+ = \{\s*\.name = "(\w+)"')

WEB = "web2" + "a" * 28
LAB = "lab2" + "b" * 28
OLD = "old2" + "c" * 28


def three_agents(controller: Controller) -> None:
    controller.service.add_agent(WEB, role="web", site="lab")
    controller.service.add_agent(LAB, role="lab")
    bad = controller.service.add_agent(OLD, fleet_pb2.AGENT_STATE_QUARANTINED, role="web")
    bad.reason = "PCR_MISMATCH: event 3 diverges"


async def test_agents_list_shows_all_pages_as_full_values_when_piped(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl("agents", "list")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["AGENT", "STATE", "HOST", "LABELS", "FIRMWARE", "LEVEL", "CONNECTED", "VERIFIED", "REASON"]
    assert [line.split()[:2] for line in lines[1:]] == [[WEB, "verified"], [LAB, "verified"], [OLD, "quarantined"]]
    assert "role=web,site=lab" in lines[1]
    assert re.search(r" 1m\d\ds ago ", lines[1]), "65 s, and as long as the test took"
    assert "PCR_MISMATCH: event 3 diverges" in lines[3]
    assert "\x1b" not in result.out
    assert len(controller.service.requests) == 2


async def test_agents_list_as_json_is_one_object_a_line_with_every_key(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl("--output", "json", "agents", "list", "--selector", "role=web")
    assert [value["agent_id"] for value in result.objects] == [WEB, OLD]
    first = result.objects[0]
    assert set(first) == {field.name for field in fleet_pb2.Agent.DESCRIPTOR.fields}
    assert first["state"] == "verified"
    assert first["labels"] == {"role": "web", "site": "lab"}
    assert first["firmware_sha256"] == bytes(range(32)).hex()
    assert first["verify_time"].endswith("Z")
    assert first["lease_expire_time"] is None
    assert first["channel_bound"] is False


async def test_control_characters_in_what_an_agent_says_never_reach_the_terminal(controller: Controller) -> None:
    controller.service.add_agent(WEB, hostname="evil\x1b[2Jhost\nverified")
    result = await controller.ctl("agents", "show", WEB)
    assert "evil\\x1b[2Jhost\\x0averified" in result.out
    assert "\x1b" not in result.out


async def test_a_selector_that_matches_nobody_is_an_error(controller: Controller) -> None:
    three_agents(controller)
    for arguments in (["agents", "list"], ["capture", "status"], ["attest"], ["metrics"], ["flows"], ["events"]):
        result = await controller.ctl(*arguments, "--selector", "role=none")
        assert (result.code, result.out) == (2, ""), arguments
        assert "no agent matches the selector 'role=none' [AGENT_NOT_FOUND]" in result.err


async def test_a_fleet_without_agents_says_how_to_get_one(controller: Controller) -> None:
    result = await controller.ctl("agents", "list")
    assert result.code == 2
    assert "jarvisctl enroll token" in result.err


async def test_quarantine_takes_a_prefix_and_sends_the_full_id_with_its_reason(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl("agents", "quarantine", WEB[:5], "--reason", "stolen laptop")
    assert result.code == 0
    request = controller.service.requests[-1]
    assert (request.agent_id, request.reason) == (WEB, "stolen laptop")
    assert "quarantined" in result.out
    released = await controller.ctl("--output", "json", "agents", "release", WEB, "--reason", "found again")
    assert released.objects[0]["state"] == "stale"


async def test_retire_sends_the_full_id_with_its_reason_and_list_asks_for_retired_ones_only_with_all(
    controller: Controller,
) -> None:
    three_agents(controller)
    result = await controller.ctl("agents", "retire", WEB[:5], "--reason", "host was sold")
    assert result.code == 0
    request = controller.service.requests[-1]
    assert isinstance(request, fleet_pb2.RetireAgentRequest)
    assert (request.agent_id, request.reason) == (WEB, "host was sold")
    assert "retired" in result.out
    for options, asked in (((), False), (("--all",), True)):
        await controller.ctl("agents", "list", *options)
        assert controller.service.requests[-1].show_retired is asked


async def test_a_prefix_of_several_agents_is_refused_before_anything_is_changed(controller: Controller) -> None:
    controller.service.add_agent("aaaa" + "b" * 28)
    controller.service.add_agent("aaaa" + "c" * 28)
    result = await controller.ctl("agents", "quarantine", "aaaa", "--reason", "x")
    assert result.code == 2
    assert "'aaaa' is the beginning of 2 agent ids" in result.err
    assert not any(isinstance(request, fleet_pb2.QuarantineAgentRequest) for request in controller.service.requests)


async def test_enroll_token_writes_the_join_file_for_its_owner_only(controller: Controller, tmp_path: Path) -> None:
    path = tmp_path / "new.join"
    result = await controller.ctl(
        "enroll", "token", "--label", "role=web", "--label", "site=lab", "--lifetime", "2h", "-o", str(path)
    )
    assert result.code == 0
    assert json.loads(path.read_text(encoding="utf-8"))["token"] == "s3cret"  # noqa: S105 (the fake's)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    request = controller.service.requests[-1]
    assert dict(request.labels) == {"role": "web", "site": "lab"}
    assert request.lifetime.seconds == 7200
    assert "s3cret" not in result.out + result.err


async def test_enroll_token_is_for_hosts_with_a_tpm_unless_it_is_said(controller: Controller, tmp_path: Path) -> None:
    for options, expected in (((), False), (("--without-tpm",), True)):
        result = await controller.ctl("enroll", "token", *options, "-o", str(tmp_path / f"{expected}.json"))
        assert result.code == 0
        assert controller.service.requests[-1].without_tpm is expected


async def test_enroll_token_never_overwrites_a_file_and_then_spends_no_token(controller: Controller, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("mine", encoding="utf-8")
    result = await controller.ctl("enroll", "token", "-o", str(path))
    assert result.code == 2
    assert f"-o is {path}, which exists" in result.err
    assert path.read_text(encoding="utf-8") == "mine"
    assert controller.service.requests == []


async def test_a_refused_token_leaves_no_empty_file_behind(controller: Controller, tmp_path: Path) -> None:
    controller.service.refusals["CreateJoinToken"] = status(
        code_pb2.PERMISSION_DENIED, "role viewer may not, admin may", "ROLE_DENIED"
    )
    result = await controller.ctl("enroll", "token", "-o", str(tmp_path / "new.join"))
    assert result.code == 3
    assert "does not allow this to the certificate" in result.err
    assert "role viewer may not, admin may [ROLE_DENIED]" in result.err
    assert not (tmp_path / "new.join").exists()


async def test_attest_shows_each_check_and_leaves_with_4_when_one_fails(controller: Controller) -> None:
    three_agents(controller)
    controller.service.checks[WEB] = [fleet_pb2.AttestationCheck(name="nonce", passed=True)]
    controller.service.checks[OLD] = [
        fleet_pb2.AttestationCheck(name="nonce", passed=True),
        fleet_pb2.AttestationCheck(
            name="pcr",
            reason="PCR_MISMATCH",
            message="event 3 diverges",
            pcr=4,
            event=3,
            component="EV_IPL grub",
            expected="EV_IPL shim",
            reference="good version 1",
        ),
    ]
    controller.service.agent_failures[OLD] = status(code_pb2.FAILED_PRECONDITION, "1 check failed", "PCR_MISMATCH")
    good = await controller.ctl("attest", "--agent", WEB)
    assert good.code == 0
    bad = await controller.ctl("attest", "--selector", "role=web")
    assert bad.code == 4
    assert f"{OLD} (host-old2): quarantined, failed: 1 check failed [PCR_MISMATCH]" in bad.out
    where = "PCR 4, event 3, EV_IPL grub; expected EV_IPL shim (nearest: good version 1)"
    assert f"pcr    failed  PCR_MISMATCH  {where}  event 3 diverges" in bad.out
    as_json = await controller.ctl("--output", "json", "attest", "--agent", OLD)
    assert as_json.code == 4
    assert as_json.objects[0]["error"]["reason"] == "PCR_MISMATCH"
    assert as_json.objects[0]["checks"][1] == {
        "name": "pcr",
        "passed": False,
        "reason": "PCR_MISMATCH",
        "message": "event 3 diverges",
        "pcr": 4,
        "event": 3,
        "component": "EV_IPL grub",
        "expected": "EV_IPL shim",
        "reference": "good version 1",
        "reported": False,
    }


async def test_attest_leaves_with_1_when_an_agent_could_not_be_asked(controller: Controller) -> None:
    three_agents(controller)
    controller.service.agent_failures[LAB] = status(code_pb2.UNAVAILABLE, "connection refused")
    result = await controller.ctl("attest", "--all")
    assert result.code == 1
    assert "failed: connection refused" in result.out


async def test_every_backend_of_the_core_can_be_asked_for(controller: Controller) -> None:
    three_agents(controller)
    sources = [*(ROOT / "native/src/backend").glob("*.c"), *(ROOT / "native/modules").glob("*/*.c")]
    names = {name for source in sources for name in _BACKEND.findall(source.read_text())}
    assert names >= {"file", "afpacket", "xdp", "dpdk"}
    for name in names - {"file"}:
        result = await controller.ctl("capture", "start", "--all", "--interface", "eth0", "--backend", name)
        assert result.code == 0, result.err
        assert controller.service.requests[-1].spec.backend == name


async def test_capture_start_sends_exactly_what_was_asked(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl(
        "capture", "start", "--selector", "role=web", "--interface", "eth0", "--backend", "afpacket", "--filter", "tcp port 80",
        "--snaplen", "128", "--buffer-size-mb", "256", "--timestamp-source", "hardware", "--promiscuous",
        "--interface", "eth1", "--merge-interfaces",
        "--max-flows", "4096", "--idle-timeout", "1m30s", "--active-timeout", "0", "--tunnel", "both", "--loss-threshold", "1000",
        "--sampling", "flow-hash:1000", "--mirror-timestamps",
        "--busy-poll-us", "50",
        "--statistics", "tcp,intervals",
    )  # fmt: skip
    assert result.code == 0, result.err
    request = controller.service.requests[-1]
    expected = capture_pb2.CaptureSpec(
        interfaces=["eth0", "eth1"], merge_interfaces=True, backend="afpacket",
        filter="tcp port 80", snaplen=128, buffer_size_mb=256, max_flows=4096,
        timestamp_source=capture_pb2.TIMESTAMP_SOURCE_HARDWARE, promiscuous=True, tunnel=capture_pb2.TUNNEL_BOTH,
        loss_threshold=1000,
        sampling=capture_pb2.SAMPLING_FLOW_HASH, sampling_interval=1000, mirror_timestamps=True, busy_poll_us=50,
        statistics=[capture_pb2.FLOW_STATISTICS_TCP, capture_pb2.FLOW_STATISTICS_INTERVALS],
    )  # fmt: skip
    expected.idle_timeout.seconds = 90
    expected.active_timeout.SetInParent()
    assert request.spec == expected
    assert request.spec.HasField("active_timeout")
    assert uuid.UUID(request.request_id).version == 4
    assert request.selector.label_selector == "role=web"
    assert result.out.count("running") == 2


async def test_capture_start_refuses_a_statistic_that_there_is_not(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl("capture", "start", "--all", "--interface", "eth0", "--statistics", "tcp,rtt")
    assert result.code == 2
    assert "--statistics 'rtt': accepted are tcp, sizes, intervals and headers" in result.err
    assert not controller.service.requests


def test_completion_goes_on_with_the_statistics_not_listed_yet() -> None:
    assert complete_statistics("") == ["tcp", "sizes", "intervals", "headers"]
    assert complete_statistics("sizes,t") == ["sizes,tcp", "sizes,intervals", "sizes,headers"]
    assert complete_statistics("tcp,sizes,intervals,headers,") == []


async def test_interfaces_of_running_captures_are_added_removed_and_listed(controller: Controller) -> None:
    three_agents(controller)
    result = await controller.ctl("capture", "interfaces", "add", "--selector", "role=web", "eth1", "eth2")
    assert result.code == 0, result.err
    request = controller.service.requests[-1]
    assert (list(request.add), list(request.remove)) == (["eth1", "eth2"], [])
    assert uuid.UUID(request.request_id).version == 4
    assert result.out.count("eth2") == 2
    result = await controller.ctl("--output", "json", "capture", "interfaces", "remove", "--all", "eth0")
    assert list(controller.service.requests[-1].remove) == ["eth0"]
    assert json.loads(result.out.splitlines()[0])["capture"]["interfaces"] == []
    result = await controller.ctl("capture", "interfaces", "list")
    assert result.out.count("eth0") == 3
    refused = await controller.ctl("capture", "interfaces", "add", "eth1")
    assert refused.code == 2  # nobody is addressed


@pytest.mark.parametrize("backend", ["xdp", "dpdk"])
async def test_capture_start_asks_for_an_interface_of_the_hosts_own_only_with_exclusive(
    controller: Controller, backend: str
) -> None:
    three_agents(controller)
    for option in ([], ["--exclusive"]):
        result = await controller.ctl("capture", "start", "--all", "--interface", "eth0", "--backend", backend, *option)
        assert result.code == 0, result.err
        assert controller.service.requests[-1].spec.backend == backend
        assert controller.service.requests[-1].spec.exclusive is bool(option)


@pytest.mark.parametrize("value", ["systematic", "random:5", "flow-hash:", "systematic:x", "systematic:0", "flow-hash:1000001"])
async def test_capture_start_refuses_a_sampling_it_does_not_know(controller: Controller, value: str) -> None:
    result = await controller.ctl("capture", "start", "--all", "--interface", "eth0", "--sampling", value)
    assert result.code == 2
    assert "--sampling is" in result.err
    assert "accepted" in result.err


async def test_capture_failures_are_shown_per_agent_and_make_exit_1(controller: Controller) -> None:
    three_agents(controller)
    controller.service.agent_failures[OLD] = status(
        code_pb2.FAILED_PRECONDITION,
        "the firmware is not trusted",
        "FIRMWARE_UNTRUSTED",
        metadata={"reason": "FIRMWARE_ALTERED"},
    )
    result = await controller.ctl("capture", "start", "--all", "--file", "a.pcap", "--file", "b.pcap")
    assert result.code == 1
    assert "1 of 3 agents failed" in result.err
    row = next(line for line in result.out.splitlines() if line.startswith(OLD))
    assert row.endswith("the firmware is not trusted [FIRMWARE_UNTRUSTED: FIRMWARE_ALTERED]")
    assert list(controller.service.requests[-1].spec.files) == ["a.pcap", "b.pcap"]
    as_json = await controller.ctl("--output", "json", "capture", "stop", "--all", "--discard")
    assert as_json.code == 1
    outcomes = {value["agent_id"]: value for value in as_json.objects}
    assert outcomes[OLD]["ok"] is False
    assert outcomes[OLD]["capture"] is None
    assert outcomes[OLD]["error"]["metadata"] == {"reason": "FIRMWARE_ALTERED"}
    assert outcomes[WEB]["ok"] is True
    assert outcomes[WEB]["capture"]["state"] == "stopped"
    assert controller.service.requests[-1].discard is True


async def test_capture_status_humanises_for_people_and_is_exact_for_programs(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    result = await controller.ctl("capture", "status")
    row = result.out.splitlines()[1].split()
    assert row == [WEB, "running", "eth0", "pcap", "-", "12,345", "6.7MB", "7", "42", "-", "-"]
    as_json = await controller.ctl("--output", "json", "capture", "status")
    assert as_json.objects[0]["capture"]["metrics"]["received_octets"] == 6_700_000
    assert as_json.objects[0]["capture"]["uptime_s"] is None


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        ({"source": "KERNEL", "error_bound_ns": 0}, "kernel"),
        ({"source": "KERNEL", "error_bound_ns": 0, "steps": 1}, "kernel, 1 step"),
        ({"source": "NTP", "synchronised": True, "offset_ns": -1200, "error_bound_ns": 1_500_000}, "ntp -1.2us ±1.5ms"),
        ({"source": "NTP", "offset_ns": 0, "error_bound_ns": 16_000_000_000}, "ntp unsynchronised 0ns ±16.0s"),
        ({"source": "PTP", "offset_ns": 37_000_000_000, "error_bound_ns": 310, "steps": 2}, "ptp 37.0s ±310ns, 2 steps"),
        ({"source": "HARDWARE"}, "hardware"),
    ],
)
async def test_capture_status_shows_the_clock(controller: Controller, clock: dict[str, Any], shown: str) -> None:
    controller.service.add_agent(WEB)
    source = capture_pb2.TimestampSource.Value("TIMESTAMP_SOURCE_" + clock["source"])
    controller.service.clock = capture_pb2.ClockStatus(**{**clock, "source": source})
    result = await controller.ctl("capture", "status")
    assert f"  {shown}  " in result.out
    as_json = await controller.ctl("--output", "json", "capture", "status")
    told = as_json.objects[0]["capture"]["clock"]
    assert told["source"] == clock["source"].lower()
    assert told["error_bound_ns"] == clock.get("error_bound_ns")


@pytest.mark.parametrize("source", ["ptp", "ntp"])
async def test_capture_start_asks_for_a_disciplined_clock_by_name(controller: Controller, source: str) -> None:
    controller.service.add_agent(WEB)
    result = await controller.ctl("capture", "start", "--all", "--interface", "eth0", "--timestamp-source", source)
    assert result.code == 0, result.err
    spec = controller.service.requests[-1].spec
    assert spec.timestamp_source == capture_pb2.TimestampSource.Value("TIMESTAMP_SOURCE_" + source.upper())


async def test_changing_commands_address_everybody_only_with_all(controller: Controller) -> None:
    three_agents(controller)
    for arguments in (["capture", "start", "--interface", "eth0"], ["capture", "stop"]):
        result = await controller.ctl(*arguments)
        assert result.code == 2
        assert "no agent is addressed: give --agent ID or --selector LABELS, or --all" in result.err
    contradiction = await controller.ctl("capture", "stop", "--all", "--agent", WEB)
    assert contradiction.code == 2
    assert controller.service.requests == []


async def test_metrics_once_and_followed(controller: Controller) -> None:
    three_agents(controller)
    controller.service.agent_failures[LAB] = status(code_pb2.FAILED_PRECONDITION, "no capture", "CAPTURE_NOT_RUNNING")
    once = await controller.ctl("metrics")
    assert once.code == 1
    assert "3.4Gbit/s" in once.out
    assert "no capture [CAPTURE_NOT_RUNNING]" in once.out
    followed = await controller.ctl("--output", "json", "metrics", "--follow", "--interval", "200ms", "--agent", WEB)
    assert followed.code == 0
    assert [value["metrics"]["received"] for value in followed.objects] == [1000, 2000, 3000]
    assert controller.service.requests[-1].interval.nanos == 200_000_000
    lines = (await controller.ctl("metrics", "--follow", "--agent", WEB)).out.splitlines()
    assert [line.split()[1] for line in lines] == ["RECEIVED", "1,000", "2,000", "3,000"]


async def test_audit_verify_recomputes_the_chain_over_all_pages(controller: Controller) -> None:
    for index in range(5):
        controller.service.add_event("agent.state", WEB, json.dumps({"n": index}))
    result = await controller.ctl("--output", "json", "audit", "verify")
    assert result.code == 0
    head = result.objects[0]
    assert head == {
        "ok": True, "events": 5, "sequence": 5, "hash": controller.service.events[-1].hash.hex(), "checkpoints": 1, "uncovered": 0
    }  # fmt: skip
    again = await controller.ctl("audit", "verify", "--expect", f"3:{controller.service.events[2].hash.hex()}")
    assert again.code == 0
    assert "the audit chain holds: 5 events" in again.out


async def test_audit_verify_names_the_first_edited_entry_and_leaves_with_4(controller: Controller) -> None:
    for index in range(5):
        controller.service.add_event("capture.start", WEB, json.dumps({"n": index}))
    controller.service.events[3].detail = '{"n":99}'
    result = await controller.ctl("audit", "verify")
    assert (result.code, result.out) == (4, "")
    assert "audit entry 4 is not what was recorded" in result.err


async def test_audit_verify_finds_a_cut_and_a_rewritten_chain_by_the_head_it_gave_before(controller: Controller) -> None:
    for _ in range(4):
        controller.service.add_event("agent.state", WEB)
    head = controller.service.events[-1]
    rewritten = await controller.ctl("audit", "verify", "--expect", f"3:{'00' * 32}")
    assert rewritten.code == 4
    assert "audit entry 3 is not the one that was known" in rewritten.err
    controller.service.events.pop()
    cut = await controller.ctl("--output", "json", "audit", "verify", "--expect", f"4:{head.hash.hex()}")
    assert cut.code == 4
    assert json.loads(cut.err)["error"]["reason"] == "AUDIT_TRUNCATED"


async def test_audit_verify_finds_a_chain_rewritten_throughout_by_its_signed_checkpoints(controller: Controller) -> None:
    service = controller.service
    for _ in range(4):
        service.add_event("agent.state", WEB)
    service.checkpoints = [service.signed_checkpoint(1, 3)]
    service.events.clear()
    for _ in range(4):
        service.add_event("agent.forged", WEB)
    result = await controller.ctl("--output", "json", "audit", "verify")
    assert result.code == 4
    assert json.loads(result.err)["error"]["reason"] == "AUDIT_CHECKPOINT_MISMATCH"


async def test_audit_verify_does_not_take_a_chain_whose_checkpoints_are_gone(controller: Controller) -> None:
    controller.service.add_event("agent.state", WEB)
    controller.service.checkpoints = []
    result = await controller.ctl("--output", "json", "audit", "verify")
    assert (result.code, json.loads(result.err)["error"]["reason"]) == (4, "AUDIT_CHECKPOINT_MISSING")


async def test_audit_list_keeps_the_newest_and_can_be_narrowed_to_an_agent(controller: Controller) -> None:
    controller.service.add_event("agent.enroll", WEB)
    controller.service.add_event("agent.enroll", LAB)
    controller.service.add_event("capture.start", WEB, '{"interface":"eth0"}')
    result = await controller.ctl("--output", "json", "audit", "list", "--agent", "web2", "--last", "1")
    assert [value["action"] for value in result.objects] == ["capture.start"]
    assert result.objects[0]["time"].startswith("2023-11-14T22:13:20.")
    table = await controller.ctl("audit", "list")
    assert len(table.out.splitlines()) == 4
    assert '{"interface":"eth0"}' in table.out


async def test_configuration_is_found_by_environment_and_by_home(controller: Controller, tmp_path: Path) -> None:
    controller.service.add_agent(WEB)
    by_variable = await run_ctl("agents", "list", JARVISCTL_CONFIG=str(controller.config))
    assert by_variable.code == 0
    home = tmp_path / "home"
    (home / ".config" / "jarvis-capture").mkdir(parents=True)
    for name in ("jarvisctl.toml", "ca.pem", "alice.pem", "alice.key"):
        (home / ".config" / "jarvis-capture" / name).symlink_to(tmp_path / name)
    by_home = await run_ctl("agents", "list", HOME=str(home), XDG_CONFIG_HOME="", JARVISCTL_CONFIG="")
    assert by_home.code == 0, by_home.err


async def test_the_shell_completes_commands_and_agent_ids_and_stays_silent_without_a_controller(
    controller: Controller, tmp_path: Path
) -> None:
    controller.service.add_agent(WEB)
    controller.service.add_agent(LAB)
    config = str(controller.config)
    words = {
        "_JARVISCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"jarvisctl --config {config} agents show we",
        "COMP_CWORD": "5",
    }
    assert (await run_ctl(**words)).out.split() == [WEB]
    words |= {"COMP_WORDS": "jarvisctl capture st", "COMP_CWORD": "2"}
    assert (await run_ctl(**words)).out.split() == ["start", "stop", "status"]
    words |= {"COMP_WORDS": f"jarvisctl --config {tmp_path / 'none.toml'} agents show we", "COMP_CWORD": "5"}
    without = await run_ctl(**words)
    assert (without.out.strip(), without.err) == ("", "")
