# SPDX-License-Identifier: Apache-2.0
"""Attacks on attestation: the puppet's lies, and what each of them must be refused with.

Each lie is told to a real controller in an answer to a real challenge; then the puppet is released and proves itself honestly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jarvis_trust.firmware import MANIFEST_FILE, Manifest, sign_manifest

from testbed.attack.arena import FLOOR, RELEASE_KEY, Arena
from testbed.attack.model import Attack

_NOT_ITS_KEY = "QUALIFIED_SIGNER_MISMATCH+SIGNATURE_INVALID"
_LARGE = "EVIDENCE_TOO_LARGE"

LIES: dict[str, tuple[str, str]] = {
    "magic-changed": ("ATTEST_MAGIC_WRONG+SIGNATURE_INVALID", "CVE-2024-29038, CVE-2024-29040: a quote without the TPM's magic"),
    "software-key": ("SIGNATURE_INVALID", "CVE-2022-3500, CVE-2023-3674: a genuine quote signed by a key of software"),
    "unrestricted-key": (_NOT_ITS_KEY, "a quote by a key of the same TPM that signs anything"),
    "owner-hierarchy-key": (
        # Outside the endorsement hierarchy a TPM obfuscates its firmware version and its counts.
        _NOT_ITS_KEY + "+TPM_FIRMWARE_CHANGED+TPM_RESET_WITHOUT_REBOOT",
        "a quote by the same template's key in the owner's hierarchy",
    ),
    "time-attestation": ("ATTEST_TYPE_WRONG", "TPM2_GetTime by the genuine attestation key"),
    "certify-attestation": ("ATTEST_TYPE_WRONG", "TPM2_Certify by the genuine attestation key"),
    "trailing-bytes": ("ATTEST_INVALID+SIGNATURE_INVALID", "bytes after the quote, which libtss2 3.2.1 would not see"),
    "truncated-attest": ("ATTEST_INVALID+SIGNATURE_INVALID", "a quote cut short"),
    "clock-turned-on": ("SIGNATURE_INVALID", "a later clock written into the quote"),
    "other-hash-in-signature": ("SIGNATURE_SCHEME", "a signature that says SHA-384: the scheme is not the signer's to choose"),
    "other-algorithm-in-signature": ("TPM_SIGNATURE_INVALID", "a signature that says RSASSA"),
    "trailing-bytes-in-signature": ("TPM_SIGNATURE_INVALID", "a byte after the signature"),
    "empty-evidence": ("EVIDENCE_MALFORMED", "nothing at all"),
    "replay": ("CLOCK_BACKWARDS+NONCE_MISMATCH", "CVE-2026-6420: an answer that was right once"),
    "own-nonce": ("NONCE_MISMATCH", "a fresh quote over a nonce of its own"),
    "empty-extra-data": ("NONCE_MISMATCH", "a quote without extraData"),
    "raw-nonce-as-extra-data": ("NONCE_MISMATCH", "the nonce alone as extraData: there is one interpretation"),
    "other-agents-id": ("NONCE_MISMATCH", "a quote bound to another agent's id"),
    "other-controller": ("NONCE_MISMATCH", "a quote that was asked for by somebody in the middle"),
    "other-tls-key": ("NONCE_MISMATCH", "a quote bound to another TLS key"),
    "boot-id-exchanged": ("NONCE_MISMATCH+SESSION_MISMATCH", "another boot id beside the quote"),
    "manifest-exchanged": ("FIRMWARE_SIGNATURE_INVALID+NONCE_MISMATCH", "another manifest beside the quote"),
    "relayed-to-another-tpm": ("CLOCK_BACKWARDS+EVENT_LOG_MISMATCH+" + _NOT_ITS_KEY, "the challenge relayed to another TPM"),
    "relayed-to-another-tpm-with-own-values": (
        "CLOCK_BACKWARDS+PCR_MISMATCH+" + _NOT_ITS_KEY,
        "the same, with PCR values of this host",
    ),
    "resettable-pcr": ("PCR_SELECTION_MISMATCH", "a quote of PCR 16, which user space can reset"),
    "resettable-pcr-relabelled": ("PCR_SELECTION_MISMATCH+PCR_VALUES_INVALID", "CVE-2024-29039: PCR 16 presented as PCR 14"),
    "pcr-superset": ("PCR_SELECTION_MISMATCH", "one PCR more than asked for"),
    "pcr-superset-hidden": ("PCR_SELECTION_MISMATCH+PCR_VALUES_INVALID", "one PCR more in the quote than in the values"),
    "other-bank": ("PCR_SELECTION_MISMATCH+PCR_VALUES_INVALID", "the SHA-384 bank"),
    "two-banks": ("ATTEST_PCR_SELECTION_INVALID", "two banks in one quote"),
    "no-pcrs": ("PCR_SELECTION_MISMATCH+PCR_VALUES_INVALID", "CVE-2022-0317: a quote over no PCR"),
    "extra-pcr-value": ("PCR_VALUES_INVALID", "CVE-2022-0317: a value that was not quoted"),
    "pcr-value-twice": ("PCR_VALUES_INVALID", "a value twice"),
    "no-pcr-values": ("PCR_VALUES_INVALID", "no values"),
    "short-pcr-value": ("PCR_VALUES_INVALID", "a value of 20 bytes"),
    "wishful-pcr-value": ("PCR_MISMATCH", "a value that the TPM did not sign"),
    "log-edited-after-the-quote": ("EVENT_LOG_MISMATCH+NONCE_MISMATCH+SESSION_MISMATCH", "records left out after the quote"),
    "log-cut": ("EVENT_LOG_MISMATCH", "the last record left out, and the shorter log bound"),
    "log-empty": ("EVENT_LOG_MISMATCH+FIRMWARE_NOT_MEASURED", "no log"),
    "log-with-a-record-more": ("EVENT_LOG_MISMATCH", "a record that was not extended"),
    "log-reordered": ("EVENT_LOG_MISMATCH+SESSION_MISMATCH", "the records in another order"),
    "log-with-an-edited-digest": (
        "EVENT_LOG_MISMATCH+FIRMWARE_UNTRUSTED_MEASUREMENT",
        "a measured digest replaced, its record's digest made anew",
    ),
    "log-edited-under-its-digest": ("EVENT_DIGEST_WRONG", "a measured digest replaced under its record's digest"),
    "log-relabelled": ("EVENT_LOG_INVALID", "go-attestation event-log-disclosure: the type of a record changed"),
    "log-of-another-pcr": ("EVENT_LOG_MISMATCH", "records that say to be of PCR 13"),
    "log-without-its-last-newline": ("EVENT_LOG_INVALID", "a torn record"),
    "log-of-garbage": ("EVENT_LOG_INVALID", "bytes that are no log"),
    "log-nested-deeply": ("EVENT_LOG_INVALID", "20,000 brackets, for a parser that recurses"),
    "no-manifest": ("FIRMWARE_UNSIGNED", "no manifest"),
    "unsigned-manifest": ("FIRMWARE_UNSIGNED", "no signature beside the manifest"),
    "manifest-signature-changed": ("FIRMWARE_SIGNATURE_INVALID", "a signature of zeros"),
    "manifest-edited-and-bound": ("FIRMWARE_SIGNATURE_INVALID", "a higher security_version written into the manifest"),
    "firmware-downgrade": ("FIRMWARE_BELOW_FLOOR", "a release that the release key did sign, below the floor"),
    "manifest-of-another-release": ("FIRMWARE_UNTRUSTED_MEASUREMENT", "a genuine manifest of another build than was measured"),
    "other-session": ("SESSION_MISMATCH", "another process's measurements"),
    "other-boot": ("SESSION_MISMATCH", "another boot's measurements"),
    "oversized-attest": (_LARGE, "an attest of 1025 bytes"),
    "oversized-signature": (_LARGE, "a signature of 1025 bytes"),
    "oversized-event-log": (_LARGE, "an event log of 4 MiB and a byte"),
    "oversized-manifest": (_LARGE, "a manifest of 64 KiB and a byte"),
    "oversized-manifest-signature": (_LARGE, "a signature file of 32 KiB and a byte"),
    "oversized-boot-log": (_LARGE, "a boot log of 2 MiB and a byte"),
    "too-many-pcr-values": (_LARGE, "101 PCR values"),
    "short-boot-id": ("EVIDENCE_MALFORMED", "a boot id of 15 bytes"),
    "long-session-id": ("EVIDENCE_MALFORMED", "a session id of 17 bytes"),
}
"""Name in lies.py -> reasons of every check that fails, and what it is."""

_FAST = {"magic-changed", "certify-attestation", "replay", "pcr-superset", "log-cut", "firmware-downgrade", "unrestricted-key"}


def telling(lie: str) -> Callable[[Arena], str]:
    """The puppet tells a lie, is quarantined for it, and is released again."""

    def run(arena: Arena) -> str:
        prepare(arena)
        arena.lie_file.write_text(lie)
        try:
            got = arena.attest(arena.puppet)
        finally:
            arena.lie_file.write_text("")
        state = _state(arena)
        if state != "quarantined":
            return f"{got}, and the agent is {state}"
        arena.release(arena.puppet)
        return got

    return run


def _state(arena: Arena) -> str:
    (found,) = [row["state"] for row in arena.fleet.rows("agents", "list") if row["agent_id"] == arena.puppet.agent_id]
    return str(found)


def prepare(arena: Arena) -> None:
    """What the lies need: another TPM, manifests of other releases."""
    if "lies" in arena.notes:
        return
    arena.notes["lies"] = b"prepared"
    genuine = Manifest.from_bytes((arena.fleet.firmware / MANIFEST_FILE).read_bytes())
    key = RELEASE_KEY.read_bytes()
    old = dataclasses.replace(genuine, security_version=FLOOR - 1)
    other = dataclasses.replace(genuine, objects=dict.fromkeys(genuine.objects, "00" * 32))
    for name, manifest in (("old", old), ("other", other)):
        data, signature = sign_manifest(manifest, key)
        arena.lie_file.with_name(f"{name}-manifest.json").write_bytes(data)
        arena.lie_file.with_name(f"{name}-manifest.sig").write_bytes(signature)
    arena.lie_file.with_name("other-tcti").write_text(arena.other_tpm.tcti)


ATTACKS = tuple(
    Attack(name=f"evidence/{lie}", tries=tries, expected=expected, run=telling(lie), is_fast=lie in _FAST)
    for lie, (expected, tries) in LIES.items()
)
