# SPDX-License-Identifier: Apache-2.0
"""Attacks on the TLS key at enrolment: keys outside the TPM passed off as keys in it, certifications of something else.

All are on a genuine TPM of the trusted vendor, with the token and the activated credential that it needs: only what is said of
the TLS key is a lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jarvis.capture.v1.enrollment_pb2 import CARRIER_TUNNEL, EnrollParams, EnrollProof, EnrollResponse
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_keys import signing_template
from jarvis_trust.ca import generate_key, make_csr, public_key_of
from jarvis_trust.csr import csr_from_signature, csr_info
from jarvis_trust.enrollment import enrollment_proof
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.tls_certification import certification_binding
from jarvis_trust.tpm_structures import parse_public
from jarvis_trust.tpm_templates import FIXED_TPM, TLS_KEY_ATTRIBUTES
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPMT_SIG_SCHEME

from testbed.attack.arena import Arena
from testbed.attack.enrollment import other_params, say
from testbed.attack.model import Attack

Certification = tuple[bytes, bytes]
"""TPMS_ATTEST and TPMT_SIGNATURE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """What is shown and what is said of it."""

    public: bytes
    """TPMT_PUBLIC."""
    csr: bytes
    certify: Callable[[TpmDevice, bytes], Certification]
    """From the binding that an honest agent would have certified."""


def _honest(device: TpmDevice, binding: bytes) -> Certification:
    return device.certify_tls(0, binding)


def _genuine(device: TpmDevice) -> tuple[bytes, bytes]:
    """The TPM's own TLS key and a request that it signed."""
    public = device.tls_public(0)
    info = csr_info(parse_public(public).spki_der)
    return public, csr_from_signature(info, device.sign_tls(0, hashlib.sha256(info).digest()))


def _lying(tell: Callable[[TpmDevice, Arena], Lie]) -> Callable[[Arena], str]:
    def run(arena: Arena) -> str:
        shown = other_params(arena)
        shown.carrier = CARRIER_TUNNEL
        with TpmDevice(arena.other_tpm.tcti) as device:
            lie = tell(device, arena)
            shown.tls_public, shown.csr = lie.public, lie.csr
            return say(arena, shown, lambda answer: _prove(device, shown, answer, lie))

    return run


def _prove(device: TpmDevice, shown: EnrollParams, answer: EnrollResponse, lie: Lie) -> EnrollProof:
    challenge = answer.challenge
    secret = device.activate_credential(challenge.credential_blob, challenge.encrypted_secret)
    transcript = shown.SerializeToString(deterministic=True), challenge.SerializeToString(deterministic=True)
    agent_id = agent_id_from_ek(parse_public(shown.ek_public).spki_der)
    certify, signature = lie.certify(device, certification_binding(challenge.nonce, agent_id))
    return EnrollProof(hmac=enrollment_proof(secret, *transcript), certify=certify, certify_signature=signature)


def _keyless(arena: Arena) -> str:
    shown = other_params(arena)
    shown.carrier = CARRIER_TUNNEL
    return say(arena, shown)


def _says(certify: Callable[[TpmDevice, bytes], Certification]) -> Callable[[Arena], str]:
    """The genuine key, with another certification."""

    def tell(device: TpmDevice, _arena: Arena) -> Lie:
        public, csr = _genuine(device)
        return Lie(public=public, csr=csr, certify=certify)

    return _lying(tell)


def _software_key(_device: TpmDevice, _arena: Arena) -> Lie:
    """A key in a file, in a public area of the exact template; the certification is of the TPM's own key."""
    key = generate_key()
    return Lie(public=_public_of(key, TLS_KEY_ATTRIBUTES), csr=make_csr(key), certify=_honest)


def _importable_key(_device: TpmDevice, _arena: Arena) -> Lie:
    key = generate_key()
    return Lie(public=_public_of(key, TLS_KEY_ATTRIBUTES & ~FIXED_TPM), csr=make_csr(key), certify=_honest)


def _public_of(key_pem: bytes, attributes: int) -> bytes:
    numbers = public_key_of(key_pem).public_numbers()
    area = signing_template(attributes).publicArea
    area.unique.ecc.x, area.unique.ecc.y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    return bytes(area.marshal())


def _request_for_another_key(device: TpmDevice, _arena: Arena) -> Lie:
    """The TPM's key is shown, the certificate is asked for a key in a file."""
    return Lie(public=device.tls_public(0), csr=make_csr(generate_key()), certify=_honest)


