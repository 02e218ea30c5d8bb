# SPDX-License-Identifier: Apache-2.0
"""Commands: signed by the fleet's command key for this agent, process, method, lease and payload, and carried out once.

`CommandGate.admit` judges one command, and has the native core judge it too: what the core did not admit starts no capture.
`AnswerCache` answers a repeated request_id of a mutation with the first answer for 24 h;
for reads and streams the gate itself refuses a request_id that it has seen under the leases that still count.
Used on the event loop only; time is CLOCK_BOOTTIME, given as a function.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from jarvis.capture.v1.trust_pb2 import CommandAuthorization
from jarvis_native.errors import AuthorityRefused, LeaseOver
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY, verify_authorization
from jarvis_trust.errors import CommandError, IdentityError, LeaseError
from jarvis_trust.identities import Identity, Role

from jarvis_agent.lease import LeaseKeeper, boottime_ns

MAX_AUTHORIZATION_BYTES = 4096
MUTATIONS = frozenset(
    AGENT_SERVICE + rpc
    for rpc in (
        "StartCapture",
        "StopCapture",
        "UpdateInterfaces",
        "EnableExport",
        "DisableExport",
        "StageRelease",
        "ActivateRelease",
    )
)
"""Commands that change something: answered from the cache when repeated, and for operators and admins only."""

ANSWER_LIFETIME_NS = 24 * 3600 * 10**9
MAX_ANSWERS = 1024
MAX_SEEN_PER_LEASE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An admitted command."""

    method: str
    request_id: str
    principal: str
    payload_sha256: bytes


class CommandAuthority(Protocol):
    """What is asked of the core: jarvis_native.Authority."""

    def admit(self, method: str, payload: bytes, authorization: bytes) -> bool:
        """False: a repetition. Raises LeaseOver or AuthorityRefused."""


