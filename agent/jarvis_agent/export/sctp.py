# SPDX-License-Identifier: Apache-2.0
"""SCTP (RFC 9260) by its one-to-one sockets (RFC 6458, 4): a message a send, all on stream 0, none given up (no PR-SCTP).

The kernel keeps the boundaries of messages, sends again what is lost, and tells when an association is over; it does not tell
which messages were acknowledged. What it has taken counts as settled, and is lost with an association that breaks. Written after
the documented socket API; it was never run against an SCTP stack (docs/export.md).
"""

from __future__ import annotations

import errno
import select
import socket

from jarvis_native.export import ExportBlock

from jarvis_agent.export.addresses import Endpoint
from jarvis_agent.export.blocks import message_bytes
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import ExportTransport
from jarvis_agent.export.stream import TcpTransport
from jarvis_agent.export.transport import SEND_TIMEOUT_S, wait_for

MESSAGE_MAX = 1400
"""One chunk a message on most paths; the kernel fragments what is larger."""

_SCTP_NODELAY = 3  # linux/sctp.h


class SctpTransport(TcpTransport):
    """One collector over SCTP."""

    kind: ExportTransport = "sctp"
    message_max = MESSAGE_MAX

    def settled(self) -> int:
        """What the kernel has taken."""
        return self._sent

    def send(self, block: ExportBlock) -> None:
        """Sends a stamped block, a message at a time."""
        self.check()
        for number in range(block.messages):
            self._send_message(message_bytes(block, number))
            self._sent += 1

    def _send_message(self, data: memoryview) -> None:
        """All of it or nothing: SCTP has no half messages."""
        connected = self._connected()
        while True:
            try:
                connected.send(data)
            except BlockingIOError:
                if not wait_for(connected.fileno(), select.POLLOUT, SEND_TIMEOUT_S, self._interrupt):
                    self._give_up(f"took nothing for {SEND_TIMEOUT_S:.0f} s")
            except OSError as error:
                self._give_up(error)
            else:
                return

    def _open(self, endpoint: Endpoint) -> socket.socket:
        try:
            new = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_SCTP)
        except OSError as error:
            if error.errno not in {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT}:
                raise
            raise no_sctp() from error
        try:
            new.setblocking(False)
            new.setsockopt(socket.IPPROTO_SCTP, _SCTP_NODELAY, 1)
            self._await_connection(new, endpoint)
        except BaseException:
            new.close()
            raise
        return new


def no_sctp() -> ExportError:
    """What this host's kernel has no SCTP is told with."""
    text = "transport is sctp: this host's kernel has no SCTP (module sctp); accepted are udp, tcp, tls and file"
    return ExportError("EXPORT_TRANSPORT_UNSUPPORTED", text, is_permanent=True)


def check_sctp() -> None:
    """Before an export over SCTP starts.

    Raises:
        ExportError: EXPORT_TRANSPORT_UNSUPPORTED.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_SCTP).close()
    except OSError as error:
        raise no_sctp() from error
