# SPDX-License-Identifier: Apache-2.0
"""Writes the small captures of this folder, byte by byte with struct. What must come out of them is in expected.jsonl, by hand.

usage: python tests/data/make_captures.py [DIRECTORY]      (default: beside this file; a test compares the committed files)
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPOCH_S = 1_700_000_000  # 2023-11-14T22:13:20Z
ETHERNET, NULL, PPP, RAW, SLL, RADIOTAP, SLL2 = 1, 0, 9, 101, 113, 127, 276
FIN, SYN, PSH, ACK = 1, 2, 8, 16

A4, B4, C4 = "192.0.2.1", "192.0.2.2", "198.51.100.3"
A6, B6 = "2001:db8::1", "2001:db8::2"

Packet = tuple[int, bytes]  # nanoseconds after EPOCH_S, frame


# ---- layers


def tcp(source: int, destination: int, flags: int, payload: int = 0) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 1, 5 << 4, flags, 1024, 0, 0) + bytes(payload)


def udp(source: int, destination: int, payload: int = 0) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + payload, 0) + bytes(payload)


def sctp(source: int, destination: int, payload: int = 0) -> bytes:
    return struct.pack("!HHII", source, destination, 1, 0) + bytes(payload)


def echo(kind: int) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 1, 1) + bytes(56)


def ip4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    ident: int = 0,
    fragment: int = 0,
    options: bytes = b"",
    length: int | None = None,
    tos: int = 0,
) -> bytes:
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        tos,
        total,
        ident,
        fragment,
        64,
        protocol,
        0,
        ipaddress.IPv4Address(source).packed,
        ipaddress.IPv4Address(destination).packed,
    )
    return header + options + payload


def ip6(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + addresses + payload


def ip6_fragment(next_header: int, offset: int, more: bool, ident: int, payload: bytes) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, ident) + payload


def ethernet(ethertype: int, payload: bytes) -> bytes:
    return bytes.fromhex("020000000001020000000002") + struct.pack("!H", ethertype) + payload


def tag(vlan: int, ethertype: int, payload: bytes) -> bytes:
    """What follows an ethertype 0x8100 or 0x88a8."""
    return struct.pack("!HH", vlan, ethertype) + payload


def labels(*values: int) -> bytes:
    """An MPLS stack, bottom bit on the last."""
    return b"".join(
        struct.pack("!I", value << 12 | (1 << 8 if index == len(values) - 1 else 0) | 64) for index, value in enumerate(values)
    )


def sll(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), protocol) + payload


def sll2(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, 2, 1, 0, 6, bytes(8)) + payload


def arp() -> bytes:
    return ethernet(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(20))


def in_udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def gre(protocol: int, payload: bytes, *, key: int | None = None, sequence: int | None = None, checksum: bool = False) -> bytes:
    flags = 0x8000 * checksum | 0x2000 * (key is not None) | 0x1000 * (sequence is not None)
    options = bytes(4 * checksum) + b"".join(struct.pack("!I", value) for value in (key, sequence) if value is not None)
    return struct.pack("!HH", flags, protocol) + options + payload


def erspan2(vlan: int, session: int, payload: bytes) -> bytes:
    return gre(0x88BE, struct.pack("!HHI", 1 << 12 | vlan, session, 0) + payload, sequence=1)


def erspan3(vlan: int, session: int, payload: bytes) -> bytes:
    return gre(0x22EB, struct.pack("!HHIHH", 2 << 12 | vlan, session, 12345678, 0, 0) + payload, sequence=1)


def vxlan(vni: int, payload: bytes) -> bytes:
    return in_udp(49152, 4789, struct.pack("!II", 0x08000000, vni << 8) + payload)


def geneve(vni: int, protocol: int, payload: bytes) -> bytes:
    """With one option of 8 bytes."""
    return in_udp(49152, 6081, struct.pack("!BBHI", 2, 0, protocol, vni << 8) + bytes.fromhex("0102030100000000") + payload)


def gtp_u(teid: int, payload: bytes) -> bytes:
    """With the PDU session container that 5G puts there."""
    optional = bytes.fromhex("00000085") + bytes.fromhex("01000900")
    return in_udp(2152, 2152, struct.pack("!BBHI", 0x34, 255, len(optional) + len(payload), teid) + optional + payload)


def l2tp(tunnel: int, session: int, payload: bytes) -> bytes:
    return in_udp(1701, 1701, struct.pack("!HHH", 2, tunnel, session) + payload)


def ppp(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 0xFF03, protocol) + payload


def pppoe(session: int, protocol: int, payload: bytes) -> bytes:
    return ethernet(0x8864, struct.pack("!BBHHH", 0x11, 0, session, 2 + len(payload), protocol) + payload)


def wifi(ethertype: int, payload: bytes, *, control: int = 0x88, flags: int = 1) -> bytes:
    """A QoS data frame to the access point, behind a radiotap header that has time and flags."""
    radiotap = struct.pack("<BBHIQBx", 0, 0, 18, 3, 1, 0)
    header = struct.pack("<BBH18sHH", control, flags, 0, bytes.fromhex("020000000003020000000001020000000002"), 16, 0)
    return radiotap + header + bytes.fromhex("aaaa03000000") + struct.pack("!H", ethertype) + payload


# ---- files


def pcap(packets: list[Packet], *, link: int = ETHERNET, order: str = "<", nanoseconds: bool = False, cut: int = 0) -> bytes:
    magic, divisor = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link)]
    for at, frame in packets:
        seconds, rest = divmod(at, 10**9)
        parts += (struct.pack(order + "IIII", EPOCH_S + seconds, rest // divisor, len(frame), len(frame)), frame)
    out = b"".join(parts)
    return out[: len(out) - cut]


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, 12 + len(body)) + body + struct.pack(order + "I", 12 + len(body))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str, interfaces: list[tuple[int, int | None]], packets: list[tuple[int, int, bytes]]) -> bytes:
    """A pcapng section: interfaces are (link type, if_tsresol or None), packets (interface, ns after EPOCH_S, frame)."""
    out = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    for link, resolution in interfaces:
        options = b"" if resolution is None else option(order, 9, bytes([resolution])) + option(order, 0, b"")
        out += block(order, 1, struct.pack(order + "HHI", link, 0, 262144) + options)
    for interface, at, frame in packets:
        resolution = interfaces[interface][1]
        exponent = 6 if resolution is None else resolution
        nanoseconds = EPOCH_S * 10**9 + at
        ticks = nanoseconds * 10**exponent // 10**9
        body = struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame)) + frame
        out += block(order, 6, body)
    return out


def seconds(value: float) -> int:
    return round(value * 10**9)


# ---- the captures


def connection() -> list[Packet]:
    """A TCP connection with handshake, request, answer and both FINs; an echo; a DNS exchange over IPv6; an ARP request."""
    there, back = (A4, B4), (B4, A4)
    return [
        (0, arp()),
        (seconds(0.1), ethernet(0x0800, ip4(*there, 6, tcp(40000, 80, SYN), tos=0x28))),
        (seconds(0.2), ethernet(0x0800, ip4(*back, 6, tcp(80, 40000, SYN | ACK)))),
        (seconds(0.3), ethernet(0x0800, ip4(*there, 6, tcp(40000, 80, ACK | PSH, 100)))),
        (seconds(0.4), ethernet(0x0800, ip4(*back, 6, tcp(80, 40000, ACK | PSH, 1000)))),
        (seconds(0.5), ethernet(0x0800, ip4(*there, 6, tcp(40000, 80, FIN | ACK)))),
        (seconds(0.6), ethernet(0x0800, ip4(*back, 6, tcp(80, 40000, FIN | ACK)))),
        (seconds(0.7), ethernet(0x0800, ip4(*there, 6, tcp(40000, 80, ACK)))),
        (seconds(0.8), ethernet(0x0800, ip4(A4, C4, 1, echo(8)))),
        (seconds(0.9), ethernet(0x0800, ip4(C4, A4, 1, echo(0)))),
        (seconds(1.0), ethernet(0x86DD, ip6(A6, B6, 17, udp(5353, 53, 32)))),
        (seconds(1.1), ethernet(0x86DD, ip6(B6, A6, 17, udp(53, 5353, 64)))),
    ]


def tagged() -> list[Packet]:
    inner = ip4(A4, B4, 17, udp(1000, 2000, 72))
    return [
        (0, ethernet(0x0800, inner)),
        (1000, ethernet(0x8100, tag(100, 0x0800, inner))),
        (2000, ethernet(0x8100, tag(100 | 3 << 13, 0x0800, inner))),  # the priority is no part of the id
        (3000, ethernet(0x88A8, tag(200, 0x8100, tag(300, 0x0800, inner)))),
        (4000, ethernet(0x8100, tag(200, 0x8100, tag(301, 0x0800, inner)))),  # the outer id is the flow's
        (5000, ethernet(0x8100, tag(100, 0x86DD, ip6(A6, B6, 6, tcp(1, 2, SYN))))),
    ]


def labelled() -> list[Packet]:
    return [
        (0, ethernet(0x8847, labels(16) + ip4(A4, B4, 17, udp(1000, 2000, 72)))),
        (1000, ethernet(0x8847, labels(16, 17, 18) + ip4(B4, A4, 17, udp(2000, 1000, 72)))),
        (2000, ethernet(0x8847, labels(16, 17) + ip6(A6, B6, 132, sctp(5000, 5001, 16)))),
    ]


def cooked(version: int) -> list[Packet]:
    wrap = sll if version == 1 else sll2
    return [
        (0, wrap(0x0800, ip4(A4, B4, 6, tcp(40000, 80, SYN)))),
        (1000, wrap(0x0800, ip4(B4, A4, 6, tcp(80, 40000, SYN | ACK)))),
        (2000, wrap(0x86DD, ip6(A6, B6, 58, echo(128)))),
        (3000, wrap(0x0806, bytes(28))),
    ]


def bare() -> list[Packet]:
    return [
        (0, ip4(A4, B4, 6, tcp(40000, 80, SYN))),
        (1000, ip6(A6, B6, 17, udp(1, 2, 4))),
        (2000, ip4(A4, B4, 47, bytes(30))),
    ]


def loopback() -> list[Packet]:
    return [
        (0, struct.pack("<I", 2) + ip4("127.0.0.1", "127.0.0.1", 17, udp(9, 9, 12))),
        (1000, struct.pack("<I", 30) + ip6("::1", "::1", 6, tcp(8, 9, SYN))),
        (2000, struct.pack("<I", 24) + ip6("::1", "::1", 6, tcp(9, 8, SYN | ACK))),
    ]


def fragments() -> list[Packet]:
    """A datagram in three (1480, 1480, 48 bytes), one over IPv6 in two, and a last fragment whose first one is not there."""
    whole = udp(1000, 2000, 3000)
    whole6 = udp(1000, 2000, 1992)
    return [
        (0, ethernet(0x0800, ip4(A4, B4, 17, whole[:1480], ident=7, fragment=0x2000))),
        (1000, ethernet(0x0800, ip4(A4, B4, 17, whole[1480:2960], ident=7, fragment=0x2000 | 185))),
        (2000, ethernet(0x0800, ip4(A4, B4, 17, whole[2960:], ident=7, fragment=370))),
        (3000, ethernet(0x86DD, ip6(A6, B6, 44, ip6_fragment(17, 0, True, 9, whole6[:1000])))),
        (4000, ethernet(0x86DD, ip6(A6, B6, 44, ip6_fragment(17, 125, False, 9, whole6[1000:])))),
        (5000, ethernet(0x0800, ip4(A4, C4, 17, bytes(40), ident=8, fragment=185))),
    ]


def extended() -> list[Packet]:
    hop_by_hop = struct.pack("!BB6x", 60, 0)  # next: destination options
    destination = struct.pack("!BB6x", 6, 0)  # next: TCP
    routing = struct.pack("!BBBB4x", 17, 0, 0, 0)  # next: UDP
    return [
        (0, ethernet(0x86DD, ip6(A6, B6, 0, hop_by_hop + destination + tcp(1, 2, SYN)))),
        (1000, ethernet(0x86DD, ip6(A6, B6, 43, routing + udp(3, 4, 12)))),
        (2000, ethernet(0x0800, ip4(A4, B4, 17, udp(5, 6, 8), options=bytes([7, 7, 4, 0, 0, 0, 0, 0])))),
        (3000, ethernet(0x0800, ip4(A4, B4, 132, sctp(7, 8, 20)))),
        (4000, ethernet(0x86DD, ip6(A6, B6, 59, b""))),
    ]


def damaged() -> list[Packet]:
    """What must be counted as malformed, and two oddities that must not."""
    good = ip4(A4, B4, 17, udp(1000, 2000, 12))
    return [
        (0, ethernet(0x0800, b"\x44" + good[1:])),  # header of 16 bytes
        (1000, ethernet(0x0800, ip4(A4, B4, 17, udp(1000, 2000), length=19))),  # total length below the header's
        (2000, ethernet(0x0800, good[:12])),  # cut inside the IP header
        (3000, ethernet(0x86DD, ip6(A6, B6, 17, b"")[:30])),  # likewise
        (4000, ethernet(0x0800, ip4(A4, B4, 17, udp(1000, 2000, 12), length=0))),  # segmentation offload: the frame says 40
        (5000, ethernet(0x0800, ip4(A4, B4, 6, b"\x9c\x40"))),  # no room for ports: metered with ports 0
    ]


def pauses() -> list[Packet]:
    """One UDP flow with pauses of 29 s and 31 s, then a packet every 20 s for 400 s: splits at the default timeouts."""
    times = [0.0, 29.0, 60.0, *(80.0 + 20 * step for step in range(21))]
    return [(seconds(at), ethernet(0x0800, ip4(A4, B4, 17, udp(1000, 2000, 72)))) for at in times]


def several_interfaces() -> bytes:
    first = ip4(A4, B4, 17, udp(1000, 2000, 72))
    little = section(
        "<",
        [(ETHERNET, None), (RAW, 9)],
        [(0, 1000, ethernet(0x0800, first)), (1, 2001, first), (1, 3000, ip6(A6, B6, 17, udp(1, 2, 4)))],
    )
    big = section(">", [(SLL, 9)], [(0, 4003, sll(0x0800, ip4(B4, A4, 17, udp(2000, 1000, 72))))])
    return little + big


def tunnelled() -> list[Packet]:
    """One packet or two in each kind of tunnel between A4 and B4; in each the same conversation of 10.0.0.1 and 10.0.0.2."""
    there, back = ("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")
    ask, answer = ip4(*there, 17, udp(1000, 2000, 72)), ip4(*back, 17, udp(2000, 1000, 12))
    ask6 = ip6(A6, B6, 6, tcp(1000, 80, SYN))
    outer = [
        ip4(A4, B4, 17, vxlan(7, ethernet(0x0800, ask))),
        ip4(B4, A4, 17, vxlan(7, ethernet(0x0800, answer))),
        ip4(A4, B4, 17, vxlan(8, ethernet(0x8100, tag(5, 0x0800, ask)))),
        ip4(A4, B4, 17, vxlan(7, arp())),  # nothing of ours inside: the tunnel's own flow
        ip4(A4, B4, 17, geneve(7, 0x6558, ethernet(0x86DD, ask6))),
        ip4(A4, B4, 47, gre(0x0800, ask)),
        ip4(B4, A4, 47, gre(0x0800, answer, checksum=True, sequence=9)),
        ip4(A4, B4, 47, gre(0x86DD, ask6, key=0x01020304)),
        ip4(A4, B4, 47, erspan2(100, 3, ethernet(0x0800, ask))),
        ip4(A4, B4, 47, erspan3(101, 4, ethernet(0x0800, ask))),
        ip4(A4, B4, 47, gre(0x88BE, ethernet(0x8100, tag(6, 0x0800, ask)))),  # ERSPAN type I
        ip4(A4, B4, 17, gtp_u(0xDEADBEEF, ask)),
        ip4(B4, A4, 17, gtp_u(1, answer)),
        ip4(A4, B4, 4, ask),
        ip4(A4, B4, 41, ask6),
        ip6(A6, B6, 4, ask),
        ip6(A6, B6, 41, ip6(B6, A6, 17, udp(1, 2, 4))),
        ip4(A4, B4, 17, in_udp(50000, 3544, ask6)),
        ip4(A4, B4, 17, l2tp(1, 2, ppp(0x0021, ask))),
        ip4(A4, B4, 47, gre(0x0800, ip4(A4, B4, 17, vxlan(9, ethernet(0x0800, ask))))),  # one in the other
    ]
    frames = [ethernet(0x0800 if packet[0] >> 4 == 4 else 0x86DD, packet) for packet in outer]
    whole = gre(0x0800, ip4(*there, 17, udp(1000, 2000, 1000)))
    frames.append(ethernet(0x0800, ip4(A4, B4, 47, whole[:800], ident=7, fragment=0x2000)))
    frames.append(ethernet(0x0800, ip4(A4, B4, 47, whole[800:], ident=7, fragment=100)))  # no inner header: the tunnel's own flow
    return [(1000 * number, frame) for number, frame in enumerate(frames)]


def with_checksum(packet: bytes) -> bytes:
    """An IPv4 packet, whose header is 20 bytes, with the checksum that `ip4` leaves out."""
    total = sum(struct.unpack("!10H", packet[:20]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:10] + struct.pack("!H", ~total & 0xFFFF) + packet[12:]


def l2tpv3() -> list[Packet]:
    """Version 3 over IP and over UDP, with cookies and sublayers of different lengths."""
    there, back = ("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")
    ask, answer = with_checksum(ip4(*there, 17, udp(1000, 2000, 72))), with_checksum(ip4(*back, 17, udp(2000, 1000, 12)))
    ask6 = ip6(A6, B6, 6, tcp(1000, 80, SYN))
    cookie, sublayer, version = bytes.fromhex("c00c1e55c00c1e56"), bytes.fromhex("40000007"), bytes.fromhex("00030000")
    outer = [
        ip4(A4, B4, 115, struct.pack("!I", 7) + ethernet(0x0800, ask)),
        ip4(B4, A4, 115, struct.pack("!I", 9) + cookie[:4] + ethernet(0x0800, answer)),
        ip4(A4, B4, 115, struct.pack("!I", 7) + ask),
        ip4(A4, B4, 17, in_udp(1701, 1701, version + struct.pack("!I", 0x01020304) + cookie + sublayer
                               + ethernet(0x8100, tag(5, 0x86DD, ask6)))),
        ip4(A4, B4, 115, struct.pack("!I", 7) + arp()),  # nothing of ours inside: the tunnel's own flow
        ip4(A4, B4, 115, struct.pack("!I", 0) + bytes.fromhex("c803000c000000000000000000000006")),  # control messages: likewise
        ip4(A4, B4, 17, in_udp(1701, 1701, bytes.fromhex("c803000c0000000000000000"))),
    ]  # fmt: skip
    return [(1000 * number, ethernet(0x0800, packet)) for number, packet in enumerate(outer)]


def dialled() -> list[Packet]:
    return [
        (0, ethernet(0x8863, bytes.fromhex("110900000000"))),  # discovery
        (1000, pppoe(42, 0x0021, ip4(A4, B4, 17, udp(1000, 2000, 72)))),
        (2000, pppoe(42, 0x0021, ip4(B4, A4, 17, udp(2000, 1000, 12)))),
        (3000, pppoe(43, 0x0057, ip6(A6, B6, 58, echo(128)))),
        (4000, pppoe(43, 0xC021, bytes(8))),  # LCP
    ]


def point_to_point() -> list[Packet]:
    return [
        (0, ppp(0x0021, ip4(A4, B4, 17, udp(1000, 2000, 72)))),
        (1000, ppp(0x8021, bytes(10))),  # IPCP
        (2000, struct.pack("!H", 0x0057) + ip6(A6, B6, 17, udp(1, 2, 4))),
    ]


def wireless() -> list[Packet]:
    ask = ip4(A4, B4, 17, udp(1000, 2000, 72))
    return [
        (0, wifi(0x0800, ask)),
        (1000, wifi(0x0800, ip4(B4, A4, 17, udp(2000, 1000, 12)), flags=2)),
        (2000, wifi(0x86DD, ip6(A6, B6, 17, udp(1, 2, 4)))),
        (3000, wifi(0x0800, ask, flags=0x41)),  # encrypted
        (4000, wifi(0x0800, ask, control=0x80)),  # a beacon
        (5000, wifi(0x0806, bytes(28))),
    ]


CAPTURES = {
    "connection.pcap": lambda: pcap(connection()),
    "connection-be-ns.pcap": lambda: pcap(connection(), order=">", nanoseconds=True),
    "tagged.pcap": lambda: pcap(tagged()),
    "labelled.pcap": lambda: pcap(labelled(), order=">"),
    "cooked-v1.pcap": lambda: pcap(cooked(1), link=SLL),
    "cooked-v2.pcap": lambda: pcap(cooked(2), link=SLL2),
    "bare.pcap": lambda: pcap(bare(), link=RAW, nanoseconds=True),
    "loopback.pcap": lambda: pcap(loopback(), link=NULL),
    "fragments.pcap": lambda: pcap(fragments()),
    "extended.pcap": lambda: pcap(extended()),
    "damaged.pcap": lambda: pcap(damaged()),
    "pauses.pcap": lambda: pcap(pauses()),
    "tunnelled.pcap": lambda: pcap(tunnelled()),
    "l2tpv3.pcap": lambda: pcap(l2tpv3()),
    "dialled.pcap": lambda: pcap(dialled()),
    "point-to-point.pcap": lambda: pcap(point_to_point(), link=PPP),
    "wireless.pcap": lambda: pcap(wireless(), link=RADIOTAP),
    "cut.pcap": lambda: pcap(connection(), cut=5),
    "several-interfaces.pcapng": several_interfaces,
    "cut.pcapng": lambda: several_interfaces()[:-20],
}


def write_captures(directory: Path) -> None:
    for name, make in CAPTURES.items():
        (directory / name).write_bytes(make())


if __name__ == "__main__":
    write_captures(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