class CommandGate:
    """Judges commands against the command key, the lease and the clock."""

    def __init__(
        self,
        *,
        fleet: str,
        agent_id: str,
        session_id: bytes,
        command_public_pem: bytes,
        leases: LeaseKeeper,
        authority: CommandAuthority | None,
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        """Everything that a command's signature must cover is fixed here; see jarvis_trust.commands.

        `authority` is the native core's; None where firmware was refused: then there is no lease, and nothing is admitted.
        """
        self._fleet = fleet
        self._agent_id = agent_id
        self._session_id = session_id
        self._key = command_public_pem
        self._leases = leases
        self._authority = authority
        self._clock = clock
        self._seen: OrderedDict[int, set[str]] = OrderedDict()

    def admit(self, method: str, payload: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> Command:
        """The command, once everything about it holds.

        Args:
            method: full name, as called.
            payload: the request's bytes as received.
            metadata: of the call.

        Raises:
            LeaseError: AGENT_UNATTESTED, LEASE_EXPIRED, LEASE_METHOD_DENIED, LEASE_STALE.
            CommandError: COMMAND_UNSIGNED, COMMAND_SIGNATURE_INVALID, COMMAND_INVALID, COMMAND_EXPIRED, ROLE_DENIED,
                COMMAND_REPLAYED.
        """
        self._leases.require(method)
        data = authorization_bytes(method, metadata)
        authorization = _authorization(method, data)
        verify_authorization(
            authorization,
            self._key,
            agent_id=self._agent_id,
            method=method,
            session_id=self._session_id,
            payload=payload,
        )
        lease = self._leases.covering(authorization.lease_sequence)
        late = self._clock() - lease.quoted_ns - authorization.expires_ns
        if late >= 0:
            raise CommandError("COMMAND_EXPIRED", f"{method}: the command expired {late / 1e9:.3f} s ago")
        self._check_principal(method, authorization.principal)
        if method not in MUTATIONS:
            self._check_first_use(authorization)
        self._admit_in_core(method, payload, data)
        return Command(
            method=method,
            request_id=authorization.request_id,
            principal=authorization.principal,
            payload_sha256=hashlib.sha256(payload).digest(),
        )

    def _admit_in_core(self, method: str, payload: bytes, data: bytes) -> None:
        if self._authority is None:
            return
        try:
            self._authority.admit(method, payload, data)
        except LeaseOver as error:
            raise LeaseError(error.reason, error.message) from error
        except AuthorityRefused as error:
            refusal = LeaseError if error.reason.startswith("LEASE_") else CommandError
            raise refusal(error.reason, f"{method}: {error.message}") from error

    def _check_principal(self, method: str, uri: str) -> None:
        try:
            principal = Identity.parse(uri)
        except IdentityError as error:
            raise CommandError("ROLE_DENIED", f"{method}: principal: {error.message}") from error
        required = Role.OPERATOR if method in MUTATIONS else Role.VIEWER
        allowed = principal.role is Role.CONTROLLER or principal.role.permits(required)
        if principal.fleet != self._fleet or not allowed:
            raise CommandError(
                "ROLE_DENIED", f"{method}: {uri} may not; a controller or {required} (or above) of fleet {self._fleet} may"
            )

    def _check_first_use(self, authorization: CommandAuthorization) -> None:
        """Ids are kept by lease: once a lease no longer counts, its commands are refused as stale and need no memory."""
        seen = self._seen.setdefault(authorization.lease_sequence, set())
        while len(self._seen) > 2:
            del self._seen[min(self._seen)]
        if authorization.request_id in seen:
            raise CommandError(
                "COMMAND_REPLAYED", f"request_id {authorization.request_id} was used already; a new one is accepted"
            )
        if len(seen) >= MAX_SEEN_PER_LEASE:
            raise CommandError("COMMAND_LIMIT", f"{MAX_SEEN_PER_LEASE} commands under one lease; the next lease makes room")
        seen.add(authorization.request_id)


@dataclass(slots=True, kw_only=True)
class _Answer:
    payload_sha256: bytes
    result: asyncio.Future[bytes]
    expires_ns: int


class AnswerCache:
    """First answers by (method, request_id). Bounded: at the limit the oldest goes; its command has expired long before."""

    def __init__(self, clock: Callable[[], int] = boottime_ns) -> None:
        """Empty; a restarted agent starts empty too, and its new session id makes old commands invalid."""
        self._clock = clock
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    async def answer(self, command: Command, perform: Callable[[], Awaitable[bytes]]) -> bytes:
        """The first answer to this request_id, be it a result or an error; `perform` runs only for a new one.

        Raises:
            CommandError: REQUEST_ID_REUSED when the id came with another payload before.
        """
        self._forget_old()
        key = (command.method, command.request_id)
        known = self._answers.get(key)
        if known is not None:
            if known.payload_sha256 != command.payload_sha256:
                raise CommandError("REQUEST_ID_REUSED", f"request_id {command.request_id} came with another request before")
            return await asyncio.shield(known.result)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[key] = _Answer(
            payload_sha256=command.payload_sha256, result=future, expires_ns=self._clock() + ANSWER_LIFETIME_NS
        )
        # Not cancelled with the call: a caller that gives up in the middle asks again and gets what came of it.
        task = asyncio.ensure_future(perform())
        task.add_done_callback(lambda done: _settle(future, done))
        return await asyncio.shield(future)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._answers:
            oldest = next(iter(self._answers))
            if len(self._answers) < MAX_ANSWERS and self._answers[oldest].expires_ns > now:
                return
            del self._answers[oldest]


def _settle(future: asyncio.Future[bytes], done: asyncio.Future[bytes]) -> None:
    if done.cancelled():
        future.cancel()
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(error)
        future.exception()  # marked as seen: the caller may be gone


def authorization_bytes(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The CommandAuthorization that came with a call, as bytes.

    Raises:
        CommandError: COMMAND_UNSIGNED, COMMAND_INVALID.
    """
    values = [value for key, value in metadata if key == AUTHORIZATION_METADATA_KEY]
    if len(values) != 1:
        raise CommandError(
            "COMMAND_UNSIGNED", f"{method}: {len(values)} entries {AUTHORIZATION_METADATA_KEY}; exactly one is accepted"
        )
    data = values[0] if isinstance(values[0], bytes) else values[0].encode()
    if len(data) > MAX_AUTHORIZATION_BYTES:
        raise CommandError(
            "COMMAND_INVALID", f"{method}: an authorization of {len(data)} bytes; {MAX_AUTHORIZATION_BYTES} are accepted"
        )
    return data


def _authorization(method: str, data: bytes) -> CommandAuthorization:
    try:
        return CommandAuthorization.FromString(data)
    except DecodeError as error:
        raise CommandError("COMMAND_INVALID", f"{method}: {AUTHORIZATION_METADATA_KEY} is not a CommandAuthorization") from error
