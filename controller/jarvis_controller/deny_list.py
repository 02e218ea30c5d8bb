# SPDX-License-Identifier: Apache-2.0
"""Whose certificate is refused although TLS accepted it: revoked, over by now, or of a CA that is trusted no more.

    every call    admit(context): the peer's leaf against what is denied, before the handler runs
    long streams  watching(peer): the handler's task is told at once when its peer is denied, and at the end of the certificate

TLS looks at a certificate once, at the handshake; a connection may live for months. What is denied is in the database
(certificate_rows.py) and here, in memory: nothing is asked per call. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from cryptography import x509
from google.rpc import code_pb2
from jarvis_trust.ca import BACKDATING, load_certificate, uri_of_certificate
from jarvis_trust.ca_bundle import issued_by, serial_of
from jarvis_trust.errors import IdentityError

from jarvis_controller.certificate_rows import Denial
from jarvis_controller.rpc_status import RpcError, refuse

_KNOWN_PEERS = 4096
"""Parsed certificates that are remembered; a call of one of them costs a look-up."""
_CLOCK_CHECK_S = 30.0
"""How often a stream's end is compared with the wall clock, which may be set at any time."""
_WRITE_GRACE_S = 5.0
"""How long a denied stream may take to hand over the message that gRPC is writing; then it is cut without a status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The leaf that a client showed."""

    serial: str
    subject: str
    issue_ns: int
    not_after_ns: int
    certificate: x509.Certificate


@dataclass(slots=True, kw_only=True, eq=False)
class Watch:
    """One stream under way."""

    peer: Peer
    task: asyncio.Task[Any]
    refusal: RpcError | None = None
    """Why it has to end."""
    is_handling: bool = False
    """Whether the task waits in the handler, not in gRPC's write: only there a cancellation is turned into the refusal."""
    timer: asyncio.TimerHandle | None = None
    cancelled: bool = False

    def end(self, refusal: RpcError) -> None:
        """Ends the stream with this."""
        if self.refusal is not None:
            return
        self.refusal = refusal
        if self.is_handling:
            self.cancelled = True
            self.task.cancel()
        else:
            asyncio.get_running_loop().call_later(_WRITE_GRACE_S, self._cut)

    def enter(self) -> None:
        """The task is about to wait in the handler.

        Raises:
            RpcError: the refusal.
        """
        self.check()
        self.is_handling = True

    def leave(self) -> None:
        """The task hands a message to gRPC."""
        self.is_handling = False

    def check(self) -> None:
        """Raises the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal

    def convert(self, cancelled: asyncio.CancelledError) -> RpcError | asyncio.CancelledError:
        """What a cancellation in the handler was: ours, or the client's."""
        if self.cancelled and self.refusal is not None:
            self.task.uncancel()
            return self.refusal
        return cancelled

    def _cut(self) -> None:
        if not self.task.done() and not self.cancelled:
            self.task.cancel()


