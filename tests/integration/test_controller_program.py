# SPDX-License-Identifier: Apache-2.0
"""The jarvis-controller program: what init makes, what it refuses, what run needs, how certificates are renewed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.cli import app
from jarvis_controller.config import ConfigError
from jarvis_controller.server import Controller
from jarvis_trust.ca import FleetCA, identity_of_certificate
from jarvis_trust.identities import Role
from typer.testing import CliRunner, Result

from testbed.ports import free_port
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import operator_channel
from tests.unit.controller.fleet import FLEET, running_fleet
from tests.unit.controller.software_tpm import Vendor


def init(directory: Path, release_key: ReleaseKey, *more: str) -> Result:
    directory.parent.mkdir(exist_ok=True)
    vendor, root = directory.parent / "vendor.pem", directory.parent / "root.json"
    vendor.write_bytes(Vendor().root_pem)
    root.write_bytes(release_key.root)
    options = ["--fleet", FLEET, "--host", "127.0.0.1", "--ek-root", str(vendor), "--release-root", str(root), *more]
    return CliRunner().invoke(app, ["init", str(directory), *options])


def test_init_makes_a_fleet_whose_secrets_only_their_owner_can_read(tmp_path: Path, release_key: ReleaseKey) -> None:
    directory = tmp_path / "fleet"
    assert init(directory, release_key).exit_code == 0
    modes = {path.relative_to(directory): stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_file()}
    assert {str(path) for path, mode in modes.items() if mode != 0o600} == {"ca/ca.crt"}  # the only one that is no secret
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    table = tomllib.loads((directory / "jarvisctl.toml").read_text())
    assert set(table) == {"endpoint", "fleet", "ca", "certificate", "key"}
    assert table["endpoint"] == "127.0.0.1:7440"
    identity = identity_of_certificate((directory / table["certificate"]).read_bytes())
    assert (identity.role, identity.name) == (Role.ADMIN, "admin")


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path, release_key: ReleaseKey) -> None:
    directory = tmp_path / "fleet"
    init(directory, release_key)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    again = init(directory, release_key)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--fleet", "Not A Name"), "fleet"),
        (("--name", "a.b"), "controller name"),
        (("--ek-root", "/nowhere.pem"), "--ek-root /nowhere.pem"),
        (("--release-root", "/dev/null"), "--release-root /dev/null"),
        (("--host", ""), "--host"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_made(
    tmp_path: Path, release_key: ReleaseKey, more: tuple[str, ...], said: str
) -> None:
    refused = init(tmp_path / "fleet", release_key, *more)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert not (tmp_path / "fleet").exists()


def test_viewers_and_operators_can_be_made_offline_and_nobody_else(tmp_path: Path, release_key: ReleaseKey) -> None:
    directory = tmp_path / "fleet"
    init(directory, release_key)
    for role in ("viewer", "operator"):
        out = tmp_path / role
        options = ["--role", role, "--out", str(out), "--config", str(directory / "controller.toml"), "--host", "127.0.0.1"]
        assert CliRunner().invoke(app, ["operator", "otto", *options]).exit_code == 0
        assert identity_of_certificate((out / "otto.crt").read_bytes()).role == role
    for role in ("agent", "controller", "admin"):
        options = ["--role", role, "--out", str(tmp_path / "x"), "--config", str(directory / "controller.toml")]
        assert CliRunner().invoke(app, ["operator", "otto", *options]).exit_code == 2
    assert not (tmp_path / "x").exists()


async def answers(directory: Path, port: int) -> bool:
    ca = FleetCA.load(directory / "ca").certificate_pem
    key, certificate = (directory / "admin.key").read_bytes(), (directory / "admin.crt").read_bytes()
    async with operator_channel(f"127.0.0.1:{port}", ca, key, certificate, FLEET) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=20)
        serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
        return serving


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_the_program_serves_and_comes_back_after_its_end_however_it_came(
    tmp_path: Path, release_key: ReleaseKey, number: int, exit_code: int
) -> None:
    directory, port = tmp_path / "fleet", free_port()
    init(directory, release_key, "--port", str(port), "--enroll-port", str(free_port()))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "jarvis_controller", "run", "--config", str(directory / "controller.toml")]
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            try:
                assert asyncio.run(answers(directory, port))
            finally:
                os.kill(process.pid, number)
            assert process.wait(20) == exit_code


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("root.json", b"garbage", "RELEASE_ROOT_INVALID"),
        ("ca/ca.key", b"garbage", "KEY_FILE_INVALID"),
        ("command.key", b"-----BEGIN PRIVATE KEY-----\n", "KEY_INVALID"),
        ("controller.pem", b"garbage", "KEY_FILE_INVALID"),
        ("ek-roots/01-vendor.pem", b"garbage", "POLICY_VERSION_REUSED: .*it differs in ek-roots/01-vendor.pem"),
        ("policy.toml", b"garbage", "policy.toml: not TOML"),
    ],
)
async def test_a_spoiled_file_is_named_before_anything_is_served(
    tmp_path: Path, release_key: ReleaseKey, file: str, content: bytes, said: str
) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        config = fleet.config
    (fleet.directory / file).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        Controller(config)


async def test_a_key_that_others_can_read_is_refused(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        config = fleet.config
    (fleet.directory / "command.key").chmod(0o640)
    with pytest.raises(ConfigError, match="KEY_FILE_EXPOSED"):
        Controller(config)


async def test_a_port_in_use_is_an_error_that_names_the_field(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        taken = f"127.0.0.1:{fleet.controller.operator_port}"
        (tmp_path / "second").mkdir()
        with pytest.raises(ConfigError, match="listen"):
            async with running_fleet(tmp_path / "second", release_key, listen=taken):
                pass


async def test_the_controllers_certificate_is_renewed_while_it_serves(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        agent = await fleet.add_agent()
        credentials = fleet.controller.credentials
        before = credentials.current
        assert not credentials.renew_if_due()
        assert credentials.renew_if_due(now=datetime.now(UTC) + timedelta(days=21))
        assert credentials.current.spki_sha256 != before.spki_sha256
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert outcome.status.code == 0, "the quote must bind the new key on a new channel"
        stub = await fleet.stub(Role.VIEWER)
        listed = await stub.ListAgents(fleet_pb2.ListAgentsRequest())
        assert listed.agents[0].state == fleet_pb2.AGENT_STATE_VERIFIED


async def test_an_edited_audit_log_does_not_stop_the_controller_from_showing_it(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        await fleet.join_file()
        await fleet.join_file()
        config = fleet.config
    _edit_audit(fleet.directory / "controller.db")
    controller = Controller(config)
    async with controller.running():
        shown = [entry.action for entry in await controller.store.audit_page(0, 10)]
        assert shown.count("enroll.token") == 2


def _edit_audit(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE audit SET detail = '{}' WHERE sequence = 1")
