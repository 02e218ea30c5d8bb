# SPDX-License-Identifier: Apache-2.0
"""policy.toml, judged as a whole: each field is known, of its type and in its range, and fits the others, or nothing is taken.

    PolicyDocument, release root -> parse_policy -> FleetPolicy

docs/policy.md and policy.example.toml describe the fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cryptography import x509
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.boot_reference import BootReference, verify_reference
from jarvis_trust.collector_allow_list import MAX_ENTRIES, AllowList, AllowListError
from jarvis_trust.errors import AttestationError, PolicyError, TrustError
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.ima_policy import ImaPolicy, parse_allow_list
from jarvis_trust.policy_document import PolicyDocument, parse_text
from jarvis_trust.release_root import ReleaseRoot

from jarvis_controller.boot_checks import BOOT_CHECKS
from jarvis_controller.checks import CHECKS
from jarvis_controller.ima_checks import IMA_CHECKS
from jarvis_controller.policy import LEVELS, FleetPolicy, Rule, Vendors, WithoutTpm
from jarvis_controller.policy_fields import Fields, refused
from jarvis_controller.selectors import Selector, SelectorError
from jarvis_controller.verifier import NOT_EVALUATED, REPORTABLE

_CHECK_NAMES: Final = frozenset(name for name, _ in CHECKS + BOOT_CHECKS + IMA_CHECKS)
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_AGENT_ID: Final = re.compile(r"[a-z2-7]{32}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TEXT: Final = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_WORDS: Final = ("quarantine", "report")
_MAX_RULES: Final = 256
_MAX_INTERVAL_S: Final = 3600.0
_MAX_LEASE_S: Final = 86400.0


def parse_policy(document: PolicyDocument, root: ReleaseRoot) -> FleetPolicy:
    """The policy that a document holds.

    Args:
        document: text and files.
        root: whose keys reference sets must be signed with.

    Raises:
        PolicyError: POLICY_INVALID naming the field, the value and what would be accepted.
    """
    top = Fields("", parse_text(document.text))
    name = top.text("name", _NAME, "1-64 of A-Z a-z 0-9 . _ -, alphanumeric at both ends")
    version = _version(top)
    vendors = _vendors(top.table("vendors"), document.files)
    firmware = top.table("firmware")
    floor = firmware.integer("floor", 0, 2**63 - 1, default=0)
    versions = frozenset(firmware.texts("versions", _TEXT, "printable ASCII"))
    firmware.end()
    attestation = top.table("attestation")
    pcr = attestation.integer("pcr", 0, 15, default=14)
    boot_pcrs = _boot_pcrs(attestation, pcr)
    times = _times(attestation, {"interval_s": 60.0, "lease_s": 600.0})
    attestation.end()
    rules = _rules(top, _Surroundings(document.files, root, boot_pcrs, times))
    if any(rule.level == "L3" for rule in rules) and IMA_PCR in (*boot_pcrs, pcr):
        raise refused(
            "attestation", f"PCR {IMA_PCR}", "neither pcr nor one of boot_pcrs with a rule of level L3, which IMA is for,"
        )
    reported = _reported(top.table("failures"))
    without_tpm = _without_tpm(top.table("without_tpm"))
    ima = _ima(top.table("ima"), document.files)
    collectors = _collectors(top.table("export"))
    top.end()
    return FleetPolicy(
        name=name,
        version=version,
        document=document,
        vendors=vendors,
        firmware_floor=floor,
        firmware_versions=versions,
        pcr=pcr,
        boot_pcrs=boot_pcrs,
        rules=rules,
        reported=reported,
        without_tpm=without_tpm,
        ima=ima,
        collectors=collectors,
    )


def version_of(document: PolicyDocument) -> int:
    """The version alone, whatever else the document says.

    Raises:
        PolicyError: POLICY_INVALID.
    """
    return _version(Fields("", parse_text(document.text)))


def _version(top: Fields) -> int:
    return top.integer("version", 1, 2**63 - 1)


def _vendors(fields: Fields, files: Mapping[str, bytes]) -> Vendors:
    names = fields.texts("roots", None, "a path")
    if not names:
        raise refused("vendors.roots", [], "at least one PEM file of a TPM vendor's root")
    for name in names:
        try:
            x509.load_pem_x509_certificates(_file(files, "vendors.roots", name))
        except ValueError as error:
            raise refused("vendors.roots", name, f"a file of certificates in PEM ({error})") from error
    vendors = Vendors(
        roots=tuple(files[name] for name in names),
        ek_sha256=frozenset(fields.texts("ek_sha256", _SHA256, "64 lower-case hex digits")),
        manufacturers=frozenset(fields.texts("manufacturers", _TEXT, 'printable ASCII such as "id:49465800"')),
        models=frozenset(fields.texts("models", _TEXT, "printable ASCII")),
    )
    fields.end()
    return vendors


def _boot_pcrs(fields: Fields, pcr: int) -> tuple[int, ...]:
    pcrs = fields.integers("boot_pcrs")
    if tuple(sorted(set(pcrs))) != pcrs or any(not 0 <= other <= 15 or other == pcr for other in pcrs):
        accepted = f"different PCRs of 0..15 in ascending order without pcr = {pcr}"
        raise refused(fields.path("boot_pcrs"), list(pcrs), accepted)
    return pcrs


def _times(fields: Fields, defaults: Mapping[str, float]) -> dict[str, float]:
    interval_s = fields.number("interval_s", 0.5, _MAX_INTERVAL_S, default=defaults["interval_s"])
    lease_s = fields.number("lease_s", 1.0, _MAX_LEASE_S, default=defaults["lease_s"])
    if lease_s <= interval_s:
        raise refused(fields.path("lease_s"), lease_s, f"more than interval_s = {interval_s}")
    return {"interval_s": interval_s, "lease_s": lease_s}


class _Surroundings:
    """What rules are read beside."""

    def __init__(
        self, files: Mapping[str, bytes], root: ReleaseRoot, boot_pcrs: tuple[int, ...], times: Mapping[str, float]
    ) -> None:
        self.files = files
        self.boot_pcrs = boot_pcrs
        self.times = times
        self._root = root
        self._verified: dict[str, BootReference] = {}

    def reference(self, field: str, name: str) -> BootReference:
        """A reference set, its signature verified once however many rules name it."""
        if name not in self._verified:
            data, signature = _file(self.files, field, name), _file(self.files, field, f"{name}.sig")
            try:
                self._verified[name] = verify_reference(data, signature, self._root)
            except TrustError as error:
                raise refused(
                    field, name, f"a reference set that the release root's keys signed ({error.reason}: {error.message})"
                ) from error
        return self._verified[name]


def _rules(top: Fields, beside: _Surroundings) -> tuple[Rule, ...]:
    tables = top.tables("rule")
    if not 1 <= len(tables) <= _MAX_RULES:
        raise refused("rule", f"{len(tables)} tables", f'1..{_MAX_RULES}, the last one with selector = ""')
    rules = tuple(_rule(table, beside) for table in tables)
    for number, rule in enumerate(rules):
        is_last = number == len(rules) - 1
        if rule.selector.is_everything is not is_last:
            accepted = '"", which means every other agent, in the last rule and in no other'
            raise refused(f"rule[{number}].selector", rule.text, accepted)
    return rules


def _rule(fields: Fields, beside: _Surroundings) -> Rule:
    text, selector = _selector(fields)
    level = fields.choice("level", LEVELS)
    names = fields.texts("references", None, "a path")
    secure = fields.flag("require_secure_boot", default=False)
    measured = level != "L1"
    if measured is not bool(names):
        accepted = f"at least one signed reference set with level {level}" if measured else "no reference set below level L2"
        raise refused(fields.path("references"), list(names), accepted)
    if measured and not beside.boot_pcrs:
        raise refused("attestation.boot_pcrs", [], f"at least one PCR, for {fields.path('level')} = {level}")
    if secure and (not measured or 7 not in beside.boot_pcrs):
        raise refused(fields.path("require_secure_boot"), True, "false, or level L2 or L3 with 7 among attestation.boot_pcrs")
    references = tuple(beside.reference(fields.path("references"), name) for name in names)
    times = _times(fields, beside.times)
    fields.end()
    return Rule(
        text=text,
        selector=selector,
        level=level,
        references=references,
        require_secure_boot=secure,
        interval_s=times["interval_s"],
        lease_s=times["lease_s"],
    )


def _selector(fields: Fields) -> tuple[str, Selector]:
    text = fields.text("selector", None, "a label selector").strip()
    try:
        return text, Selector(fleet_pb2.AgentSelector(label_selector=text))
    except SelectorError as error:
        raise refused(fields.path("selector"), text, f"a label selector ({error.message})") from error


def _reported(fields: Fields) -> frozenset[tuple[str, str]]:
    """Every (check, reason) whose word is "report": a reason's own word goes before that of its check."""
    words = {name: fields.choice(name, _WORDS) for name in fields.names()}
    reasons = frozenset().union(*REPORTABLE.values())
    reportable = ", ".join((*REPORTABLE, *sorted(reasons)))
    for name, word in words.items():
        if name in REPORTABLE or name in reasons:
            continue
        if word == "report":
            # Also for what no check is called: the word would promise what cannot be.
            raise refused(
                fields.path(name), word, f'"quarantine" (the rest proves the quote itself; "report" may be said of {reportable})'
            )
        if name not in _CHECK_NAMES:
            raise PolicyError("POLICY_INVALID", f"unknown field {fields.path(name)[:120]!r}; accepted are {reportable}")
    return frozenset(
        (check, reason)
        for check, own in REPORTABLE.items()
        for reason in (*own, NOT_EVALUATED)
        if words.get(reason, words.get(check)) == "report"
    )


