# SPDX-License-Identifier: Apache-2.0
"""Nothing that must stay secret is in what a fleet writes: logs, audit chain, events, tables, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.fleet import FIRMWARE, Fleet, FleetError, program, wait_for
from testbed.policy import PolicyText

PRIVATE = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\n(.*?)-----END", re.DOTALL)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that had a busy and unlucky life: enrolment, capture, a refused token, a refused agent, a quarantine."""
    if not (FIRMWARE / "manifest.sig").exists():
        pytest.fail(f"{FIRMWARE} holds no signed firmware: run `make setup`")
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=PolicyText(interval_s=1, lease_s=5)) as fleet:
        fleet.start()
        first = fleet.add_agent("first")
        fleet.wait_for_state(first, "verified")
        fleet.jarvisctl("capture", "start", "--all", "--interface", "nowhere0", check=False)
        thief = fleet.add_agent("thief", join_file=first.directory / "join.json")  # its token is spent
        wait_for("the refusal", lambda: "TOKEN_REUSED" in thief.log.read_text(), log=thief.log)
        fleet.jarvisctl("agents", "quarantine", first.agent_id, "--reason", "a test", check=False)
        yield fleet


def secrets_of(fleet: Fleet) -> dict[str, str]:
    """Where each was found → the secret: tokens, and every line of every private key."""
    found: dict[str, str] = {}
    for path in sorted(fleet.directory.rglob("*")):
        if not path.is_file() or "tpm" in path.parts or path.suffix == ".log":
            continue
        text = path.read_bytes().decode("ascii", "ignore")
        for number, match in enumerate(PRIVATE.finditer(text)):
            # The first line holds little but the algorithm's name, which other keys share.
            for line in match[1].split()[1:-1] or match[1].split():
                found[f"{path.name} key {number} {line[:4]}"] = line
        if path.name == "join.json":
            found[path.name] = json.loads(text)["token"]
    return found


def written_by(fleet: Fleet) -> dict[str, str]:
    """Everything that the fleet's programs wrote for people or other machines."""
    written = {str(path): path.read_text(errors="replace") for path in fleet.directory.rglob("*.log")}
    for arguments in (
        ("agents", "list"),
        ("audit", "list"),
        ("events",),
        ("attest", "--all"),
        ("agents", "list", "--show-retired"),
    ):
        for output in ("json", "table"):
            done = fleet.run("--output", output, *arguments)
            written[f"{' '.join(arguments)} as {output}"] = done.stdout + done.stderr
    for path in fleet.directory.rglob("*.journal"):
        written[str(path)] = path.read_bytes().decode("utf-8", "replace")
    return written


def test_no_log_table_or_chain_holds_a_token_or_a_key(fleet: Fleet) -> None:
    secrets, written = secrets_of(fleet), written_by(fleet)
    assert len(secrets) > 5
    assert any("TOKEN_REUSED" in text for text in written.values()), "nothing was written at all"
    leaks = [(where, origin) for origin, secret in secrets.items() for where, text in written.items() if secret in text]
    assert leaks == []


def test_the_search_finds_a_secret_that_leaks(fleet: Fleet, tmp_path: Path) -> None:
    (fleet.directory / "leak.log").write_text(
        "token=" + json.loads((fleet.directory / "first" / "join.json").read_text())["token"]
    )
    with pytest.raises(AssertionError):
        test_no_log_table_or_chain_holds_a_token_or_a_key(fleet)
    (fleet.directory / "leak.log").unlink()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_by_name(fleet: Fleet, mode: int) -> None:
    key = fleet.controller_directory / "admin.key"
    key.chmod(mode)
    try:
        done = fleet.run("agents", "list")
    finally:
        key.chmod(0o600)
    assert done.returncode != 0
    assert "admin.key" in done.stderr
    assert "0600" in done.stderr


def test_exposed_keys_of_controller_and_agent_end_their_start(fleet: Fleet) -> None:
    for directory, names, command in (
        (fleet.controller_directory, ("command.key", "controller.pem", "ca/ca.key"), ("jarvis-controller", "controller.toml")),
        (fleet.agents["first"].directory, ("join.json",), ("jarvis-agent", "agent.toml")),
    ):
        for name in names:
            path = directory / name
            path.chmod(0o644)
            try:
                with pytest.raises(FleetError, match="0600"):
                    _start(fleet, command[0], directory / command[1])
            finally:
                path.chmod(0o600)


def _start(fleet: Fleet, name: str, config: Path) -> None:
    log = fleet.directory / f"{name}-exposed.log"
    process = fleet.place.start([program(name), "run", "--config", str(config)], log)
    process.wait(30)
    text = log.read_text()
    log.unlink()
    if process.returncode:
        raise FleetError(text)
