# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong ends in one sentence that names the cause and what to do, and in the documented exit code."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.rpc import code_pb2
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role

from testbed.ports import free_port
from tests.fakes.fleet_service import FakeFleetService, serve, status
from tests.unit.jarvisctl.conftest import FLEET, Controller, run_ctl, write_config

WEB = "web2" + "a" * 28


async def test_a_controller_that_is_not_there_is_said_with_its_address(tmp_path: Path, ca: FleetCA) -> None:
    port = free_port()
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, f"127.0.0.1:{port}"))
    assert result.code == 3
    assert f"nothing listens at 127.0.0.1:{port}: see that jarvis-controller runs there" in result.err


async def test_a_name_that_does_not_resolve_is_said(tmp_path: Path, ca: FleetCA) -> None:
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, "no-such-host.invalid:7440"))
    assert result.code == 3
    assert "'no-such-host.invalid:7440' does not resolve" in result.err


async def test_a_controller_of_another_ca_is_not_talked_to(tmp_path: Path, ca: FleetCA) -> None:
    service = FakeFleetService()
    server, port = await serve(service, FleetCA.create(FLEET))
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, f"localhost:{port}"))
    await server.stop(None)
    assert result.code == 3
    assert "was not issued by the fleet CA" in result.err
    assert service.requests == []


async def test_an_agent_certificate_of_the_same_ca_cannot_play_the_controller(tmp_path: Path, ca: FleetCA) -> None:
    service = FakeFleetService()
    server, port = await serve(service, ca, identity=Identity(fleet=FLEET, role=Role.AGENT, name=WEB))
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, f"localhost:{port}"))
    await server.stop(None)
    assert result.code == 3
    assert f"is not controller.{FLEET}" in result.err
    assert service.requests == []


async def test_a_controller_with_an_expired_certificate_is_said_to_be_so(tmp_path: Path, ca: FleetCA) -> None:
    server, port = await serve(FakeFleetService(), ca, lifetime=timedelta(milliseconds=1))
    await asyncio.sleep(1.1)
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, f"localhost:{port}"))
    await server.stop(None)
    assert result.code == 3
    assert result.err.startswith(f"jarvisctl: the certificate of the controller at localhost:{port} has expired")
    assert len(result.err.splitlines()) == 1


async def test_a_controller_that_does_not_trust_our_ca_is_said_to_refuse_the_certificate(tmp_path: Path, ca: FleetCA) -> None:
    server, port = await serve(FakeFleetService(), ca, client_ca=FleetCA.create(FLEET).certificate_pem)
    result = await run_ctl("agents", "list", config=write_config(tmp_path, ca, f"localhost:{port}"))
    await server.stop(None)
    assert result.code == 3
    assert "it does not accept the certificate" in result.err


async def test_an_expired_operator_certificate_is_refused_before_anything_is_sent(tmp_path: Path, ca: FleetCA) -> None:
    config = write_config(tmp_path, ca, "localhost:1")
    key = (tmp_path / "alice.key").read_bytes()
    identity = Identity(fleet=FLEET, role=Role.ADMIN, name="alice")
    then = datetime.now(UTC) - timedelta(minutes=3)
    (tmp_path / "alice.pem").write_bytes(ca.issue(identity, public_key_of(key), timedelta(minutes=1), now=then))
    result = await run_ctl("agents", "list", config=config)
    assert result.code == 3
    assert "alice.pem expired at" in result.err
    assert "issue a new one" in result.err


async def test_a_certificate_that_is_no_operators_is_refused_by_its_role(tmp_path: Path, ca: FleetCA) -> None:
    config = write_config(tmp_path, ca, "localhost:1", identity=Identity(fleet=FLEET, role=Role.AGENT, name=WEB))
    result = await run_ctl("agents", "list", config=config)
    assert result.code == 3
    assert "role agent: jarvisctl needs an operator's" in result.err


