# SPDX-License-Identifier: Apache-2.0
"""Attacks on enrolment, the one port that is open to strangers: real TPMs, wrong vendors, keys of two TPMs, spent tokens."""

from __future__ import annotations

import json
import queue
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from jarvis.capture.v1.enrollment_pb2 import EnrollParams, EnrollProof, EnrollRequest, EnrollResponse
from jarvis_agent.establish import read_tpm_identity
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_keys import AK_TEMPLATE
from jarvis_trust.ca import generate_key, make_csr
from jarvis_trust.enrollment import enrollment_proof
from tpm2_pytss.constants import ESYS_TR, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import TIMEOUT_S, as_reason, call
from testbed.swtpm import Swtpm

ENROLL = "/jarvis.capture.v1.EnrollmentService/Enroll"

Change = Callable[[EnrollParams], None]
Prove = Callable[[EnrollResponse], bytes | EnrollProof | None]
"""The proof's HMAC, or the whole proof; None: the attacker says nothing more."""


def params(tpm: Swtpm, token: str) -> EnrollParams:
    """What an honest agent on this TPM would send."""
    with TpmDevice(tpm.tcti) as device:
        identity = read_tpm_identity(device)
    return EnrollParams(
        token=token,
        csr=make_csr(generate_key()),
        ek_certificate=identity.endorsement.certificate,
        ek_chain=identity.endorsement.chain,
        ek_public=identity.endorsement.public,
        ak_public=identity.ak_public,
        address="127.0.0.1:7443",
        hostname="mallory",
        version="1.0.0",
    )


def _token(arena: Arena) -> str:
    """One that nobody used; attacks are refused before they use it up."""
    if "token" not in arena.notes:
        arena.notes["token"] = arena.new_token("attack").encode()
    return arena.notes["token"].decode()


def other_params(arena: Arena) -> EnrollParams:
    """The other TPM's, made once."""
    if "params" not in arena.notes:
        arena.notes["params"] = params(arena.other_tpm, "").SerializeToString()
    found = EnrollParams.FromString(arena.notes["params"])
    found.token = _token(arena)
    return found


def say(arena: Arena, first: EnrollParams | EnrollRequest, proof: Prove | None = None) -> str:
    """Enrols as far as it goes."""
    ended: list[str] = []
    request = EnrollRequest(params=first) if isinstance(first, EnrollParams) else first
    with arena.to_enrollment() as channel, as_reason(ended):
        _converse(channel, request, proof)
    return ended[0]


def _converse(channel: grpc.Channel, first: EnrollRequest, proof: Prove | None) -> None:
    said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    said.put(first.SerializeToString())
    stub = channel.stream_stream(ENROLL, request_serializer=None, response_deserializer=None)
    stream: Any = stub(iter(said.get, None), timeout=TIMEOUT_S)
    try:
        challenge = EnrollResponse.FromString(next(stream))
        if proof is not None and (answer := proof(challenge)) is not None:
            whole = EnrollProof(hmac=answer) if isinstance(answer, bytes) else answer
            said.put(EnrollRequest(proof=whole).SerializeToString())
            next(stream)
    finally:
        said.put(None)


def _changed(change: Change) -> Callable[[Arena], str]:
    def run(arena: Arena) -> str:
        changed = other_params(arena)
        change(changed)
        return say(arena, changed)

    return run


def _set(field: str, value: Any) -> Callable[[Arena], str]:
    return _changed(lambda changed: setattr(changed, field, value))


def _ak_without(*attributes: TPMA_OBJECT) -> Callable[[Arena], str]:
    """A key of the genuine TPM that is not an attestation key."""

    def run(arena: Arena) -> str:
        changed = other_params(arena)
        area, _ = TPMT_PUBLIC.unmarshal(bytes(AK_TEMPLATE.publicArea.marshal()))
        for attribute in attributes:
            area.objectAttributes = TPMA_OBJECT(int(area.objectAttributes) & ~int(attribute))
        with TpmDevice(arena.other_tpm.tcti) as device:
            esapi = device._esapi  # noqa: SLF001 - an attacker knows no privacy
            handle, public, *_ = esapi.create_primary(None, TPM2B_PUBLIC(area), ESYS_TR.ENDORSEMENT)
            esapi.flush_context(handle)
            found = public.publicArea
            changed.ak_public = bytes(found.marshal())
        return say(arena, changed)

    return run


def _edited_ak(arena: Arena) -> str:
    """Attribute fixedTPM taken out of the public area: a key that could have been imported."""
    changed = other_params(arena)
    public = bytearray(changed.ak_public)
    public[7] &= ~0x02
    changed.ak_public = bytes(public)
    return say(arena, changed)


def _foreign_vendor(arena: Arena) -> str:
    return say(arena, params(arena.foreign_tpm, _token(arena)))


