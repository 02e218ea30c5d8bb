# SPDX-License-Identifier: Apache-2.0
"""The templates of the keys that live in the TPM, and a primary key that is made again whenever the TPM lost it.

    attestation key   restricted ECDSA P-256: signs only what the TPM itself made (quotes, certifications)
    TLS key           unrestricted ECDSA P-256: signs handshakes and certificate requests

Both are primaries of the endorsement hierarchy: their private halves come out of the endorsement seed and the template, so that
nothing of them has to be stored and TPM2_Clear does not take them away. `unique` of the TLS key's template carries a number:
another number, another key (docs/adr/0008-keys-in-the-tpm.md). All carry noda: power cuts must not lock them out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import TypeVar

from jarvis_trust.encoding import framed
from jarvis_trust.tpm_templates import AK_ATTRIBUTES, TLS_KEY_ATTRIBUTES
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_ECC, TPMA_OBJECT
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_PUBLIC,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
)

T = TypeVar("T")
Made = tuple[ESYS_TR, bytes]
"""A loaded key and its TPMT_PUBLIC."""

_RC_MASK = 0xFFF
_RC_REFERENCES = range(0x910, 0x917)
"""TPM_RC_REFERENCE_H0..H6: the command names an object that is not loaded."""
_TLS_KEY_TAG = "jarvis-tls-key-v1"


def signing_template(attributes: int, unique: bytes = b"") -> TPM2B_PUBLIC:
    """An ECC P-256 key whose only scheme is ECDSA with SHA-256.

    Args:
        attributes: TPMA_OBJECT.
        unique: goes into the derivation of a primary; at most 32 bytes.
    """
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=TPM2_ALG.ECC,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=TPMA_OBJECT(attributes),
            parameters=TPMU_PUBLIC_PARMS(
                eccDetail=TPMS_ECC_PARMS(
                    symmetric=TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
                    scheme=TPMT_ECC_SCHEME(
                        scheme=TPM2_ALG.ECDSA, details=TPMU_ASYM_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
                    ),
                    curveID=TPM2_ECC.NIST_P256,
                    kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
                )
            ),
            unique=TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=unique, y=b"")),
        )
    )


AK_TEMPLATE = signing_template(AK_ATTRIBUTES)
"""Attestation key."""


def tls_key_template(number: int) -> TPM2B_PUBLIC:
    """TLS key.

    Args:
        number: 0..2^32-1; each gives another key of the same TPM.
    """
    return signing_template(TLS_KEY_ATTRIBUTES, hashlib.sha256(framed(_TLS_KEY_TAG, struct.pack(">I", number))).digest())


class PrimaryKey:
    """A primary of the endorsement hierarchy, made when it is first used and loaded from then on. Used on the TPM's thread."""

    def __init__(self, esapi: ESAPI, template: TPM2B_PUBLIC, *, keep: Callable[[Callable[[], Made]], Made] | None = None) -> None:
        """Nothing is made yet.

        Args:
            esapi: connected.
            template: of the key.
            keep: gets the key from the handle where it is kept, or puts it there; it is given how to make the key. None: the key
                is transient.
        """
        self._esapi, self._template, self._keep = esapi, template, keep
        self._handle: ESYS_TR | None = None
        self._public = b""

    def public(self) -> bytes:
        """TPMT_PUBLIC."""
        self.handle()
        return self._public

    def handle(self) -> ESYS_TR:
        """The loaded key; `use` is safer, because whoever resets or flushes the TPM takes it away."""
        if self._handle is None:
            self._handle, self._public = self._make() if self._keep is None else self._keep(self._make)
        return self._handle

    def use(self, operation: Callable[[ESYS_TR], T]) -> T:
        """Runs a TPM command with the key; when the TPM no longer has it, makes it again and repeats, once."""
        try:
            return operation(self.handle())
        except TSS2_Exception as error:
            if int(error.rc) & _RC_MASK not in _RC_REFERENCES:
                raise
            self._handle = None
            return operation(self.handle())

    def flush(self) -> None:
        """Frees its slot; the next use makes it again. A key that is kept at a handle has none."""
        if self._handle is not None and self._keep is None:
            handle, self._handle = self._handle, None
            self._esapi.flush_context(handle)

    def _make(self) -> Made:
        handle, public, *_ = self._esapi.create_primary(None, self._template, ESYS_TR.ENDORSEMENT)
        area = public.publicArea
        return handle, bytes(area.marshal())
