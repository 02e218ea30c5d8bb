# SPDX-License-Identifier: Apache-2.0
"""A connection to a syslog collector over TLS (RFC 5425). Blocking: it belongs to one thread of its own.

Syslog has no answer of its own. What counts as taken is what the collector's TCP has acknowledged on a connection that is
still established both ways afterwards: SIOCOUTQ is 0 and the state is ESTABLISHED (tcp(7)).
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
import time
from dataclasses import dataclass
from pathlib import Path

_CONNECT_S = 10.0
_TAKEN_S = 30.0
_LOOK_S = 0.02
_ESTABLISHED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogTarget:
    """Where audit entries are sent."""

    host: str
    port: int
    ca: Path | None
    """PEM; None: the system's roots."""
    certificate: Path | None
    """PEM of a client certificate and its key; None: none is shown."""
    sd_id: str
    hostname: str
    """This controller's DNS name, in every message."""

    @property
    def name(self) -> str:
        """What its position is remembered under."""
        return f"tls://{self.host}:{self.port}"


class SyslogConnection:
    """One connection; `abort` alone may be called from another thread."""

    def __init__(self, target: SyslogTarget) -> None:
        """Connects and checks the collector's certificate and name.

        Raises:
            OSError: it cannot be reached, or is not trusted (ssl.SSLError is one).
        """
        context = ssl.create_default_context(cafile=None if target.ca is None else str(target.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if target.certificate is not None:
            context.load_cert_chain(str(target.certificate))
        plain = socket.create_connection((target.host, target.port), _CONNECT_S)
        try:
            self._socket = context.wrap_socket(plain, server_hostname=target.host)
        except BaseException:
            plain.close()
            raise
        self._socket.settimeout(_TAKEN_S)

    def send(self, frames: bytes) -> None:
        """Sends, and waits until the collector has taken all of it.

        Raises:
            OSError: the connection is not there any more, or did not take it within 30 s.
        """
        self._socket.sendall(frames)
        deadline = time.monotonic() + _TAKEN_S
        while self._unacknowledged():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the collector took nothing for {_TAKEN_S:g} s")
            time.sleep(_LOOK_S)
        self.check()

    def check(self) -> None:
        """Raises ConnectionError when the collector has closed or reset the connection."""
        state = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state != _ESTABLISHED:
            raise ConnectionResetError("the collector closed the connection")

    def abort(self) -> None:
        """Ends it under whoever uses it: their call raises OSError."""
        try:
            # Not SSLSocket's own, which would take the TLS object away from under the other thread.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return  # it has ended already

    def close(self) -> None:
        """Lets go of the socket."""
        self._socket.close()

    def _unacknowledged(self) -> int:
        answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])
