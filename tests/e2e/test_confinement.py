# SPDX-License-Identifier: Apache-2.0
"""The systemd units: what they leave to an attacker, and that the agent does its work with no more than they grant."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import confined, netns
from testbed.fleet import Agent, Fleet, Place, end, give, wait_for
from testbed.policy import PolicyText

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "agent" / "jarvis-agent.service"
DROP_INS = ROOT / "agent" / "jarvis-agent.service.d"
CONTROLLER_UNIT = ROOT / "controller" / "jarvis-controller.service"
UID, CONTROLLER_UID = 64_321, 64_322
"""Nobody's."""
FRAMES = 500

SEND = """
import socket, sys
udp = bytes([4, 210, 0, 53, 0, 18, 0, 0]) + bytes(10)
ip = bytes([0x45, 0, 0, 38, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind((sys.argv[1], 0))
    for _ in range(int(sys.argv[2])):
        sender.send(b"\\xff" * 6 + b"\\x02" + bytes(5) + b"\\x08\\x00" + ip + udp)
"""

COLLECT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
    sink.bind(("127.0.0.1", int(sys.argv[1])))
    while True:
        sink.recv(65535)
"""
EXPORTS = {
    "full": ("--collector", "127.0.0.1", "--profile", "full"),
    "samples": ("--collector", "127.0.0.1", "--protocol", "sflow", "--sampling-rate", "1"),
    "files": ("--transport", "file"),
}
"""With routes by netlink, from a sampler, and into files."""
COLLECTOR_PORTS = (4739, 6343)


@pytest.mark.parametrize(
    ("unit", "drop_ins", "most"),
    [
        (UNIT, (), 2.0),
        (UNIT, ("xdp.conf",), 2.3),
        (UNIT, ("pinning.conf",), 2.0),
        (UNIT, ("ima.conf",), 2.3),
        (UNIT, ("clock.conf",), 2.3),
        (CONTROLLER_UNIT, (), 2.0),
    ],
)
def test_a_unit_exposes_no_more_than_it_says(unit: Path, drop_ins: tuple[str, ...], most: float, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    shutil.copy(unit, copy)
    (tmp_path / f"{unit.name}.d").mkdir()
    for name in drop_ins:
        shutil.copy(DROP_INS / name, tmp_path / f"{unit.name}.d" / name)
    analysed = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(copy)], capture_output=True, text=True, check=False
    )
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", analysed.stdout)
    assert level is not None, analysed.stderr
    assert float(level[1]) <= most, analysed.stdout


def test_every_drop_in_is_in_the_table_above() -> None:
    assert {path.name for path in DROP_INS.iterdir()} == {"xdp.conf", "pinning.conf", "ima.conf", "clock.conf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A host whose cap0 leads to a wire on which frames are sent."""

    directory: Path
    """Another user can reach what is below."""
    host: netns.Namespace
    wire: netns.Namespace

    def send(self, count: int) -> None:
        """Frames for cap0."""
        self.wire.run(sys.executable, "-c", SEND, "cap0", str(count))


@pytest.fixture
def world() -> Iterator[World]:
    """One host."""
    if reason := netns.is_available():
        pytest.skip(reason)
    with netns.Namespace("host") as host, netns.Namespace("wire") as wire, tempfile.TemporaryDirectory() as name:
        netns.join(host, wire, device="cap0", addresses=([], []))
        directory = Path(name)
        directory.chmod(0o711)
        yield World(directory=directory, host=host, wire=wire)


@pytest.mark.parametrize(
    ("backend", "drop_ins", "options"), [("afpacket", (), ()), ("pcap", (), ()), ("xdp", ("xdp.conf",), ("--exclusive",))]
)
def test_agent_and_controller_do_their_work_confined_by_their_units(
    world: World, backend: str, drop_ins: tuple[str, ...], options: tuple[str, ...]
) -> None:
    directory, place = world.directory, Place(namespace=world.host)
    # A checkout or an interpreter in a private home: this one lets it be read, and nothing else.
    reading = () if _others_can_run_us() else (DROP_INS / "ima.conf",)
    wrapper = confined.command(UNIT, [*(DROP_INS / name for name in drop_ins), *reading], UID, [])
    controller = confined.command(CONTROLLER_UNIT, reading, CONTROLLER_UID, [])
    policy = PolicyText(collectors=["127.0.0.1", "file"])
    with Fleet(directory=directory / "fleet", place=place, wrapper=controller, policy=policy) as fleet, _collectors(world):
        (directory / "fleet").chmod(0o711)
        give(fleet.controller_directory, CONTROLLER_UID)
        fleet.start()
        files = directory / "fleet" / "export"
        files.mkdir(mode=0o700)
        os.chown(files, UID, UID)
        agent = fleet.add_agent("host", place=place, uid=UID, wrapper=wrapper, export_directory=str(files))
        fleet.wait_for_state(agent, "verified")
        assert agent.process is not None
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        assert f"Uid:\t{UID}" in status
        assert "Seccomp:\t2" in status
        for name, export in EXPORTS.items():
            fleet.jarvisctl("export", "enable", "--id", name, *export, "--all")
        fleet.jarvisctl("capture", "start", "--all", "--interface", "cap0", "--backend", backend, *options)
        world.send(FRAMES)
        wait_for(f"{FRAMES} frames", lambda: _metered(fleet) >= FRAMES, log=agent.log)
        fleet.jarvisctl("capture", "stop", "--all")
        wait_for("every export to have sent", lambda: _exported(fleet) == set(EXPORTS), log=agent.log)
        _is_not_hindered(agent)


@contextmanager
def _collectors(world: World) -> Iterator[None]:
    """Where the host's exports go."""
    started = [
        world.host.start([sys.executable, "-c", COLLECT, str(port)], log=world.directory / f"collector-{port}.log")
        for port in COLLECTOR_PORTS
    ]
    try:
        yield
    finally:
        for process in started:
            end(process)


def _exported(fleet: Fleet) -> set[str]:
    """Exports that have sent something."""
    found = [export for row in fleet.rows("export", "status") for export in row["exports"]]
    return {export["spec"]["export_id"] for export in found if any(to["flows"] for to in export["collectors"])}


def _metered(fleet: Fleet) -> int:
    rows = fleet.rows("metrics", "--all")
    return int(rows[0]["metrics"]["metered"]) if rows and rows[0]["metrics"] else 0


def _is_not_hindered(agent: Agent) -> None:
    """What the filter or a missing capability forbids shows in the log as a failed call."""
    log = agent.log.read_text()
    assert "Operation not permitted" not in log, log
    assert "cannot be read and is not in the event log" not in log, log


def _others_can_run_us() -> bool:
    # Behind a shell: setpriv itself still has root's right to pass through directories.
    script = f"{sys.executable} -c 'import jarvis_agent'"
    command = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "sh", "-c", script]
    return subprocess.run(command, check=False, capture_output=True, cwd=ROOT).returncode == 0
