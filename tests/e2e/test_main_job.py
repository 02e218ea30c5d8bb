# SPDX-License-Identifier: Apache-2.0
"""Enrol, attest, capture, stream: the line from native core to operator, and what happens when a part of it breaks."""

from __future__ import annotations

import functools
import signal
import socket
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role

from testbed.fleet import Agent, Fleet, set_toml, wait_for
from testbed.flow_stream import FlowStream
from tests.e2e.conftest import write_capture

LEASE_S = 5
PARTS = ("metered", "filtered", "non_ip", "malformed", "paused", "dropped_nic", "dropped_kernel", "dropped_user", "in_flight")


def start_replay(fleet: Fleet, *selector: str, name: str = "http.pcap") -> list[dict[str, Any]]:
    return fleet.rows("capture", "start", *selector, "--file", name, check=False)


def capture_state(fleet: Fleet, agent: Agent) -> str:
    (row,) = fleet.rows("capture", "status", "--agent", agent.agent_id)
    return str(row["capture"]["state"])


def send_to_loopback(*, seconds: float) -> None:
    """A datagram to ourselves every 50 ms."""
    until = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        while time.monotonic() < until:
            sender.sendto(b"still here", receiver.getsockname())
            time.sleep(0.05)


def connections(flows: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((flow["dst_addr"], flow["src_port"]) for flow in flows)


def has_exactly(stream: FlowStream, agent: Agent, made: Counter[tuple[str, int]]) -> bool:
    return connections(stream.flows(agent)) == made


def test_flows_of_both_agents_arrive_as_one_stream_each_connection_once(fleet: Fleet, one: Agent, two: Agent) -> None:
    made = {agent.name: Counter(write_capture(agent)) for agent in (one, two)}
    with FlowStream(fleet) as stream:
        wait_for("the stream", lambda: stream.is_streaming(one) and stream.is_streaming(two))
        assert [row["ok"] for row in start_replay(fleet, "--all")] == [True, True]
        for agent in (one, two):
            wait_for("the flows", functools.partial(has_exactly, stream, agent, made[agent.name]))
        assert stream.losses() == []


def test_every_counter_adds_up_after_a_replay(fleet: Fleet, one: Agent) -> None:
    made = write_capture(one)
    start_replay(fleet, "--agent", one.agent_id)
    wait_for("the end of the file", lambda: capture_state(fleet, one) == "stopped")
    (answer,) = fleet.rows("metrics", "--agent", one.agent_id)
    metrics = answer["metrics"]
    assert metrics["received"] == 8 * len(made) == sum(metrics[part] for part in PARTS)
    assert metrics["in_flight"] == 0
    assert metrics["flows_total"] == metrics["records_written"] == len(made)


def test_finished_flows_are_kept_for_a_later_subscriber_and_filtered_by_expression(fleet: Fleet, one: Agent) -> None:
    write_capture(one, count=20)
    start_replay(fleet, "--agent", one.agent_id)
    wait_for("the end of the file", lambda: capture_state(fleet, one) == "stopped")
    rows = fleet.rows("flows", "--agent", one.agent_id, "--since", "oldest", "--filter", "ip6 and tcp src port 20007")
    assert [(row["dst_addr"], row["src_port"]) for row in rows if row.get("event", "flow") == "flow"] == [("fd77::2", 20007)]


def test_interfaces_of_a_running_capture_are_changed_by_the_operator(fleet: Fleet, one: Agent) -> None:
    def names(*arguments: str) -> list[str]:
        (row,) = fleet.rows("capture", *arguments, "--agent", one.agent_id)
        assert row["ok"]
        return [interface["name"] for interface in row["capture"]["interfaces"]]

    assert names("start", "--interface", "lo") == ["lo"]
    try:
        assert names("interfaces", "add", "any") == ["lo", "any"]
        (row,) = fleet.rows("capture", "interfaces", "add", "lo", "--agent", one.agent_id, check=False)
        assert not row["ok"]
        assert "captured already" in str(row["error"])
        assert names("interfaces", "remove", "lo") == ["any"]
        assert names("interfaces", "list") == ["any"]
    finally:
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)


