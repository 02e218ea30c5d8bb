# SPDX-License-Identifier: Apache-2.0
"""Types that the fixtures of this folder hand to its tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from jarvis_trust.release_root import ReleaseRoot, single_key_root


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """PEM of a private key and of its public half."""

    private: bytes
    public: bytes

    root: ReleaseRoot = field(init=False)
    """A release root in which this key signs alone."""

    def __post_init__(self) -> None:
        created, expires = datetime(2026, 11, 22, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
        root = ReleaseRoot.from_bytes(single_key_root(self.private, created=created, expires=expires))
        object.__setattr__(self, "root", root)


@dataclass(slots=True, kw_only=True)
class RealTpm:
    """A running swtpm, and what it said."""

    esapi: Any
    ek_certificate: bytes
    issuer: bytes
    root_pem: bytes
    other_vendor_root_pem: bytes
    ek_handle: Any
    ek_public: bytes
    ak_handle: Any
    ak_public: bytes
    attest: bytes
    signature: bytes
    pcr14: bytes
    extra_data: bytes = field(default=bytes(range(32)))

    def activate(self, credential_blob: bytes, encrypted_secret: bytes, handle: Any = None) -> bytes:
        """TPM2_ActivateCredential for the AK (or another object), with the EK's PolicySecret session."""
        from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE  # noqa: PLC0415
        from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPMT_SYM_DEF  # noqa: PLC0415

        session = self.esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
        )
        try:
            self.esapi.policy_secret(ESYS_TR.ENDORSEMENT, session)
            blob, blob_size = TPM2B_ID_OBJECT.unmarshal(credential_blob)
            secret, secret_size = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
            assert (blob_size, secret_size) == (len(credential_blob), len(encrypted_secret))
            target = self.ak_handle if handle is None else handle
            return bytes(self.esapi.activate_credential(target, self.ek_handle, blob, secret, session2=session))
        finally:
            self.esapi.flush_context(session)


AK_TEMPLATE_ATTRIBUTES = 0x00050472
"""fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | noDA | restricted | sign"""


def signing_key_template(attributes: int) -> Any:
    """An ECC P-256 ECDSA-SHA256 key with these TPMA_OBJECT bits."""
    from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC  # noqa: PLC0415

    area, _ = TPMT_PUBLIC.unmarshal(bytes.fromhex(f"0023000b{attributes:08x}000000100018000b0003001000000000"))
    return TPM2B_PUBLIC(area)
