# SPDX-License-Identifier: Apache-2.0
"""Capture files of our own making, for hosts that replay instead of capturing: whole HTTP-like TCP connections."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

FIN, SYN, PSH, ACK = 1, 2, 8, 16
_START_NS = 1_700_000_000_000_000_000
_GAP_NS = 50_000


def write_http_capture(path: Path, *, servers: Sequence[str], port: int, count: int) -> Counter[tuple[str, int]]:
    """Writes `count` connections to each server; returns (server address, client port) → how often, as a client reports it."""
    made: Counter[tuple[str, int]] = Counter()
    with path.open("wb") as output:
        output.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        time_ns = _START_NS
        for server in servers:
            for number in range(count):
                client_port = 20000 + number
                for frame in _connection(server, port, client_port):
                    output.write(struct.pack("<IIII", time_ns // 10**9, time_ns % 10**9, len(frame), len(frame)) + frame)
                    time_ns += _GAP_NS
                made[server, client_port] += 1
    return made


def _connection(server: str, port: int, client_port: int) -> Iterator[bytes]:
    """Handshake, request, answer, orderly end."""
    address = ipaddress.ip_address(server)
    there, here = address.packed, (address - 1).packed
    for from_client, flags, payload in (
        (True, SYN, 0), (False, SYN | ACK, 0), (True, ACK, 0), (True, PSH | ACK, 120), (False, PSH | ACK, 700),
        (False, FIN | ACK, 0), (True, FIN | ACK, 0), (False, ACK, 0),
    ):  # fmt: skip
        if from_client:
            yield _frame(here, there, (client_port, port), flags, payload)
        else:
            yield _frame(there, here, (port, client_port), flags, payload)


def _frame(source: bytes, destination: bytes, ports: tuple[int, int], flags: int, payload: int) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", *ports, 0, 0, 0x50, flags, 65535, 0, 0) + bytes(payload)
    if len(source) == 4:
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source, destination)
        return bytes(12) + b"\x08\x00" + ip + tcp
    return bytes(12) + b"\x86\xdd" + struct.pack(">IHBB16s16s", 0x60000000, len(tcp), 6, 64, source, destination) + tcp
