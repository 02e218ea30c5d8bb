# SPDX-License-Identifier: Apache-2.0
"""What a rooted host's agent can say of itself: runs inside the puppet's process, with its genuine TPM and attestation key.

    lie's name (file JARVIS_LIE) + challenge -> evidence that is wrong in that way; no name: honest evidence

A lie either edits the answer after the quote, or has the TPM sign what it should not have been asked for. What the TPM's
restricted key signs the host cannot choose; that is why each of these can be found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_agent.attest import Attester
from jarvis_agent.tpm import TpmPriority
from jarvis_agent.tpm_device import AK_TEMPLATE, TpmDevice
from jarvis_trust.eventlog import encode_event
from jarvis_trust.quote import quote_binding
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC, TPMT_SIG_SCHEME

honest_evidence = Attester.evidence
_recorded: list[Evidence] = []
"""An answer that was right once."""


@dataclass(slots=True, kw_only=True)
class Ask:
    """One challenge, at the moment of the quote."""

    attester: Attester
    device: TpmDevice
    nonce: bytes
    pcrs: Sequence[int]
    controller_spki: bytes
    event_log: bytes
    said: dict[str, Any] = field(default_factory=dict)
    """What goes into the answer instead of the truth; what extraData binds is bound as it is said."""

    def binding(self, **changes: Any) -> bytes:
        """extraData, with any field of it changed."""
        attester = self.attester
        fields: dict[str, Any] = {
            "nonce": self.nonce,
            "agent_spki_sha256": attester.agent_spki_sha256(),
            "controller_spki_sha256": self.controller_spki,
            "agent_id": attester.agent_id,
            "boot_id": attester.boot_id,
            "session_id": attester.session_id,
            "manifest": attester.firmware.manifest,
            "event_log": self.event_log,
        }
        bound = {name: value for name, value in self.said.items() if name in fields}
        return quote_binding(**{**fields, **bound, **changes})

    def evidence(self, *, pcrs: Sequence[int] | None = None, extra: bytes | None = None) -> Evidence:
        """A genuine quote over these PCRs, with what is said beside it."""
        selected = list(self.pcrs if pcrs is None else pcrs)
        quote = self.device.quote(extra_data=self.binding() if extra is None else extra, pcrs=selected)
        return self.answer(quote.attest, quote.signature, quote.pcrs)

    def answer(self, attest: bytes, signature: bytes, pcrs: dict[int, bytes]) -> Evidence:
        """Everything around a quote."""
        attester = self.attester
        return Evidence(
            attest=attest,
            signature=signature,
            pcrs=[PcrValue(index=index, digest=value) for index, value in sorted(pcrs.items())],
            event_log=self.said.get("event_log", self.event_log),
            manifest=self.said.get("manifest", attester.firmware.manifest),
            manifest_signature=self.said.get("manifest_signature", attester.firmware.signature),
            boot_id=self.said.get("boot_id", attester.boot_id),
            session_id=self.said.get("session_id", attester.session_id),
        )

    def records(self) -> list[dict[str, Any]]:
        """The event log, record by record."""
        return [json.loads(line) for line in self.event_log.splitlines()]

    def relog(self, records: Sequence[dict[str, Any]]) -> Evidence:
        """A log of other records, well formed and bound by the quote."""
        lines = [encode_event(number, record["pcr"], record["content"]) for number, record in enumerate(records)]
        self.said["event_log"] = b"".join(lines)
        return self.evidence()


Lie = Callable[[Ask], Evidence]
LIES: dict[str, Lie] = {}


def lie(function: Lie) -> Lie:
    """Makes it known by its name."""
    LIES[function.__name__.lstrip("_").replace("_", "-")] = function
    return function


def _told() -> str:
    return Path(os.environ["JARVIS_LIE"]).read_text().strip()


def install() -> None:
    """Takes the honest answer's place in this process."""

    async def evidence(
        self: Attester, *, nonce: bytes, pcrs: Sequence[int], controller_spki_sha256: bytes, known_boot_log_sha256: bytes = b""
    ) -> Evidence:
        name = _told()
        if not name:
            answer = await honest_evidence(
                self,
                nonce=nonce,
                pcrs=pcrs,
                controller_spki_sha256=controller_spki_sha256,
                known_boot_log_sha256=known_boot_log_sha256,
            )
            _recorded[:] = [answer]
            return answer

        def operation(device: TpmDevice) -> Evidence:
            ask = Ask(
                attester=self,
                device=device,
                nonce=nonce,
                pcrs=sorted(pcrs),
                controller_spki=controller_spki_sha256,
                event_log=self.event_log.read(),
            )
            return LIES[name](ask)

        return await self.worker.run(TpmPriority.QUOTE, operation)

    Attester.evidence = evidence  # type: ignore[method-assign]


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
        device._attestation_key(),  # noqa: SLF001 - as above
        ask.binding(),
        TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return ask.answer(bytes(attest), bytes(signature.marshal()), device.read_pcrs(ask.pcrs))


