# SPDX-License-Identifier: Apache-2.0
"""The quote's extraData depends on every field, and on where each one ends."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from jarvis_trust.errors import TrustError
from jarvis_trust.quote import quote_binding

FIELDS: dict[str, Any] = {
    "nonce": b"\1" * 32,
    "agent_spki_sha256": b"\2" * 32,
    "controller_spki_sha256": b"\3" * 32,
    "agent_id": "abcdefghijklmnopqrstuvwxyz234567",
    "boot_id": b"\4" * 16,
    "session_id": b"\5" * 16,
    "manifest": b"manifest",
    "event_log": b"log",
}
# The same bytes put together by a shell's printf, through sha256sum.
GOLDEN = "aa1175f34a47856c3e5c0c41197609926d4a910af2801afe85449def87de904a"


def test_the_binding_is_the_hash_of_the_tagged_length_prefixed_fields() -> None:
    values = [value.encode() if isinstance(value, str) else value for value in FIELDS.values()]
    expected = b"jarvis-quote-v1\0" + b"".join(len(value).to_bytes(4, "big") + value for value in values)
    assert quote_binding(**FIELDS) == hashlib.sha256(expected).digest()
    assert quote_binding(**FIELDS).hex() == GOLDEN


@pytest.mark.parametrize("field", FIELDS)
def test_another_value_of_any_field_gives_another_binding(field: str) -> None:
    value = FIELDS[field]
    changed = "b" + value[1:] if isinstance(value, str) else b"\xff" + value[1:]
    assert quote_binding(**{**FIELDS, field: changed}) != quote_binding(**FIELDS)


def test_bytes_cannot_move_between_manifest_and_event_log() -> None:
    moved = {**FIELDS, "manifest": b"manifestl", "event_log": b"og"}
    assert quote_binding(**moved) != quote_binding(**FIELDS)


def test_a_missing_manifest_is_not_an_empty_log() -> None:
    assert quote_binding(**{**FIELDS, "manifest": b""}) != quote_binding(**{**FIELDS, "event_log": b""})


@pytest.mark.parametrize("field", ["nonce", "agent_spki_sha256", "controller_spki_sha256", "boot_id", "session_id"])
def test_a_field_of_another_size_is_refused_by_its_name(field: str) -> None:
    for value in (b"", FIELDS[field][1:], FIELDS[field] + b"\0"):
        with pytest.raises(TrustError, match=f"^{field} has {len(value)} bytes") as refused:
            quote_binding(**{**FIELDS, field: value})
        assert refused.value.reason == "QUOTE_FIELD_INVALID"


def test_an_agent_id_that_no_ek_gives_is_refused() -> None:
    with pytest.raises(TrustError) as refused:
        quote_binding(**{**FIELDS, "agent_id": "agent"})
    assert refused.value.reason == "AGENT_ID_INVALID"