def _without_tpm(fields: Fields) -> WithoutTpm:
    agents = frozenset(fields.texts("agents", _AGENT_ID, "a full agent id, 32 of a-z 2-7"))
    selector = None
    if "selector" in fields.names():
        text, selector = _selector(fields)
        if selector.is_everything:
            raise refused(fields.path("selector"), text, "at least one label term: a fleet without TPMs has to be labelled so")
    fields.end()
    return WithoutTpm(agents=agents, selector=selector)


def _ima(fields: Fields, files: Mapping[str, bytes]) -> ImaPolicy:
    """What rules of level L3 judge by; fields of a fleet that has no such rule are checked all the same."""
    allowed: set[tuple[bytes, bytes]] = set()
    for name in fields.texts("allowed", None, "a path"):
        try:
            allowed |= parse_allow_list(_file(files, fields.path("allowed"), name))
        except AttestationError as error:
            raise refused(fields.path("allowed"), name, f"a file as sha256sum prints it ({error.message})") from error
    try:
        policy = ImaPolicy(
            paths=fields.texts("paths", None, "an absolute path"),
            allowed=frozenset(allowed),
            required=fields.texts("required", None, "an absolute path"),
            accept_violations=fields.flag("accept_violations", default=False),
        )
    except AttestationError as error:
        raise PolicyError("POLICY_INVALID", f"ima.{error.message}") from error
    fields.end()
    return policy


def _collectors(fields: Fields) -> AllowList:
    entries = fields.texts("collectors", None, "an address, a network or a DNS name")
    if len(entries) > MAX_ENTRIES:
        raise refused(fields.path("collectors"), f"{len(entries)} entries", f"a list of at most {MAX_ENTRIES}")
    fields.end()
    try:
        return AllowList.parse(entries)
    except AllowListError as error:
        raise refused(fields.path(f"collectors[{error.index}]"), error.entry, error.accepted) from error


def _file(files: Mapping[str, bytes], field: str, name: str) -> bytes:
    if name not in files:
        raise PolicyError(
            "POLICY_INVALID", f"{field} = {name!r}: the file did not come with the policy; one of its name is accepted"
        )
    return files[name]