def _attestation_key(device: TpmDevice, _arena: Arena) -> Lie:
    return Lie(public=device.attestation_public(), csr=make_csr(generate_key()), certify=_honest)


def _recorded(device: TpmDevice, _binding: bytes) -> Certification:
    return device.certify_tls(0, certification_binding(bytes(32), "a" * 32))


def _of_another_key(device: TpmDevice, binding: bytes) -> Certification:
    return device.certify_tls(1, binding)


def _quote(device: TpmDevice, binding: bytes) -> Certification:
    quote = device.quote(extra_data=binding, pcrs=[14])
    return quote.attest, quote.signature


def _self_made(device: TpmDevice, binding: bytes) -> Certification:
    """The TLS key is unrestricted: it signs a certification of itself that no TPM made."""
    attest, _ = device.certify_tls(0, binding)
    r, s = decode_dss_signature(device.sign_tls(0, hashlib.sha256(attest).digest()))
    parts = b"".join(bytes((0, 32)) + value.to_bytes(32, "big") for value in (r, s))
    return attest, bytes.fromhex("0018000b") + parts


def _by_another_tpm(arena: Arena) -> str:
    """The AK of a foreign TPM certifies a key of its own there."""

    def tell(device: TpmDevice, arena: Arena) -> Lie:
        public, csr = _genuine(device)

        def certify(_device: TpmDevice, binding: bytes) -> Certification:
            with TpmDevice(arena.foreign_tpm.tcti) as elsewhere:
                return elsewhere.certify_tls(0, binding)

        return Lie(public=public, csr=csr, certify=certify)

    return _lying(tell)(arena)


def _owner_hierarchy(device: TpmDevice, binding: bytes) -> Certification:
    """The certification is by a restricted key of the owner hierarchy."""
    esapi = device._esapi  # noqa: SLF001 - an attacker knows no privacy
    device._ak.flush()  # noqa: SLF001 - makes room: three slots
    from jarvis_agent.tpm_keys import AK_TEMPLATE  # noqa: PLC0415

    signer, *_ = esapi.create_primary(None, AK_TEMPLATE, ESYS_TR.OWNER)
    key = device._tls_key(0).handle()  # noqa: SLF001 - as above
    attest, signature = esapi.certify(key, signer, binding, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL))
    esapi.flush_context(signer)
    return bytes(attest), bytes(signature.marshal())


_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "no-tpm-key": ("TLS_KEY_REQUIRED", "an agent that dials, with a TLS key in a file", _keyless),
    "software-key-as-tpm-key": (
        "TLS_KEY_NAME_MISMATCH", "a key in a file, shown with the TPM's attributes",
        _lying(_software_key),
    ),
    "importable-key": ("TLS_KEY_TEMPLATE_WRONG", "a key without fixedTPM", _lying(_importable_key)),
    "attestation-key-as-tls-key": ("TLS_KEY_TEMPLATE_WRONG", "the attestation key as TLS key", _lying(_attestation_key)),
    "request-for-another-key": (
        "TLS_KEY_CSR_MISMATCH", "the TPM's key is shown, a certificate for another one is asked for",
        _lying(_request_for_another_key),
    ),
    "no-certification": ("TLS_KEY_NOT_CERTIFIED", "no certification", _says(lambda _device, _binding: (b"", b""))),
    "replayed-certification": ("TLS_KEY_NONCE_MISMATCH", "a certification of another enrolment", _says(_recorded)),
    "certification-of-another-key": ("TLS_KEY_NAME_MISMATCH", "a certification of this TPM's next key", _says(_of_another_key)),
    "quote-as-certification": ("ATTEST_TYPE_WRONG", "a quote with the certification's qualifying data", _says(_quote)),
    "self-made-certification": (
        "TLS_KEY_SIGNATURE_INVALID", "a certification that the unrestricted TLS key signed itself",
        _says(_self_made),
    ),
    "certified-by-another-tpm": ("TLS_KEY_SIGNATURE_INVALID", "a certification by the AK of a foreign TPM", _by_another_tpm),
    "certified-in-another-hierarchy": (
        "TLS_KEY_SIGNATURE_INVALID", "a certification by a key of the owner hierarchy",
        _says(_owner_hierarchy),
    ),
}  # fmt: skip

_FAST = {"software-key-as-tpm-key"}

ATTACKS = tuple(
    Attack(name=f"tls-key/{name}", tries=tries, expected=expected, run=run, is_fast=name in _FAST)
    for name, (expected, tries, run) in _TABLE.items()
)
