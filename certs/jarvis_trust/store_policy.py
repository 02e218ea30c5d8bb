# SPDX-License-Identifier: Apache-2.0
"""Under which boot states a TPM gives the store's master key out: approvals, signed by the controller, checked by the TPM itself.

    controller:  PCR values of a passed attestation → policy_pcr_digest → StorePolicySigner.approve → StoreApproval
    agent:       check_store_approval → TPM2_PolicyPCR, TPM2_PolicyAuthorize → TPM2_Unseal

The key is sealed under TPM2_PolicyAuthorize: whatever PCR policy the store policy key signs for this agent opens it. So a new
firmware needs a new approval and no resealing. TPMs check ECDSA P-256 and neither Ed25519 nor RSA-4096: the store policy key is
one of its own, endorsed by the fleet's command key, which agents have from their join file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jarvis.capture.v1.trust_pb2 import StoreApproval

from jarvis_trust.commands import CommandSigner, verify_endorsement
from jarvis_trust.encoding import framed
from jarvis_trust.errors import AttestationError, IdentityError, StoreKeyError
from jarvis_trust.identities import validate_agent_id
from jarvis_trust.tpm_structures import ALG_SHA256, ECC_NIST_P256, TpmPublic, parse_ecdsa_signature, parse_public
from jarvis_trust.tpm_templates import SIGN_ENCRYPT, USER_WITH_AUTH

POLICY_KEY_ATTRIBUTES: Final = SIGN_ENCRYPT | USER_WITH_AUTH
"""Of the public half as TPMs load it: an outside key, so fixed to nothing."""
MAX_PCR: Final = 23
_CC_POLICY_AUTHORIZE: Final = 0x0000016A
_CC_POLICY_PCR: Final = 0x0000017F
_ZERO: Final = bytes(32)
_REF_TAG: Final = "jarvis-store-v1"
_ENDORSEMENT_TAG: Final = "jarvis-store-policy-key-v1"


def policy_ref(agent_id: str) -> bytes:
    """What ties an approval to one agent, 32 bytes.

    Raises:
        IdentityError: AGENT_ID_INVALID.
    """
    validate_agent_id(agent_id)
    return hashlib.sha256(framed(_REF_TAG, agent_id.encode())).digest()


def policy_pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """The digest of a SHA-256 policy session after TPM2_PolicyPCR over these PCRs of the SHA-256 bank (Part 3, 23.7).

    Args:
        values: PCR index → 32 bytes.
    """
    bitmap = sum(1 << index for index in values).to_bytes(3, "little")
    selection = struct.pack(">IHB", 1, ALG_SHA256, 3) + bitmap
    digest = hashlib.sha256(b"".join(values[index] for index in sorted(values))).digest()
    return hashlib.sha256(_ZERO + struct.pack(">I", _CC_POLICY_PCR) + selection + digest).digest()


def policy_authorize_digest(key_name: bytes, reference: bytes) -> bytes:
    """The digest of a SHA-256 policy session after TPM2_PolicyAuthorize (Part 3, 23.16): the authPolicy of what is sealed.

    Args:
        key_name: Name of the store policy key, 34 bytes.
        reference: policyRef.
    """
    first = hashlib.sha256(_ZERO + struct.pack(">I", _CC_POLICY_AUTHORIZE) + key_name).digest()
    return hashlib.sha256(first + reference).digest()


class StorePolicySigner:
    """The controller's store policy key. Thread-safe."""

    def __init__(self, private_pem: bytes, command: CommandSigner) -> None:
        """Takes the key.

        Args:
            private_pem: ECDSA P-256, PKCS#8 PEM.
            command: whose key endorses this one.

        Raises:
            IdentityError: KEY_INVALID.
        """
        try:
            key = load_pem_private_key(private_pem, password=None)
        except (ValueError, TypeError) as error:
            raise IdentityError("KEY_INVALID", f"the store policy key is not an unencrypted PEM private key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError("KEY_INVALID", "the store policy key is of another kind; ECDSA P-256 is accepted")
        self._key = key
        self._public = _public_area(key.public_key())
        self._endorsement = command.endorse(_ENDORSEMENT_TAG, self._public)

    def approve(self, agent_id: str, values: Mapping[int, bytes]) -> StoreApproval:
        """Approves a boot state for one agent.

        Args:
            agent_id: whose master key may be given out.
            values: the PCRs of the state, SHA-256 bank, 32 bytes each; at least one.

        Raises:
            StoreKeyError: STORE_APPROVAL_INVALID.
            IdentityError: AGENT_ID_INVALID.
        """
        _check_pcrs(sorted(values))
        approved, reference = policy_pcr_digest(values), policy_ref(agent_id)
        r, s = decode_dss_signature(self._key.sign(approved + reference, ec.ECDSA(hashes.SHA256())))
        parts = b"".join(struct.pack(">H", 32) + number.to_bytes(32, "big") for number in (r, s))
        return StoreApproval(
            pcrs=sorted(values),
            approved_policy=approved,
            policy_ref=reference,
            signature=bytes.fromhex("0018000b") + parts,
            policy_key=self._public,
            endorsement=self._endorsement,
        )


def check_store_approval(
    approval: StoreApproval, *, agent_id: str, command_public_pem: bytes, demanded: Sequence[int], never: int
) -> TpmPublic:
    """An approval as it came is the fleet's, for this agent, and over PCRs that mean something; its key.

    Args:
        approval: from a controller.
        agent_id: this agent's.
        command_public_pem: the fleet's command key, from the join file.
        demanded: PCRs that it has to be over, others may come in addition.
        never: the PCR that each start of the agent extends: no state of it is ever seen twice.

    Raises:
        StoreKeyError: STORE_APPROVAL_INVALID, naming the field.
    """
    _check_pcrs(approval.pcrs)
    if never in approval.pcrs or not set(demanded) <= set(approval.pcrs):
        accepted = f"ones that hold {list(demanded)} and not {never} are accepted"
        raise _invalid("pcrs", f"{list(approval.pcrs)}; {accepted}")
    if approval.policy_ref != policy_ref(agent_id):
        raise _invalid("policy_ref", f"not that of agent {agent_id}")
    if len(approval.approved_policy) != 32:
        raise _invalid("approved_policy", f"{len(approval.approved_policy)} bytes; 32 are accepted")
    if not verify_endorsement(command_public_pem, _ENDORSEMENT_TAG, approval.policy_key, approval.endorsement):
        raise _invalid("endorsement", "the fleet's command key does not endorse policy_key")
    try:
        key = parse_public(approval.policy_key)
        hash_algorithm, der = parse_ecdsa_signature(approval.signature)
    except AttestationError as error:
        raise _invalid("policy_key or signature", error.message) from error
    if not isinstance(key.key, ec.EllipticCurvePublicKey) or hash_algorithm != ALG_SHA256:
        raise _invalid("signature", "not ECDSA with SHA-256")
    try:
        key.key.verify(der, approval.approved_policy + approval.policy_ref, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _invalid("signature", "not by policy_key") from error
    return key


def _check_pcrs(pcrs: Sequence[int]) -> None:
    if not pcrs or list(pcrs) != sorted(set(pcrs)) or pcrs[-1] > MAX_PCR:
        raise _invalid("pcrs", f"{list(pcrs)[:32]}; at least one of 0..{MAX_PCR}, ascending, is accepted")


def _invalid(field: str, message: str) -> StoreKeyError:
    return StoreKeyError("STORE_APPROVAL_INVALID", f"store_approval.{field}: {message}")


def _public_area(key: ec.EllipticCurvePublicKey) -> bytes:
    """TPMT_PUBLIC as TPM2_LoadExternal takes it: no policy, no symmetric algorithm, ECDSA with SHA-256, no KDF."""
    numbers = key.public_numbers()
    head = struct.pack(">HHIH", 0x0023, ALG_SHA256, POLICY_KEY_ATTRIBUTES, 0)
    head += struct.pack(">HHHHH", 0x0010, 0x0018, ALG_SHA256, ECC_NIST_P256, 0x0010)
    return head + b"".join(struct.pack(">H", 32) + number.to_bytes(32, "big") for number in (numbers.x, numbers.y))
