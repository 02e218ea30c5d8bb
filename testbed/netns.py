# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of our own, joined by veth pairs: hosts on one machine, gone when the `with` block ends.

Packets of tests, demo and benchmarks stay inside namespaces made here.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self


def is_available() -> str:
    """Why namespaces cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Namespace("probe"):
            return ""
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made here ({error})"


class Namespace:
    """One network namespace; loopback is up."""

    def __init__(self, label: str) -> None:
        self.name = f"jv-{label}-{secrets.token_hex(2)}"

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.name)
        try:
            self.run("ip", "link", "set", "lo", "up")
            # Without duplicate address detection IPv6 addresses are usable at once.
            self.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def command(self, *command: str) -> list[str]:
        """The command, to be run inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> str:
        """Runs a command inside and returns what it printed; a failure raises with its error output."""
        return _run(*self.command(*command))

    def start(
        self, command: Sequence[str], *, log: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a program inside; its output goes to `log`, or nowhere."""
        output: IO[bytes] | int = log.open("ab") if log else subprocess.DEVNULL
        try:
            return subprocess.Popen(self.command(*command), stdout=output, stderr=subprocess.STDOUT, env=env)
        finally:
            if not isinstance(output, int):
                output.close()


def join(left: Namespace, right: Namespace, *, device: str, addresses: tuple[Sequence[str], Sequence[str]]) -> None:
    """Joins two namespaces by a veth pair called `device` at both ends; addresses are CIDR, one list an end.

    Segmentation and receive offloads are off, so that captures see the packets that a wire would carry.
    """
    peer = f"{device}p"
    left.run("ip", "link", "add", device, "type", "veth", "peer", "name", peer)
    left.run("ip", "link", "set", peer, "netns", right.name)
    right.run("ip", "link", "set", peer, "name", device)
    for namespace, own in zip((left, right), addresses, strict=True):
        for address in own:
            namespace.run("ip", "address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        namespace.run("ip", "link", "set", device, "up")
        namespace.run("ethtool", "-K", device, "gro", "off", "gso", "off", "tso", "off")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