async def test_certificate_key_and_ca_must_belong_together(tmp_path: Path, ca: FleetCA) -> None:
    config = write_config(tmp_path, ca, "localhost:1")
    (tmp_path / "alice.key").write_bytes(generate_key())
    wrong_key = await run_ctl("agents", "list", config=config)
    assert wrong_key.code == 3
    assert "alice.key does not belong to the certificate" in wrong_key.err
    (tmp_path / "ca.pem").write_bytes(FleetCA.create(FLEET).certificate_pem)
    wrong_ca = await run_ctl("agents", "list", config=config)
    assert wrong_ca.code == 3
    assert "was not issued by the CA in" in wrong_ca.err


async def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, ca: FleetCA) -> None:
    config = write_config(tmp_path, ca, "localhost:1")
    (tmp_path / "alice.key").chmod(0o640)
    result = await run_ctl("agents", "list", config=config)
    assert result.code == 2
    assert "alice.key has mode 0640: only 0600 is accepted" in result.err
    assert "chmod 600" in result.err


async def test_a_controller_that_does_not_answer_in_time_is_said(tmp_path: Path, ca: FleetCA) -> None:
    service = FakeFleetService()
    service.add_agent(WEB)
    server, port = await serve(service, ca)
    config = write_config(tmp_path, ca, f"localhost:{port}")
    result = await run_ctl("--timeout", "0.5", "flows", "--last", "5", config=config)
    await server.stop(None)
    assert result.code == 3
    assert "did not answer within 0.5 s" in result.err


