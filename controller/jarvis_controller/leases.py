# SPDX-License-Identifier: Apache-2.0
"""Leases: what a passed attestation yields, the book of those in force, and of those that an agent may still hold.

The book is in memory: a controller that restarted attests an agent anew before it commands it. All times are CLOCK_BOOTTIME of
this host; the agent counts from its quote, which is never earlier than the moment the challenge was sent, so a lease ends here no
later than there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jarvis.capture.v1 import trust_pb2
from jarvis_trust.audit import AuditHead
from jarvis_trust.commands import LEASED_METHODS, CommandSigner

from jarvis_controller.records import PassedAttestation

_MAY_BE_HELD = 4
"""Leases in a row whose delivery is not known; an agent that takes none of them holds one that is older, and soon over."""


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: runs through suspends and never goes back, whatever is done to the wall clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLease:
    """A lease that its agent has accepted."""

    agent_id: str
    sequence: int
    session_id: bytes
    start_ns: int
    """When the challenge was sent, CLOCK_BOOTTIME here."""
    duration_ns: int

    def expires_after(self, now_ns: int, validity_ns: int) -> int:
        """Expiry of a command made now and good for `validity_ns`: ns after the lease's quote, at most the lease's own end."""
        return min(now_ns - self.start_ns + validity_ns, self.duration_ns)


def make_lease(
    signer: CommandSigner,
    agent_id: str,
    proved: PassedAttestation,
    *,
    sequence: int,
    head: AuditHead,
    nonce: bytes,
    issue_time_ns: int,
    collectors: Sequence[str],
    ca_sha256: bytes = b"",
) -> trust_pb2.SignedLease:
    """Signs the lease that a passed attestation yields.

    Raises:
        LeaseError: LEASE_INVALID.
    """
    lease = trust_pb2.Lease(
        agent_id=agent_id,
        ak_name=proved.ak_name,
        tls_spki_sha256=proved.tls_spki,
        firmware_sha256=proved.firmware_sha256,
        session_id=proved.session_id,
        tpm_reset_count=0 if proved.tpm is None else proved.tpm.reset_count,
        methods=sorted(LEASED_METHODS),
        sequence=sequence,
        audit_head=head.hash,
        audit_sequence=head.sequence,
        duration_ns=proved.lease_ns,
        nonce=nonce,
        ca_bundle_sha256=ca_sha256,
        export_collectors=collectors,
    )
    lease.issue_time.FromNanoseconds(issue_time_ns)
    return signer.sign_lease(lease)


def make_end(
    signer: CommandSigner, held: trust_pb2.Lease, *, sequence: int, head: AuditHead, issue_time_ns: int
) -> trust_pb2.SignedLease:
    """Signs what ends a lease that an agent holds: another one for its nonce, over since a nanosecond after the quote."""
    lease = trust_pb2.Lease()
    lease.CopyFrom(held)
    lease.sequence, lease.audit_head, lease.audit_sequence, lease.duration_ns = sequence, head.hash, head.sequence, 1
    lease.issue_time.FromNanoseconds(issue_time_ns)
    return signer.sign_lease(lease)


class LeaseBook:
    """The leases in force. Used from the event loop only."""

    def __init__(self, *, now_ns: Callable[[], int] = boottime_ns) -> None:
        self._now_ns = now_ns
        self._leases: dict[str, ActiveLease] = {}
        self._sent: dict[str, list[trust_pb2.Lease]] = {}

    def sending(self, signed: trust_pb2.SignedLease) -> None:
        """A lease is about to be handed over: from now on its agent may hold it, or still the one before."""
        lease = trust_pb2.Lease.FromString(signed.lease)
        self._sent[lease.agent_id] = [*self._sent.get(lease.agent_id, [])[-_MAY_BE_HELD + 1 :], lease]

    def taken(self, agent_id: str) -> None:
        """The agent answered that it has taken the lease sent last."""
        self._sent[agent_id] = self._sent[agent_id][-1:]

    def may_be_held(self, agent_id: str) -> list[trust_pb2.Lease]:
        """The leases of which the agent may hold one, newest first. They may be over there."""
        return self._sent.get(agent_id, [])[::-1]

    def ended(self, agent_id: str) -> None:
        """The agent answered that its lease has ended."""
        self._sent.pop(agent_id, None)

    def put(self, lease: ActiveLease) -> None:
        """A lease is in force at its agent."""
        self._leases[lease.agent_id] = lease

    def revoke(self, agent_id: str) -> None:
        """Nothing is commanded under the agent's lease from now on."""
        self._leases.pop(agent_id, None)

    def get(self, agent_id: str) -> ActiveLease | None:
        """The agent's lease, or None when it has none or it has ended."""
        lease = self._leases.get(agent_id)
        if lease is not None and self._now_ns() - lease.start_ns >= lease.duration_ns:
            del self._leases[agent_id]
            return None
        return lease
