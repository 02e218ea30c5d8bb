# SPDX-License-Identifier: Apache-2.0
"""A veth pair between two namespaces of our own and the generator (generate.c) that sends over it: live benchmarks, soak.

Nothing but the generator's frames comes out of the receiving end, and what is dropped before it is counted.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.netns import Namespace, join

DEVICE = "veth0"
"""The name of both ends."""
_HERE = Path(__file__).resolve().parent
_BUILD = _HERE.parent / "build" / "testbed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is sent: see generate.c."""

    frames: int
    flows: int = 1
    """At a time."""
    train: int = 1
    """Frames of a flow in a row, 1..64."""
    rate: int = 0
    """Frames a second; 0 = as fast as one core can."""
    churn: int = 0
    """Flows that end, and others that begin, each time all flows had their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the generator says it did."""

    sent: int
    seconds: float
    flows: int
    """Distinct ones."""


class Link:
    """Two joined namespaces, `sender` and `receiver`, their devices both called veth0; gone when the `with` block ends."""

    def __init__(self) -> None:
        self.sender, self.receiver = Namespace("send"), Namespace("see")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for namespace in (self.sender, self.receiver):  # no neighbour discovery among the frames that are counted
                stack.enter_context(namespace)
                namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
            join(self.sender, self.receiver, device=DEVICE, addresses=((), ()))
            # The kernel cuts trains into frames before they reach the device.
            self.sender.run("ethtool", "-K", DEVICE, "tx-udp-segmentation", "off")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def dropped(self) -> int:
        """Frames that the sending device has dropped so far, because the other end's queue was full: they came to no program.

        What the receiving device drops is its XDP program's doing, and the program's to account for.
        """
        (device,) = json.loads(self.sender.run("ip", "-j", "-s", "link", "show", DEVICE))
        return int(device["stats64"]["tx"]["dropped"])

    def send(self, traffic: Traffic, *, cpus: Sequence[int | None] = (None,)) -> Sent:
        """Sends it all, so often at once as there are CPUs (None: not pinned): frames summed, the longest of the times."""
        pinned = [["taskset", "-c", str(cpu)] if cpu is not None else [] for cpu in cpus]
        with ThreadPoolExecutor(len(pinned)) as pool:
            done = [sent(text) for text in pool.map(lambda before: self.sender.run(*before, *command(traffic)), pinned)]
        return Sent(sent=sum(one.sent for one in done), seconds=max(one.seconds for one in done), flows=done[0].flows)

    def start(self, traffic: Traffic, *, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts sending; what `sent` reads goes to the log."""
        return self.sender.start(command(traffic), log=log, env=env)


def built(source: Path) -> Path:
    """A C program compiled for this machine, again when its source has changed."""
    binary = _BUILD / source.stem
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        _BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-march=native", "-o", str(binary), str(source)], check=True)
    return binary


def command(traffic: Traffic) -> list[str]:
    """The generator's command line."""
    options = {
        "--interface": DEVICE,
        "--frames": traffic.frames,
        "--flows": traffic.flows,
        "--train": traffic.train,
        "--rate": traffic.rate,
        "--churn": traffic.churn,
    }
    return [str(built(_HERE / "generate.c")), *(str(part) for option in options.items() for part in option)]


def sent(printed: str) -> Sent:
    """The generator's one line of JSON."""
    return Sent(**json.loads(printed))
