# SPDX-License-Identifier: Apache-2.0
"""policy.toml for fleets of tests, demo and attacks: what is not said is as `jarvis-controller init` has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A policy, field by field; `toml` writes it down."""

    roots: Sequence[str] = ()
    """Empty: the file in ek-roots/ that `init` put there."""
    name: str = "test"
    version: int = 1
    vendors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    floor: int = 0
    versions: Sequence[str] = ()
    interval_s: float = 60.0
    lease_s: float = 600.0
    boot_pcrs: Sequence[int] = ()
    references: Sequence[str] = ()
    """With any, every agent is to be of level L2."""
    require_secure_boot: bool = False
    rules: Sequence[Mapping[str, Any]] = ()
    """Before the one for all others."""
    failures: Mapping[str, str] = field(default_factory=dict)
    without_tpm: Mapping[str, Any] = field(default_factory=dict)
    ima: Mapping[str, Any] = field(default_factory=dict)
    """With any, every agent is to be of level L3."""
    collectors: Sequence[str] = ()
    """What may be exported to."""

    def toml(self, roots: Sequence[str] = ()) -> str:
        """The file. `roots`: where none were said."""
        everyone: dict[str, Any] = {"selector": "", "level": "L3" if self.ima else "L2" if self.references else "L1"}
        if self.references:
            everyone |= {"references": list(self.references), "require_secure_boot": self.require_secure_boot}
        lines = [f"name = {_value(self.name)}", f"version = {self.version}"]
        lines += _table("[vendors]", {"roots": list(self.roots or roots), **self.vendors})
        lines += _table("[firmware]", {"floor": self.floor, "versions": list(self.versions)})
        attestation = {"interval_s": self.interval_s, "lease_s": self.lease_s, "boot_pcrs": list(self.boot_pcrs)}
        lines += _table("[attestation]", attestation)
        for rule in (*self.rules, everyone):
            lines += _table("[[rule]]", rule)
        lines += _table("[failures]", self.failures)
        lines += _table("[without_tpm]", self.without_tpm)
        lines += _table("[ima]", self.ima)
        lines += _table("[export]", {"collectors": list(self.collectors)})
        return "\n".join(lines) + "\n"


def _table(title: str, fields: Mapping[str, Any]) -> list[str]:
    return [title, *(f"{name} = {_value(value)}" for name, value in fields.items())]


def _value(value: Any) -> str:
    return json.dumps(value)
