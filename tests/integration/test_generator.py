# SPDX-License-Identifier: Apache-2.0
"""The generator of benchmarks and soak sends what it says: frames, flows, their turns; inside namespaces of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testbed.generator import DEVICE, Link, Traffic, command
from testbed.netns import is_available

pytestmark = pytest.mark.skipif(bool(is_available()), reason=is_available() or "namespaces can be made")

FRAMES = 1003


def captured(traffic: Traffic, tmp_path: Path) -> tuple[list[str], int, int]:
    """Source addresses and ports in the order of arrival, the flows the generator claims, drops of the link."""
    log = tmp_path / "tcpdump"
    with Link() as link:
        tcpdump = link.receiver.start(["tcpdump", "-i", DEVICE, "-nn", "-t", "-U", "-c", str(traffic.frames)], log=log)
        try:
            while "listening on" not in log.read_text():
                assert tcpdump.poll() is None, log.read_text()
            sent = link.send(traffic)
            assert sent.sent == traffic.frames
            tcpdump.wait(timeout=30)
            dropped = link.dropped()
        finally:
            if tcpdump.poll() is None:
                tcpdump.kill()
            tcpdump.wait()
    lines = [line for line in log.read_text().splitlines() if line.startswith("IP ")]
    assert all(line.endswith("> 172.16.0.1.53: 0 [0q] (18)") for line in lines), lines[:3]
    return [line.split()[1] for line in lines], sent.flows, dropped


@pytest.mark.parametrize("train", [1, 16])
def test_every_frame_arrives_and_flows_take_turns(train: int, tmp_path: Path) -> None:
    sources, flows, dropped = captured(Traffic(frames=FRAMES, flows=10, train=train), tmp_path)
    assert (len(sources), dropped) == (FRAMES, 0)
    assert flows == len(set(sources)) == 10
    assert sources == [f"10.0.0.{number // train % 10}.4000" for number in range(FRAMES)]


def test_churn_ends_flows_and_begins_others_at_each_turn(tmp_path: Path) -> None:
    sources, flows, _dropped = captured(Traffic(frames=FRAMES, flows=10, churn=2), tmp_path)
    assert flows == len(set(sources))
    assert sources == [f"10.0.0.{number % 10 + 2 * (number // 10)}.4000" for number in range(FRAMES)]


def test_a_rate_spreads_the_frames_over_time(tmp_path: Path) -> None:
    with Link() as link:
        sent = link.send(Traffic(frames=3000, flows=3, rate=10_000))
    assert sent.seconds >= 0.29  # never faster; how much slower is the machine's affair


@pytest.mark.parametrize(("option", "value"), [("--flows", "0"), ("--train", "65"), ("--frames", "x"), ("--rate", "-1")])
def test_a_bad_option_is_refused_with_its_name_and_value(option: str, value: str) -> None:
    line = command(Traffic(frames=1))
    line[line.index(option) + 1] = value
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{option} is {value}: accepted are " in done.stderr