@lie
def _certify_attestation(ask: Ask) -> Evidence:
    device = ask.device
    key = device._attestation_key()  # noqa: SLF001 - as above
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
    return _recorded[0]


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


# -- PCRs


@lie
def _resettable_pcr(ask: Ask) -> Evidence:
    return ask.evidence(pcrs=[16])


@lie
def _resettable_pcr_relabelled(ask: Ask) -> Evidence:
    """CVE-2024-29039: PCR 16, which anybody may reset, extended to what PCR 14 should be, and called PCR 14."""
    esapi = ask.device._esapi  # noqa: SLF001 - as above
    esapi.pcr_reset(ESYS_TR(16))
    for record in ask.records():
        ask.device.extend_pcr(16, bytes.fromhex(record["digest"]))
    evidence = ask.evidence(pcrs=[16])
    evidence.pcrs[0].index = 14
    return evidence


@lie
def _pcr_superset(ask: Ask) -> Evidence:
    return ask.evidence(pcrs=[*ask.pcrs, 15])


@lie
def _pcr_superset_hidden(ask: Ask) -> Evidence:
    evidence = ask.evidence(pcrs=[*ask.pcrs, 15])
    del evidence.pcrs[1]
    return evidence


def _selection_quote(ask: Ask, selection: str) -> Evidence:
    attest, signature = ask.device._sign_quote(selection, ask.binding())  # noqa: SLF001 - as above
    return ask.answer(bytes(attest), bytes(signature.marshal()), ask.device.read_pcrs(ask.pcrs))


@lie
def _other_bank(ask: Ask) -> Evidence:
    return _selection_quote(ask, "sha384:14")


@lie
def _two_banks(ask: Ask) -> Evidence:
    return _selection_quote(ask, "sha256:14+sha384:14")


@lie
def _no_pcrs(ask: Ask) -> Evidence:
    """CVE-2022-0317: a quote over nothing, beside a log that nothing vouches for."""
    from tpm2_pytss.types import TPML_PCR_SELECTION  # noqa: PLC0415

    nothing = TPML_PCR_SELECTION.parse("sha256:14")
    nothing[0].pcrSelect[1] = 0
    device = ask.device
    attest, signature = device._esapi.quote(device._attestation_key(), nothing, ask.binding())  # noqa: SLF001 - as above
    return ask.answer(bytes(attest), bytes(signature.marshal()), device.read_pcrs(ask.pcrs))