class DenyList:
    """What is refused now, and the streams to which that may happen."""

    def __init__(self, trusted: tuple[x509.Certificate, ...], *, wall_clock_ns: Callable[[], int] = time.time_ns) -> None:
        """Args: trusted: the CAs whose certificates are accepted."""
        self._trusted = trusted
        self._now_ns = wall_clock_ns
        self._serials: dict[str, str] = {}
        self._subjects: dict[str, Denial] = {}
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._untrusted: dict[x509.Certificate, bool] = {}
        self._watches: set[Watch] = set()

    def deny(self, denials: Iterable[Denial], *, streams: bool = True) -> None:
        """Refuses these from now on, in calls under way too; without `streams` the latter only once `enforce` is called."""
        for denial in denials:
            if denial.serial:
                self._serials[denial.serial] = denial.reason
            else:
                self._subjects[denial.subject] = denial
        if streams:
            self.enforce()

    def trust(self, trusted: tuple[x509.Certificate, ...]) -> None:
        """Accepts certificates of these CAs only from now on, in calls under way too."""
        self._trusted = trusted
        self._untrusted.clear()
        self.enforce()

    def admitted(self, subject: str) -> None:
        """An agent that was revoked was admitted again: its certificates of before stay refused."""
        denial = self._subjects.get(subject)
        if denial is not None:
            self._subjects[subject] = Denial(
                serial="", subject=subject, time_ns=denial.time_ns, reason=denial.reason, is_open=False
            )

    def check_agent(self, subject: str) -> None:
        """Refuses to speak to an agent that was revoked and not admitted again: whoever answers may hold the revoked key.

        Raises:
            RpcError: FAILED_PRECONDITION, CERTIFICATE_REVOKED.
        """
        denial = self._subjects.get(subject)
        if denial is not None and denial.is_open:
            message = f"{subject}: its certificate was revoked ({denial.reason}); a new join token is accepted"
            raise refuse(code_pb2.FAILED_PRECONDITION, "CERTIFICATE_REVOKED", message)

    def admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer | None:
        """Who calls, unless it is denied; None for a peer that showed no certificate.

        Raises:
            RpcError: UNAUTHENTICATED with CERTIFICATE_REVOKED, CERTIFICATE_EXPIRED or CERTIFICATE_UNTRUSTED.
        """
        facts: Mapping[str, Any] = context.auth_context()
        shown = list(facts.get("x509_pem_cert", ()))
        if not shown:
            return None
        peer = self._peer(shown[0])
        refusal = self._refusal(peer)
        if refusal is not None:
            raise refusal
        return peer

    @contextmanager
    def watching(self, peer: Peer) -> Iterator[Watch]:
        """The current task serves this peer until the block ends; `Watch` says how it is told."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is served by a task")
        watch = Watch(peer=peer, task=task)
        self._watches.add(watch)
        self._schedule(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if watch.timer is not None:
                watch.timer.cancel()

    def _schedule(self, watch: Watch) -> None:
        left_s = (watch.peer.not_after_ns - self._now_ns()) / 1e9
        if left_s <= 0:
            watch.end(_expired(watch.peer))
            return
        delay = min(left_s, _CLOCK_CHECK_S)
        watch.timer = asyncio.get_running_loop().call_later(delay, self._schedule, watch)

    def enforce(self) -> None:
        """Ends the streams of everybody who is refused."""
        for watch in list(self._watches):
            refusal = self._refusal(watch.peer)
            if refusal is not None:
                watch.end(refusal)

    def _refusal(self, peer: Peer) -> RpcError | None:
        reason = self._serials.get(peer.serial)
        if reason is None:
            denial = self._subjects.get(peer.subject)
            reason = denial.reason if denial is not None and peer.issue_ns < denial.time_ns // 10**9 * 10**9 else None
        if reason is not None:
            message = f"the certificate {peer.serial} of {peer.subject} was revoked: {reason}"
            return refuse(code_pb2.UNAUTHENTICATED, "CERTIFICATE_REVOKED", message)
        if peer.not_after_ns <= self._now_ns():
            return _expired(peer)
        if peer.certificate not in self._untrusted:
            if len(self._untrusted) >= _KNOWN_PEERS:
                self._untrusted.clear()
            self._untrusted[peer.certificate] = not any(issued_by(peer.certificate, ca) for ca in self._trusted)
        if self._untrusted[peer.certificate]:
            message = f"the certificate {peer.serial} of {peer.subject} is of a CA that the fleet does not trust any more"
            return refuse(code_pb2.UNAUTHENTICATED, "CERTIFICATE_UNTRUSTED", message)
        return None

    def _peer(self, pem: bytes) -> Peer:
        known = self._peers.get(pem)
        if known is not None:
            self._peers.move_to_end(pem)
            return known
        try:
            certificate = load_certificate(pem)
            subject = uri_of_certificate(certificate)
        except IdentityError as error:
            raise refuse(code_pb2.UNAUTHENTICATED, "IDENTITY_INVALID", error.message) from error
        issued = certificate.not_valid_before_utc + BACKDATING
        peer = Peer(
            serial=serial_of(certificate),
            subject=subject,
            issue_ns=int(issued.timestamp()) * 10**9,
            not_after_ns=int(certificate.not_valid_after_utc.timestamp()) * 10**9,
            certificate=certificate,
        )
        self._peers[pem] = peer
        if len(self._peers) > _KNOWN_PEERS:
            self._peers.popitem(last=False)
        return peer


def _expired(peer: Peer) -> RpcError:
    message = f"the certificate {peer.serial} of {peer.subject} is over: `jarvisctl certs renew` in time brings the next one"
    return refuse(code_pb2.UNAUTHENTICATED, "CERTIFICATE_EXPIRED", message)
