# SPDX-License-Identifier: Apache-2.0
"""UDP between hosts with a router between them: answers come late, and not for every datagram."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testbed.netns import Namespace, is_available, join
from tests.export_messages import Reading

pytestmark = pytest.mark.skipif(bool(is_available()), reason=is_available() or "-")

SCRIPT = str(Path(__file__).parent / "export_hosts.py")
EXPORTER, COLLECTOR, PORT = "10.77.1.1", "10.77.2.1", "4739"


class Hosts:
    """An exporter in one namespace, a collector that comes and goes in the other."""

    def __init__(self, stack: ExitStack, firmware: Path, environment: dict[str, str], out: Path) -> None:
        self._stack, self._environment, self.out = stack, environment, out
        left, router, self._right = (stack.enter_context(Namespace(name)) for name in ("exp", "rtr", "col"))
        join(left, router, device="near", addresses=([f"{EXPORTER}/24"], ["10.77.1.254/24"]))
        join(router, self._right, device="far", addresses=(["10.77.2.254/24"], [f"{COLLECTOR}/24"]))
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.run("ip", "link", "set", "far", "mtu", "1300")
        left.run("ip", "route", "add", "default", "via", "10.77.1.254")
        self._right.run("ip", "route", "add", "default", "via", "10.77.2.254")
        self._exporter = self._start(left, "export", str(firmware), COLLECTOR, PORT)
        self._collector: subprocess.Popen[str] | None = None

    def _start(self, namespace: Namespace, *arguments: str) -> subprocess.Popen[str]:
        command = namespace.command(sys.executable, SCRIPT, *arguments)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment)
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.kill)
        return process

    def command(self, text: str) -> dict[str, Any]:
        assert self._exporter.stdin is not None
        assert self._exporter.stdout is not None
        self._exporter.stdin.write(text + "\n")
        self._exporter.stdin.flush()
        return dict(json.loads(self._exporter.stdout.readline()))

    def collector_comes(self) -> None:
        self._collector = self._start(self._right, "collect", COLLECTOR, PORT, str(self.out))
        assert self._collector.stdout is not None
        assert self._collector.stdout.readline() == "ready\n"

    def collector_goes(self) -> None:
        assert self._collector is not None
        self._collector.kill()
        self._collector.wait(30)

    def tick_until_read(self, records: int) -> None:
        while len(self.reading().numbers) < records:
            self.command("tick")

    def reading(self) -> Reading:
        """What has arrived; whose order the fragments may have changed."""
        reading, data = Reading(expected=None), self.out.read_bytes() if self.out.exists() else b""
        while data:
            length = int.from_bytes(data[:4], "big")
            reading.take(data[4 : 4 + length])
            data = data[4 + length :]
        return reading


@pytest.fixture
def hosts(firmware_directory: Path, program_environment: dict[str, str], tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack, firmware_directory, program_environment, tmp_path / "datagrams")


def test_over_a_network_a_collector_that_goes_away_and_returns_misses_nothing(hosts: Hosts) -> None:
    hosts.collector_comes()
    assert hosts.command("send 0 1000 4")["error"] == ""
    hosts.tick_until_read(1_000)
    hosts.collector_goes()
    answer = hosts.command("send 1000 9000 4")
    while not answer["error"]:
        answer = hosts.command("tick")
    assert "nothing listens there" in answer["error"]
    assert answer["sent"] + answer["waiting"] == 9_000
    assert answer["sent"] == 1_000
    assert answer["refusals"] < 2_000  # 2,000 messages: the other host's kernel limits its answers, and the first one counts
    assert "nothing listens there" in hosts.command("open")["error"]
    hosts.collector_comes()
    assert hosts.command("open")["error"] == ""
    assert hosts.command("send 9000 9100 4")["error"] == ""
    hosts.tick_until_read(9_100)
    reading = hosts.reading()
    assert (reading.numbers, reading.missing) == (list(range(9_100)), 0)


def test_a_message_that_a_router_cannot_pass_on_is_sent_again_in_fragments(hosts: Hosts) -> None:
    hosts.collector_comes()
    assert hosts.command("open")["message_max"] == 1_400
    hosts.command("send 0 56 56")  # one message of 1,364 bytes, before anything is known of the way behind the router
    hosts.tick_until_read(56)
    answer = hosts.command("send 56 112 56")
    hosts.tick_until_read(112)
    assert (answer["message_max"], answer["fragmented"], answer["error"]) == (1_300 - 28, 2, "")
    assert hosts.reading().numbers == list(range(112))
