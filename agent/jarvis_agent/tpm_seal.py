# SPDX-License-Identifier: Apache-2.0
"""Sealing 32 bytes in the TPM under an authorised PCR policy, and getting them back. On the TPM's thread.

    seal     storage primary of the owner hierarchy → TPM2_Create (keyedhash, authPolicy = PolicyAuthorize) → two blobs
    unseal   PolicyPCR, signature checked by the TPM, PolicyAuthorize → TPM2_Load → TPM2_Unseal, its answer encrypted

The storage primary belongs to the owner on purpose: TPM2_Clear, which an owner orders to give a host away, makes what was sealed
unreadable for ever. Each needs at most two of the TPM's slots; the caller has made room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_trust.tpm_templates import (
    ADMIN_WITH_POLICY,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    NO_DA,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    USER_WITH_AUTH,
)
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_ECC, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMS_ECC_PARMS,
    TPMS_KEYEDHASH_PARMS,
    TPMS_SENSITIVE_CREATE,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from jarvis_agent.errors import TpmError

_AES_128_CFB = {
    "algorithm": TPM2_ALG.AES,
    "keyBits": TPMU_SYM_KEY_BITS(aes=128),
    "mode": TPMU_SYM_MODE(aes=TPM2_ALG.CFB),
}
_STORAGE_TEMPLATE = TPM2B_PUBLIC(
    publicArea=TPMT_PUBLIC(
        type=TPM2_ALG.ECC,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT(
            FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT
        ),
        parameters=TPMU_PUBLIC_PARMS(
            eccDetail=TPMS_ECC_PARMS(
                symmetric=TPMT_SYM_DEF_OBJECT(**_AES_128_CFB),
                scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
                curveID=TPM2_ECC.NIST_P256,
                kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
            )
        ),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBlob:
    """What the TPM gave out; useless without it."""

    public: bytes
    """TPMT_PUBLIC."""
    private: bytes
    """TPM2B_PRIVATE contents, wrapped by the storage primary."""


def seal(esapi: ESAPI, secret: bytes, auth_policy: bytes) -> SealedBlob:
    """Seals at most 128 bytes under a policy digest.

    Args:
        esapi: connected.
        secret: what is sealed.
        auth_policy: 32 bytes; the only way to it, there is no password.
    """
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=TPM2_ALG.KEYEDHASH,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=TPMA_OBJECT(FIXED_TPM | FIXED_PARENT | ADMIN_WITH_POLICY | NO_DA),
            authPolicy=TPM2B_DIGEST(auth_policy),
            parameters=TPMU_PUBLIC_PARMS(
                keyedHashDetail=TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
            ),
        )
    )
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(secret)))
    with _storage_key(esapi) as parent, _session(esapi, parent, TPM2_SE.HMAC) as session:
        # The command is encrypted: the secret does not cross the bus in the clear.
        esapi.trsess_set_attributes(session, TPMA_SESSION.DECRYPT | TPMA_SESSION.CONTINUESESSION)
        private, public, *_ = esapi.create(parent, sensitive, template, session2=session)
        area = public.publicArea
        return SealedBlob(public=bytes(area.marshal()), private=bytes(private))


def unseal(esapi: ESAPI, blob: SealedBlob, approval: StoreApproval) -> bytes:
    """The secret, if the PCRs are now what the approval says.

    Args:
        esapi: connected.
        blob: from `seal`, in this TPM.
        approval: checked (jarvis_trust.store_policy); the TPM checks its signature again.

    Raises:
        TpmError: STORE_KEY_SEALED, the PCRs are in another state.
        TSS2_Exception: the TPM refuses: another TPM, cleared since, or another policy key.
    """
    area, _ = TPMT_PUBLIC.unmarshal(blob.public)
    with _storage_key(esapi) as parent, _session(esapi, parent, TPM2_SE.POLICY) as session:
        _authorize(esapi, session, approval)
        esapi.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
        with _loaded(esapi, esapi.load(parent, TPM2B_PRIVATE(blob.private), TPM2B_PUBLIC(area))) as item:
            return bytes(esapi.unseal(item, session1=session))


def _authorize(esapi: ESAPI, session: ESYS_TR, approval: StoreApproval) -> None:
    """Brings a policy session to the digest of PolicyAuthorize."""
    selection = "sha256:" + ",".join(str(pcr) for pcr in approval.pcrs)
    esapi.policy_pcr(session, None, selection)
    if bytes(esapi.policy_get_digest(session)) != approval.approved_policy:
        raise TpmError("STORE_KEY_SEALED", f"PCRs {list(approval.pcrs)} are not in the state that the approval is for")
    area, _ = TPMT_PUBLIC.unmarshal(approval.policy_key)
    public = TPM2B_PUBLIC(area)
    signature, _ = TPMT_SIGNATURE.unmarshal(approval.signature)
    digest = hashlib.sha256(approval.approved_policy + approval.policy_ref).digest()
    # A ticket of the NULL hierarchy is none to PolicyAuthorize.
    with _loaded(esapi, esapi.load_external(public, hierarchy=ESYS_TR.OWNER)) as key:
        ticket = esapi.verify_signature(key, digest, signature)
    esapi.policy_authorize(session, approval.approved_policy, bytes(public.get_name()), ticket, approval.policy_ref)


@contextmanager
def _storage_key(esapi: ESAPI) -> Iterator[ESYS_TR]:
    handle, *_ = esapi.create_primary(None, _STORAGE_TEMPLATE, ESYS_TR.OWNER)
    with _loaded(esapi, handle) as key:
        yield key


@contextmanager
def _loaded(esapi: ESAPI, handle: ESYS_TR) -> Iterator[ESYS_TR]:
    try:
        yield handle
    finally:
        esapi.flush_context(handle)


@contextmanager
def _session(esapi: ESAPI, salt_key: ESYS_TR, kind: TPM2_SE) -> Iterator[ESYS_TR]:
    """A session whose parameters can be encrypted: salted, so that listening to the bus does not help."""
    handle = esapi.start_auth_session(salt_key, ESYS_TR.NONE, kind, TPMT_SYM_DEF(**_AES_128_CFB), TPM2_ALG.SHA256)
    with _loaded(esapi, handle) as session:
        yield session
