# SPDX-License-Identifier: Apache-2.0
"""What happens in a real fleet reaches an operator: once each, in order, over the death of any part."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

from testbed.event_stream import EventStream
from testbed.fleet import Agent, Fleet, wait_for
from tests.e2e.conftest import write_capture


def kept(fleet: Fleet, agent: Agent, *options: str) -> list[dict[str, Any]]:
    return fleet.rows("events", "--agent", agent.agent_id, "--since", "oldest", *options, check=False)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def own(events: list[dict[str, Any]], agent: Agent) -> list[dict[str, Any]]:
    """What the agent told itself: its journal's events."""
    mine = [event for event in events if event["agent_id"] == agent.agent_id]
    started = next(event for event in mine if event["type"] == "agent_started")
    return [event for event in mine if event["source_id"] == started["source_id"]]


def test_joining_and_the_first_lease_are_told_by_both_sides(fleet: Fleet, one: Agent) -> None:
    wait_for("the first lease", lambda: "lease_granted" in types(kept(fleet, one)))
    events = kept(fleet, one)
    assert {"agent_enrolled", "agent_state_changed", "agent_started", "lease_granted"} <= set(types(events))
    assert [event["sequence"] for event in own(events, one)] == list(range(1, len(own(events, one)) + 1))


def test_a_captures_start_and_end_are_seen_while_they_happen(fleet: Fleet, one: Agent) -> None:
    write_capture(one)
    with EventStream(fleet, "--agent", one.agent_id) as stream:
        (started,) = fleet.rows("capture", "start", "--agent", one.agent_id, "--file", "http.pcap")
        wait_for("the end of the file", lambda: stream.events("capture_stopped"))
        (began,), (ended,) = stream.events("capture_started"), stream.events("capture_stopped")
    assert began["capture_id"] == ended["capture_id"] == started["capture"]["capture_id"]
    assert "backend file" in began["message"]
    assert "the end of the input was reached" in ended["message"]


def test_a_quarantine_and_a_release_are_seen_with_who_and_why(fleet: Fleet, two: Agent) -> None:
    with EventStream(fleet, "--all", "--severity", "critical") as stream:
        fleet.jarvisctl("agents", "quarantine", two.agent_id, "--reason", "stolen laptop")
        (event,) = wait_for("the quarantine", lambda: stream.events("agent_state_changed"))
    assert (event["agent_id"], event["detail"]["to"], event["severity"]) == (two.agent_id, "QUARANTINED", "critical")
    assert "stolen laptop" in event["detail"]["reason"]
    assert event["detail"]["principal"].startswith("spiffe://")
    fleet.jarvisctl("agents", "release", two.agent_id, "--reason", "found again")
    fleet.wait_for_state(two, "verified")
    # What the agent noticed while nobody listened to it was kept there.
    wait_for("the agent's own account", lambda: "lease_revoked" in types(kept(fleet, two)))


@pytest.mark.timeout(120)
def test_an_agent_that_is_killed_loses_no_event_and_repeats_none(fleet: Fleet, one: Agent) -> None:
    with EventStream(fleet, "--agent", one.agent_id, last=1) as stream:
        wait_for("the stream to be connected", stream.events)  # it goes on over lost connections only once it had one
        before = own(kept(fleet, one), one)
        first = before[-1]["sequence"] + 1
        fleet.stop(signal.SIGKILL)
        # Nobody renews the lease and nobody listens: that it ran out is on the agent's disk alone.
        wait_for("the lease to run out", lambda: b"ran out without a renewal" in journal(one), seconds=20)
        one.stop(signal.SIGKILL)
        one.start()
        fleet.start()
        fleet.wait_for_state(one, "verified")
        after = wait_for("the new lease", lambda: new_lease(own(kept(fleet, one), one), len(before)))
        assert after[: len(before)] == before
        assert [event["sequence"] for event in after] == list(range(1, len(after) + 1))
        assert types(after[len(before) :])[:2] == ["lease_expired", "agent_started"]
        wait_for("the stream to catch up", lambda: len(own_of(stream, before, first)) >= len(after) - len(before))
        numbers = [event["sequence"] for event in own_of(stream, before, first)]
        assert numbers == list(range(first, first + len(numbers))), "the operator's stream went on over both deaths"
        assert stream.losses() == []
    assert "events_lost" not in types(kept(fleet, one))


def own_of(stream: EventStream, before: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The agent's own events in a stream, from a sequence number on."""
    own_source = before[0]["source_id"]
    return [event for event in stream.events() if event["source_id"] == own_source and event["sequence"] >= first]


def new_lease(events: list[dict[str, Any]], known: int) -> list[dict[str, Any]]:
    """All events, once a lease was granted after the first `known` of them."""
    return events if "lease_granted" in types(events[known:]) else []


def journal(agent: Agent) -> bytes:
    return (agent.directory / "state" / "events.journal").read_bytes()


@pytest.mark.timeout(120)
def test_an_agent_that_stops_in_order_says_so(fleet: Fleet, one: Agent) -> None:
    one.stop()
    one.start()
    fleet.wait_for_state(one, "verified")
    wait_for("both events", lambda: types(own(kept(fleet, one), one))[-3:] == ["agent_stopped", "agent_started", "lease_granted"])


def test_frames_that_a_live_capture_loses_are_told_with_their_number(fleet: Fleet, one: Agent) -> None:
    with EventStream(fleet, "--agent", one.agent_id) as stream:
        fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo", "--buffer-size-mb", "64")
        # A process that stands still does not empty its ring: of 180 MB that come meanwhile 64 MB fit.
        assert one.process is not None
        one.process.send_signal(signal.SIGSTOP)
        try:
            flood(datagrams=3_000, size=60_000)
        finally:
            one.process.send_signal(signal.SIGCONT)
        wait_for("the loss", lambda: stream.events("capture_loss"))
        fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)
        wait_for("the end", lambda: stream.events("capture_stopped"))
    (answer,) = fleet.rows("metrics", "--agent", one.agent_id)
    lost = sum(event["value"] for event in stream.events("capture_loss"))
    assert lost == answer["metrics"]["dropped_kernel"] > 0
    assert {event["capture_id"] for event in stream.events("capture_loss")} == {stream.events("capture_stopped")[0]["capture_id"]}


def flood(*, datagrams: int, size: int) -> None:
    """So many datagrams to ourselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        for _ in range(datagrams):
            sender.sendto(bytes(size), receiver.getsockname())
