# SPDX-License-Identifier: Apache-2.0
"""An exporter and a collector for network namespaces, run by a test.

export_hosts.py export FIRMWARE_DIRECTORY HOST PORT    commands on stdin, a JSON line for each
export_hosts.py collect HOST PORT FILE                 writes datagrams to FILE, each with its length, until it is killed
"""

from __future__ import annotations

import functools
import json
import socket
import sys
from pathlib import Path

from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.udp import UdpTransport
from jarvis_native.export import send_block
from jarvis_native.loader import load_firmware

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.export_messages import HandSource, HandStamp, record_block


def export(directory: Path, host: str, port: int) -> None:
    firmware = load_firmware(directory, release_root=(directory / "root.json").read_bytes())
    transport = UdpTransport(host, port, send_block=functools.partial(send_block, firmware))
    session = CollectorSession(transport=transport, source=HandSource(), new_stamp=HandStamp, refresh_s=0)
    for line in sys.stdin:
        command, *numbers = line.split()
        answer = ""
        try:
            match command:
                case "send":
                    first, last, per_message = map(int, numbers)
                    session.send(record_block(range(first, last), per_message=per_message))
                case "open":
                    session.open()
                case "tick":
                    session.tick()
        except ExportError as error:
            answer = error.message
        counters = session.counters()
        result = {"error": answer, "sent": counters.amount.flows, "waiting": counters.waiting.flows}
        path = {"refusals": transport.refusals, "fragmented": transport.fragmented, "message_max": transport.message_max}
        print(json.dumps(result | path), flush=True)


def collect(host: str, port: int, file: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector, file.open("ab", buffering=0) as out:
        collector.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        collector.bind((host, port))
        print("ready", flush=True)
        while True:
            datagram = collector.recv(65_535)
            out.write(len(datagram).to_bytes(4, "big") + datagram)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        collect(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
