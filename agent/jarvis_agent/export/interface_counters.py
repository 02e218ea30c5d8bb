# SPDX-License-Identifier: Apache-2.0
"""Counters of network interfaces for sFlow's counters samples, from the files of /sys/class/net: one look an interval.

    /sys/class/net/<name>/{ifindex,type,speed,duplex,flags,operstate,statistics/*} ──► InterfaceCounters ──► FlowExporter.counters

What the kernel does not count is told as sFlow version 5 has it: unknown counters are all ones ("use the maximum counter value"),
unknown other values 0. The kernel counts multicast received alone, so what is sent is all in out_unicast, and broadcast with the
rest. An interface that is gone, or goes while it is looked at, is left out until it is back: its samples' sequence
then begins anew when its counters do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from jarvis_native.export import InterfaceCounters

NET: Final = Path("/sys/class/net")
UNKNOWN_32: Final = 0xFFFF_FFFF

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV}
_ARPHRD_ETHER = 1
_ARPHRD_LOOPBACK = 772
_IF_TYPES = {_ARPHRD_ETHER: 6, _ARPHRD_LOOPBACK: 24}  # IANA ifType: ethernetCsmacd, softwareLoopback
_IF_TYPE_OTHER = 1
_DIRECTIONS = {"full": 1, "half": 2}
_IFF_UP = 0x1  # linux/if.h
_IFF_PROMISC = 0x100
_ADMIN_UP = 1
_OPER_UP = 2
_MBIT = 1_000_000
# RFC 2863's ifOperStatus as the kernel words it; interfaces that do not keep it (loopback, tun) say unknown and work.
_OPERATING = {"up", "unknown"}


def read_counters(names: Iterable[str], net: Path = NET) -> list[InterfaceCounters]:
    """Counters of these interfaces as they are now, in their order; those that are not there are left out.

    Args:
        names: interfaces of this network namespace.
        net: where the kernel shows them.
    """
    found = []
    for name in names:
        try:
            found.append(_read_one(net / name))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue  # whoever captures on it tells
    return found


def _read_one(interface: Path) -> InterfaceCounters:
    flags = int(_text(interface / "flags"), 16)
    operating = _text(interface / "operstate") in _OPERATING
    received = _counter(interface, "rx_packets")
    multicast = _counter(interface, "multicast")
    return InterfaceCounters(
        index=int(_text(interface / "ifindex")),
        type=_IF_TYPES.get(int(_text(interface / "type")), _IF_TYPE_OTHER),
        speed=max(0, _optional_number(interface / "speed")) * _MBIT,
        direction=_DIRECTIONS.get(_optional_text(interface / "duplex"), 0),
        status=(_ADMIN_UP if flags & _IFF_UP else 0) | (_OPER_UP if flags & _IFF_UP and operating else 0),
        in_octets=_counter(interface, "rx_bytes"),
        in_unicast=max(0, received - multicast),
        in_multicast=multicast,
        in_broadcast=UNKNOWN_32,
        in_discards=_counter(interface, "rx_dropped"),
        in_errors=_counter(interface, "rx_errors"),
        in_unknown_protocols=UNKNOWN_32,
        out_octets=_counter(interface, "tx_bytes"),
        out_unicast=_counter(interface, "tx_packets"),
        out_multicast=UNKNOWN_32,
        out_broadcast=UNKNOWN_32,
        out_discards=_counter(interface, "tx_dropped"),
        out_errors=_counter(interface, "tx_errors"),
        promiscuous=1 if flags & _IFF_PROMISC else 2,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _counter(interface: Path, name: str) -> int:
    return int(_text(interface / "statistics" / name))


def _optional_text(path: Path) -> str:
    """Speed and duplex: reading them fails where an interface has none, or is down (EINVAL)."""
    try:
        return _text(path)
    except OSError as error:
        if error.errno in _GONE:
            raise
        return ""


def _optional_number(path: Path) -> int:
    text = _optional_text(path)
    return int(text) if text.lstrip("-").isdigit() else 0
