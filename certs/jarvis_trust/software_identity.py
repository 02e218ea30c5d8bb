# SPDX-License-Identifier: Apache-2.0
"""The identity of an agent without a TPM (level L0): an ECDSA P-256 key in a file, and what it signs.

    enrolment:    signature over the transcript (EnrollParams, EnrollChallenge)
    attestation:  signature over what a quote's extraData binds

Whoever can read the file is that agent, on any host: it proves no machine and no boot. Ids, names and signatures are made under
domain tags of their own, so that none of them can stand for what a TPM made, and none of a TPM for them.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from jarvis_trust.encoding import framed
from jarvis_trust.errors import AttestationError, EnrollmentError, IdentityError
from jarvis_trust.quote import bound_fields

MAX_SOFTWARE_SIGNATURE_BYTES = 72
"""Of ECDSA P-256, DER."""
_ID_TAG = "jarvis-software-agent-v1"
_NAME_TAG = "jarvis-software-name-v1"
_ENROLLMENT_TAG = "jarvis-software-enrollment-v1"
_EVIDENCE_TAG = "jarvis-software-evidence-v1"


def parse_software_public(spki_der: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 key from its SubjectPublicKeyInfo; only the one DER encoding of it, so that one key is one agent.

    Raises:
        IdentityError: SOFTWARE_IDENTITY_INVALID.
    """
    try:
        key = load_der_public_key(spki_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid("software_public is no SubjectPublicKeyInfo") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _invalid("software_public is not a P-256 key")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki_der:
        raise _invalid("software_public is not the DER encoding of its key")
    return key


def agent_id_from_software(spki_der: bytes) -> str:
    """The agent's id: base32 of the first 20 bytes of SHA-256 over the tagged SubjectPublicKeyInfo (DER)."""
    return base64.b32encode(hashlib.sha256(framed(_ID_TAG, spki_der)).digest()[:20]).decode("ascii").lower()


def software_name(spki_der: bytes) -> bytes:
    """What leases name in the place of an AK's Name: of its form (TPM_ALG_SHA256, then 32 bytes), over the tagged key."""
    return b"\x00\x0b" + hashlib.sha256(framed(_NAME_TAG, spki_der)).digest()


class SoftwareSigner:
    """The private half."""

    def __init__(self, key_pem: bytes) -> None:
        """Takes a PEM private key.

        Raises:
            IdentityError: SOFTWARE_IDENTITY_INVALID.
        """
        try:
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _invalid("the identity key is no PEM private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _invalid("the identity key is not a P-256 key")
        self._key = key
        self.spki_der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def agent_id(self) -> str:
        """Whom the key makes."""
        return agent_id_from_software(self.spki_der)

    @property
    def ak_name(self) -> bytes:
        """See software_name."""
        return software_name(self.spki_der)

    def sign_enrollment(self, params: bytes, challenge: bytes) -> bytes:
        """Over the transcript, serialized with deterministic=True on both sides; DER."""
        return self._key.sign(framed(_ENROLLMENT_TAG, params, challenge), ec.ECDSA(hashes.SHA256()))

    def sign_evidence(self, **binding: bytes | str) -> bytes:
        """Over the fields of jarvis_trust.quote.quote_binding; DER.

        Raises:
            AttestationError: QUOTE_FIELD_INVALID.
        """
        return self._key.sign(_evidence(**binding), ec.ECDSA(hashes.SHA256()))


def check_software_enrollment(spki_der: bytes, params: bytes, challenge: bytes, signature: bytes) -> None:
    """The key of the params signed this transcript.

    Raises:
        IdentityError: SOFTWARE_IDENTITY_INVALID.
        EnrollmentError: ENROLLMENT_PROOF_INVALID.
    """
    if not _verifies(spki_der, framed(_ENROLLMENT_TAG, params, challenge), signature):
        raise EnrollmentError(
            "ENROLLMENT_PROOF_INVALID", "proof.software_signature is not by software_public over this enrolment"
        )


def software_evidence_holds(spki_der: bytes, signature: bytes, **binding: bytes | str) -> bool:
    """Whether the key signed this binding.

    Raises:
        IdentityError: SOFTWARE_IDENTITY_INVALID, of the key.
    """
    try:
        message = _evidence(**binding)
    except AttestationError:
        return False
    return _verifies(spki_der, message, signature)


def _evidence(**binding: bytes | str) -> bytes:
    return framed(_EVIDENCE_TAG, *bound_fields(**binding))  # type: ignore[arg-type]  # its own keywords, passed on


def _verifies(spki_der: bytes, message: bytes, signature: bytes) -> bool:
    key = parse_software_public(spki_der)
    if not 8 <= len(signature) <= MAX_SOFTWARE_SIGNATURE_BYTES:
        return False
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _invalid(message: str) -> IdentityError:
    return IdentityError("SOFTWARE_IDENTITY_INVALID", message)
