# SPDX-License-Identifier: Apache-2.0
"""What an attack is, and what it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.attack.arena import Arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One thing that must not work."""

    name: str
    """family/what, unique."""
    tries: str
    """What it tries, for people; a known case by its CVE."""
    expected: str
    """The reason that it must be refused with; several failed checks are joined by +, in alphabetical order."""
    run: Callable[[Arena], str]
    """Tries it; gives the reason that it got, "OK" where it was let through."""
    is_fast: bool = False
    """Among those that run with the tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one attack ended."""

    attack: Attack
    got: str
    seconds: float

    @property
    def refused(self) -> bool:
        """With exactly the expected reason."""
        return self.got == self.attack.expected

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "name": self.attack.name,
            "tries": self.attack.tries,
            "expected": self.attack.expected,
            "got": self.got,
            "refused": self.refused,
            "seconds": round(self.seconds, 3),
        }
