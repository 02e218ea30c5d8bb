# SPDX-License-Identifier: Apache-2.0
"""Which agents an operator means: ids or unique prefixes, and label terms; both joined by AND."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jarvis.capture.v1 import fleet_pb2

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.states import State

_PREFIX_MIN = 4
_MAX_TERMS = 64
_MAX_IDS = 10_000
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_LABEL_TEXT = re.compile(_LABEL)
_TERM = re.compile(rf"(?P<absent>!)?(?P<key>{_LABEL})(?:(?P<operator>==?|!=)(?P<value>(?:{_LABEL})?))?")


class SelectorError(Exception):
    """A selector that cannot be read; `field` is its path in the request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    key: str
    value: str | None
    """None: only the key's presence matters."""
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        if self.value is None:
            return (self.key in labels) is not self.negated
        return (labels.get(self.key) == self.value) is not self.negated


class Selector:
    """A selector that was read and checked. Immutable; may be asked about agents that did not exist when it was made."""

    def __init__(self, message: fleet_pb2.AgentSelector) -> None:
        """Reads the wire's form.

        Raises:
            SelectorError: an id or a label term is malformed.
        """
        self._ids = tuple(message.agent_ids)
        if len(self._ids) > _MAX_IDS:
            raise SelectorError("selector.agent_ids", f"{len(self._ids)} ids: at most {_MAX_IDS} are accepted")
        for index, prefix in enumerate(self._ids):
            check_prefix(f"selector.agent_ids[{index}]", prefix)
        self._terms = _parse_terms(message.label_selector)

    @property
    def is_everything(self) -> bool:
        """Whether it names neither ids nor labels."""
        return not self._ids and not self._terms

    def select(self, agents: Sequence[AgentRecord], *, with_retired: bool = False) -> list[AgentRecord]:
        """The agents meant, in the order given; retired ones if their ids are named, or `with_retired`.

        Raises:
            SelectorError: a prefix fits several agents.
        """
        wanted = {resolve(agents, prefix, f"selector.agent_ids[{index}]") for index, prefix in enumerate(self._ids)}
        return [
            agent
            for agent in agents
            if (agent.agent_id in wanted if self._ids else with_retired or agent.state is not State.RETIRED)
            and self._matches(agent.labels)
        ]

    def covers(self, agent: AgentRecord) -> bool:
        """Whether it means this agent (for one that joins later)."""
        return self.fits(agent.agent_id, agent.labels)

    def fits(self, agent_id: str, labels: Mapping[str, str]) -> bool:
        """The same, for an agent of which only id and labels are known."""
        return self._matches(labels) and (not self._ids or any(agent_id.startswith(prefix) for prefix in self._ids))

    def _matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self._terms)


def check_prefix(field: str, prefix: str) -> None:
    """A full id or a prefix of at least 4 characters.

    Raises:
        SelectorError: it is neither.
    """
    if re.fullmatch(rf"[a-z2-7]{{{_PREFIX_MIN},32}}", prefix) is None:
        raise SelectorError(field, f"{prefix[:80]!r}: an agent id or the first 4 or more of its characters (a-z 2-7) is accepted")


def resolve(agents: Sequence[AgentRecord], prefix: str, field: str) -> str | None:
    """The id that a prefix stands for; None when nobody has it.

    Raises:
        SelectorError: several agents have it.
    """
    found = [agent.agent_id for agent in agents if agent.agent_id.startswith(prefix)]
    if len(found) > 1 and prefix not in found:
        raise SelectorError(
            field, f"{prefix!r} fits {len(found)} agents ({', '.join(found[:3])}, ...): a unique prefix is accepted"
        )
    return found[0] if found else None


def check_labels(labels: Mapping[str, str]) -> None:
    """Labels to be given to an agent.

    Raises:
        SelectorError: a key or value that a selector could not name.
    """
    if len(labels) > _MAX_TERMS:
        raise SelectorError("labels", f"{len(labels)} labels: at most {_MAX_TERMS} are accepted")
    for key, value in labels.items():
        for what, text in (("key", key), ("value", value)):
            if _LABEL_TEXT.fullmatch(text) is None and not (what == "value" and not text):
                raise SelectorError(
                    "labels", f"{what} {text[:80]!r}: 1-63 of A-Z a-z 0-9 . _ / -, alphanumeric at both ends, are accepted"
                )


def _parse_terms(text: str) -> tuple[_Term, ...]:
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _MAX_TERMS:
        raise SelectorError("selector.label_selector", f"{len(parts)} terms: at most {_MAX_TERMS} are accepted")
    return tuple(_parse_term(part) for part in parts)


def _parse_term(part: str) -> _Term:
    match = _TERM.fullmatch(part)
    if match is None or (match["absent"] and match["operator"]):
        raise SelectorError("selector.label_selector", f"term {part[:80]!r}: key=value, key!=value, key or !key is accepted")
    return _Term(key=match["key"], value=match["value"], negated=bool(match["absent"]) or match["operator"] == "!=")