@lie
def _extra_pcr_value(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.pcrs.append(PcrValue(index=15, digest=bytes(32)))
    return evidence


@lie
def _pcr_value_twice(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.pcrs.append(evidence.pcrs[0])
    return evidence


@lie
def _no_pcr_values(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    del evidence.pcrs[:]
    return evidence


@lie
def _short_pcr_value(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.pcrs[0].digest = evidence.pcrs[0].digest[:20]
    return evidence


@lie
def _wishful_pcr_value(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.pcrs[0].digest = hashlib.sha256(b"wishful").digest()
    return evidence


# -- event log


@lie
def _log_edited_after_the_quote(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.event_log = evidence.event_log.splitlines(keepends=True)[0]
    return evidence


@lie
def _log_cut(ask: Ask) -> Evidence:
    return ask.relog(ask.records()[:-1])


@lie
def _log_empty(ask: Ask) -> Evidence:
    return ask.relog([])


@lie
def _log_with_a_record_more(ask: Ask) -> Evidence:
    records = ask.records()
    return ask.relog([*records, records[-1]])


@lie
def _log_reordered(ask: Ask) -> Evidence:
    records = ask.records()
    return ask.relog([*records[1:], records[0]])


@lie
def _log_with_an_edited_digest(ask: Ask) -> Evidence:
    records = ask.records()
    records[-1]["content"]["sha256"] = "00" * 32
    return ask.relog(records)


@lie
def _log_edited_under_its_digest(ask: Ask) -> Evidence:
    """The content changed, the record's digest kept: the PCR would still come out right."""
    sha256 = ask.records()[0]["content"]["sha256"].encode()
    ask.said["event_log"] = ask.event_log.replace(sha256, b"00" * 32)
    return ask.evidence()


@lie
def _log_relabelled(ask: Ask) -> Evidence:
    """go-attestation, event-log-disclosure: the type changed under the digest."""
    ask.said["event_log"] = ask.event_log.replace(b'"load-attempt"', b'"load-ignored"')
    return ask.evidence()


@lie
def _log_of_another_pcr(ask: Ask) -> Evidence:
    records = ask.records()
    for record in records:
        record["pcr"] = 13
    return ask.relog(records)


@lie
def _log_without_its_last_newline(ask: Ask) -> Evidence:
    ask.said["event_log"] = ask.event_log[:-1]
    return ask.evidence()


@lie
def _log_of_garbage(ask: Ask) -> Evidence:
    ask.said["event_log"] = b"\xff\0" * 500
    return ask.evidence()


@lie
def _log_nested_deeply(ask: Ask) -> Evidence:
    ask.said["event_log"] = b"[" * 20_000 + b"]" * 20_000 + b"\n"
    return ask.evidence()


# -- manifest, process


@lie
def _no_manifest(ask: Ask) -> Evidence:
    ask.said |= {"manifest": b"", "manifest_signature": b""}
    return ask.evidence()


@lie
def _unsigned_manifest(ask: Ask) -> Evidence:
    ask.said["manifest_signature"] = b""
    return ask.evidence()


@lie
def _manifest_signature_changed(ask: Ask) -> Evidence:
    ask.said["manifest_signature"] = bytes(512)
    return ask.evidence()


@lie
def _manifest_edited_and_bound(ask: Ask) -> Evidence:
    ask.said["manifest"] = ask.attester.firmware.manifest.replace(b'"security_version":', b'"security_version":9')
    return ask.evidence()


@lie
def _firmware_downgrade(ask: Ask) -> Evidence:
    """A manifest that the release key did sign, of a release that is below the floor."""
    files = Path(os.environ["JARVIS_LIE"])
    ask.said["manifest"] = files.with_name("old-manifest.json").read_bytes()
    ask.said["manifest_signature"] = files.with_name("old-manifest.sig").read_bytes()
    return ask.evidence()


@lie
def _manifest_of_another_release(ask: Ask) -> Evidence:
    """A genuine manifest that names other objects than were measured."""
    files = Path(os.environ["JARVIS_LIE"])
    ask.said["manifest"] = files.with_name("other-manifest.json").read_bytes()
    ask.said["manifest_signature"] = files.with_name("other-manifest.sig").read_bytes()
    return ask.evidence()


@lie
def _other_session(ask: Ask) -> Evidence:
    ask.said["session_id"] = secrets.token_bytes(16)
    return ask.evidence()


@lie
def _other_boot(ask: Ask) -> Evidence:
    ask.said["boot_id"] = secrets.token_bytes(16)
    return ask.evidence()


# -- sizes


def _sized(name: str, size: int) -> Lie:
    def oversized(ask: Ask) -> Evidence:
        evidence = ask.evidence()
        setattr(evidence, name, bytes(size))
        return evidence

    return oversized


for _name, _size in {
    "attest": 1025,
    "signature": 1025,
    "event_log": 4 * 1024 * 1024 + 1,
    "manifest": 64 * 1024 + 1,
    "manifest_signature": 1025,
    "boot_log": 2 * 1024 * 1024 + 1,
}.items():
    LIES[f"oversized-{_name.replace('_', '-')}"] = _sized(_name, _size)
LIES["short-boot-id"] = _sized("boot_id", 15)
LIES["long-session-id"] = _sized("session_id", 17)


@lie
def _too_many_pcr_values(ask: Ask) -> Evidence:
    evidence = ask.evidence()
    evidence.pcrs.extend(PcrValue(index=index, digest=bytes(32)) for index in range(100))
    return evidence
