# SPDX-License-Identifier: Apache-2.0
"""TCP: messages one after the other, and the exact knowledge of which of them the collector's host has acknowledged.

The kernel says how many bytes it still holds for the collector (SIOCOUTQ, tcp(7)), also after the connection broke. What has been
acknowledged is settled; a message that was cut, or not acknowledged, is sent again whole in the next session. So only what the
collector's host had acknowledged and its program had not read when it died is lost, and nobody on this side can know that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections import deque
from typing import NoReturn

from jarvis_native.export import ExportBlock

from jarvis_agent.export.addresses import Endpoint, endpoint_text, resolve
from jarvis_agent.export.blocks import length_of, message, messages_of
from jarvis_agent.export.errors import ExportError, unreachable
from jarvis_agent.export.plan import ExportTransport
from jarvis_agent.export.transport import CONNECT_TIMEOUT_S, SEND_TIMEOUT_S, Interrupt, never, wait_for

MESSAGE_MAX = 16_384
"""Larger ones bring nothing over a stream, and a TLS record takes just this."""

_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 30, 10, 3
READ_BYTES = 65_536
MOST_READS = 16
"""At a time: a collector that talks without end holds nobody up."""

_SETTLE_LOOK_S = 0.01


class TcpTransport:
    """One collector over TCP; the base of TLS, which changes what bytes go over the wire for a message."""

    kind: ExportTransport = "tcp"
    restarts = True
    message_max = MESSAGE_MAX
    burst = 0

    def __init__(self, host: str, port: int, *, interrupt: Interrupt = never) -> None:
        self._host, self._port = host, port
        self._interrupt = interrupt
        self._socket: socket.socket | None = None
        self._endpoint: Endpoint | None = None
        self._written = 0
        """Bytes given to the kernel since connect."""
        self._ends: deque[int] = deque()
        """For each message that is not settled, how many bytes will have been written when it is out whole."""
        self._sent = self._settled = 0

    @property
    def address(self) -> str:
        """Of the collector; empty: not connected."""
        return str(self._endpoint) if self._endpoint is not None else ""

    @property
    def sent(self) -> int:
        """Messages that left since `connect`."""
        return self._sent

    def settled(self) -> int:
        """Messages since `connect` that need not be sent again."""
        if self._socket is not None and self._ends:
            acknowledged = self._written - _held_by_kernel(self._socket)
            while self._ends and self._ends[0] <= acknowledged:
                self._ends.popleft()
                self._settled += 1
        return self._settled

    def connect(self) -> None:
        """Connects, as Transport says."""
        self.close()
        failure: ExportError | None = None
        for endpoint in resolve(self._host, self._port):
            try:
                self._socket = self._open(endpoint)
                self._endpoint = endpoint
                self._begin(self._socket)
            except OSError as error:
                failure = unreachable(str(endpoint), error)
            except ExportError as error:
                failure = error
            else:
                return
            self.close()
        raise failure or unreachable(endpoint_text(self._host, self._port), "no address")

    def send(self, block: ExportBlock) -> None:
        """Sends a stamped block, as Transport says."""
        self.check()
        if not block.messages:
            return
        first = message(block, 0).offset
        base = self._written - first
        self._ends.extend(base + entry.offset + entry.length for entry in messages_of(block))
        self._write(memoryview(block.data)[first : first + length_of(block, 0, block.messages)])
        self._sent += block.messages

    def check(self) -> None:
        """Takes what came back, as Transport says."""
        connected = self._connected()
        try:
            for _ in range(MOST_READS):  # collectors say nothing; what they say all the same is of no interest
                if not connected.recv(READ_BYTES):
                    self._give_up("the collector closed the connection")
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(error)

    def probe(self, timeout_s: float) -> None:  # noqa: ARG002 - a connection has answered already
        """Waits for a refusal, as Transport says."""
        self.check()

    def is_stale(self) -> bool:
        """Whether to connect anew."""
        return False

    def wait_settled(self, timeout_s: float) -> None:
        """Waits until all that left is safe, as Transport says."""
        end = time.monotonic() + timeout_s
        while self.settled() < self._sent and time.monotonic() < end:
            time.sleep(_SETTLE_LOOK_S)
            self.check()

    def close(self) -> None:
        """Ends the connection."""
        if self._socket is not None:
            if self.settled() < self._sent or self._ends:
                # What is not acknowledged is sent again: it must not arrive from here as well.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self._say_goodbye(self._socket)
            self._socket.close()
        self._socket = self._endpoint = None
        self._ends.clear()
        self._written = self._sent = self._settled = 0

    def _begin(self, connected: socket.socket) -> None:
        """What follows the connection, before messages."""

    def _say_goodbye(self, connected: socket.socket) -> None:
        """What precedes the end of a connection that is whole."""

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise unreachable(endpoint_text(self._host, self._port), "not connected")
        return self._socket

    def _open(self, endpoint: Endpoint) -> socket.socket:
        new = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            new.setblocking(False)
            new.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_TIMEOUT_S * 1000))
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # blocks are written whole: nothing to wait for
            self._await_connection(new, endpoint)
        except BaseException:
            new.close()
            raise
        return new

    def _await_connection(self, new: socket.socket, endpoint: Endpoint) -> None:
        number = new.connect_ex(endpoint.socket_address)
        if number == errno.EINPROGRESS:
            if not wait_for(new.fileno(), select.POLLOUT, CONNECT_TIMEOUT_S, self._interrupt):
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {CONNECT_TIMEOUT_S:.0f} s")
            number = new.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))

    def _write(self, data: memoryview | bytes) -> None:
        """Gives bytes to the kernel, all of them."""
        connected = self._connected()
        left = memoryview(data)
        while left:
            try:
                count = connected.send(left)
            except BlockingIOError:
                if not wait_for(connected.fileno(), select.POLLOUT, SEND_TIMEOUT_S, self._interrupt):
                    self._give_up(f"took nothing for {SEND_TIMEOUT_S:.0f} s")
                continue
            except OSError as error:
                self._give_up(error)
            self._written += count
            left = left[count:]

    def _give_up(self, error: OSError | str) -> NoReturn:
        """The connection is over: `sent` and `settled` keep what it came to."""
        self._sent = self.settled() + sum(1 for end in self._ends if end <= self._written)
        raise unreachable(self.address, error) from (error if isinstance(error, OSError) else None)


def _held_by_kernel(connected: socket.socket) -> int:
    """Bytes written that the other side has not acknowledged (SIOCOUTQ)."""
    answer = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
