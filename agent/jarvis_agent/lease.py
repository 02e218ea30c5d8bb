# SPDX-License-Identifier: Apache-2.0
"""Leases: the right to be commanded, which ends by itself.

    quote for nonce N at BOOTTIME t → controller judges → lease naming N, duration d → in force until BOOTTIME t + d
    second lease naming N, shorter duration → ends earlier, at once if that is past: the controller took the trust away

CLOCK_BOOTTIME counts through suspend and nobody sets it, so a wall clock that is set back changes nothing. What must not go
back (lease sequence, audit sequence and head) is on disk before a lease is in force. The native core judges every lease again
(jarvis_native.Authority): its verdict is the one that counts, for captures obey it and not this. No I/O but the state file; time
is a parameter; used on the event loop only.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jarvis.capture.v1.trust_pb2 import Lease, SignedLease
from jarvis_native import LeaseTerms
from jarvis_native.errors import AuthorityRefused
from jarvis_trust.commands import verify_lease
from jarvis_trust.errors import LeaseError
from jarvis_trust.keyfiles import replace_private

_KEPT_QUOTES = 32
"""Quotes whose lease may still come; a controller has one or two under way."""
_KEPT_NONCES = 4096
"""Nonces that are refused when they come again; beyond that the lease sequence alone guards against replay."""


def boottime_ns() -> int:
    """CLOCK_BOOTTIME, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LeaseAuthority(Protocol):
    """What is asked of the core: jarvis_native.Authority."""

    def note_challenge(self, nonce: bytes, tls_spki_sha256: bytes) -> int:
        """CLOCK_BOOTTIME (ns) from which this challenge's lease counts."""

    def accept_lease(self, lease: bytes, signature: bytes) -> LeaseTerms:
        """Puts a lease in force, or raises AuthorityRefused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSubject:
    """What a lease must name to be ours."""

    agent_id: str
    ak_name: bytes
    session_id: bytes
    firmware_sha256: bytes
    """Of the loaded firmware; empty when it was refused, and then no lease fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLease:
    """A lease that was accepted."""

    sequence: int
    methods: frozenset[str]
    quoted_ns: int
    """CLOCK_BOOTTIME of its quote."""
    end_ns: int
    """CLOCK_BOOTTIME at which it ends."""
    nonce: bytes
    """Of its quote."""
    export_collectors: tuple[str, ...]
    """Where flows may be sent, see jarvis_trust.collector_allow_list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quote:
    boottime_ns: int
    reset_count: int
    tls_spki_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HighWater:
    """What must never go back, over restarts."""

    sequence: int = 0
    audit_sequence: int = 0
    audit_head: bytes = b""


class LeaseKeeper:
    """Accepts leases and says what is in force."""

    def __init__(
        self,
        *,
        subject: LeaseSubject,
        command_public_pem: bytes,
        state_path: Path,
        on_change: Callable[[int], None],
        authority: LeaseAuthority | None,
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        """Reads the high-water marks of earlier leases.

        Args:
            subject: who we are.
            command_public_pem: the fleet's command key, from the join file.
            state_path: file of the high-water marks, made 0600.
            on_change: told the CLOCK_BOOTTIME instant (ns) at which work must pause, each time it changes.
            authority: the native core's; None where firmware was refused, which fits no lease.
            clock: CLOCK_BOOTTIME in ns; tests give their own.

        Raises:
            LeaseError: LEASE_STATE_DAMAGED when the file is there but cannot be read as ours.
        """
        self._subject = subject
        self._key = command_public_pem
        self._state_path = state_path
        self._on_change = on_change
        self._authority = authority
        self._clock = clock
        self._quotes: OrderedDict[bytes, _Quote] = OrderedDict()
        self._leased_quote: _Quote | None = None
        """Of the lease in force."""
        self._spent_nonces: OrderedDict[bytes, None] = OrderedDict()
        self._high = read_high_water(state_path)
        self._lease: ActiveLease | None = None
        self._previous: ActiveLease | None = None

    def spend_nonce(self, nonce: bytes) -> None:
        """A challenge is answered once, or tried once.

        Raises:
            LeaseError: NONCE_REUSED.
        """
        if nonce in self._spent_nonces:
            raise LeaseError("NONCE_REUSED", "this nonce was answered already; 32 new random bytes are accepted")
        self._spent_nonces[nonce] = None
        while len(self._spent_nonces) > _KEPT_NONCES:
            self._spent_nonces.popitem(last=False)

    def note_challenge(self, *, nonce: bytes, tls_spki_sha256: bytes) -> int:
        """Right before a challenge's quote is made: the CLOCK_BOOTTIME instant (ns) from which its lease counts.

        Raises:
            LeaseError: NONCE_REUSED.
        """
        if self._authority is None:
            return self._clock()
        try:
            return self._authority.note_challenge(nonce, tls_spki_sha256)
        except AuthorityRefused as error:
            raise LeaseError(error.reason, error.message) from error

    def note_quote(self, *, nonce: bytes, boottime: int, reset_count: int, tls_spki_sha256: bytes) -> None:
        """Remembers when, and over which TLS key and TPM boot, a challenge was answered."""
        self._quotes[nonce] = _Quote(boottime_ns=boottime, reset_count=reset_count, tls_spki_sha256=tls_spki_sha256)
        while len(self._quotes) > _KEPT_QUOTES:
            self._quotes.popitem(last=False)

    def accept(self, signed: SignedLease) -> ActiveLease:
        """Puts a lease in force, in place of the one before; or ends the one in force earlier, with a second one for its nonce.

        Raises:
            LeaseError: LEASE_SIGNATURE_INVALID, LEASE_INVALID (form), LEASE_NOT_OURS (names another agent, key, process or
                firmware), LEASE_STALE (unknown or used nonce, sequence that does not rise, second lease that does not end
                earlier), LEASE_EXPIRED, AUDIT_TRUNCATED.
        """
        lease = verify_lease(signed, self._key)
        held, shortens = self._lease, self._lease is not None and lease.nonce == self._lease.nonce
        quote = self._leased_quote if shortens else self._quotes.get(lease.nonce)
        if quote is None:
            raise LeaseError("LEASE_STALE", "the lease's nonce is of no quote that this process made and has no lease for yet")
        self._check_subject(lease, quote)
        self._check_order(lease)
        end = quote.boottime_ns + lease.duration_ns
        if held is not None and shortens and end >= held.end_ns:
            raise LeaseError("LEASE_STALE", f"the nonce has lease {held.sequence}: only one that ends earlier is accepted for it")
        if not shortens and end <= self._clock():
            raise LeaseError("LEASE_EXPIRED", f"the lease ended {(self._clock() - end) / 1e9:.3f} s ago, counted from its quote")
        high = HighWater(sequence=lease.sequence, audit_sequence=lease.audit_sequence, audit_head=lease.audit_head)
        _write_state(self._state_path, high)
        self._high = high
        self._accept_in_core(signed)
        self._quotes.pop(lease.nonce, None)
        self._leased_quote, self._previous = quote, held
        self._lease = ActiveLease(
            sequence=lease.sequence,
            methods=frozenset(lease.methods),
            quoted_ns=quote.boottime_ns,
            end_ns=end,
            nonce=lease.nonce,
            export_collectors=tuple(lease.export_collectors),
        )
        self._on_change(end)
        return self._lease

    @property
    def current(self) -> ActiveLease | None:
        """The lease in force."""
        return self._lease if self.remaining_ns() > 0 else None

    @property
    def sequence(self) -> int:
        """Of the lease in force; 0 when there is none."""
        return self._lease.sequence if self._lease is not None and self.remaining_ns() > 0 else 0

    def remaining_ns(self) -> int:
        """Nanoseconds that the lease is still in force; 0 when there is none."""
        return 0 if self._lease is None else max(0, self._lease.end_ns - self._clock())

    def require(self, method: str) -> ActiveLease:
        """The lease in force, if it allows `method` (full name).

        Raises:
            LeaseError: AGENT_UNATTESTED (there never was one), LEASE_EXPIRED, LEASE_METHOD_DENIED.
        """
        if self._lease is None:
            raise LeaseError("AGENT_UNATTESTED", "this agent process holds no lease: it has to be attested first")
        over = self._clock() - self._lease.end_ns
        if over >= 0:
            raise LeaseError("LEASE_EXPIRED", f"lease {self._lease.sequence} ended {over / 1e9:.3f} s ago: attest again")
        if method not in self._lease.methods:
            raise LeaseError("LEASE_METHOD_DENIED", f"lease {self._lease.sequence} does not allow {method}")
        return self._lease

    def covering(self, sequence: int) -> ActiveLease:
        """The lease with this sequence if it is the one in force or the one before it (a renewal may cross a command on its way).

        Raises:
            LeaseError: LEASE_STALE.
        """
        for lease in (self._lease, self._previous):
            if lease is not None and lease.sequence == sequence:
                return lease
        current = 0 if self._lease is None else self._lease.sequence
        raise LeaseError("LEASE_STALE", f"lease_sequence is {sequence}; {current} is in force")

    def _accept_in_core(self, signed: SignedLease) -> None:
        """The marks are on disk by now: what the core refuses raises them and does nothing else."""
        if self._authority is None:
            return
        try:
            self._authority.accept_lease(signed.lease, signed.signature)
        except AuthorityRefused as error:
            raise LeaseError(error.reason, error.message) from error

    def _check_subject(self, lease: Lease, quote: _Quote) -> None:
        ours = self._subject
        if not ours.firmware_sha256:
            raise LeaseError("LEASE_NOT_OURS", "this agent's firmware was refused: there is nothing that a lease could be for")
        for field, found, accepted in (
            ("agent_id", lease.agent_id, ours.agent_id),
            ("ak_name", lease.ak_name.hex(), ours.ak_name.hex()),
            ("tls_spki_sha256", lease.tls_spki_sha256.hex(), quote.tls_spki_sha256.hex()),
            ("firmware_sha256", lease.firmware_sha256.hex(), ours.firmware_sha256.hex()),
            ("session_id", lease.session_id.hex(), ours.session_id.hex()),
            ("tpm_reset_count", str(lease.tpm_reset_count), str(quote.reset_count)),
        ):
            if found != accepted:
                raise LeaseError("LEASE_NOT_OURS", f"the lease's {field} is {found}; {accepted} is accepted")

    def _check_order(self, lease: Lease) -> None:
        high = self._high
        if lease.sequence <= high.sequence:
            raise LeaseError("LEASE_STALE", f"the lease's sequence is {lease.sequence}; above {high.sequence} is accepted")
        if lease.audit_sequence < high.audit_sequence:
            raise LeaseError(
                "AUDIT_TRUNCATED",
                f"the lease's audit_sequence is {lease.audit_sequence}; {high.audit_sequence} was seen before: the log was cut",
            )
        if lease.audit_sequence == high.audit_sequence and high.audit_head and lease.audit_head != high.audit_head:
            raise LeaseError(
                "AUDIT_TRUNCATED",
                f"the audit head at sequence {lease.audit_sequence} is another than before: the log was rewritten",
            )


def read_high_water(path: Path) -> HighWater:
    """The marks of earlier leases; all zero where there were none.

    Raises:
        LeaseError: LEASE_STATE_DAMAGED.
    """
    try:
        values = json.loads(path.read_bytes())
        return HighWater(
            sequence=int(values["sequence"]),
            audit_sequence=int(values["audit_sequence"]),
            audit_head=bytes.fromhex(values["audit_head"]),
        )
    except FileNotFoundError:
        return HighWater()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeaseError(
            "LEASE_STATE_DAMAGED", f"{path} cannot be read as lease state ({error!r}); restore it, do not remove it"
        ) from error


def _write_state(path: Path, high: HighWater) -> None:
    values = {"sequence": high.sequence, "audit_sequence": high.audit_sequence, "audit_head": high.audit_head.hex()}
    try:
        replace_private(path, json.dumps(values).encode("ascii") + b"\n")
    except OSError as error:
        raise LeaseError("LEASE_STATE_IO", f"{path} cannot be written ({error.strerror}): the lease is not taken") from error
