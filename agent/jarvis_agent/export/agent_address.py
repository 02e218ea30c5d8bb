# SPDX-License-Identifier: Apache-2.0
"""The address by which sFlow's collectors know this host (sFlow version 5: sFlowAgentAddress).

Nothing is sent and no name is looked up: a UDP socket that is connected knows the address that the kernel would send from.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Final

_DISCARD_PORT = 9
# Documentation prefixes (RFC 5737, RFC 3849): routed as any other place that is far away.
_FAR_AWAY: Final = ("192.0.2.1", "2001:db8::1")
_LOOPBACK = "127.0.0.1"


def agent_address(collector: str) -> str:
    """The address of this host towards a collector; towards the rest of the world where that is a name.

    It stays the same when names resolve anew, and an export goes by it for as long as it lives.

    Args:
        collector: an address without brackets, or a name.

    Returns:
        An IPv4 or IPv6 address without a zone; loopback's on a host that has no route.
    """
    for place in (collector, *_FAR_AWAY):
        address = _local_address(place)
        if address:
            return address
    return _LOOPBACK


def _local_address(place: str) -> str:
    try:
        version = ipaddress.ip_address(place).version
    except ValueError:
        return ""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((place, _DISCARD_PORT))
        return str(probe.getsockname()[0]).partition("%")[0]
    return ""
