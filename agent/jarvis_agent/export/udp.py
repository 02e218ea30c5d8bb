# SPDX-License-Identifier: Apache-2.0
"""UDP: a message a datagram, no larger than the path takes, and what ICMP says about them afterwards.

    send_block (sendmmsg) ──► path ──► collector
          error queue ◄── ICMP: port unreachable, host unreachable, fragmentation needed

Nothing confirms a datagram. But the host of a collector that is not there answers by ICMP, and Linux hands that answer over with
the beginning of the refused datagram (IP_RECVERR, ip(7)). So what left stays known for `_LINGER_S` (at most `_FLIGHT_BYTES`);
at a refusal, the first message that was refused and all after it count as not sent, and the session sends them again when the
collector is back. Messages for which no answer comes are taken for delivered: UDP has no better word.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from jarvis_native.export import ExportBlock

from jarvis_agent.export.addresses import Endpoint, endpoint_text, is_address, resolve
from jarvis_agent.export.blocks import length_of, message_bytes
from jarvis_agent.export.errors import ExportError, unreachable
from jarvis_agent.export.plan import ExportTransport
from jarvis_agent.export.transport import SEND_TIMEOUT_S, Interrupt, never, wait_for

RESOLVE_INTERVAL_S = 300.0
"""How often a name is looked up again while connected."""

MESSAGE_MAX = 1400
MESSAGE_MIN = 512
BURST = 32
"""Messages between two looks at the error queue and the pace."""

_LINGER_S = 1.0
_FLIGHT_BYTES = 4 << 20
_SEND_BUFFER_BYTES = 4 << 20
_ROOM_LOOK_S = 0.001
_MOST_ERRORS = 1_000
_PREFIX_BYTES = 64
"""Enough of a message to know it again: its header has sequence and length."""

# linux/in.h, linux/in6.h, linux/errqueue.h: not in module socket.
_IP_RECVERR, _IP_MTU_DISCOVER, _IP_MTU = 11, 10, 14
_IPV6_RECVERR, _IPV6_MTU_DISCOVER, _IPV6_MTU = 25, 23, 24
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_ORIGINS_ICMP: Final = (2, 3)
_EXTENDED_ERROR = struct.Struct("=IBBBBII")

_AWAY: Final = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.ENETDOWN}

SendBlock = Callable[[int, ExportBlock, int], int]
"""Descriptor, block, first message -> messages that left; jarvis_native.export.send_block with its firmware bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Burst:
    """Messages that left together."""

    block: ExportBlock
    first: int
    """In the block."""
    count: int
    number: int
    """Of its first message since connect."""
    octets: int
    left_at: float


