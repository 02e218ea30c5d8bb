# SPDX-License-Identifier: Apache-2.0
"""What a quote's extraData binds: one function, called by the agent before the quote and by the controller after it."""

from __future__ import annotations

import hashlib

from jarvis_trust.encoding import framed
from jarvis_trust.errors import AttestationError
from jarvis_trust.identities import validate_agent_id

NONCE_BYTES = 32
_TAG = "jarvis-quote-v1"


def quote_binding(
    *,
    nonce: bytes,
    agent_spki_sha256: bytes,
    controller_spki_sha256: bytes,
    agent_id: str,
    boot_id: bytes,
    session_id: bytes,
    manifest: bytes,
    event_log: bytes,
) -> bytes:
    """SHA-256 over the tagged, length-prefixed fields in the order of the parameters: the extraData of a quote, 32 bytes.

    Args:
        nonce: the challenge, 32 bytes, used once.
        agent_spki_sha256: SHA-256 of the agent's TLS SubjectPublicKeyInfo.
        controller_spki_sha256: the same of the controller, as the agent sees it on this connection.
        agent_id: derived from the endorsement key.
        boot_id: the kernel's, 16 bytes.
        session_id: random per agent process, 16 bytes.
        manifest: bytes of manifest.json; empty when there is none.
        event_log: bytes of the firmware event log, as sent.

    Raises:
        AttestationError: QUOTE_FIELD_INVALID, naming the field and the size found.
        IdentityError: AGENT_ID_INVALID.
    """
    fields = bound_fields(
        nonce=nonce,
        agent_spki_sha256=agent_spki_sha256,
        controller_spki_sha256=controller_spki_sha256,
        agent_id=agent_id,
        boot_id=boot_id,
        session_id=session_id,
        manifest=manifest,
        event_log=event_log,
    )
    return hashlib.sha256(framed(_TAG, *fields)).digest()


def bound_fields(
    *,
    nonce: bytes,
    agent_spki_sha256: bytes,
    controller_spki_sha256: bytes,
    agent_id: str,
    boot_id: bytes,
    session_id: bytes,
    manifest: bytes,
    event_log: bytes,
) -> tuple[bytes, ...]:
    """The fields of quote_binding in their order, their sizes checked.

    Raises:
        AttestationError: QUOTE_FIELD_INVALID, naming the field and the size found.
        IdentityError: AGENT_ID_INVALID.
    """
    validate_agent_id(agent_id)
    for name, value, size in (
        ("nonce", nonce, NONCE_BYTES),
        ("agent_spki_sha256", agent_spki_sha256, 32),
        ("controller_spki_sha256", controller_spki_sha256, 32),
        ("boot_id", boot_id, 16),
        ("session_id", session_id, 16),
    ):
        if len(value) != size:
            raise AttestationError("QUOTE_FIELD_INVALID", f"{name} has {len(value)} bytes; {size} are accepted")
    return nonce, agent_spki_sha256, controller_spki_sha256, agent_id.encode(), boot_id, session_id, manifest, event_log
