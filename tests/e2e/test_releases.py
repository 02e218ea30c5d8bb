# SPDX-License-Identifier: Apache-2.0
"""A release of the firmware reaches a real fleet stage by stage; a bad one stops at the first agent and changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.fleet import Agent, Fleet, wait_for
from testbed.policy import PolicyText
from tests.support import DATA, ROOT, ReleaseKey, make_release

pytestmark = pytest.mark.timeout(240)

KEY = ReleaseKey(
    private_pem=(ROOT / "build" / "release-key" / "release.pem").read_bytes(),
    public_pem=(ROOT / "build" / "release-key" / "release.pub").read_bytes(),
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and three verified agents."""
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=PolicyText(interval_s=2, lease_s=20)) as fleet:
        fleet.start()
        agents = [
            fleet.add_agent(f"host-{site}", labels={"site": site}, carrier="direct" if site == "b" else "tunnel")
            for site in "abc"
        ]
        for agent in agents:
            fleet.wait_for_state(agent, "verified")
        yield fleet


@contextmanager
def supervised(fleet: Fleet) -> Iterator[None]:
    """What systemd does: an agent that ends is started again."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for agent in fleet.agents.values():
                if agent.process is not None and agent.process.poll() is not None:
                    agent.start()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def add(fleet: Fleet, directory: Path, *flags: str, **changes: Any) -> str:
    sha256 = make_release(directory, KEY, *flags, **changes)
    fleet.jarvisctl("releases", "add", str(directory))
    return sha256


def roll_out(fleet: Fleet, release: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and every event."""
    done = fleet.run("--output", "json", "releases", "roll-out", release, "--wait", "1s", *(options or ("--all",)))
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def outcomes(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {event["agent_id"]: event for event in events if event["event"] == "agent"}


def running(fleet: Fleet) -> dict[str, tuple[str, str]]:
    return {row["agent_id"]: (row["state"], row["firmware_version"]) for row in fleet.rows("agents", "list")}


def audited(fleet: Fleet, action: str) -> list[dict[str, Any]]:
    return [row for row in fleet.rows("audit", "list") if row["action"] == action]


def test_a_release_reaches_every_agent_and_captures_go_on(fleet: Fleet, tmp_path: Path) -> None:
    one = fleet.agents["host-a"]
    (before,) = fleet.rows("capture", "start", "--agent", one.agent_id, "--interface", "lo", "--filter", "udp")
    sha256 = add(fleet, tmp_path / "new", version="0.2.0")
    assert [row["manifest_sha256"] for row in fleet.rows("releases", "list")] == [sha256]
    code, events = roll_out(fleet, "0.2.0", "--all", "--stages", "1,100%")
    assert code == 0, events
    assert [event["event"] for event in events if event["event"] != "agent"] == ["started", "stage_ended", "stage_ended", "ended"]
    assert {outcome["result"] for outcome in outcomes(events).values()} == {"updated"}
    assert [outcome["stage"] for outcome in outcomes(events).values()] == [1, 2, 2]
    assert set(running(fleet).values()) == {("verified", "0.2.0")}
    (status,) = fleet.rows("capture", "status", "--agent", one.agent_id)
    assert (status["capture"]["state"], status["capture"]["spec"]["filter"]) == ("running", "udp")
    assert status["capture"]["capture_id"] != before["capture"]["capture_id"]
    assert outcomes(events)[one.agent_id]["capture_gap_s"] > 0
    (restart,) = audited(fleet, "capture.restart")
    (start,) = audited(fleet, "capture.start")
    assert restart["principal"] == start["principal"]
    assert len(audited(fleet, "release.update")) == 3
    (begun,), (ended,) = audited(fleet, "release.roll-out"), audited(fleet, "release.roll-out-end")
    assert begun["request_id"] == ended["request_id"]
    told = wait_for("the events", lambda: fleet.rows("events", "--all", "--since", "oldest", "--type", "release_activated"))
    assert {event["detail"]["manifest_sha256"] for event in told} == {sha256}


def test_running_it_again_finds_nothing_to_do(fleet: Fleet) -> None:
    code, events = roll_out(fleet, "0.2.0")
    assert code == 0
    assert {outcome["result"] for outcome in outcomes(events).values()} == {"current"}


def test_a_release_that_fails_its_trial_run_stops_at_the_first_agent(fleet: Fleet, tmp_path: Path) -> None:
    add(fleet, tmp_path / "bad", "-DFATE=abort", version="0.3.0")
    code, events = roll_out(fleet, "0.3.0")
    assert code == 1
    (outcome,) = outcomes(events).values()
    assert (outcome["result"], outcome["status"]["reason"]) == ("rolled_back", "RELEASE_TRIAL_FAILED")
    assert (events[-1]["stopped"], events[-1]["untouched"], events[-1]["rolled_back"]) == (True, 2, 1)
    wait_for("all to stay verified", lambda: set(running(fleet).values()) == {("verified", "0.2.0")})
    (status,) = fleet.rows("capture", "status", "--agent", fleet.agents["host-a"].agent_id)
    assert status["capture"]["state"] == "running"


def test_a_release_that_crashes_when_it_runs_is_left_and_the_agent_stays_trusted(fleet: Fleet, tmp_path: Path) -> None:
    one = fleet.agents["host-a"]
    add(fleet, tmp_path / "bad", "-DFATE_OF_RUN=abort", version="0.4.0")
    with supervised(fleet):
        code, events = roll_out(fleet, "0.4.0", "--agent", one.agent_id)
    assert code == 1
    (outcome,) = outcomes(events).values()
    assert (outcome["result"], outcome["status"]["reason"]) == ("rolled_back", "RELEASE_TRIAL_CRASHED")
    wait_for("it to stay verified", lambda: running(fleet)[one.agent_id] == ("verified", "0.2.0"))
    told = wait_for(
        "the event", lambda: fleet.rows("events", "--agent", one.agent_id, "--since", "oldest", "--type", "release_rolled_back")
    )
    assert told[-1]["detail"]["reason"] == "RELEASE_TRIAL_CRASHED"
    (status,) = fleet.rows("capture", "status", "--agent", one.agent_id)
    assert status["capture"]["state"] == "running", "what it captured goes on with the old release"
    fleet.jarvisctl("capture", "stop", "--agent", one.agent_id)


def test_an_agent_that_is_away_is_replaced_by_the_next_and_updated_when_it_is_back(fleet: Fleet, tmp_path: Path) -> None:
    add(fleet, tmp_path / "new", version="0.5.0")
    away = min(fleet.agents.values(), key=lambda agent: agent.agent_id)
    away.stop()
    wait_for("it to be missed", lambda: running(fleet)[away.agent_id][0] == "stale")
    code, events = roll_out(fleet, "0.5.0", "--all", "--stages", "1,100%")
    assert code == 1
    assert outcomes(events)[away.agent_id]["result"] == "not_reached"
    assert (events[-1]["updated"], events[-1]["not_reached"], events[-1]["stopped"]) == (2, 1, False)
    away.start()
    fleet.wait_for_state(away, "verified")
    code, events = roll_out(fleet, "0.5.0")
    assert code == 0
    assert {outcome["result"] for outcome in outcomes(events).values()} == {"current", "updated"}


def test_a_controller_that_dies_in_the_middle_costs_an_agent_nothing_and_the_roll_out_goes_on(
    fleet: Fleet, tmp_path: Path
) -> None:
    one = fleet.agents["host-c"]
    before = running(fleet)[one.agent_id]
    sha256 = add(fleet, tmp_path / "new", version="0.5.5")
    command = fleet.ctl_command("releases", "roll-out", "0.5.5", "--agent", one.agent_id, "--trial", "5s", "--wait", "0s")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as roll_out_:
        wait_for("the change-over", lambda: (pointer(one).get("trial") or {}).get("sha256") == sha256, seconds=60)
        fleet.stop(signal.SIGKILL)
        roll_out_.communicate()
    assert roll_out_.returncode == 3
    failed = wait_for("the old release", lambda: pointer(one).get("failed"), seconds=60)
    assert (failed["reason"], failed["sha256"]) == ("RELEASE_TRIAL_NO_LEASE", sha256)
    fleet.start()
    wait_for("it to be verified with the old release", lambda: running(fleet)[one.agent_id] == before)
    code, events = roll_out(fleet, "0.5.5", "--agent", one.agent_id)
    assert (code, outcomes(events)[one.agent_id]["result"]) == (0, "updated")


def pointer(agent: Agent) -> dict[str, Any]:
    path = agent.directory / "state" / "releases" / "pointer.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def test_a_replay_that_is_over_is_not_begun_again(fleet: Fleet, tmp_path: Path) -> None:
    one = fleet.agents["host-b"]
    add(fleet, tmp_path / "new", version="0.6.0")
    (one.replay_directory / "a.pcap").write_bytes((DATA / "connection.pcap").read_bytes())
    fleet.rows("capture", "start", "--agent", one.agent_id, "--file", "a.pcap")
    wait_for("the replay to end", lambda: state_of(fleet, one) == "stopped")
    code, events = roll_out(fleet, "0.6.0", "--agent", one.agent_id)
    assert (code, outcomes(events)[one.agent_id]["result"]) == (0, "updated")
    assert outcomes(events)[one.agent_id]["capture"] is None


def state_of(fleet: Fleet, agent: Agent) -> str:
    (row,) = fleet.rows("capture", "status", "--agent", agent.agent_id)
    return str(row["capture"]["state"])


def test_what_an_agent_would_refuse_the_controller_does_not_take(fleet: Fleet, tmp_path: Path) -> None:
    directory = tmp_path / "forged"
    make_release(directory, KEY, version="0.7.0")
    library = directory / "libjarvis_capture.so"
    library.write_bytes(library.read_bytes() + b"\0")
    done = fleet.run("releases", "add", str(directory))
    assert (done.returncode, "RELEASE_ALTERED" in done.stderr) == (1, True), done.stderr
    assert "0.7.0" not in fleet.jarvisctl("releases", "list")
    for arguments, words in (
        (("releases", "roll-out", "9.9.9", "--all"), "has no such release"),
        (("releases", "roll-out", "v1", "--all"), "RELEASE is 'v1': accepted is a version"),
        (("releases", "roll-out", "0.2.0"), "no agent is addressed"),
        (("releases", "roll-out", "0.2.0", "--all", "--stages", "100%,1"), "stages[1]"),
        (("releases", "roll-out", "0.2.0", "--all", "--stages", "0"), "--stages is '0'"),
        (("releases", "roll-out", "0.2.0", "--all", "--stages", "101%"), "--stages is '101%'"),
        (("releases", "roll-out", "0.2.0", "--all", "--trial", "1s"), "--trial is 1s"),
        (("releases", "add", str(tmp_path / "nowhere")), "DIRECTORY is"),
    ):
        done = fleet.run(*arguments)
        assert (done.returncode, words in done.stderr) == (2, True), (arguments, done.stderr)


def test_a_release_is_removed_by_its_digest(fleet: Fleet) -> None:
    rows = fleet.rows("releases", "list")
    (old,) = [row["manifest_sha256"] for row in rows if row["version"] == "0.2.0"]
    fleet.jarvisctl("releases", "remove", old[:12])
    assert old not in [row["manifest_sha256"] for row in fleet.rows("releases", "list")]
    assert audited(fleet, "release.remove")[-1]["detail"].count(old) == 1
    wait_for("all to stay verified", lambda: {state for state, _ in running(fleet).values()} == {"verified"})
