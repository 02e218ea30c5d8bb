# SPDX-License-Identifier: Apache-2.0
"""Ports for programs that are started in a moment, and again later.

They are free on loopback now, and not among those that the kernel gives to outgoing connections, so that none of the many
processes of a test run is given one meanwhile.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST, _HIGHEST = 10_240, 60_999
_ENOUGH = 1000
_KERNELS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000
_GIVEN: set[int] = set()
"""By this process: each once, whether it is bound now or not."""


def free_port() -> int:
    """A port at which nobody listens on loopback, over TCP or UDP."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many neighbouring ones.

    Raises:
        RuntimeError: there are none.
    """
    kernels = int(_KERNELS.read_text(encoding="ascii").split()[0])
    highest = (kernels if kernels > _LOWEST + _ENOUGH else _HIGHEST) - count  # where the kernel takes them all, so do we
    for _ in range(_TRIES):
        first = random.randint(_LOWEST, highest)  # noqa: S311 - no secret
        ports = range(first, first + count)
        if _GIVEN.isdisjoint(ports) and all(_is_free(port) for port in ports):
            _GIVEN.update(ports)
            return first
    raise RuntimeError(f"no {count} neighbouring free ports on 127.0.0.1 from {_LOWEST} to {highest}")


def _is_free(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
