# SPDX-License-Identifier: Apache-2.0
"""A process that captures under leases, told by its standard input what to do: the subject of test_dead_mans_switch.

    python -m tests.integration.dead_man FIRMWARE_DIRECTORY INTERFACE

One command a line, one line of JSON in answer: `lease SECONDS` (for a challenge of now), `shorten SECONDS` (from now), `start`,
`report`, `hold` (takes the interpreter's lock and gives it back only when another line comes), `renew SECONDS` (waits for the end
of the lease without giving the processor away, and takes the next one in that very moment).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path

from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import LeaseOver
from jarvis_native.loader import load_firmware

from tests.commander import Commander


class Subject:
    """The capture, its authority, and a thread that counts while it is let run."""

    def __init__(self, directory: Path, interface: str) -> None:
        firmware = load_firmware(directory, release_root=(directory / "root.json").read_bytes())
        self.interface = interface
        self.commander = Commander(firmware)
        self.engine = PacketCaptureEngine(interface, backend="afpacket", packet_ring_mb=1, firmware=firmware)
        self.engine.enable_flow_metering(idle_timeout_s=1.0)
        self.reader = self.engine.open_flow_reader()
        self.nonce = b""
        self.ticks = 0
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while True:
            self.ticks += 1
            time.sleep(0.01)

    def lease(self, seconds: float) -> dict[str, object]:
        self.nonce = self.commander.challenge()
        return self._take(int(seconds * 1e9))

    def shorten(self, seconds: float) -> dict[str, object]:
        quoted_ns = self.commander.authority.lease().quoted_ns
        return self._take(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - quoted_ns + int(seconds * 1e9))

    def _take(self, duration_ns: int) -> dict[str, object]:
        terms = self.commander.give(nonce=self.nonce, duration_ns=duration_ns)
        return {"quoted_ns": terms.quoted_ns, "end_ns": terms.end_ns, "in_force": terms.in_force}

    def start(self) -> dict[str, object]:
        self.engine.bind(self.commander.authority, self.commander.order(CaptureSpec(interfaces=[self.interface])))
        self.engine.start()
        return self.report()

    def hold(self) -> dict[str, object]:
        """PyDLL keeps the lock during the call; nothing else of Python runs until a line comes."""
        ticks, byte = self.ticks, ctypes.create_string_buffer(1)
        ctypes.PyDLL(None).read(0, byte, 1)
        return {"ticks": self.ticks - ticks} | self.report()

    def renew(self, seconds: float) -> dict[str, object]:
        authority = self.commander.authority
        while authority.lease().in_force:
            continue
        return self.lease(seconds) | self.report()

    def report(self) -> dict[str, object]:
        metrics = self.engine.get_metrics()
        given = ""
        try:
            self.engine.get_flows()
            self.reader.read_batch()
        except LeaseOver as over:
            given = over.reason
        return {
            "metered": metrics.metered,
            "paused": metrics.paused,
            "in_flight": metrics.in_flight,
            "dropped": metrics.dropped_kernel + metrics.dropped_user,
            "refusal": given,
            "realtime_ns": time.time_ns(),
        }


def main() -> None:
    """Serves until its input ends."""
    subject = Subject(Path(sys.argv[1]), sys.argv[2])
    with os.fdopen(0, "rb", buffering=0) as commands:  # unbuffered: `hold` reads the same descriptor
        while line := commands.readline():
            name, *arguments = line.decode().split()
            answer = getattr(subject, name)(*map(float, arguments))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