def test_a_second_capture_is_refused_while_one_runs(fleet: Fleet, one: Agent) -> None:
    assert fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo")[0]["ok"]
    try:
        (refused,) = start_replay(fleet, "--agent", one.agent_id)
        assert refused["error"]["reason"] == "CAPTURE_RUNNING"
    finally:
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--interface", "nosuch0"), "nosuch0"),
        (("--interface", "lo", "--filter", "tcp port"), "syntax error"),
        (("--file", "../../../etc/passwd"), "passwd"),
        (("--file", "missing.pcap"), "missing.pcap"),
        (("--file", "garbage.pcap"), "garbage.pcap"),
        (("--interface", "lo", "--timestamp-source", "hardware"), "timestamp"),
    ],
)
def test_bad_input_is_refused_by_the_agent_with_the_cause(
    fleet: Fleet, one: Agent, arguments: tuple[str, ...], expected: str
) -> None:
    (one.replay_directory / "garbage.pcap").write_bytes(b"this is no capture file at all")
    (row,) = fleet.rows("capture", "start", "--agent", one.agent_id, *arguments, check=False)
    assert not row["ok"]
    assert expected in str(row["error"])


def test_a_selector_that_matches_nobody_is_an_error(fleet: Fleet) -> None:
    assert fleet.rows("capture", "start", "--selector", "site=nowhere", "--interface", "lo", check=False) == []
    done = fleet.run("capture", "start", "--selector", "site=nowhere", "--interface", "lo")
    assert done.returncode != 0
    assert "matches none of 2 agents" in done.stderr


def test_a_join_file_admits_one_host_only(fleet: Fleet, one: Agent) -> None:
    thief = fleet.add_agent("thief", join_file=one.directory / "join.json")
    try:
        wait_for("the refusal", lambda: "TOKEN_REUSED" in thief.log.read_text(), log=thief.log)
        assert len(fleet.rows("agents", "list")) == 2
    finally:
        thief.stop()
        fleet.agents.pop("thief").tpm.stop()


def test_a_viewer_may_look_but_not_start_a_capture(fleet: Fleet, one: Agent) -> None:
    directory = fleet.controller_directory
    authority = FleetCA.load(directory / "ca")
    key = generate_key()
    identity = Identity(fleet=fleet.name, role=Role.VIEWER, name="eve")
    (directory / "eve.key").write_bytes(key)
    (directory / "eve.key").chmod(0o600)
    (directory / "eve.crt").write_bytes(authority.issue(identity, public_key_of(key), timedelta(hours=1)))
    config = directory / "eve.toml"
    config.write_text((directory / "jarvisctl.toml").read_text())
    set_toml(config, certificate="eve.crt", key="eve.key")
    assert fleet.run("agents", "list", config=config).returncode == 0
    done = fleet.run("capture", "start", "--all", "--interface", "lo", config=config)
    assert done.returncode == 3
    assert "operator" in done.stderr


def test_an_agent_killed_in_mid_stream_is_said_to_be_gone_and_comes_back(fleet: Fleet, one: Agent, two: Agent) -> None:
    with FlowStream(fleet) as stream:
        wait_for("the stream", lambda: stream.is_streaming(one) and stream.is_streaming(two))
        one.stop(signal.SIGKILL)
        wait_for("the stream to say so", lambda: not stream.is_streaming(one))
        assert stream.is_streaming(two)
        one.start()
        wait_for("it to come back", lambda: stream.is_streaming(one), log=one.log)
        (loss,) = stream.losses()
        assert (loss["agent_id"], loss["point"], loss["count_unknown"]) == (one.agent_id, "agent_process", True)
        made = Counter(write_capture(one, count=10))
        assert start_replay(fleet, "--agent", one.agent_id)[0]["ok"]
        wait_for("its flows", lambda: connections(stream.flows(one)) == made)


