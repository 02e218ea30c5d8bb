# SPDX-License-Identifier: Apache-2.0
"""The checks of an agent without a TPM, level L0: a table of its own, so that its evidence is never taken for a quote.

    what is on record of the agent (not what it sends) says which table judges it -> verifier.py

What passing them proves: whoever answered holds the identity key that was enrolled, now, on this channel, and says that it runs
firmware that the manifest names. That the host says so is all there is to it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from jarvis_trust.errors import AttestationError
from jarvis_trust.software_identity import MAX_SOFTWARE_SIGNATURE_BYTES, agent_id_from_software, software_name

from jarvis_controller.case import Case, NotEvaluatedError
from jarvis_controller.checks import CHECKS

_COMMON = dict(CHECKS)
_NOT_ITS_OWN = ("attest", "signature", "pcrs", "boot_log", "boot_log_sha256", "ima_log")


def _form(case: Case) -> None:
    case.after("size")
    evidence = case.evidence
    for name in _NOT_ITS_OWN:
        if len(getattr(evidence, name)):
            raise AttestationError("EVIDENCE_MALFORMED", f"{name}: of an agent without a TPM an empty one is accepted")
    if len(evidence.software_signature) > MAX_SOFTWARE_SIGNATURE_BYTES:
        found = len(evidence.software_signature)
        message = f"software_signature: {found} bytes; at most {MAX_SOFTWARE_SIGNATURE_BYTES} are accepted"
        raise AttestationError("EVIDENCE_MALFORMED", message)


def _allowed(case: Case) -> None:
    if not case.policy.without_tpm:
        message = f"agent {case.record.agent_id} has no TPM, and the policy does not admit it without one"
        raise AttestationError("AGENT_WITHOUT_TPM", message)


def _identity_key(case: Case) -> None:
    record = case.record
    if record.has_tpm:
        raise AttestationError("SOFTWARE_IDENTITY_MISMATCH", f"agent {record.agent_id} was enrolled with a TPM")
    is_its_id = hmac.compare_digest(agent_id_from_software(record.ak_public), record.agent_id)
    if not is_its_id or not hmac.compare_digest(software_name(record.ak_public), record.ak_name):
        message = "the stored identity key is not the one that the agent's id and name are derived from"
        raise AttestationError("SOFTWARE_IDENTITY_MISMATCH", message)


def _software_signature(case: Case) -> None:
    case.after("size", "identity-key")
    if case.software_spki is None:
        message = (
            "software_signature is not by the identity key over this challenge, these TLS keys, this agent, boot, session, "
            "manifest and event log"
        )
        raise AttestationError("SOFTWARE_SIGNATURE_INVALID", message)


def _channel(case: Case) -> None:
    shown = case.policy.agent_spki
    if shown is None:
        return  # direct carrier: which key answered cannot be seen
    case.after("software-signature")
    bound = case.software_spki
    if bound is None:
        raise NotEvaluatedError("needs software-signature, which did not pass")
    if not hmac.compare_digest(bound, shown):
        message = f"the signature binds the TLS key {bound.hex()}; the connection that it came over showed {shown.hex()}"
        raise AttestationError("CHANNEL_KEY_MISMATCH", message)


def _event_log(case: Case) -> None:
    for event in case.events:
        if event.pcr != case.policy.pcr:
            message = f"record {event.recnum} is of PCR {event.pcr}; firmware is measured into {case.policy.pcr}"
            raise AttestationError("EVENT_LOG_MISMATCH", message)


SOFTWARE_CHECKS: tuple[tuple[str, Callable[[Case], None]], ...] = (
    ("size", _COMMON["size"]),
    ("software-form", _form),
    ("challenge", _COMMON["challenge"]),
    ("without-tpm", _allowed),
    ("identity-key", _identity_key),
    ("software-signature", _software_signature),
    ("channel", _channel),
    ("event-log", _event_log),
    *CHECKS[[name for name, _ in CHECKS].index("manifest") :],  # what is said of the firmware is judged alike
)
"""Name and function of every check, in the order in which they run."""
