# SPDX-License-Identifier: Apache-2.0
"""A real collector for benchmarks: a UDP socket that keeps every message until SIGTERM, and only then counts what they say.

python -m bench.export_sink PORT     prints "ready", at the end one line of JSON

It asks for a receive buffer beyond net.core.rmem_max, which root gets (SO_RCVBUFFORCE), and tells what the kernel dropped there.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.programs import pinned
from testbed.exported_flows import flows_in, totals_of

BUFFER_BYTES = 256 << 20
LIMIT_S = 60.0

_SO_RCVBUFFORCE = 33
_SO_MEMINFO, _DROPS = 55, 8  # linux/sock_diag.h: SK_MEMINFO_DROPS


@dataclass(slots=True, kw_only=True)
class Collected:
    """What arrived; filled in when the sink has ended."""

    port: int
    messages: int = 0
    message_octets: int = 0
    records: int = 0
    packets: int = 0
    octets: int = 0
    dropped: int = 0
    """Messages that found the receive buffer full."""
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def sink(cpu: int) -> Iterator[Collected]:
    """A sink in a process of its own, kept to one CPU."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = pinned([cpu], [sys.executable, "-m", "bench.export_sink", str(port)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parent.parent)
    collected = Collected(port=port)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the sink did not start")
        yield collected
        process.send_signal(signal.SIGTERM)
        for name, value in json.loads(process.communicate(timeout=LIMIT_S)[0]).items():
            setattr(collected, name, value)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Keeps, then counts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        receiver.bind(("127.0.0.1", int(sys.argv[1])))
        # An empty datagram to itself, behind all that was sent before: an exception could lose a message that was just read.
        signal.signal(signal.SIGTERM, lambda *_: receiver.sendto(b"", receiver.getsockname()))
        messages: list[bytes] = []
        print("ready", flush=True)
        while message := receiver.recv(65_535):
            messages.append(message)
        dropped = struct.unpack_from("=9I", receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_DROPS]
    records, packets, octets = totals_of(flows_in(messages))
    counted = {
        "messages": len(messages),
        "message_octets": sum(map(len, messages)),
        "records": records,
        "packets": packets,
        "octets": octets,
        "dropped": dropped,
    }
    print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main()
