# SPDX-License-Identifier: Apache-2.0
"""Routes: next hop, prefix length and AS number of addresses, for exporters of profile `full`.

    routes = Routes(firmware=firmware, kernel=True, asn_database=Path("/var/lib/GeoIP/GeoLite2-ASN.mmdb"))
    exporter = FlowExporter(..., routes=routes)
    routes.refresh()          now and then: takes over what has changed

The core looks addresses up by itself while it writes records; `lookup` here is for programs that want to know. Safe from any
thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from jarvis_native.arguments import c_string
from jarvis_native.errors import CaptureStateError, InvalidArgument, check
from jarvis_native.loader import Firmware

_IPV4_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What is known of the way to an address."""

    next_hop: IPv4Address | IPv6Address | None
    """None: it is on link, or no route to it is known."""
    prefix_length: int | None
    """Of the route, else of the AS database's network; None where neither knows the address."""
    as_number: int
    """0: unknown."""
    interface_index: int
    """That the route leaves by; 0: unknown."""


class Routes:
    """A routing source. Close it when done; exporters that use it keep what it knows alive.

    Args:
        firmware: the loaded library.
        kernel: follow the main routing tables of the calling thread's network namespace.
        asn_database: a MaxMind DB with autonomous_system_number (GeoLite2-ASN); read whole, so that the file may be replaced.

    Raises:
        InvalidArgument: neither source is asked for, or the database holds no AS numbers.
        CaptureFileError: the database cannot be read or is damaged.
        BackendUnavailable: this build has no libmaxminddb.
        CaptureIOError: the kernel refuses netlink.
    """

    def __init__(self, *, firmware: Firmware, kernel: bool = True, asn_database: str | os.PathLike[str] | None = None) -> None:
        self._ffi, self._lib = ffi, lib = firmware.ffi, firmware.lib
        path = ffi.NULL if asn_database is None else c_string(ffi, "asn_database", os.fspath(asn_database))
        config = ffi.new("struct capture_routes_config *")
        config.struct_size = ffi.sizeof(config[0])
        config.kernel = kernel
        config.asn_database = path
        out, info = ffi.new("capture_routes_t **"), ffi.new("struct capture_error_info *")
        check(ffi, lib, lib.capture_routes_open(config, out, info), info)
        self._routes: Any = ffi.gc(out[0], lib.capture_routes_release)

    def refresh(self) -> None:
        """Takes over what has changed since, looking at nothing twice within a second; never waits for the network.

        Raises:
            CaptureFileError, InvalidArgument: the database was replaced by one that cannot be used: the old one stays in use
                until the file changes again.
            CaptureIOError: the kernel's tables cannot be read; what was read before stays in use.
        """
        info = self._ffi.new("struct capture_error_info *")
        check(self._ffi, self._lib, self._lib.capture_routes_refresh(self.handle, info), info)

    def lookup(self, address: str | IPv4Address | IPv6Address) -> Route:
        """What is known of one address.

        Raises:
            InvalidArgument: it is no IP address.
        """
        try:
            packed = ip_address(address).packed
        except ValueError:
            raise InvalidArgument(
                f"address is {address!r}: accepted are IPv4 and IPv6 addresses such as 192.0.2.1", field="address"
            ) from None
        out = self._ffi.new("struct capture_route *")
        version = 4 if len(packed) == _IPV4_BYTES else 6
        check(self._ffi, self._lib, self._lib.capture_routes_lookup(self.handle, packed, version, out))
        hop = bytes(out.next_hop)[: _IPV4_BYTES if out.next_hop_version == 4 else None]
        return Route(
            next_hop=ip_address(hop) if out.next_hop_version else None,
            prefix_length=int(out.prefix_length) if out.has_prefix else None,
            as_number=int(out.as_number),
            interface_index=int(out.interface_index),
        )

    @property
    def handle(self) -> Any:
        """The `capture_routes_t *`, for the exporter's configuration."""
        if self._routes is None:
            raise CaptureStateError("the routes are closed")
        return self._routes

    def close(self) -> None:
        """Lets go of the tables; those that an exporter uses live as long as it."""
        if self._routes is not None:
            self._ffi.release(self._routes)
            self._routes = None
