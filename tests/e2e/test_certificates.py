# SPDX-License-Identifier: Apache-2.0
"""Certificates and the CA of a real fleet change under its streams: no record is lost and none comes twice."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.fleet import Agent, Fleet, wait_for
from testbed.flow_stream import FlowStream
from testbed.policy import PolicyText
from tests.e2e.conftest import write_capture


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and two verified agents: one dials, and keeps its TLS key in its TPM, one is dialled."""
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=PolicyText(interval_s=1, lease_s=5)) as fleet:
        fleet.start()
        for name, carrier in (("host-a", "tunnel"), ("host-b", "direct")):
            fleet.add_agent(name, carrier=carrier)
        for agent in fleet.agents.values():
            fleet.wait_for_state(agent, "verified", seconds=60)
        yield fleet


class Replays:
    """Captures that an agent replays one after the other, and every record that they must give."""

    def __init__(self, fleet: Fleet, agent: Agent) -> None:
        self._fleet, self._agent = fleet, agent
        self._made = Counter(write_capture(agent, count=50))
        self.expected: Counter[tuple[str, int]] = Counter()

    def once(self) -> None:
        self._fleet.jarvisctl("capture", "start", "--agent", self._agent.agent_id, "--file", "http.pcap")
        wait_for("the end of the file", self._is_over)
        self.expected.update(self._made)

    def _is_over(self) -> bool:
        (row,) = self._fleet.rows("capture", "status", "--agent", self._agent.agent_id)
        return bool(row["capture"]["state"] == "stopped")

    def seen_once_each(self, stream: FlowStream, before: Counter[tuple[str, int]] | None = None) -> None:
        """Waits until the stream has given exactly what was expected, without what was over before it began."""
        wanted = self.expected - (before or Counter())

        def found() -> Counter[tuple[str, int]]:
            return Counter((flow["dst_addr"], flow["src_port"]) for flow in stream.flows(self._agent))

        wait_for("every record", lambda: found().total() >= wanted.total())
        assert found() == wanted
        assert not sum(loss["lost"] for loss in stream.losses())


def stage(fleet: Fleet, command: str) -> subprocess.CompletedProcess[str]:
    return fleet.run("--output", "json", "ca", command, "--reason", "yearly")


def reason_of(done: subprocess.CompletedProcess[str]) -> str:
    """Of a refusal; empty when it went well."""
    return "" if done.returncode == 0 else json.loads(done.stderr.splitlines()[-1])["error"]["reason"]


def ended_for(stream: FlowStream, reason: str) -> bool:
    return any(reason in line for line in (*stream.other_output, *map(str, list(stream.events))))


def newest(fleet: Fleet, role: str) -> list[dict[str, Any]]:
    return fleet.rows("certs", "list", "--role", role, "--state", "valid")


@pytest.mark.timeout(300)
def test_the_fleet_goes_from_one_ca_to_the_next_under_running_streams(fleet: Fleet, one: Agent, two: Agent) -> None:
    replays = [Replays(fleet, one), Replays(fleet, two)]

    def replay() -> None:
        for each in replays:
            each.once()

    with FlowStream(fleet) as stream:
        wait_for("the stream", lambda: stream.is_streaming(one) and stream.is_streaming(two))
        replay()
        (before,) = fleet.rows("ca", "show")
        assert reason_of(stage(fleet, "prepare")) == ""
        # Agents are told by their next lease, and renew; until they have, nobody issues with the new CA.
        wait_for("all agents to trust the new CA", lambda: reason_of(stage(fleet, "activate")) == "", seconds=60)
        (shown,) = fleet.rows("ca", "show")
        new = next(row["id"] for row in shown["authorities"] if row["role"] == "issuing")
        assert new not in {row["id"] for row in before["authorities"]}
        replay()
        moved = [new, new]
        wait_for("agents of the new CA", lambda: [row["issuer"] for row in newest(fleet, "agent")] == moved, seconds=60)
        assert reason_of(stage(fleet, "retire")) == "ROTATION_CUTS_OFF"
        fleet.jarvisctl("certs", "renew")
        replay()
        for each in replays:
            each.seen_once_each(stream)
        assert not [loss for loss in stream.losses() if loss["agent_id"] == two.agent_id], "its stream was not even cut"
        over = [each.expected.copy() for each in replays]
        with FlowStream(fleet) as second:
            wait_for("the second stream", lambda: second.is_streaming(one) and second.is_streaming(two))
            replay()
            assert reason_of(stage(fleet, "retire")) == ""
            wait_for("the end of the old certificate's stream", lambda: ended_for(stream, "CERTIFICATE_UNTRUSTED"))
            for agent in (one, two):
                fleet.wait_for_state(agent, "verified")
            replay()
            for each, earlier in zip(replays, over, strict=True):
                each.seen_once_each(second, earlier)
    (after,) = fleet.rows("ca", "show")
    assert [row["role"] for row in after["authorities"]] == ["issuing", "retired"]
    newcomer = fleet.add_agent("newcomer")
    fleet.wait_for_state(newcomer, "verified", seconds=60)
    fleet.jarvisctl("audit", "verify")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["host-a", "host-b"], ids=["dials", "is-dialled"])
def test_a_revoked_agent_is_out_until_a_new_join_file(fleet: Fleet, name: str) -> None:
    agent = fleet.agents[name]
    uri, key = f"spiffe://{fleet.name}/agent/{agent.agent_id}", agent.directory / "state" / "tls" / "agent.key"
    before = key.read_bytes() if key.exists() else b""
    revoked = fleet.rows("certs", "revoke", uri, "--reason", "the disk was copied")
    assert {row["state"] for row in revoked} == {"revoked"}
    assert "CERTIFICATE_REVOKED" in fleet.wait_for_state(agent, "stale")["reason"]
    agent.stop()
    agent.start()
    assert _still(fleet, agent)
    agent.stop()
    join_file = agent.directory / "join.json"
    join_file.unlink()
    fleet.jarvisctl("enroll", "token", "-o", str(join_file))
    agent.start()
    fleet.wait_for_state(agent, "verified", seconds=60)
    # One in the TPM cannot have been copied: it stays.
    assert not before or key.read_bytes() != before


def _still(fleet: Fleet, agent: Agent) -> bool:
    rows = fleet.rows("agents", "list")
    return next(row["state"] for row in rows if row["agent_id"] == agent.agent_id) == "stale"


def test_an_operator_gets_a_certificate_without_giving_the_key_away(fleet: Fleet, tmp_path: Path) -> None:
    fleet.jarvisctl("certs", "request", "vera", "--role", "viewer", "--out", str(tmp_path))
    csr = tmp_path / "vera.csr"
    fleet.jarvisctl("certs", "issue", str(csr), "--name", "vera", "--role", "viewer", "--lifetime", "2h", "--out", str(tmp_path))
    vera = tmp_path / "jarvisctl.toml"
    assert fleet.run("agents", "list", config=vera).returncode == 0
    refused = fleet.run("--output", "json", "certs", "revoke", "0" * 40, "--reason", "none", config=vera)
    assert json.loads(refused.stderr.splitlines()[-1])["error"]["reason"] == "ROLE_DENIED"
    before = (tmp_path / "vera.crt").read_bytes()
    assert fleet.run("certs", "renew", config=vera).returncode == 0
    assert (tmp_path / "vera.crt").read_bytes() != before
    assert fleet.run("agents", "list", config=vera).returncode == 0
    assert "vera" in fleet.run("certs", "list", "--role", "viewer", config=vera).stdout
