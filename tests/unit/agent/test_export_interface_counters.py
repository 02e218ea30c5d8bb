# SPDX-License-Identifier: Apache-2.0
"""Counters of interfaces: what the kernel's files say is what counters samples say."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from jarvis_agent.export.interface_counters import UNKNOWN_32, read_counters
from jarvis_native.export import InterfaceCounters

STATISTICS = {
    "rx_packets": 1000,
    "multicast": 30,
    "rx_bytes": 1 << 40,
    "rx_dropped": 4,
    "rx_errors": 5,
    "tx_packets": 2000,
    "tx_bytes": 1 << 41,
    "tx_dropped": 6,
    "tx_errors": 7,
}


def interface(net: Path, name: str = "eth7", **other: str) -> Path:
    """A directory like the kernel's; a file that shall not be there is given as empty."""
    files = {"ifindex": "7", "type": "1", "flags": "0x1103", "operstate": "up", "speed": "25000", "duplex": "full"} | other
    (net / name / "statistics").mkdir(parents=True)
    for file, text in files.items():
        if text:
            (net / name / file).write_text(f"{text}\n", encoding="ascii")
    for file, value in STATISTICS.items():
        (net / name / "statistics" / file).write_text(f"{value}\n", encoding="ascii")
    return net


def test_counters_are_those_of_the_kernel_and_what_it_does_not_count_is_unknown(tmp_path: Path) -> None:
    assert read_counters(["eth7"], interface(tmp_path)) == [
        InterfaceCounters(
            index=7,
            type=6,
            speed=25_000_000_000,
            direction=1,
            status=3,
            in_octets=1 << 40,
            in_unicast=970,
            in_multicast=30,
            in_broadcast=UNKNOWN_32,
            in_discards=4,
            in_errors=5,
            in_unknown_protocols=UNKNOWN_32,
            out_octets=1 << 41,
            out_unicast=2000,
            out_multicast=UNKNOWN_32,
            out_broadcast=UNKNOWN_32,
            out_discards=6,
            out_errors=7,
            promiscuous=1,
        )
    ]


@pytest.mark.parametrize(
    ("files", "values"),
    [
        ({"flags": "0x1002"}, {"status": 0, "promiscuous": 2}),
        ({"operstate": "down"}, {"status": 1}),
        ({"operstate": "unknown"}, {"status": 3}),
        ({"speed": "-1", "duplex": "unknown"}, {"speed": 0, "direction": 0}),
        ({"duplex": "half"}, {"direction": 2}),
        ({"type": "772"}, {"type": 24}),
        ({"type": "65534"}, {"type": 1}),
    ],
)
def test_states_and_kinds_are_told_as_rfc_2863_has_them(tmp_path: Path, files: dict[str, str], values: dict[str, int]) -> None:
    (counters,) = read_counters(["eth7"], interface(tmp_path, **files))
    assert {name: getattr(counters, name) for name in values} == values


def test_an_interface_that_is_gone_is_left_out_and_the_others_are_told(tmp_path: Path) -> None:
    interface(tmp_path)
    interface(tmp_path, "eth8", ifindex="8")
    interface(tmp_path, "eth9", ifindex="")  # went in the middle of the look
    assert [counters.index for counters in read_counters(["gone", "eth8", "eth9", "eth7"], tmp_path)] == [8, 7]


def test_loopback_has_its_index_and_kind_here() -> None:
    (counters,) = read_counters(["lo"])
    assert (counters.index, counters.type, counters.direction) == (socket.if_nametoindex("lo"), 24, 0)
