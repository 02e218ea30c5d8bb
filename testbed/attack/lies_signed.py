# SPDX-License-Identifier: Apache-2.0
"""Lies about the quote itself: what is signed, by which key, and for whom it was asked."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_keys import AK_TEMPLATE
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC, TPMT_SIG_SCHEME

from testbed.attack.lies import Ask, lie, recorded

# -- what is signed, and by whom


def _sign(key: ec.EllipticCurvePrivateKey, attest: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(attest, ec.ECDSA(hashes.SHA256())))
    sized = b"".join(b"\0\x20" + half.to_bytes(32, "big") for half in (r, s))
    return bytes.fromhex("0018000b") + sized


def _resigned(evidence: Evidence, attest: bytes) -> Evidence:
    evidence.attest = attest
    evidence.signature = _sign(ec.generate_private_key(ec.SECP256R1()), attest)
    return evidence


def _primary_quote(ask: Ask, template: TPM2B_PUBLIC, hierarchy: ESYS_TR) -> Evidence:
    esapi = ask.device._esapi  # noqa: SLF001 - an attacker knows no privacy
    handle, *_ = esapi.create_primary(None, template, hierarchy)
    try:
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        selection = "sha256:" + ",".join(map(str, ask.pcrs))
        attest, signature = esapi.quote(handle, selection, ask.binding(), in_scheme=scheme)
    finally:
        esapi.flush_context(handle)
    return ask.answer(bytes(attest), bytes(signature.marshal()), ask.device.read_pcrs(ask.pcrs))


@lie
def _magic_changed(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    return _resigned(evidence, bytes.fromhex("ff544348") + evidence.attest[4:])


@lie
def _software_key(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    return _resigned(evidence, evidence.attest)


@lie
def _unrestricted_key(ask: Ask) -> Evidence:
    area, _ = TPMT_PUBLIC.unmarshal(bytes(AK_TEMPLATE.publicArea.marshal()))
    area.objectAttributes = TPMA_OBJECT(int(area.objectAttributes) & ~int(TPMA_OBJECT.RESTRICTED))
    return _primary_quote(ask, TPM2B_PUBLIC(area), ESYS_TR.ENDORSEMENT)


@lie
def _owner_hierarchy_key(ask: Ask) -> Evidence:
    return _primary_quote(ask, AK_TEMPLATE, ESYS_TR.OWNER)


@lie
def _time_attestation(ask: Ask) -> Evidence:
    device = ask.device
    attest, signature = device._esapi.get_time(  # noqa: SLF001 - as above
        device._ak.handle(),  # noqa: SLF001 - as above
        ask.binding(),
        TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return ask.answer(bytes(attest), bytes(signature.marshal()), device.read_pcrs(ask.pcrs))


@lie
def _certify_attestation(ask: Ask) -> Evidence:
    device = ask.device
    key = device._ak.handle()  # noqa: SLF001 - as above
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
    attest, signature = device._esapi.certify(key, key, ask.binding(), scheme)  # noqa: SLF001 - as above
    return ask.answer(bytes(attest), bytes(signature.marshal()), device.read_pcrs(ask.pcrs))


@lie
def _trailing_bytes(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.attest += b"\0\0"
    return evidence


@lie
def _truncated_attest(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.attest = evidence.attest[:-5]
    return evidence


@lie
def _clock_turned_on(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    at = evidence.attest.index(ask.binding()) + 32
    evidence.attest = evidence.attest[:at] + b"\x7f" * 8 + evidence.attest[at + 8 :]
    return evidence


@lie
def _other_hash_in_signature(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.signature = bytes.fromhex("0018000c") + evidence.signature[4:]
    return evidence


@lie
def _other_algorithm_in_signature(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.signature = bytes.fromhex("0014000b") + evidence.signature[4:]
    return evidence


@lie
def _trailing_bytes_in_signature(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.signature += b"\0"
    return evidence


@lie
def _empty_evidence(_ask: Ask) -> Evidence:
    return Evidence()


# -- replay and relay: what extraData binds


@lie
def _replay(_ask: Ask) -> Evidence:
    return recorded[0]


@lie
def _own_nonce(ask: Ask) -> Evidence:
    return ask.evidence(extra=ask.binding(nonce=secrets.token_bytes(32)))


@lie
def _empty_extra_data(ask: Ask) -> Evidence:
    return ask.evidence(extra=b"")


@lie
def _raw_nonce_as_extra_data(ask: Ask) -> Evidence:
    return ask.evidence(extra=ask.nonce)


@lie
def _other_agents_id(ask: Ask) -> Evidence:
    return ask.evidence(extra=ask.binding(agent_id="a" * 32))


@lie
def _other_controller(ask: Ask) -> Evidence:
    return ask.evidence(extra=ask.binding(controller_spki_sha256=bytes(32)))


@lie
def _other_tls_key(ask: Ask) -> Evidence:
    return ask.evidence(extra=ask.binding(agent_spki_sha256=bytes(32)))


@lie
def _boot_id_exchanged(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.boot_id = secrets.token_bytes(16)
    return evidence


@lie
def _manifest_exchanged(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.manifest = evidence.manifest.replace(b"jarvis", b"jervis")
    return evidence


@lie
def _relayed_to_another_tpm(ask: Ask) -> Evidence:
    """Another TPM, plugged in beside, is given this challenge; it holds no such key and no such measurements."""
    with TpmDevice(Path(os.environ["JARVIS_LIE"]).with_name("other-tcti").read_text()) as other:
        quote = other.quote(extra_data=ask.binding(), pcrs=ask.pcrs)
        return ask.answer(quote.attest, quote.signature, quote.pcrs)


@lie
def _relayed_to_another_tpm_with_own_values(ask: Ask) -> Evidence:
    evidence = _relayed_to_another_tpm(ask)
    del evidence.pcrs[:]
    evidence.pcrs.extend(PcrValue(index=i, digest=v) for i, v in sorted(ask.device.read_pcrs(ask.pcrs).items()))
    return evidence
