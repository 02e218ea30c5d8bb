# SPDX-License-Identifier: Apache-2.0
"""Lies about what a quote speaks of: PCRs, event log, manifest, process; and evidence that is too large."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_trust.ca import generate_key
from jarvis_trust.software_identity import SoftwareSigner
from tpm2_pytss.constants import ESYS_TR

from testbed.attack.lies import LIES, Ask, Lie, lie

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
    attest, signature = device._esapi.quote(device._ak.handle(), nothing, ask.binding())  # noqa: SLF001 - as above
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


@lie
def _software_evidence(ask: Ask) -> Evidence:
    """What an agent without a TPM would answer, by a key of its own."""
    attester = ask.attester
    honest = ask.evidence()
    signature = SoftwareSigner(generate_key()).sign_evidence(
        nonce=ask.nonce,
        agent_spki_sha256=attester.agent_spki_sha256(),
        controller_spki_sha256=ask.controller_spki,
        agent_id=attester.agent_id,
        boot_id=attester.boot_id,
        session_id=attester.session_id,
        manifest=attester.firmware.manifest,
        event_log=ask.event_log,
    )
    return Evidence(
        event_log=honest.event_log,
        manifest=honest.manifest,
        manifest_signature=honest.manifest_signature,
        boot_id=honest.boot_id,
        session_id=honest.session_id,
        software_signature=signature,
    )


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
    "manifest_signature": 32 * 1024 + 1,
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
