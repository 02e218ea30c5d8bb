# SPDX-License-Identifier: Apache-2.0
"""A PKCS#10 request (RFC 2986) for a key that signs elsewhere, such as in a TPM.

    csr_info(spki) → signed outside → csr_from_signature(info, signature)

The request names nobody and asks for nothing: the controller takes the key from it and the proof that its owner is asking.
"""

from __future__ import annotations

from typing import Final

_SEQUENCE: Final = 0x30
_VERSION_1: Final = bytes.fromhex("020100")
_EMPTY_NAME: Final = bytes.fromhex("3000")
_NO_ATTRIBUTES: Final = bytes.fromhex("a000")
_ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier 1.2.840.10045.4.3.2 (RFC 5758)."""


def csr_info(spki_der: bytes) -> bytes:
    """CertificationRequestInfo, DER: version 1, no subject, the key, no attributes. These bytes are what the key signs.

    Args:
        spki_der: SubjectPublicKeyInfo.
    """
    return _tlv(_SEQUENCE, _VERSION_1 + _EMPTY_NAME + spki_der + _NO_ATTRIBUTES)


def csr_from_signature(info: bytes, signature: bytes) -> bytes:
    """CertificationRequest, DER.

    Args:
        info: from `csr_info`.
        signature: ECDSA with SHA-256 over `info`, DER.
    """
    return _tlv(_SEQUENCE, info + _ECDSA_WITH_SHA256 + _tlv(0x03, b"\0" + signature))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
