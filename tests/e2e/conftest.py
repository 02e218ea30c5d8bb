# SPDX-License-Identifier: Apache-2.0
"""Whole fleets from the real programs; one per test module, because a TPM takes seconds to make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import replay
from testbed.fleet import FIRMWARE, Agent, Fleet
from testbed.policy import PolicyText

SERVERS = ("10.77.0.2", "fd77::2")
PORT = 8080


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and two verified agents, site=a and site=b, on loopback; leases are short."""
    if not (FIRMWARE / "manifest.sig").exists():
        pytest.fail(f"{FIRMWARE} holds no signed firmware: run `make setup`")
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=PolicyText(interval_s=1, lease_s=5)) as fleet:
        fleet.start()
        agents = [fleet.add_agent(f"host-{site}", labels={"site": site}) for site in "ab"]
        for agent in agents:
            fleet.wait_for_state(agent, "verified")
        yield fleet


@pytest.fixture
def one(fleet: Fleet) -> Agent:
    """The agent labelled site=a."""
    return fleet.agents["host-a"]


@pytest.fixture
def two(fleet: Fleet) -> Agent:
    """The agent labelled site=b."""
    return fleet.agents["host-b"]


def write_capture(agent: Agent, *, count: int = 100, name: str = "http.pcap") -> dict[tuple[str, int], int]:
    """A capture of `count` connections to each of two servers, where the agent may replay it from."""
    path: Path = agent.replay_directory / name
    return replay.write_http_capture(path, servers=SERVERS, port=PORT, count=count)
