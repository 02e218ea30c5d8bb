# SPDX-License-Identifier: Apache-2.0
"""Exports of a real agent when something ends: its lease, its process, its collector; and when its configuration was edited."""

from __future__ import annotations

import base64
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.fleet import FIRMWARE, Agent, Fleet, wait_for
from testbed.policy import PolicyText
from testbed.ports import free_port
from tests.e2e.conftest import write_capture

HOST = "127.0.0.1"
LEASE_S = 5


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and one verified agent, which may export to 127.0.0.1 and into files."""
    if not (FIRMWARE / "manifest.sig").exists():
        pytest.fail(f"{FIRMWARE} holds no signed firmware: run `make setup`")
    policy = PolicyText(interval_s=1, lease_s=LEASE_S, collectors=[HOST, "file"])
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=policy) as fleet:
        fleet.start()
        fleet.wait_for_state(fleet.add_agent("host-a"), "verified")
        yield fleet


class TcpCollector:
    """Takes one connection at a time on a port of the test's choice, and counts what came."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server((HOST, port))
        self.octets = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    self.octets += len(data)

    def __enter__(self) -> TcpCollector:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def exports(fleet: Fleet) -> list[dict[str, Any]]:
    """Of the only agent; empty while it does not answer."""
    rows = fleet.rows("export", "status", check=False)
    return [dict(export) for row in rows for export in row.get("exports", [])]


def collector_of(fleet: Fleet, export_id: str) -> dict[str, Any]:
    """The only collector of an export; empty while the agent does not answer."""
    found = [export for export in exports(fleet) if export["spec"]["export_id"] == export_id]
    return dict(found[0]["collectors"][0]) if found and found[0]["collectors"] else {}


def replay(fleet: Fleet, agent: Agent, name: str) -> None:
    fleet.jarvisctl("capture", "start", "--agent", agent.agent_id, "--file", name)

    def is_over() -> bool:
        (row,) = fleet.rows("capture", "status")
        return bool(row["capture"]["state"] == "stopped")

    wait_for("the end of the capture", is_over, log=agent.log)


def restart(fleet: Fleet, agent: Agent, number: signal.Signals = signal.SIGTERM) -> None:
    """Another process of the agent, verified."""
    agent.stop(number)
    fleet.wait_for_state(agent, "stale")
    agent.start()
    fleet.wait_for_state(agent, "verified")


@pytest.mark.timeout(180)
def test_what_a_collector_missed_reaches_it_after_a_restart_of_the_agent(fleet: Fleet, one: Agent) -> None:
    made, port = write_capture(one, name="spool.pcap"), free_port()
    away = f"{HOST}:{port}"
    fleet.jarvisctl("export", "enable", "--id", "away", "--collector", away, "--transport", "tcp", "--all")
    replay(fleet, one, "spool.pcap")
    records = 2 * len(made)
    wait_for("the records to wait", lambda: collector_of(fleet, "away").get("spooled_flows") == records, log=one.log)
    wait_for("the event", lambda: fleet.rows("events", "--type", "collector_lost", "--since", "oldest"), log=one.log)
    restart(fleet, one)
    wait_for("the export to be back", lambda: collector_of(fleet, "away").get("spooled_flows") == records, log=one.log)
    with TcpCollector(port) as collector:
        wait_for("the records to leave", lambda: collector_of(fleet, "away").get("flows") == records, seconds=60, log=one.log)
        status = collector_of(fleet, "away")
        assert (status["dropped_flows"], status["spooled_flows"]) == (0, 0)
        # Ends the connection, which the collector waits for.
        fleet.jarvisctl("export", "disable", "away", "--all")
    assert collector.octets >= 20 * records


@contextmanager
def live_export(fleet: Fleet, agent: Agent) -> Iterator[socket.socket]:
    """An export of flows on loopback that end all the time, to the socket that it gives."""
    stop, target = threading.Event(), free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sink.bind((HOST, 0))

        def talk() -> None:
            while not stop.wait(0.02):
                sender.sendto(b"a flow of one packet", (HOST, target))

        place = f"{HOST}:{sink.getsockname()[1]}"
        only = f"udp port {target}"  # not those of the export itself
        fleet.jarvisctl("export", "enable", "--id", "live", "--collector", place, "--filter", only, "--all")
        fleet.jarvisctl("capture", "start", "--all", "--interface", "lo", "--active-timeout", "1s", "--idle-timeout", "1s")
        talker = threading.Thread(target=talk)
        talker.start()
        try:
            wait_for("records", lambda: collector_of(fleet, "live").get("flows", 0) > 0, log=agent.log)
            assert datagrams(sink, 0.1)
            yield sink
        finally:
            stop.set()
            talker.join()
        fleet.jarvisctl("capture", "stop", "--all")
        fleet.jarvisctl("export", "disable", "live", "--discard", "--all")


@pytest.mark.timeout(180)
def test_nothing_leaves_without_a_lease_and_it_goes_on_under_the_next(fleet: Fleet, one: Agent) -> None:
    with live_export(fleet, one) as sink:
        fleet.stop(signal.SIGKILL)
        wait_for("the lease to run out", lambda: not datagrams(sink, 1.0), seconds=4 * LEASE_S, log=one.log)
        assert datagrams(sink, 3.0) == 0
        fleet.start()
        fleet.wait_for_state(one, "verified")
        wait_for("records again", lambda: datagrams(sink, 0.5), log=one.log)


@pytest.mark.timeout(180)
def test_a_quarantined_agent_sends_its_collectors_nothing_until_it_is_released_and_proved(fleet: Fleet, one: Agent) -> None:
    with live_export(fleet, one) as sink:
        fleet.jarvisctl("agents", "quarantine", one.agent_id, "--reason", "looked odd")
        wait_for("the export to pause", lambda: not datagrams(sink, 1.5), log=one.log)
        assert datagrams(sink, 2 * LEASE_S) == 0
        fleet.jarvisctl("agents", "release", one.agent_id, "--reason", "was not")
        fleet.wait_for_state(one, "verified")
        wait_for("records again", lambda: datagrams(sink, 0.5), log=one.log)


def datagrams(sink: socket.socket, seconds: float) -> int:
    """How many come within so long."""
    until, count = time.monotonic() + seconds, 0
    while (left := until - time.monotonic()) > 0:
        sink.settimeout(left)
        try:
            sink.recv(65_535)
        except TimeoutError:
            break
        count += 1
    return count


@pytest.mark.timeout(180)
def test_an_export_whose_file_was_edited_does_not_come_back(fleet: Fleet, one: Agent) -> None:
    fleet.jarvisctl("export", "enable", "--id", "edited", "--collector", f"{HOST}:9", "--all")
    kept = Path(one.directory, "state", "exports", "edited.json")
    one.stop()
    values = json.loads(kept.read_text())
    payload = base64.b64decode(values["payload"])
    values["payload"] = base64.b64encode(payload.replace(b"127.0.0.1", b"127.0.0.2")).decode()
    kept.write_text(json.dumps(values))
    one.start()
    fleet.wait_for_state(one, "verified")
    wait_for("the event", lambda: refused_exports(fleet), log=one.log)
    assert exports(fleet) == []
    assert kept.with_suffix(".refused").exists()


def refused_exports(fleet: Fleet) -> list[dict[str, Any]]:
    rows = fleet.rows("events", "--type", "export_disabled", "--since", "oldest")
    return [row for row in rows if "not as the controller signed it" in json.dumps(row)]
