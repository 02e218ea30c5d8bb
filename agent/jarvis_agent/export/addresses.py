# SPDX-License-Identifier: Apache-2.0
"""Names of collectors as socket addresses. A name is resolved anew at every connection, since its address may have changed."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from jarvis_agent.export.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of a collector."""

    family: int
    """AF_INET or AF_INET6."""
    socket_address: tuple[str | int, ...]
    """What socket.connect takes."""

    def __str__(self) -> str:
        return endpoint_text(str(self.socket_address[0]), int(self.socket_address[1]))


def endpoint_text(host: str, port: int) -> str:
    """`192.0.2.1:4739`, `[2001:db8::1]:4739`, `collector.example:4739`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_address(host: str) -> bool:
    """Whether it is an address literal, so that there is nothing to resolve."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def resolve(host: str, port: int) -> list[Endpoint]:
    """Every address of a collector, in the order in which the host's resolver prefers them (RFC 6724). Blocks on DNS.

    Raises:
        ExportError: EXPORT_UNRESOLVED; a name that does not exist is permanent, a resolver that does not answer is not.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICSERV)
    except socket.gaierror as error:
        away = error.errno == socket.EAI_AGAIN
        help_text = "the resolver does not answer now" if away else "accepted is an address or a name that resolves"
        message = f"{host}: {error.strerror}; {help_text}"
        raise ExportError("EXPORT_UNRESOLVED", message, is_permanent=not away) from error
    except UnicodeError as error:
        message = f"{host!r} is no host name; accepted is an address or a name that resolves"
        raise ExportError("EXPORT_UNRESOLVED", message, is_permanent=True) from error
    endpoints = [
        Endpoint(family=int(family), socket_address=tuple(field for field in address if isinstance(field, (str, int))))
        for family, _type, _protocol, _name, address in found
        if family in {socket.AF_INET, socket.AF_INET6}
    ]
    if not endpoints:
        raise ExportError("EXPORT_UNRESOLVED", f"{host}: has no IPv4 or IPv6 address", is_permanent=True)
    return list(dict.fromkeys(endpoints))
