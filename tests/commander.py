# SPDX-License-Identifier: Apache-2.0
"""A controller as the native core sees one: it leases and commands an Authority with a command key of the test's own."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from jarvis.capture.v1.agent_pb2 import StartCaptureRequest
from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis.capture.v1.trust_pb2 import Lease, SignedLease
from jarvis_native import Authority, LeaseTerms
from jarvis_native.loader import Firmware
from jarvis_trust.commands import AGENT_SERVICE, LEASED_METHODS, CommandSigner, command_public_raw, generate_command_key

AGENT_ID, SESSION, AK_NAME, SPKI, DIGEST = "a" * 32, b"s" * 16, b"\0\x0b" + bytes(32), b"t" * 32, b"f" * 32
START = AGENT_SERVICE + "StartCapture"


class Commander:
    """The authority, and who commands it."""

    def __init__(self, firmware: Firmware, **marks: Any) -> None:
        """Args: marks: high-water marks of earlier processes, as Authority takes them."""
        private_pem, self.public_pem = generate_command_key()
        self.signer = CommandSigner(private_pem)
        self.sequence = int(marks.get("lease_sequence", 0))
        self.authority = Authority(
            firmware,
            agent_id=AGENT_ID,
            command_public_key=command_public_raw(self.public_pem),
            session_id=SESSION,
            ak_name=AK_NAME,
            firmware_sha256=DIGEST,
            **marks,
        )

    def lease_fields(self, **changes: Any) -> dict[str, Any]:
        """Of a lease that is accepted, but for its nonce."""
        fields: dict[str, Any] = {
            "agent_id": AGENT_ID,
            "ak_name": AK_NAME,
            "tls_spki_sha256": SPKI,
            "firmware_sha256": DIGEST,
            "session_id": SESSION,
            "methods": sorted(LEASED_METHODS),
            "sequence": self.sequence + 1,
            "audit_head": bytes(32),
            "duration_ns": 60 * 10**9,
        }
        return fields | changes

    def challenge(self) -> bytes:
        """A nonce, noted just now."""
        nonce = secrets.token_bytes(32)
        self.authority.note_challenge(nonce, SPKI)
        return nonce

    def signed(self, **changes: Any) -> SignedLease:
        """A lease for a challenge of now."""
        fields = self.lease_fields(**changes)
        if "nonce" not in fields:
            fields["nonce"] = self.challenge()
        return self.signer.sign_lease(Lease(**fields))

    def give(self, **changes: Any) -> LeaseTerms:
        """That lease, accepted."""
        lease = self.signed(**changes)
        terms = self.authority.accept_lease(lease.lease, lease.signature)
        self.sequence = terms.sequence
        return terms

    def authorization(self, method: str, payload: bytes = b"", **changes: Any) -> bytes:
        """Of a command under the newest lease."""
        fields: dict[str, Any] = {
            "agent_id": AGENT_ID,
            "method": method,
            "session_id": SESSION,
            "lease_sequence": self.sequence,
            "request_id": str(uuid.uuid4()),
            "principal": "spiffe://lab.example/operator/operator/ada",
            "expires_ns": 30 * 10**9,
            "payload": payload,
        }
        return self.signer.authorize(**(fields | changes)).SerializeToString()

    def order(self, spec: CaptureSpec) -> bytes:
        """Commands a capture: the admitted payload."""
        payload = StartCaptureRequest(spec=spec).SerializeToString()
        self.authority.admit(START, payload, self.authorization(START, payload))
        return payload
