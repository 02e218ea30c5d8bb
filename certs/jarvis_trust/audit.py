# SPDX-License-Identifier: Apache-2.0
"""The audit chain: each entry's hash covers the hash of the one before it, so that no entry can be edited, moved or removed.

    hash = SHA-256(tag, previous_hash, sequence, time, principal, action, agent_id, detail, request_id), each length-prefixed

A cut at the end shows only against a head that somebody else remembers: every lease carries one to an agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from jarvis.capture.v1.fleet_pb2 import AuditEvent

from jarvis_trust.encoding import framed, u64
from jarvis_trust.errors import AuditError

GENESIS_HASH = bytes(32)
"""previous_hash of the first entry, whose sequence is 1."""

_TAG = "jarvis-audit-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """A place in the chain."""

    sequence: int
    """Of the last entry; 0 when there is none."""
    hash: bytes
    """Of the last entry, 32 bytes."""


GENESIS = AuditHead(sequence=0, hash=GENESIS_HASH)


def entry_hash(  # noqa: PLR0917 - the order of the hashed fields, as AuditEvent has them
    previous_hash: bytes,
    sequence: int,
    time_unix_ns: int,
    principal: str,
    action: str,
    agent_id: str,
    detail_json: str,
    request_id: str,
) -> bytes:
    """The hash of one entry, 32 bytes.

    Args:
        previous_hash: of the entry before, GENESIS_HASH for the first.
        sequence: from 1, rising by 1.
        time_unix_ns: ns since 1970, UTC.
        principal: SPIFFE id, or "controller".
        action: what was done, e.g. "capture.start".
        agent_id: whom it concerned, or empty.
        detail_json: the text as stored; it is not parsed.
        request_id: UUID, or empty.

    Raises:
        ValueError: a number out of 64 bits, or a previous_hash of another size than 32.
    """
    if len(previous_hash) != 32:
        raise ValueError(f"previous_hash has {len(previous_hash)} bytes; 32 are accepted")
    if not (0 <= sequence < 2**64 and 0 <= time_unix_ns < 2**64):
        raise ValueError(f"sequence {sequence} and time_unix_ns {time_unix_ns}: 0 to 2**64-1 are accepted")
    texts = (text.encode() for text in (principal, action, agent_id, detail_json, request_id))
    return hashlib.sha256(framed(_TAG, previous_hash, u64(sequence), u64(time_unix_ns), *texts)).digest()


def verify_chain(events: Iterable[AuditEvent], *, after: AuditHead = GENESIS, expected: AuditHead | None = None) -> AuditHead:
    """The head of the chain, once every entry holds.

    Args:
        events: in order; may be a page of a longer chain.
        after: the verified head before the first of them.
        expected: a head that is known from elsewhere (a lease, an earlier check) and must lie on this chain.

    Raises:
        AuditError: AUDIT_SEQUENCE_WRONG, AUDIT_CHAIN_BROKEN, AUDIT_ENTRY_ALTERED, AUDIT_HEAD_MISMATCH, AUDIT_TRUNCATED;
            `sequence` is that of the first bad entry.
    """
    head = after
    _check_head(head, expected)
    for event in events:
        head = _next(head, event)
        _check_head(head, expected)
    if expected is not None and head.sequence < expected.sequence:
        raise AuditError(
            "AUDIT_TRUNCATED",
            f"audit chain ends at entry {head.sequence}; entry {expected.sequence} is known to have existed",
            sequence=head.sequence + 1,
        )
    return head


def _next(head: AuditHead, event: AuditEvent) -> AuditHead:
    wanted = head.sequence + 1
    if event.sequence != wanted:
        raise AuditError(
            "AUDIT_SEQUENCE_WRONG", f"audit entry {wanted} is missing: entry {event.sequence} is in its place", sequence=wanted
        )
    if event.previous_hash != head.hash:
        raise AuditError("AUDIT_CHAIN_BROKEN", f"audit entry {wanted} does not follow entry {head.sequence}", sequence=wanted)
    try:
        computed = entry_hash(
            head.hash,
            event.sequence,
            event.time.seconds * 10**9 + event.time.nanos,
            event.principal,
            event.action,
            event.agent_id,
            event.detail,
            event.request_id,
        )
    except ValueError as error:
        raise AuditError("AUDIT_ENTRY_ALTERED", f"audit entry {wanted}: {error}", sequence=wanted) from error
    if event.hash != computed:
        raise AuditError(
            "AUDIT_ENTRY_ALTERED", f"audit entry {wanted} is not what was recorded: its hash differs", sequence=wanted
        )
    return AuditHead(sequence=wanted, hash=computed)


def _check_head(head: AuditHead, expected: AuditHead | None) -> None:
    if expected is not None and head.sequence == expected.sequence and head.hash != expected.hash:
        raise AuditError(
            "AUDIT_HEAD_MISMATCH",
            f"audit entry {head.sequence} is not the one that was known: the chain up to it was rewritten",
            sequence=head.sequence,
        )
