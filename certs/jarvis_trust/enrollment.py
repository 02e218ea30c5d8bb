# SPDX-License-Identifier: Apache-2.0
"""The proof that ends an enrolment: only the TPM that holds both EK and AK learns the challenge's secret.

    agent:       secret = TPM2_ActivateCredential(challenge);  proof = enrollment_proof(secret, params, challenge)
    controller:  check_enrollment_proof(secret, params, challenge, proof)

The transcript (the serialized EnrollParams and EnrollChallenge as they were sent) ties the token, the CSR's TLS key and both TPM
keys to that secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from jarvis_trust.encoding import framed
from jarvis_trust.errors import EnrollmentError

SECRET_BYTES = 32
_TAG = "jarvis-enrollment-v1"


def new_secret() -> bytes:
    """A fresh secret for one challenge."""
    return secrets.token_bytes(SECRET_BYTES)


def enrollment_proof(secret: bytes, params: bytes, challenge: bytes) -> bytes:
    """HMAC-SHA-256 with the secret over the transcript, 32 bytes.

    Args:
        secret: what ActivateCredential gave, 32 bytes.
        params: the EnrollParams message, serialized with deterministic=True on both sides.
        challenge: the EnrollChallenge message, likewise.

    Raises:
        EnrollmentError: ENROLLMENT_PROOF_INVALID when the secret has another size.
    """
    if len(secret) != SECRET_BYTES:
        raise EnrollmentError("ENROLLMENT_PROOF_INVALID", f"secret has {len(secret)} bytes; {SECRET_BYTES} are accepted")
    return hmac.digest(secret, framed(_TAG, params, challenge), hashlib.sha256)


def check_enrollment_proof(secret: bytes, params: bytes, challenge: bytes, proof: bytes) -> None:
    """The proof is the one for this secret and transcript, compared in constant time.

    Raises:
        EnrollmentError: ENROLLMENT_PROOF_INVALID.
    """
    if not hmac.compare_digest(enrollment_proof(secret, params, challenge), proof):
        raise EnrollmentError(
            "ENROLLMENT_PROOF_INVALID",
            "proof does not match the challenge: the TPM does not hold both keys, or the messages were changed",
        )