async def test_a_bad_field_found_by_the_controller_names_field_value_and_what_is_accepted(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.refusals["StartCaptures"] = status(
        code_pb2.INVALID_ARGUMENT,
        "the request is not acceptable",
        "INVALID_ARGUMENT",
        {
            "spec.filter": "'tcp prot 80' is no BPF expression: syntax error near prot",
            "spec.interface": "'eth9': accepted are eth0, lo",
        },
    )
    arguments = ["capture", "start", "--all", "--interface", "eth9", "--filter", "tcp prot 80"]
    result = await controller.ctl(*arguments)
    assert result.code == 2
    assert "spec.filter: 'tcp prot 80' is no BPF expression: syntax error near prot" in result.err
    assert "spec.interface: 'eth9': accepted are eth0, lo" in result.err
    as_json = await controller.ctl("--output", "json", *arguments)
    error = json.loads(as_json.err)["error"]
    assert (error["exit_code"], error["code"], error["reason"]) == (2, "invalid_argument", "INVALID_ARGUMENT")


async def test_what_the_controller_could_not_do_leaves_with_1(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.refusals["ReleaseAgent"] = status(
        code_pb2.FAILED_PRECONDITION, "the agent must reboot first", "REBOOT_NEEDED"
    )
    result = await controller.ctl("agents", "release", WEB, "--reason", "checked")
    assert (result.code, result.err) == (1, "jarvisctl: the agent must reboot first [REBOOT_NEEDED]\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--buffer-size-mb", "63"], "--buffer-size-mb is 63: accepted are 64 to 8,192 MiB"),
        (["--buffer-size-mb", "8193"], "--buffer-size-mb is 8,193: accepted are 64 to 8,192 MiB"),
        (["--max-flows", "4095"], "--max-flows is 4,095: accepted are 4,096 to 16,777,216 flows"),
        (["--snaplen", "63"], "--snaplen is 63: accepted are 64 to 262,144 bytes, or 0 for 262,144"),
        (["--idle-timeout", "soon"], "--idle-timeout is 'soon': accepted are forms like 30s, 5m, 1h30m, or plain seconds"),
        (["--file", "a.pcap"], "exactly one of the two is accepted"),
        (["--backend", "file"], "accepted for an interface are auto, pcap, afpacket, xdp, dpdk and pfring"),
        (["--exclusive"], "--exclusive is given and --backend is 'auto': accepted with it are xdp and dpdk"),
        (["--agent", "WEB"], "--agent is 'WEB': accepted are agent ids or prefixes of at least 4 characters"),
    ],
)
async def test_values_out_of_range_are_refused_here_with_option_value_and_what_is_accepted(
    controller: Controller, arguments: list[str], sentence: str
) -> None:
    result = await controller.ctl("capture", "start", "--selector", "role=web", "--interface", "eth0", *arguments)
    assert result.code == 2
    assert sentence in result.err
    assert controller.service.requests == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["flows", "--limit", "100001"], "--limit is 100,001: accepted are 1 to 100,000 flows"),
        (["flows", "--follow", "--sort-by", "octets"], "--sort-by is 'octets': accepted for live flows only"),
        (["flows", "--since", "5m", "--last", "3"], "only one of them is accepted"),
        (["flows", "--since", "2026-11-22T10:00:00"], "names no time zone"),
        (["flows", "--since", "2026-13-22T10:00:00Z"], "which is no time"),
        (["events", "--since", "5m", "--last", "3"], "only one of them is accepted"),
        (["events", "--last", "100001"], "--last is 100,001: accepted are 1 to 100,000 events"),
        (["events", "--limit", "3"], "--limit is 3: accepted only together with --follow"),
        (["events", "--type", "los"], "--type is 'los': accepted are capture_loss, clock_step"),
        (["metrics", "--follow", "--interval", "50ms"], "--interval is 50ms: accepted are 100ms to 1h"),
        (["metrics", "--interval", "1s"], "accepted only together with --follow"),
        (["enroll", "token", "--lifetime", "8d"], "--lifetime is 8d: accepted are 1m to 7d"),
        (["enroll", "token", "--label", "web"], "--label is 'web': accepted is KEY=VALUE"),
        (["agents", "quarantine", WEB, "--reason", " "], "some words are needed"),
        (["audit", "replay"], "give one of --sequence N and --all"),
        (["audit", "replay", "--all", "--sequence", "3"], "give one of --sequence N and --all"),
        (["audit", "export", "--sd-id", "jarvis"], "--sd-id is 'jarvis': accepted is name@enterprise-number"),
        (["audit", "export", "--after", "-1"], "--after is -1: accepted are 0 to"),
        (["audit", "verify", "--expect", "3"], "--expect is '3': accepted is SEQUENCE:HASH"),
        (["--timeout", "0", "agents", "list"], "--timeout is 0: accepted are more than 0"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused_here(controller: Controller, arguments: list[str], sentence: str) -> None:
    result = await controller.ctl(*arguments)
    assert result.code == 2
    assert sentence in result.err
    assert controller.service.requests == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("endpoint = 5", "the key 'endpoint' is 5: a non-empty string is needed"),
        ("endpoint = 'a:1'", "the key 'fleet' is missing"),
        ("endpoint = 'a'\nfleet='f'\nca='c'\ncertificate='c'\nkey='k'", "endpoint is 'a': host:port is needed"),
        ("endpoint = 'a:70000'\nfleet='f'\nca='c'\ncertificate='c'\nkey='k'", "with a port of 1 to 65535"),
        ("endpiont = 'a:1'", "the key 'endpiont' is unknown: accepted are endpoint, fleet, ca, certificate, key"),
        ("endpoint = ", "is not TOML"),
        (
            "endpoint = '[::1]:7440'\nfleet='f'\nca='c.pem'\ncertificate='c'\nkey='k'",
            "c.pem cannot be read: No such file or directory",
        ),
    ],
)
async def test_a_bad_configuration_names_file_key_and_value(tmp_path: Path, text: str, sentence: str) -> None:
    config = tmp_path / "jarvisctl.toml"
    config.write_text(text, encoding="utf-8")
    result = await run_ctl("agents", "list", config=config)
    assert result.code == 2
    assert sentence in result.err
    assert str(tmp_path) in result.err


async def test_no_configuration_says_where_it_was_looked_for() -> None:
    result = await run_ctl("agents", "list", HOME="/nonexistent", XDG_CONFIG_HOME="", JARVISCTL_CONFIG="")
    assert result.code == 2
    assert "no configuration at /nonexistent/.config/jarvis-capture/jarvisctl.toml" in result.err