def test_an_agent_that_is_stopped_in_order_and_comes_back_has_lost_nothing(fleet: Fleet, one: Agent) -> None:
    with FlowStream(fleet) as stream:
        wait_for("the stream", lambda: stream.is_streaming(one))
        one.stop(signal.SIGTERM)
        wait_for("the stream to say so", lambda: not stream.is_streaming(one))
        one.start()
        wait_for("it to come back", lambda: stream.is_streaming(one), log=one.log)
        made = Counter(write_capture(one, count=10))
        assert start_replay(fleet, "--agent", one.agent_id)[0]["ok"]
        wait_for("its flows", lambda: connections(stream.flows(one)) == made)
        assert stream.losses() == []


def test_a_killed_controller_comes_back_and_its_audit_chain_holds(fleet: Fleet, one: Agent, two: Agent) -> None:
    with FlowStream(fleet) as stream:
        wait_for("the stream", lambda: stream.is_streaming(one) and stream.is_streaming(two))
        fleet.stop(signal.SIGKILL)
        done = fleet.run("agents", "list")
        assert done.returncode == 3
        fleet.start()
        for agent in (one, two):
            fleet.wait_for_state(agent, "verified")
        assert "holds" in fleet.jarvisctl("audit", "verify")
        # Several agents are followed from now on after a lost connection, so the flows must come after it is back.
        wait_for("the stream to reconnect", lambda: stream.is_streaming(one) and stream.is_streaming(two))
        made = Counter(write_capture(two, count=10))
        assert start_replay(fleet, "--agent", two.agent_id)[0]["ok"]
        wait_for("flows in the stream that reconnected", lambda: connections(stream.flows(two)) == made)


def test_a_quarantine_by_hand_pauses_the_capture_at_once(fleet: Fleet, one: Agent) -> None:
    assert fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo")[0]["ok"]
    try:
        fleet.jarvisctl("agents", "quarantine", one.agent_id, "--reason", "looked odd")
        assert "the controller ended it" in one.log.read_text()
        send_to_loopback(seconds=0.5)
        fleet.jarvisctl("agents", "release", one.agent_id, "--reason", "was not")
        fleet.wait_for_state(one, "verified")
        (row,) = fleet.rows("capture", "status", "--agent", one.agent_id)
        assert row["capture"]["state"] == "running"
        assert row["capture"]["metrics"]["paused"] > 0
        assert '"delivered":true' in fleet.jarvisctl("--output", "json", "audit", "list").replace("\\", "").replace(" ", "")
    finally:
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)


def test_the_clock_of_a_live_capture_is_told_and_one_that_is_not_there_refused_by_name(fleet: Fleet, one: Agent) -> None:
    (refused,) = fleet.rows(
        "capture", "start", "--agent", one.agent_id, "--interface", "lo", "--timestamp-source", "ptp", check=False
    )
    assert not refused["ok"]
    assert "interface lo has no PTP hardware clock" in refused["error"]["message"]
    assert fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo", "--loss-threshold", "1000")[0]["ok"]
    try:
        (row,) = fleet.rows("capture", "status", "--agent", one.agent_id)
        clock = row["capture"]["clock"]
        assert (clock["source"], clock["offset_ns"], clock["error_bound_ns"]) == ("kernel", 0, 0)
        assert row["capture"]["spec"]["loss_threshold"] == 1000
    finally:
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)


def test_without_a_controller_the_lease_ends_and_the_capture_pauses_until_the_next(fleet: Fleet, one: Agent) -> None:
    assert fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo")[0]["ok"]
    try:
        before = fleet.rows("metrics", "--agent", one.agent_id)[0]["metrics"]
        assert before["paused"] == 0
        fleet.stop()
        send_to_loopback(seconds=LEASE_S + 2)
        fleet.start()
        fleet.wait_for_state(one, "verified")
        after = wait_for(
            "the capture to resume",
            lambda: (row := fleet.rows("capture", "status", "--agent", one.agent_id)[0])["capture"]["state"] == "running" and row,
        )
        metrics = after["capture"]["metrics"]
        assert metrics["paused"] > 0
        assert metrics["received"] == sum(metrics[part] for part in PARTS)
    finally:
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)