def _foreign_certificate(arena: Arena) -> str:
    changed = other_params(arena)
    changed.ek_certificate = params(arena.foreign_tpm, "").ek_certificate
    return say(arena, changed)


def _mixed_ek(arena: Arena) -> str:
    """CVE-2021-3406: the certificate of one TPM, the key of another of the same vendor."""
    changed = other_params(arena)
    changed.ek_public = _of_agent(arena, "ek_public")
    return say(arena, changed)


def _of_agent(arena: Arena, column: str) -> bytes:
    with sqlite3.connect(f"file:{arena.database}?mode=ro", uri=True) as database:
        query = f"SELECT {column} FROM agents WHERE agent_id = ?"  # noqa: S608 - a name of ours
        (value,) = database.execute(query, (arena.victim.agent_id,)).fetchone()
    return bytes(value)


def _takes_over(arena: Arena) -> EnrollParams:
    """The victim's EK and certificate, which are no secret."""
    changed = other_params(arena)
    chain = list(changed.ek_chain)
    changed.ek_public, changed.ek_certificate = _of_agent(arena, "ek_public"), _of_agent(arena, "ek_certificate")
    del changed.ek_chain[:]
    changed.ek_chain.extend(chain)
    return changed


def _claims_an_enrolled_id(arena: Arena) -> str:
    """CVE-2025-13609: another host registers as an agent that there is, with a key of its own."""
    return say(arena, _takes_over(arena))


def _claims_with_its_ak(arena: Arena) -> str:
    """The same with the victim's own attestation key: only its TPM can open the challenge."""
    changed = _takes_over(arena)
    changed.ak_public = _of_agent(arena, "ak_public")
    changed.token = ""
    return say(arena, changed, lambda _answer: bytes(32))


def _guessed_proof(arena: Arena) -> str:
    return say(arena, other_params(arena), lambda _answer: bytes(32))


def _empty_proof(arena: Arena) -> str:
    return say(arena, other_params(arena), lambda _answer: b"")


def _proof_of_another_challenge(arena: Arena) -> str:
    """The secret is right, the transcript is of another enrolment: nothing that was recorded helps."""
    changed = other_params(arena)

    def proof(answer: EnrollResponse) -> bytes:
        with TpmDevice(arena.other_tpm.tcti) as device:
            challenge = answer.challenge
            secret = device.activate_credential(challenge.credential_blob, challenge.encrypted_secret)
        changed.hostname = "another"
        transcript = changed.SerializeToString(deterministic=True), answer.challenge.SerializeToString(deterministic=True)
        return enrollment_proof(secret, *transcript)

    return say(arena, other_params(arena), proof)


def _activates_for_another_ak(arena: Arena) -> str:
    """An AK that is not in the TPM of the EK: the TPM does not open the credential."""
    changed = other_params(arena)
    changed.ak_public = _of_agent(arena, "ak_public")
    opened: list[str] = []
    refusals: list[str] = []

    def proof(answer: EnrollResponse) -> bytes:
        with TpmDevice(arena.other_tpm.tcti) as device:
            try:
                device.activate_credential(answer.challenge.credential_blob, answer.challenge.encrypted_secret)
            except Exception as error:  # noqa: BLE001 - what a TPM that refuses raises
                refusals.append(str(error))
                return bytes(32)
        opened.append("the TPM opened the credential of another key")
        return bytes(32)

    got = say(arena, changed, proof)
    return got if refusals and not opened else f"{got} {opened}"


def _spent_token(arena: Arena) -> str:
    changed = other_params(arena)
    changed.token = json.loads((arena.victim.directory / "join.json").read_text())["token"]
    return say(arena, changed)


def _proof_first(arena: Arena) -> str:
    return say(arena, EnrollRequest(proof=EnrollProof(hmac=bytes(32))))


def _garbage(arena: Arena) -> str:
    with arena.to_enrollment() as channel:
        return call(channel, ENROLL, b"\xff" * 100)[0]


def _oversized(arena: Arena) -> str:
    changed = other_params(arena)
    changed.ek_certificate = bytes(200 * 1024)
    return say(arena, changed)


def _long_chain(changed: EnrollParams) -> None:
    changed.ek_chain.extend([changed.ek_chain[0]] * 9)


def _secret_files(arena: Arena) -> str:
    """Keys that others could read: not an attack by wire, but what one would be for."""
    directories: list[Path] = [arena.fleet.controller_directory, *(agent.directory for agent in arena.fleet.agents.values())]
    found = [path for directory in directories for path in directory.rglob("*.key") if path.stat().st_mode & 0o077]
    return "EXPOSED: " + ", ".join(map(str, found)) if found else "KEYS_ARE_PRIVATE"


