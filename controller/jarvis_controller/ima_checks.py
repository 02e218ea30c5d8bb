# SPDX-License-Identifier: Apache-2.0
"""The checks of IMA, level L3: what the kernel measured of the files that this host opened and ran, against the manifest.

    IMA list, quoted PCR 10 -> ima-log (it replays) -> ima-boot (of this boot) -> ima-agent (the agent's files and the firmware)

They run when the fleet demands L3, behind all others. What they work on is case.py's Case.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from jarvis_trust.errors import AttestationError
from jarvis_trust.ima_log import IMA_PCR, extends_padded_sha1
from jarvis_trust.ima_policy import is_firmware

from jarvis_controller.case import FIRMWARE_OBJECT, Case, NotEvaluatedError, established
from jarvis_controller.ima_state import ImaFile

_AGGREGATED = range(10)
"""PCRs that the boot aggregate covers since Linux 5.8, when it is no SHA-1."""
_AGGREGATED_BEFORE = range(8)
_NAMED = 3
"""Files in one message."""


def _ima_log(case: Case) -> None:
    case.after("size")
    evidence = case.evidence
    if not evidence.ima_log and not evidence.ima_first_entry:
        message = "the host shows no IMA list: level L3 cannot be judged (ima_log of the agent, ima_policy= of its kernel)"
        raise AttestationError("IMA_LOG_MISSING", message)
    before, entries = case.ima_before, case.ima_entries
    case.after("pcr-values")
    if case.ima_quoted is not None:
        return
    quoted = _quoted(case)
    if not before.entries and extends_padded_sha1(entries, quoted):
        message = "this kernel extends PCR 10 by the SHA-1 of its entries, padded: Linux 5.8 or newer is accepted"
        raise AttestationError("IMA_SHA1_EXTENDED", message)
    message = f"the IMA list's {before.entries} and {len(entries)} more entries do not give the quoted value of PCR {IMA_PCR}"
    raise AttestationError("IMA_LOG_MISMATCH", message)


def _quoted(case: Case) -> bytes:
    value = case.pcr_values.get(IMA_PCR)
    if value is None:
        raise NotEvaluatedError("needs pcr-values, which did not pass")
    return value


def _ima_boot(case: Case) -> None:
    case.after("ima-log", "pcr-values")
    first = established("ima-log", lambda: case.ima_now).boot_aggregate
    if first is None:
        raise AttestationError("IMA_BOOT_MISMATCH", "the IMA list does not begin with the boot aggregate")
    if first.is_violation or first.algorithm != "sha256":
        message = f"the boot aggregate is a {first.algorithm} digest; sha256 is accepted (ima_hash=sha256)"
        raise AttestationError("IMA_DIGEST_ALGORITHM", message)
    values = case.pcr_values
    if not values.keys() >= set(_AGGREGATED):
        return  # what it covers was not quoted: PCR 10 itself, which starts at zero, is of this boot
    for covered in (_AGGREGATED, _AGGREGATED_BEFORE):
        if hmac.compare_digest(hashlib.sha256(b"".join(values[pcr] for pcr in covered)).digest(), first.digest):
            return
    raise AttestationError(
        "IMA_BOOT_MISMATCH", "the boot aggregate is not that of the quoted PCRs 0 to 9: the list is of another boot"
    )


def _ima_agent(case: Case) -> None:
    case.after("ima-log", "manifest")
    state = case.ima_now
    _check_violations(case, state.violations, state.files)
    _check_files(case, state.files)
    _check_measured(case, state.files)


def _check_violations(case: Case, count: int, files: tuple[ImaFile, ...]) -> None:
    named = [file for file in files if file.is_violation]
    if named:
        message = f"{_names(named)}: open for writing while it was measured (a violation)"
        raise AttestationError("IMA_VIOLATION", message)
    if count and not case.ima_policy.accept_violations:
        message = f"{count} entries of the IMA list are violations, whose paths no PCR vouches for; none is accepted"
        raise AttestationError("IMA_VIOLATION", message)


def _check_files(case: Case, files: tuple[ImaFile, ...]) -> None:
    manifest = established("manifest", lambda: case.manifest)
    signed = frozenset(manifest.objects.items()) | case.policy.known_firmware
    allowed = case.ima_policy.allowed
    bad: list[ImaFile] = []
    for file in files:
        if file.is_violation:
            continue
        if file.algorithm != "sha256":
            message = f"{_names([file])} was measured with {file.algorithm}; sha256 is accepted (ima_hash=sha256)"
            raise AttestationError("IMA_DIGEST_ALGORITHM", message)
        name = file.path.rpartition(b"/")[2].decode("utf-8", "replace")
        if (name, file.digest.hex()) not in signed and (file.path, file.digest) not in allowed:
            bad.append(file)
    if bad:
        message = f"{_names(bad)}: neither the signed manifest nor the policy's list names such contents"
        raise AttestationError("IMA_FILE_UNTRUSTED", message)


def _check_measured(case: Case, files: tuple[ImaFile, ...]) -> None:
    # That it is the one that runs is for check firmware to say.
    signed = established("manifest", lambda: case.manifest).objects.get(FIRMWARE_OBJECT, "")
    if not any(is_firmware(file.path) and file.digest.hex() == signed and not file.is_violation for file in files):
        message = (
            f"the IMA list has no {FIRMWARE_OBJECT} of the manifest: the host's IMA policy must measure what the agent reads"
        )
        raise AttestationError("IMA_AGENT_NOT_MEASURED", message)
    found = {file.path for file in files if not file.is_violation}
    missing = [path for path in case.ima_policy.required if path.encode("utf-8", "surrogateescape") not in found]
    if missing:
        message = f"the IMA list does not have {', '.join(map(ascii, missing[:_NAMED]))}, which the policy requires"
        raise AttestationError("IMA_AGENT_NOT_MEASURED", message)


def _names(files: list[ImaFile]) -> str:
    shown = ", ".join(f"{file.path.decode('utf-8', 'replace')!a} ({file.digest.hex()[:16]}…)" for file in files[:_NAMED])
    return shown if len(files) <= _NAMED else f"{shown} and {len(files) - _NAMED} more"


IMA_CHECKS: tuple[tuple[str, Callable[[Case], None]], ...] = (
    ("ima-log", _ima_log),
    ("ima-boot", _ima_boot),
    ("ima-agent", _ima_agent),
)
"""Name and function of every check of IMA, in the order in which they run, behind all others."""
