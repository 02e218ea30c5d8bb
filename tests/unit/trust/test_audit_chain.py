# SPDX-License-Identifier: Apache-2.0
"""The audit chain: any edit, removal, insertion, move or cut is found, and the first bad entry is named."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis.capture.v1.fleet_pb2 import AuditEvent
from jarvis_trust.audit import GENESIS, GENESIS_HASH, AuditHead, entry_hash, verify_chain
from jarvis_trust.errors import AuditError

GOLDEN = "2532968730d229a3ff63f6587699ad59f01be7f8b19051f210326ce9a36da584"


def chain(length: int) -> list[AuditEvent]:
    events: list[AuditEvent] = []
    for sequence in range(1, length + 1):
        event = AuditEvent(
            sequence=sequence,
            principal="spiffe://lab/operator/admin/bob",
            action="capture.start",
            agent_id="a" * 32,
            detail=f'{{"interface":"eth{sequence}"}}',
            previous_hash=events[-1].hash if events else GENESIS_HASH,
            request_id="123e4567-e89b-12d3-a456-426614174000",
        )
        event.time.FromNanoseconds(1_795_000_000_123_456_789 + sequence)
        events.append(seal(event))
    return events


def seal(event: AuditEvent) -> AuditEvent:
    event.hash = entry_hash(
        event.previous_hash,
        event.sequence,
        event.time.ToNanoseconds(),
        event.principal,
        event.action,
        event.agent_id,
        event.detail,
        event.request_id,
    )
    return event


def head_of(events: list[AuditEvent]) -> AuditHead:
    return AuditHead(sequence=events[-1].sequence, hash=events[-1].hash)


def refusal(events: list[AuditEvent], **options: Any) -> tuple[str, int]:
    with pytest.raises(AuditError, match=r"audit") as refused:
        verify_chain(events, **options)
    return refused.value.reason, refused.value.sequence


def test_the_hash_covers_these_bytes() -> None:
    texts = (b"p", b"a", b"", b"{}", b"r")
    expected = b"jarvis-audit-v1\0" + b"\0\0\0\x20" + bytes(32)
    expected += b"\0\0\0\x08" + bytes(7) + b"\1" + b"\0\0\0\x08" + bytes(7) + b"\2"
    expected += b"".join(len(text).to_bytes(4, "big") + text for text in texts)
    assert entry_hash(GENESIS_HASH, 1, 2, "p", "a", "", "{}", "r") == hashlib.sha256(expected).digest()
    assert entry_hash(GENESIS_HASH, 1, 2, "p", "a", "", "{}", "r").hex() == GOLDEN


def test_numbers_and_hashes_out_of_range_are_refused() -> None:
    for previous, sequence, time in ((bytes(31), 1, 2), (GENESIS_HASH, 2**64, 2), (GENESIS_HASH, 1, -1)):
        with pytest.raises(ValueError, match=r"32|2\*\*64"):
            entry_hash(previous, sequence, time, "p", "a", "", "{}", "r")


def test_an_untouched_chain_verifies_whole_and_page_by_page() -> None:
    events = chain(10)
    head = verify_chain(events)
    assert head == head_of(events)
    assert verify_chain(events[5:], after=verify_chain(events[:5])) == head
    assert verify_chain([]) == GENESIS


EDITS: dict[str, Any] = {
    "principal": "spiffe://lab/operator/admin/eve",
    "action": "capture.stop",
    "agent_id": "b" * 32,
    "detail": "{}",
    "request_id": "",
    "hash": bytes(32),
}


@pytest.mark.parametrize(("field", "value"), EDITS.items(), ids=EDITS.keys())
def test_an_edited_field_is_found_at_its_entry(field: str, value: Any) -> None:
    events = chain(5)
    setattr(events[2], field, value)
    assert refusal(events) == ("AUDIT_ENTRY_ALTERED", 3)


@pytest.mark.parametrize("edit", [{"seconds": 1}, {"nanos": 1}, {"seconds": -1}])
def test_an_edited_time_is_found_at_its_entry(edit: dict[str, int]) -> None:
    events = chain(5)
    for field, value in edit.items():
        setattr(events[2].time, field, value)
    assert refusal(events) == ("AUDIT_ENTRY_ALTERED", 3)


def test_an_edit_with_its_hash_recomputed_breaks_the_next_link() -> None:
    events = chain(5)
    events[2].action = "nothing"
    seal(events[2])
    assert refusal(events) == ("AUDIT_CHAIN_BROKEN", 4)


def test_a_removed_a_repeated_and_a_moved_entry_are_found() -> None:
    events = chain(5)
    assert refusal(events[:2] + events[3:]) == ("AUDIT_SEQUENCE_WRONG", 3)
    assert refusal(events[:3] + events[2:]) == ("AUDIT_SEQUENCE_WRONG", 4)
    assert refusal([events[0], events[2], events[1]]) == ("AUDIT_SEQUENCE_WRONG", 2)
    assert refusal(events[1:]) == ("AUDIT_SEQUENCE_WRONG", 1)


def test_a_cut_at_the_end_is_found_against_a_head_that_somebody_remembers() -> None:
    events = chain(5)
    assert verify_chain(events, expected=head_of(events[:3])) == head_of(events)
    assert refusal(events[:4], expected=head_of(events)) == ("AUDIT_TRUNCATED", 5)


def test_a_chain_rewritten_from_the_start_is_found_against_that_head() -> None:
    events, rewritten = chain(5), chain(5)
    rewritten[0].detail = "{}"
    seal(rewritten[0])
    for before, event in itertools.pairwise(rewritten):
        event.previous_hash = before.hash
        seal(event)
    assert verify_chain(rewritten) == head_of(rewritten)
    assert refusal(rewritten, expected=head_of(events[:3])) == ("AUDIT_HEAD_MISMATCH", 3)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_changed_bit_of_any_entry_goes_unnoticed(data: st.DataObject) -> None:
    events = chain(3)
    target = data.draw(st.integers(0, 2))
    raw = bytearray(events[target].SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        events[target] = AuditEvent.FromString(bytes(raw))
    except Exception:  # noqa: BLE001 - not a message any more: nothing that could be verified
        return
    if meaning(events[target]) != meaning(chain(3)[target]):
        with pytest.raises(AuditError):
            verify_chain(events)


def meaning(event: AuditEvent) -> tuple[object, ...]:
    """The fields that are hashed; unknown fields of the wire format mean nothing."""
    return (
        event.sequence, event.time.seconds * 10**9 + event.time.nanos, event.principal, event.action, event.agent_id,
        event.detail, event.previous_hash, event.hash, event.request_id,
    )  # fmt: skip
