# SPDX-License-Identifier: Apache-2.0
"""Collectors that flow records may be sent to, as the fleet's policy lists them and each lease carries them to its agent.

    ["192.0.2.0/24", "[2001:db8::]/32:4739", "siem.example", "*.soc.example:6343", "file"] -> AllowList -> permits(host, port)

An address is matched by networks alone and a name by names alone: what a name resolves to is not judged here, so that whoever
answers the fleet's DNS cannot turn a network into a name or the other way round. A host is read in one way only (`parse_host`);
what resolvers would still understand (127.1, 0x7f.1, 010.0.0.1, fe80::1%eth0) is no host at all and never matches.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jarvis_trust.errors import PolicyError

MAX_ENTRIES: Final = 64
MAX_ENTRY_CHARACTERS: Final = 100
MAX_NAME_CHARACTERS: Final = 253
"""RFC 1035, 2.3.4, as text without the root's dot."""
FILES: Final = "file"
"""The entry that admits export into files."""

_MOST_DESCRIBED = 10
_ACCEPTED = (
    'an address or network ("192.0.2.0/24", "2001:db8::1"), a DNS name ("siem.example"), the names below one ("*.siem.example"), '
    'each with or without a port ("siem.example:4739", "[2001:db8::]/32:4739"), or "file"'
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# What resolvers take for an address: inet_aton(3) reads each part as decimal, octal or hexadecimal.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](/[^:]*)?(?::(.*))?", re.DOTALL)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AllowListError(PolicyError):
    """An entry that cannot be used.

    Attributes:
        index: of the entry.
        entry: as it was given.
        accepted: what would be.
    """

    def __init__(self, index: int, entry: str, accepted: str) -> None:
        shown = repr(entry) if len(entry) <= MAX_ENTRY_CHARACTERS else f"{entry[:MAX_ENTRY_CHARACTERS]!r}..."
        super().__init__("POLICY_INVALID", f"collectors[{index}] = {shown}: {accepted} is accepted")
        self.index = index
        self.entry = entry
        self.accepted = accepted


def parse_host(host: str) -> Address | str | None:
    """A collector's host: an address, a DNS name in lower case without the root's dot, or None for what is neither.

    Args:
        host: an IPv4 address of four decimal numbers, an IPv6 address without brackets and zone (one that is mapped from IPv4 is
            that IPv4 address), or a DNS name in ASCII (RFC 1123 with underscores) that does not end in a number.
    """
    if len(host) > MAX_NAME_CHARACTERS + 1 or not host.isascii() or "%" in host:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _parse_name(host)
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One entry. Exactly one of network and name is set."""

    network: _Network | None = None
    name: str = ""
    is_below: bool = False
    """Names below `name`, not itself."""
    port: int = 0
    """0: every port."""

    def permits(self, host: Address | str, port: int) -> bool:
        if self.port not in {0, port}:
            return False
        if isinstance(host, str):
            return host.endswith(f".{self.name}") if self.is_below else host == self.name
        return self.network is not None and host.version == self.network.version and host in self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """What may be exported to. `parse` makes it; immutable."""

    entries: tuple[str, ...]
    """As they were written."""
    permits_files: bool
    """Whether export into files is admitted."""
    _rules: tuple[_Rule, ...]

    @classmethod
    def parse(cls, entries: Sequence[str]) -> AllowList:
        """Reads a list; an empty one admits nothing.

        Args:
            entries: at most 64, each of at most 100 characters.

        Raises:
            PolicyError: POLICY_INVALID: too many. As AllowListError: one that cannot be used, with what is accepted.
        """
        if len(entries) > MAX_ENTRIES:
            raise PolicyError("POLICY_INVALID", f"collectors has {len(entries)} entries; at most {MAX_ENTRIES} are accepted")
        rules = tuple(_parse_entry(index, entry) for index, entry in enumerate(entries) if entry != FILES)
        return cls(entries=tuple(entries), permits_files=FILES in entries, _rules=rules)

    def describe(self) -> str:
        """The entries as an error names them, the first ten at most: it travels in trailers, which are small."""
        shown = ", ".join(self.entries[:_MOST_DESCRIBED]) or "nothing"
        more = len(self.entries) - _MOST_DESCRIBED
        return f"{shown} and {more} more" if more > 0 else shown

    def permits(self, host: str, port: int) -> bool:
        """Whether something may be sent there.

        Args:
            host: an address without brackets, or a name; upper and lower case are the same, a dot at the end makes no difference.
            port: the one that will be used, 1..65535.
        """
        parsed = parse_host(host)
        return parsed is not None and 1 <= port <= 65535 and any(rule.permits(parsed, port) for rule in self._rules)


def _parse_name(text: str) -> str | None:
    name = text.removesuffix(".").lower()
    if len(name) > MAX_NAME_CHARACTERS or _NAME.fullmatch(name) is None:
        return None
    return None if _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]) else name


def _parse_entry(index: int, entry: str) -> _Rule:
    if len(entry) > MAX_ENTRY_CHARACTERS:
        raise AllowListError(index, entry, f"an entry of at most {MAX_ENTRY_CHARACTERS} characters")
    if not entry.isascii():
        raise AllowListError(index, entry, f"a name in its ASCII form (xn--...), or else {_ACCEPTED},")
    host, port = _split_port(index, entry)
    if "/" in host or ":" in host or isinstance(parse_host(host), ipaddress.IPv4Address):
        return _Rule(network=_parse_network(index, entry, host), port=port)
    is_below = host.startswith("*.")
    name = _parse_name(host[2:] if is_below else host)
    if name is None:
        raise AllowListError(index, entry, _ACCEPTED)
    if name == FILES and not is_below:
        raise AllowListError(index, entry, 'a name with its domain: "file" alone admits files')
    return _Rule(name=name, is_below=is_below, port=port)


def _split_port(index: int, entry: str) -> tuple[str, int]:
    """What stands before the port, without brackets, and the port, 0 for none."""
    bracketed = _BRACKETED.fullmatch(entry)
    if bracketed is not None:
        address, length, text = bracketed.groups()
        if ":" not in address:
            raise AllowListError(index, entry, 'an IPv6 address within brackets ("[2001:db8::]/32:4739")')
        host = address + (length or "")
    elif entry.count(":") == 1:
        host, _, text = entry.partition(":")
    else:
        return entry, 0
    if text is None:
        return host, 0
    if _PORT.fullmatch(text) is None or int(text) > 65535:
        raise AllowListError(index, entry, f"a port of 1..65535 in place of {text!r}")
    return host, int(text)


def _parse_network(index: int, entry: str, text: str) -> _Network:
    address, slash, length = text.partition("/")
    parsed = None if "%" in address else _any_network(address, "")
    if parsed is None:
        bracketed = 'an IPv6 network with a port within brackets ("[2001:db8::]/32:4739")'
        raise AllowListError(index, entry, bracketed if re.search(r"/\d+:", entry) else _ACCEPTED)
    if not slash:
        return _unmapped(parsed)
    network = _any_network(address, length) if re.fullmatch(r"0|[1-9]\d{0,2}", length, re.ASCII) else None
    if network is None:
        raise AllowListError(index, entry, f"a prefix length of 0..{parsed.max_prefixlen} in place of {length!r}")
    if network.network_address != parsed.network_address:
        raise AllowListError(index, entry, f'the network itself, "{network}",')
    return _unmapped(network)


def _any_network(address: str, length: str) -> _Network | None:
    """The network of an address; host bits are cut off."""
    try:
        return ipaddress.ip_network(f"{address}/{length}" if length else address, strict=False)
    except ValueError:
        return None


def _unmapped(network: _Network) -> _Network:
    """A network of IPv4-mapped addresses is the IPv4 network that it maps; one that only contains them holds none of them."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(mapped or 0), network.prefixlen - 96))
    return network
