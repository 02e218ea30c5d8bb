# SPDX-License-Identifier: Apache-2.0
"""TPM2_MakeCredential in software (TCG TPM 2.0 Library, Part 1, section 24 and annex B.10.4).

The secret can be had only by TPM2_ActivateCredential in the TPM that holds the EK, and only if an object with exactly this Name
is loaded there: that is what ties an AK to an EK certificate. No TPM is needed on this side.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import TpmPublic
from jarvis_trust.tpm_templates import check_ek_template

_SEED_BYTES = 32  # the size of the EK's nameAlg digest
_NAME_BYTES = 34


def make_credential(ek_public: TpmPublic, ak_name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """A challenge that only the EK's TPM can open, and only for the AK.

    Args:
        ek_public: of template L-1 (RSA-2048, AES-128-CFB, SHA-256).
        ak_name: the AK's Name as computed here from its public area, 34 bytes.
        secret: 1 to 32 bytes.

    Returns:
        (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET), both with their 2-byte sizes.

    Raises:
        AttestationError: EK_TEMPLATE_WRONG, CREDENTIAL_INVALID.
    """
    check_ek_template(ek_public)
    if len(ak_name) != _NAME_BYTES:
        raise AttestationError("CREDENTIAL_INVALID", f"ak_name has {len(ak_name)} bytes; {_NAME_BYTES} are accepted")
    if not 1 <= len(secret) <= 32:
        raise AttestationError("CREDENTIAL_INVALID", f"secret has {len(secret)} bytes; 1 to 32 are accepted")
    if not isinstance(ek_public.key, rsa.RSAPublicKey):
        raise AttestationError("EK_TEMPLATE_WRONG", f"EK is a {type(ek_public.key).__name__}; RSA is accepted")
    seed = secrets.token_bytes(_SEED_BYTES)
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=b"IDENTITY\0")
    return _sized(_id_object(seed, ak_name, secret)), _sized(ek_public.key.encrypt(seed, oaep))


def _id_object(seed: bytes, ak_name: bytes, secret: bytes) -> bytes:
    """TPMS_ID_OBJECT: the outer HMAC, then the secret (as TPM2B_DIGEST) encrypted. The key is used once, hence the zero IV."""
    cipher = Cipher(AES(_kdfa(seed, b"STORAGE", ak_name, 128)), CFB(bytes(16))).encryptor()
    identity = cipher.update(_sized(secret)) + cipher.finalize()
    integrity = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), identity + ak_name, hashlib.sha256)
    return _sized(integrity) + identity


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa with SHA-256 for one block (SP 800-108 counter mode): HMAC(key, 1 || label || 0 || context || bits)."""
    return hmac.digest(key, struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits), hashlib.sha256)[: bits // 8]


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
