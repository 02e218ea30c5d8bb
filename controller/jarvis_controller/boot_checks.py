# SPDX-License-Identifier: Apache-2.0
"""The checks of measured boot, level L2: between the firmware's own measurements and the verdict.

    boot log, quoted PCRs -> boot-log (it replays) -> boot-events (nothing out of place) -> boot-reference (as on a recorded host)

They run when the fleet demands L2. What they work on is case.py's Case.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable

from jarvis_trust.boot_events import check_events
from jarvis_trust.boot_reference import Divergence, match_references
from jarvis_trust.errors import AttestationError, Finding

from jarvis_controller.case import Case, NotEvaluatedError, established


def _boot_log(case: Case) -> None:
    case.after("size")
    check_digest(case)
    case.boot_log  # noqa: B018 - read before anything is said of PCRs: a log that is none is this check's to refuse
    case.after("pcr-values")
    values = case.pcr_values
    missing = [pcr for pcr in case.boot_policy.pcrs if pcr not in values]
    if missing:
        raise NotEvaluatedError("needs pcr-values, which did not pass")
    check_replay(case, case.boot_policy.pcrs)


def check_digest(case: Case) -> None:
    """A log came, or was filled in for a digest that is known, and is the one that the agent named.

    Raises:
        AttestationError: BOOT_LOG_MISSING, BOOT_LOG_MISMATCH.
    """
    if not case.evidence.boot_log:
        message = "the host shows no TCG event log: measured boot cannot be judged (boot_log in the agent's configuration)"
        raise AttestationError("BOOT_LOG_MISSING", message)
    if not hmac.compare_digest(case.boot_log_digest, case.evidence.boot_log_sha256):
        raise AttestationError("BOOT_LOG_MISMATCH", "the boot log does not have the digest that the agent gives for it")


def check_replay(case: Case, pcrs: Iterable[int]) -> None:
    """The log gives these PCRs' quoted values: nothing is missing from it, nothing was added, also where a PCR is still zero.

    Raises:
        AttestationError: BOOT_LOG_MISMATCH naming the PCR.
    """
    for pcr in pcrs:
        if not hmac.compare_digest(case.boot_values[pcr], case.pcr_values[pcr]):
            count = len(case.boot_log.of_pcr(pcr))
            message = f"the boot log's {count} events of PCR {pcr} do not give its quoted value"
            raise AttestationError("BOOT_LOG_MISMATCH", message, finding=Finding(pcr=pcr))


def _boot_events(case: Case) -> None:
    case.after("boot-log")
    log = established("boot-log", lambda: case.boot_log)
    check_events(log)
    if case.boot_policy.require_secure_boot and case.boot_facts.secure_boot is not True:
        found = "off" if case.boot_facts.secure_boot is False else "not told by the boot log"
        raise AttestationError("SECURE_BOOT_OFF", f"secure boot is {found}; on is accepted", finding=Finding(pcr=7))


def _boot_reference(case: Case) -> None:
    case.after("pcr-values", "boot-log")
    log, policy = established("boot-log", lambda: case.boot_log), case.boot_policy
    match = match_references(policy.references, case.pcr_values, log, policy.pcrs)
    if isinstance(match, Divergence):
        nearest = f"; nearest is {match.reference}" if match.reference else ""
        message = f"PCR {match.pcr}: boot is as in no reference set{nearest}: {match.message}"
        finding = Finding(
            pcr=match.pcr, event=match.event, component=match.component, expected=match.expected, reference=match.reference
        )
        raise AttestationError("BOOT_REFERENCE_MISMATCH", message, finding=finding)
    case.reference = f"{match.name} version {match.version}"


BOOT_CHECKS: tuple[tuple[str, Callable[[Case], None]], ...] = (
    ("boot-log", _boot_log),
    ("boot-events", _boot_events),
    ("boot-reference", _boot_reference),
)
"""Name and function of every check of measured boot: the last one runs after all others, those before it after "tpm-firmware"."""
