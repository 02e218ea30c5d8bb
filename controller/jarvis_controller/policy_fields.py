# SPDX-License-Identifier: Apache-2.0
"""Typed reading of a TOML table: what is not as it should be is refused with its name, its value and what would be accepted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jarvis_trust.errors import PolicyError

_MAX_ITEMS = 10_000


def refused(field: str, value: object, accepted: str) -> PolicyError:
    """The error for a field."""
    shown = repr(value)
    return PolicyError(
        "POLICY_INVALID", f"{field} = {shown if len(shown) <= 120 else shown[:117] + '...'}: {accepted} is accepted"
    )


class Fields:
    """One table. Each field is asked for once; `end` refuses those that nobody asked for. Every method raises PolicyError."""

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        """Args: name: of the table, empty for the whole file."""
        self._name = name
        self._table = table
        self._asked: set[str] = set()

    def path(self, field: str) -> str:
        """Full name of one of its fields."""
        return f"{self._name}.{field}" if self._name else field

    def names(self) -> Sequence[str]:
        """Every field that is there."""
        return tuple(self._table)

    def end(self) -> None:
        """All fields were asked for."""
        for field in self._table:
            if field not in self._asked:
                accepted = ", ".join(sorted(self._asked))
                raise PolicyError("POLICY_INVALID", f"unknown field {self.path(field)[:120]!r}; accepted are {accepted}")

    def text(self, field: str, form: re.Pattern[str] | None, accepted: str) -> str:
        """A string; there is no default."""
        value = self._get(field, None)
        return self._text(field, value, form, accepted)

    def choice(self, field: str, among: Sequence[str]) -> str:
        """One of some words."""
        value = self._get(field, None)
        if value not in among:
            raise refused(self.path(field), value, f"one of {', '.join(among)}")
        return str(value)

    def texts(self, field: str, form: re.Pattern[str] | None, accepted: str) -> tuple[str, ...]:
        """A list of different strings; empty when it is not there."""
        values = self._list(field, f"a list of strings, each {accepted},")
        texts = tuple(self._text(f"{field}[{number}]", value, form, accepted) for number, value in enumerate(values))
        if any(not text for text in texts) or len(set(texts)) != len(texts):
            raise refused(self.path(field), list(texts), "a list of different strings that are not empty")
        return texts

    def integers(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when it is not there."""
        values = self._list(field, "a list of whole numbers")
        if any(type(value) is not int for value in values):
            raise refused(self.path(field), values, "a list of whole numbers")
        return tuple(values)

    def integer(self, field: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number of low..high."""
        value = self._get(field, default)
        if type(value) is not int or not low <= value <= high:
            raise refused(self.path(field), value, f"a whole number of {low}..{high}")
        return value

    def number(self, field: str, low: float, high: float, *, default: float) -> float:
        """A number of low..high."""
        value = self._get(field, default)
        if type(value) not in {int, float} or not low <= value <= high:
            raise refused(self.path(field), value, f"a number of {low:g}..{high:g}")
        return float(value)

    def flag(self, field: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(field, default)
        if not isinstance(value, bool):
            raise refused(self.path(field), value, "true or false")
        return value

    def table(self, field: str) -> Fields:
        """A table in it; an empty one when it is not there."""
        value = self._get(field, {})
        if not isinstance(value, dict):
            raise refused(self.path(field), value, f"a table [{self.path(field)}]")
        return Fields(self.path(field), value)

    def tables(self, field: str) -> list[Fields]:
        """An array of tables."""
        values = self._list(field, f"tables [[{self.path(field)}]]")
        if not all(isinstance(value, dict) for value in values):
            raise refused(self.path(field), values, f"tables [[{self.path(field)}]]")
        return [Fields(f"{self.path(field)}[{number}]", value) for number, value in enumerate(values)]

    def _list(self, field: str, accepted: str) -> list[Any]:
        value = self._get(field, [])
        if not isinstance(value, list):
            raise refused(self.path(field), value, accepted)
        if len(value) > _MAX_ITEMS:
            raise refused(self.path(field), f"{len(value)} items", f"a list of at most {_MAX_ITEMS}")
        return value

    def _text(self, field: str, value: object, form: re.Pattern[str] | None, accepted: str) -> str:
        if not isinstance(value, str) or (form is not None and form.fullmatch(value) is None):
            raise refused(self.path(field), value, accepted)
        return value

    def _get(self, field: str, default: Any) -> Any:
        self._asked.add(field)
        if field not in self._table and default is None:
            raise PolicyError("POLICY_INVALID", f"{self.path(field)} is missing")
        return self._table.get(field, default)
