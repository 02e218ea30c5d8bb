# SPDX-License-Identifier: Apache-2.0
"""A collector for the demonstration: IPFIX over TCP, kept as it comes, and told on request.

python -m testbed.ipfix_collector ADDRESS PORT     prints "ready"; each line on standard input is answered by one of JSON

A flow is [exporter's address, destination address, source port, destination port, packets, octets]; IPv4 and IPv6 alike.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
import subprocess
import sys
import threading
from typing import Any

from testbed.exported_flows import OCTETS, PACKETS, Record, flows_in, messages_in, number_in
from testbed.fleet import Place

_SOURCE_PORT, _DESTINATION_PORT = (0, 7), (0, 11)
_DESTINATIONS = ((0, 12), (0, 28))
_READ_BYTES = 1 << 16


class IpfixCollector:
    """The program, started at a place; also a context manager, which ends it."""

    def __init__(self, place: Place, port: int) -> None:
        self.target = f"{place.address}:{port}"
        command = place.command(sys.executable, "-m", "testbed.ipfix_collector", place.address, str(port))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()  # ready

    def flows(self) -> list[list[Any]]:
        """What has come so far, in whole messages."""
        if self._process.stdin is None:
            raise RuntimeError("it was started with a pipe")
        self._process.stdin.write("flows\n")
        self._process.stdin.flush()
        found: list[list[Any]] = json.loads(self._answer())
        return found

    def __enter__(self) -> IpfixCollector:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the collector at {self.target} ended with {self._process.wait()}")
        return line


def _described(exporter: str, flow: Record) -> list[Any]:
    destination = next(ipaddress.ip_address(flow[element]) for element in _DESTINATIONS if element in flow)
    numbers = (number_in(flow, element) for element in (_SOURCE_PORT, _DESTINATION_PORT, PACKETS, OCTETS))
    return [exporter, str(destination), *numbers]


def _keep(connection: socket.socket, stream: bytearray) -> None:
    while data := connection.recv(_READ_BYTES):
        stream += data


def _whole(stream: bytes) -> bytes:
    """The messages that have come to their end."""
    at = 0
    while at + 4 <= len(stream) and at + (length := int.from_bytes(stream[at + 2 : at + 4], "big")) <= len(stream):
        at += length
    return stream[:at]


def _accept(listener: socket.socket, streams: list[tuple[str, bytearray]]) -> None:
    while True:
        connection, peer = listener.accept()
        stream = bytearray()
        streams.append((peer[0], stream))
        threading.Thread(target=_keep, args=(connection, stream), daemon=True).start()


def main() -> None:
    """Until standard input ends."""
    parser = argparse.ArgumentParser(prog="testbed.ipfix_collector")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    streams: list[tuple[str, bytearray]] = []
    listener = socket.create_server((arguments.address, arguments.port))
    threading.Thread(target=_accept, args=(listener, streams), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        flows = [
            _described(exporter, flow)
            for exporter, stream in list(streams)
            for flow in flows_in(messages_in(_whole(bytes(stream))))
        ]
        sys.stdout.write(json.dumps(flows) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
