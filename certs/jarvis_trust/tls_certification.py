# SPDX-License-Identifier: Apache-2.0
"""That a TLS key lives in the TPM that enrols: the attestation key's word for it, judged by the controller.

    agent:       TPM2_Certify(TLS key, signer AK, qualifyingData = certification_binding(nonce, agent id))
    controller:  check_tls_key(public, CSR's key), then check_certification(...), before it issues a certificate for that key

The AK signs only what its TPM made (its template is checked beforehand), so a certification says: this very key, with these very
attributes, is loaded in the TPM of the AK. Its attributes say that it was made there and cannot leave.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from jarvis_trust.encoding import framed
from jarvis_trust.errors import EnrollmentError
from jarvis_trust.identities import validate_agent_id
from jarvis_trust.tpm_structures import (
    ALG_SHA256,
    TpmPublic,
    parse_attest_certify,
    parse_ecdsa_signature,
    parse_public,
    qualified_name,
)
from jarvis_trust.tpm_templates import check_tls_key_template

NONCE_BYTES = 32
_TAG = "jarvis-tls-v1"


def certification_binding(nonce: bytes, agent_id: str) -> bytes:
    """The qualifyingData of a certification, 32 bytes.

    Args:
        nonce: of the enrolment's challenge, 32 bytes.
        agent_id: derived from the endorsement key.

    Raises:
        EnrollmentError: TLS_KEY_NONCE_INVALID.
        IdentityError: AGENT_ID_INVALID.
    """
    validate_agent_id(agent_id)
    if len(nonce) != NONCE_BYTES:
        raise EnrollmentError("TLS_KEY_NONCE_INVALID", f"nonce has {len(nonce)} bytes; {NONCE_BYTES} are accepted")
    return hashlib.sha256(framed(_TAG, nonce, agent_id.encode())).digest()


def check_tls_key(tls_public: bytes, csr_key: ec.EllipticCurvePublicKey) -> TpmPublic:
    """The TLS key as the host shows it: the template exactly, and the key that the certificate is asked for.

    Args:
        tls_public: TPMT_PUBLIC.
        csr_key: of the certificate request.

    Raises:
        AttestationError: TPM_PUBLIC_INVALID, TLS_KEY_TEMPLATE_WRONG.
        EnrollmentError: TLS_KEY_CSR_MISMATCH.
    """
    public = parse_public(tls_public)
    check_tls_key_template(public)
    if public.key != csr_key:
        raise EnrollmentError("TLS_KEY_CSR_MISMATCH", "tls_public is not the key that the CSR asks a certificate for")
    return public


def check_certification(*, tls: TpmPublic, ak: TpmPublic, certify: bytes, signature: bytes, nonce: bytes, agent_id: str) -> None:
    """The AK certifies the TLS key, for this challenge and agent.

    Args:
        tls: from `check_tls_key`.
        ak: the attestation key, its template checked.
        certify: TPMS_ATTEST as it came.
        signature: TPMT_SIGNATURE over it.
        nonce: of the challenge.
        agent_id: of the host that enrols.

    Raises:
        EnrollmentError: TLS_KEY_NOT_CERTIFIED (nothing came), TLS_KEY_SIGNATURE_INVALID, TLS_KEY_SIGNER_MISMATCH,
            TLS_KEY_NONCE_MISMATCH, TLS_KEY_NAME_MISMATCH.
        AttestationError: ATTEST_MAGIC_WRONG, ATTEST_TYPE_WRONG, ATTEST_INVALID, TPM_SIGNATURE_INVALID.
    """
    if not certify or not signature:
        raise EnrollmentError("TLS_KEY_NOT_CERTIFIED", "proof has no certification of the TLS key by the attestation key")
    _check_signature(ak, certify, signature)
    certified = parse_attest_certify(certify)
    if not hmac.compare_digest(certified.qualified_signer, qualified_name(ak.name)):
        raise EnrollmentError("TLS_KEY_SIGNER_MISMATCH", "the certification is not by the AK of the endorsement hierarchy")
    if not hmac.compare_digest(certified.extra_data, certification_binding(nonce, agent_id)):
        raise EnrollmentError("TLS_KEY_NONCE_MISMATCH", "the certification answers another challenge, or is of another agent")
    # The Name covers the whole public area, attributes and all: it is computed here from what was judged.
    if not hmac.compare_digest(certified.name, tls.name):
        raise EnrollmentError("TLS_KEY_NAME_MISMATCH", "the certification is of another key than tls_public")
    if not hmac.compare_digest(certified.qualified_name, qualified_name(tls.name)):
        raise EnrollmentError("TLS_KEY_NAME_MISMATCH", "the certified key is not a primary of the endorsement hierarchy")


def _check_signature(ak: TpmPublic, certify: bytes, signature: bytes) -> None:
    hash_algorithm, der = parse_ecdsa_signature(signature)
    if hash_algorithm != ALG_SHA256 or not isinstance(ak.key, ec.EllipticCurvePublicKey):
        message = f"certify_signature uses hash {hash_algorithm:#06x}; SHA-256 (0x000b) is accepted"
        raise EnrollmentError("TLS_KEY_SIGNATURE_INVALID", message)
    try:
        ak.key.verify(der, certify, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise EnrollmentError("TLS_KEY_SIGNATURE_INVALID", "the certification is not signed by the attestation key") from error