class UdpTransport:
    """One collector over UDP."""

    kind: ExportTransport = "udp"
    restarts = False
    burst = BURST

    def __init__(
        self,
        host: str,
        port: int,
        *,
        send_block: SendBlock,
        interrupt: Interrupt = never,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._port = host, port
        self._send_block = send_block
        self._interrupt = interrupt
        self._clock = clock
        self._socket: socket.socket | None = None
        self._endpoint: Endpoint | None = None
        self._refused: Endpoint | None = None
        self._resolved_at = 0.0
        self._flight: deque[_Burst] = deque()
        self._flight_octets = 0
        self._sent = self._settled = 0
        self._message_max = MESSAGE_MAX
        self.fragmented = 0
        """Messages that were larger than the path takes and left in fragments, since the start."""
        self.refusals = 0
        """Datagrams that ICMP answered for, since the start."""

    @property
    def address(self) -> str:
        """Of the collector; empty: not connected."""
        return str(self._endpoint) if self._endpoint is not None else ""

    @property
    def message_max(self) -> int:
        """Bytes that a message should have at most."""
        return self._message_max

    @property
    def sent(self) -> int:
        """Messages that left since `connect`."""
        return self._sent

    def settled(self) -> int:
        """Messages since `connect` that need not be sent again."""
        now = self._clock()
        while self._flight:
            oldest = self._flight[0]
            if now - oldest.left_at < _LINGER_S and self._flight_octets <= _FLIGHT_BYTES:
                break
            self._forget_oldest()
        return self._settled

    def connect(self) -> None:
        """Connects, as Transport says."""
        self.close()
        endpoints = resolve(self._host, self._port)
        self._resolved_at = self._clock()
        if self._refused in endpoints:  # the others first
            place = endpoints.index(self._refused) + 1
            endpoints = endpoints[place:] + endpoints[:place]
        failure: OSError | None = None
        for endpoint in endpoints:
            try:
                self._socket = _open(endpoint)
            except OSError as error:
                failure = error
                continue
            self._endpoint = endpoint
            self._learn_path()
            return
        raise unreachable(endpoint_text(self._host, self._port), failure or "no address") from failure

    def send(self, block: ExportBlock) -> None:
        """Sends a stamped block, as Transport says."""
        connected = self._connected()
        self.check()
        first, progress_at = 0, time.monotonic()
        while first < block.messages:
            count = self._send_some(connected, block, first)
            if count:
                self._note(block, first, count)
                first, progress_at = first + count, time.monotonic()
            else:
                self._await_room(connected, progress_at)
            self.check()

    def check(self) -> None:
        """Reads the error queue."""
        connected = self._connected()
        refused: int | None = None
        error_number = 0
        for answer in _read_errors(connected):
            number, is_icmp, datagram = answer
            if number == errno.EMSGSIZE:
                if is_icmp:
                    self._learn_path()
                    self._send_again_in_fragments(connected, datagram)
            elif number in _AWAY:
                self.refusals += 1
                error_number = error_number or number
                found = self._find(datagram)
                refused = found if refused is None else min(refused, found)
        if refused is not None:
            self._give_up(OSError(error_number, _words(error_number)), refused)

    def probe(self, timeout_s: float) -> None:
        """Waits for a refusal, as Transport says."""
        connected = self._connected()
        wait_for(connected.fileno(), 0, timeout_s, self._interrupt)  # errors are always waited for
        self.check()

    def is_stale(self) -> bool:
        """Whether to connect anew."""
        if is_address(self._host) or self._clock() - self._resolved_at < RESOLVE_INTERVAL_S:
            return False
        self._resolved_at = self._clock()
        with contextlib.suppress(ExportError):  # what was found before stays in use
            return self._endpoint not in resolve(self._host, self._port)
        return False

    def wait_settled(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing comes that could be waited for
        """Waits until all that left is safe, as Transport says."""
        if self._socket is not None:
            self.check()
        while self._flight:
            self._forget_oldest()

    def close(self) -> None:
        """Ends the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._endpoint = None
        self._flight.clear()
        self._flight_octets = self._sent = self._settled = 0

    def _send_some(self, connected: socket.socket, block: ExportBlock, first: int) -> int:
        """As many messages from `first` on as leave now; 0: there is no room."""
        try:
            return self._send_block(connected.fileno(), block, first)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._learn_path()
                return self._send_in_fragments(connected, block, first)
            if error.errno == errno.ENOBUFS:
                return 0
            self.check()  # the error queue knows which message it was
            self._give_up(error)

    def _await_room(self, connected: socket.socket, since: float) -> None:
        """In the socket, or in the interface's queue (ENOBUFS), which poll knows nothing of."""
        left = since + SEND_TIMEOUT_S - time.monotonic()
        if left <= 0 or not wait_for(connected.fileno(), select.POLLOUT, left, self._interrupt):
            self._give_up("nothing could be sent")
        time.sleep(_ROOM_LOOK_S)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise unreachable(endpoint_text(self._host, self._port), "not connected")
        return self._socket

    def _note(self, block: ExportBlock, first: int, count: int) -> None:
        octets = length_of(block, first, first + count)
        burst = _Burst(block=block, first=first, count=count, number=self._sent, octets=octets, left_at=self._clock())
        self._flight.append(burst)
        self._flight_octets += octets
        self._sent += count

    def _forget_oldest(self) -> None:
        burst = self._flight.popleft()
        self._flight_octets -= burst.octets
        self._settled = burst.number + burst.count

    def _find(self, datagram: bytes) -> int:
        """The number of a message whose beginning ICMP gave back.

        Where the answer brings nothing of it, or it is long gone: that of the newest burst's first.
        """
        prefix = datagram[:_PREFIX_BYTES]
        if len(prefix) >= 16:  # the shortest header with a sequence
            for burst in self._flight:
                for place in range(burst.count):
                    if message_bytes(burst.block, burst.first + place)[: len(prefix)] == prefix:
                        return burst.number + place
        return self._flight[-1].number if self._flight else self._sent

    def _give_up(self, error: OSError | str, refused: int | None = None) -> NoReturn:
        """The collector is away: what left since the first refused message is not settled any more, what left before it is."""
        if refused is None:  # the kernel refused before anything left
            refused = self._sent
        self._settled = refused
        self._flight.clear()
        self._flight_octets = 0
        self._refused = self._endpoint
        raise unreachable(self.address, error) from (error if isinstance(error, OSError) else None)

    def _learn_path(self) -> None:
        """Asks the kernel what it knows of the path's MTU, less the headers of IP and UDP."""
        connected, endpoint = self._connected(), self._endpoint
        is_ipv6 = endpoint is not None and endpoint.family == socket.AF_INET6
        level, option, headers = (socket.IPPROTO_IPV6, _IPV6_MTU, 48) if is_ipv6 else (socket.IPPROTO_IP, _IP_MTU, 28)
        with contextlib.suppress(OSError):  # a path that was withdrawn has none
            self._message_max = max(MESSAGE_MIN, min(MESSAGE_MAX, connected.getsockopt(level, option) - headers))

    def _send_in_fragments(self, connected: socket.socket, block: ExportBlock, number: int) -> int:
        """Sends one message with the permission to fragment it. Returns how many left."""
        _discover_path(connected, self._endpoint, _PMTUDISC_DONT)
        try:
            connected.send(message_bytes(block, number))
        except BlockingIOError:
            return 0
        except OSError as error:
            self._give_up(error)
        finally:
            _discover_path(connected, self._endpoint, _PMTUDISC_DO)
        self.fragmented += 1
        return 1

    def _send_again_in_fragments(self, connected: socket.socket, datagram: bytes) -> None:
        """A router could not pass a message on: it goes once more, as it is."""
        number = self._find(datagram)
        for burst in self._flight:
            if burst.number <= number < burst.number + burst.count:
                self._send_in_fragments(connected, burst.block, burst.first + number - burst.number)


def _open(endpoint: Endpoint) -> socket.socket:
    new = socket.socket(endpoint.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        new.setblocking(False)
        is_ipv6 = endpoint.family == socket.AF_INET6
        new.setsockopt(*((socket.IPPROTO_IPV6, _IPV6_RECVERR) if is_ipv6 else (socket.IPPROTO_IP, _IP_RECVERR)), 1)
        _discover_path(new, endpoint, _PMTUDISC_DO)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # as much of it as net.core.wmem_max gives
        new.connect(endpoint.socket_address)
    except BaseException:
        new.close()
        raise
    return new


def _discover_path(connected: socket.socket, endpoint: Endpoint | None, how: int) -> None:
    if endpoint is not None and endpoint.family == socket.AF_INET6:
        connected.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, how)
    else:
        connected.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)


def _read_errors(connected: socket.socket) -> Iterator[tuple[int, bool, bytes]]:
    """What is in the error queue, of a flood as much as one look takes."""
    for _ in range(_MOST_ERRORS):
        answer = _read_error(connected)
        if answer is None:
            return
        yield answer


def _read_error(connected: socket.socket) -> tuple[int, bool, bytes] | None:
    """One entry of the error queue: errno, whether ICMP said it, and the beginning of the datagram it is about."""
    try:
        datagram, ancillary, _flags, _address = connected.recvmsg(_PREFIX_BYTES, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None
    except OSError as error:  # an error that was pending on the socket itself
        return error.errno or errno.EIO, False, b""
    for level, kind, data in ancillary:
        known = (level, kind) in {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
        if known and len(data) >= _EXTENDED_ERROR.size:
            number, origin, *_rest = _EXTENDED_ERROR.unpack_from(data)
            return number, origin in _ORIGINS_ICMP, datagram
    return errno.EIO, False, datagram


def _words(number: int) -> str:
    if number == errno.ECONNREFUSED:
        return "nothing listens there (ICMP port unreachable)"
    return errno.errorcode.get(number, str(number)) + " (ICMP)"
