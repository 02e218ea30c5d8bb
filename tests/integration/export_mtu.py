# SPDX-License-Identifier: Apache-2.0
"""Sends messages of 1,364 bytes over UDP to itself, by a path that takes less; run by a test inside a network namespace.

export_mtu.py FIRMWARE_DIRECTORY HOST
"""

from __future__ import annotations

import functools
import json
import socket
import sys
from pathlib import Path

from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.udp import UdpTransport
from jarvis_native.export import send_block
from jarvis_native.loader import load_firmware

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.export_messages import HandSource, HandStamp, Reading, record_block


def main() -> None:
    directory, host = Path(sys.argv[1]), sys.argv[2]
    firmware = load_firmware(directory, release_root=(directory / "root.json").read_bytes())
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind((host, 0))
        collector.settimeout(30)
        port = collector.getsockname()[1]
        transport = UdpTransport(host, port, send_block=functools.partial(send_block, firmware))
        session = CollectorSession(transport=transport, source=HandSource(), new_stamp=HandStamp)
        session.send(record_block(range(224), per_message=56))
        reading = Reading()
        for _ in range(6):
            reading.take(collector.recv(65_535))
        result = {
            "message_max": transport.message_max,
            "fragmented": transport.fragmented,
            "numbers": reading.numbers,
            "missing": reading.missing,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