_AK, _PROOF, _INPUT = "AK_TEMPLATE_WRONG", "ENROLLMENT_PROOF_INVALID", "INVALID_ARGUMENT"
_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "foreign-vendor": ("EK_CERTIFICATE_UNTRUSTED", "a genuine TPM of a vendor that is not trusted", _foreign_vendor),
    "foreign-certificate": (
        "EK_CERTIFICATE_UNTRUSTED", "another vendor's certificate beside this TPM's key",
        _foreign_certificate,
    ),
    "certificate-of-another-ek": (
        "EK_CERTIFICATE_KEY_MISMATCH", "CVE-2021-3406: certificate of one TPM, key of another",
        _mixed_ek,
    ),
    "no-ek-certificate": ("EK_CERTIFICATE_INVALID", "no certificate", _set("ek_certificate", b"")),
    "garbage-ek-certificate": ("EK_CERTIFICATE_INVALID", "bytes that are none", _set("ek_certificate", b"\x30\x82" + bytes(300))),
    "no-chain": (
        "EK_CERTIFICATE_UNTRUSTED", "the intermediate left out",
        _changed(lambda changed: changed.ClearField("ek_chain")),
    ),
    "long-chain": (_INPUT, "ten certificates", _changed(_long_chain)),
    "unrestricted-ak": (_AK, "an attestation key that signs anything", _ak_without(TPMA_OBJECT.RESTRICTED)),
    "ak-without-noda": (_AK, "an attestation key that a power cut locks out", _ak_without(TPMA_OBJECT.NODA)),
    "importable-ak": (_AK, "CVE-2021-3406: an attestation key without fixedTPM", _edited_ak),
    "ek-as-ak": (
        _AK, "the endorsement key as attestation key",
        _changed(lambda changed: setattr(changed, "ak_public", changed.ek_public)),
    ),
    "ak-as-ek": ("EK_TEMPLATE_WRONG", "an attestation key as endorsement key",
                 _changed(lambda changed: setattr(changed, "ek_public", changed.ak_public))),
    "garbage-ak": ("TPM_PUBLIC_INVALID", "an attestation key that is none", _set("ak_public", b"\xff" * 80)),
    "trailing-bytes-in-ak": ("TPM_PUBLIC_INVALID", "bytes after the public area",
                             _changed(lambda changed: setattr(changed, "ak_public", changed.ak_public + b"\0"))),
    "claims-an-enrolled-id": ("AK_CHANGED", "CVE-2025-13609: an enrolled agent's EK with another key", _claims_an_enrolled_id),
    "claims-with-its-public-keys": (
        _PROOF, "CVE-2023-38201: an enrolled agent's public keys, the challenge guessed",
        _claims_with_its_ak,
    ),
    "guessed-proof": (_PROOF, "CVE-2023-38201: a proof of zeros", _guessed_proof),
    "empty-proof": (_PROOF, "an empty proof", _empty_proof),
    "proof-of-another-transcript": (_PROOF, "the right secret over other params", _proof_of_another_challenge),
    "ak-of-another-tpm": (_PROOF, "the attestation key of another TPM", _activates_for_another_ak),
    "no-token": ("TOKEN_REQUIRED", "no join token", _set("token", "")),
    "unknown-token": ("TOKEN_UNKNOWN", "a join token that was never made", _set("token", "A" * 43)),
    "spent-token": ("TOKEN_REUSED", "a join token that another host used", _spent_token),
    "newline-in-hostname": (_INPUT, "CVE-2022-23949: a log line in the host's name", _set("hostname", "a\nverified agent=all")),
    "escape-in-version": (_INPUT, "terminal escapes in the version", _set("version", "1.0\x1b[2J")),
    "address-of-no-host": ("ADDRESS_INVALID", "an address that is none", _set("address", "unix:/etc/passwd")),
    "garbage-csr": ("CSR_INVALID", "a request for a certificate that is none", _set("csr", b"\x30\x03abc")),
    "proof-first": (_INPUT, "a proof before anything was asked", _proof_first),
    "empty-params": (_INPUT, "an empty message", lambda arena: say(arena, EnrollRequest())),
    "garbage": (_INPUT, "bytes that are no message", _garbage),
    "oversized": ("RESOURCE_EXHAUSTED", "a message of 200 KiB", _oversized),
    "exposed-keys": ("KEYS_ARE_PRIVATE", "a key file on disk that others can read", _secret_files),
}  # fmt: skip

_FAST = {"foreign-vendor", "claims-an-enrolled-id", "guessed-proof"}

ATTACKS = tuple(
    Attack(name=f"enrolment/{name}", tries=tries, expected=expected, run=run, is_fast=name in _FAST)
    for name, (expected, tries, run) in _TABLE.items()
)
