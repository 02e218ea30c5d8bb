# SPDX-License-Identifier: Apache-2.0
"""The fleet's policy: what is demanded of which agent. Frozen; needs no file, no database and no network.

    policy.toml -> policy_file.py -> FleetPolicy -> for_agent(id, labels) -> AgentPolicy -> verifier_policy -> the checks
                                        └ vendors.check: whether a TPM may enrol

policy_keeper.py says which one is in force.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jarvis_trust.boot_reference import BootReference
from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.ek_certificate import EkCertificateInfo
from jarvis_trust.errors import EnrollmentError
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.ima_policy import ImaPolicy
from jarvis_trust.policy_document import PolicyDocument

from jarvis_controller.case import BootPolicy, ReleaseTrust, VerifierPolicy
from jarvis_controller.selectors import Selector

LEVELS: Final = ("L1", "L2", "L3")
"""What a rule can demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendors:
    """Which TPMs may enrol. An empty set accepts everything."""

    roots: tuple[bytes, ...]
    """PEM of the vendors' roots, at least one."""
    ek_sha256: frozenset[str]
    """SHA-256 (hex) of the SubjectPublicKeyInfo of endorsement keys."""
    manufacturers: frozenset[str]
    """As EK certificates say it, e.g. "id:49465800"."""
    models: frozenset[str]

    def check(self, certificate: EkCertificateInfo, ek_spki: bytes) -> None:
        """Judges an EK whose certificate leads to one of the roots.

        Raises:
            EnrollmentError: EK_VENDOR_NOT_ACCEPTED, EK_MODEL_NOT_ACCEPTED, EK_NOT_ALLOWED.
        """
        for accepted, found, what, reason in (
            (self.manufacturers, certificate.manufacturer, "manufacturer", "EK_VENDOR_NOT_ACCEPTED"),
            (self.models, certificate.model, "model", "EK_MODEL_NOT_ACCEPTED"),
            (self.ek_sha256, hashlib.sha256(ek_spki).hexdigest(), "key's SHA-256", "EK_NOT_ALLOWED"),
        ):
            if accepted and found not in accepted:
                raise EnrollmentError(
                    reason, f"the EK certificate's {what} is {found[:80]!r}, which the fleet's policy does not accept"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is demanded of the agents that it means."""

    text: str
    """Its selector as written; empty: every agent."""
    selector: Selector
    level: str
    """One of LEVELS."""
    references: tuple[BootReference, ...]
    """Verified; one of them must match. Empty at L1."""
    require_secure_boot: bool
    interval_s: float
    """Between attestations."""
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutTpm:
    """Which hosts may join without a TPM; by default none."""

    agents: frozenset[str]
    """Full ids."""
    selector: Selector | None
    """None: no label admits anybody."""

    def permits(self, agent_id: str, labels: Mapping[str, str]) -> bool:
        """Whether this agent may do without."""
        return agent_id in self.agents or (self.selector is not None and self.selector.fits(agent_id, labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPolicy:
    """What is demanded of one agent."""

    rule: str
    """The selector of the rule that it falls under."""
    interval_s: float
    lease_ns: int
    firmware_floor: int
    firmware_versions: frozenset[str]
    pcr: int
    boot_pcrs: tuple[int, ...]
    boot: BootPolicy | None
    """None: level L1."""
    ima: ImaPolicy | None
    """None: below level L3."""
    without_tpm: bool
    """It may be without one: then it shows as L0."""
    reported: frozenset[tuple[str, str]]

    @property
    def quoted_pcrs(self) -> tuple[int, ...]:
        """What its challenges ask for."""
        return tuple(sorted((*self.boot_pcrs, self.pcr, *(() if self.ima is None else (IMA_PCR,)))))

    def verifier_policy(
        self,
        *,
        releases: ReleaseTrust,
        controller_spki: bytes,
        agent_spki: bytes | None,
        known_firmware: frozenset[tuple[str, str]],
    ) -> VerifierPolicy:
        """The same, with what one judgement needs besides: see VerifierPolicy."""
        return VerifierPolicy(
            releases=releases,
            firmware_floor=self.firmware_floor,
            firmware_versions=self.firmware_versions,
            pcr=self.pcr,
            controller_spki=controller_spki,
            agent_spki=agent_spki,
            known_firmware=known_firmware,
            lease_ns=self.lease_ns,
            boot=self.boot,
            reported=self.reported,
            ima=self.ima,
            without_tpm=self.without_tpm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPolicy:
    """A policy that was checked as a whole (policy_file.py)."""

    name: str
    version: int
    document: PolicyDocument
    """What it was read from."""
    vendors: Vendors
    firmware_floor: int
    firmware_versions: frozenset[str]
    pcr: int
    """PCR of the sha256 bank that firmware is measured into."""
    boot_pcrs: tuple[int, ...]
    """PCRs of the boot chain that every agent quotes; rules of L2 judge them."""
    rules: tuple[Rule, ...]
    """The first that means an agent is its; the last means every agent."""
    reported: frozenset[tuple[str, str]]
    """(check, reason) of failures that do not end the trust."""
    without_tpm: WithoutTpm
    ima: ImaPolicy
    """What rules of L3 judge IMA's list by."""
    collectors: AllowList
    """What agents may export flow records to."""

    def for_agent(self, agent_id: str, labels: Mapping[str, str]) -> AgentPolicy:
        """What is demanded of this agent."""
        rule = next(rule for rule in self.rules if rule.selector.fits(agent_id, labels))
        boot = None
        if rule.level != "L1":
            boot = BootPolicy(references=rule.references, pcrs=self.boot_pcrs, require_secure_boot=rule.require_secure_boot)
        return AgentPolicy(
            rule=rule.text,
            interval_s=rule.interval_s,
            lease_ns=round(rule.lease_s * 1e9),
            firmware_floor=self.firmware_floor,
            firmware_versions=self.firmware_versions,
            pcr=self.pcr,
            boot_pcrs=self.boot_pcrs,
            boot=boot,
            ima=self.ima if rule.level == "L3" else None,
            # A rule that demands measured boot means it, whoever is named.
            without_tpm=rule.level == "L1" and self.without_tpm.permits(agent_id, labels),
            reported=self.reported,
        )
