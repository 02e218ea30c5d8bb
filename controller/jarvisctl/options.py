# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and checks of values before anything is sent; the controller checks again and decides."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from jarvis.capture.v1.fleet_pb2 import AgentSelector

from jarvisctl.completion import complete_agent
from jarvisctl.errors import usage_error

AgentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        "-a",
        metavar="ID",
        help="Agent id, or a prefix of at least 4 characters that only one has. Repeatable.",
        autocompletion=complete_agent,
    ),
]
SelectorOption = Annotated[
    str, typer.Option("--selector", "-l", metavar="LABELS", help='Labels, joined by AND: "role=web,site!=lab,gpu,!old".')
]
AllOption = Annotated[bool, typer.Option("--all", help="Address every agent of the fleet.")]

#: In the place of a time: all that is kept.
OLDEST = "oldest"

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_FORMS = "accepted are forms like 30s, 5m, 1h30m, or plain seconds"


def make_selector(agents: list[str] | None, labels: str, everybody: bool, *, changes: bool = False) -> AgentSelector:
    """The selector of a request.

    Args:
        agents: ids or prefixes.
        labels: label expression; joined with the ids by AND.
        everybody: --all was given.
        changes: the command changes something, so that nobody must be addressed by leaving the selector out.

    Raises:
        CtlError: a prefix is too short, --all contradicts a selector, or a changing command addresses nobody.
    """
    if everybody and (agents or labels):
        raise usage_error("--all addresses every agent, and --agent or --selector only some: give one or the other")
    if changes and not (everybody or agents or labels):
        raise usage_error("no agent is addressed: give --agent ID or --selector LABELS, or --all for every agent of the fleet")
    for agent in agents or ():
        check_agent("--agent", agent)
    return AgentSelector(agent_ids=agents or (), label_selector=labels)


def check_agent(option: str, agent: str) -> None:
    """Refuses what cannot be an agent id or a prefix of one."""
    if not re.fullmatch(r"[a-z2-7]{4,32}", agent):
        raise usage_error(
            f"{option} is {agent!r}: accepted are agent ids or prefixes of at least 4 characters, made of a-z and 2-7"
        )


def check_range(option: str, value: int, low: int, high: int, unit: str = "", *, zero: str = "") -> int:
    """The value when it lies in low..high, or is 0 and `zero` says what 0 means."""
    if low <= value <= high or (zero and value == 0):
        return value
    also = f", or 0 for {zero}" if zero else ""
    raise usage_error(f"{option} is {value:,}: accepted are {low:,} to {high:,}{unit and ' ' + unit}{also}")


def parse_duration(option: str, text: str, low_s: float = 0.0, high_s: float = float("inf")) -> float:
    """Seconds of "30s", "5m", "1h30m", "500ms" or plain seconds; refused outside low_s..high_s."""
    parts = _DURATION_PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        raise usage_error(f"{option} is {text!r}: {_DURATION_FORMS}")
    if not low_s <= seconds <= high_s:
        upper = f" to {_short(high_s)}" if high_s != float("inf") else " or more"
        raise usage_error(f"{option} is {text}: accepted are {_short(low_s)}{upper}")
    # A protobuf Duration ends at 10,000 years.
    if seconds > 315_576_000_000:
        raise usage_error(f"{option} is {text}: accepted are 0 to 315,576,000,000 s")
    return seconds


def parse_moment(option: str, text: str) -> datetime:
    """The time that is meant by RFC 3339, or by how long ago it was ("10m")."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ].*", text):
        try:
            moment = datetime.fromisoformat(text.upper())
        except ValueError:
            raise usage_error(f"{option} is {text!r}, which is no time: accepted is RFC 3339 like 2026-11-22T10:00:00Z") from None
        if moment.tzinfo is None:
            raise usage_error(f"{option} is {text!r}, which names no time zone: accepted is RFC 3339 like 2026-11-22T10:00:00Z")
        return moment.astimezone(UTC)
    seconds = parse_duration(option, text, 0.0, 100 * 365 * 86_400.0)
    return datetime.now(UTC) - timedelta(seconds=seconds)


def to_duration(seconds: float) -> Duration:
    """Exact to the nanosecond that the number can hold."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def parse_labels(option: str, pairs: list[str]) -> dict[str, str]:
    """Labels from "key=value"; a key given twice is refused."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise usage_error(f"{option} is {pair!r}: accepted is KEY=VALUE, like role=web")
        if key in labels:
            raise usage_error(f"{option} names {key!r} twice, as {labels[key]!r} and {value!r}: give it once")
        labels[key] = value
    return labels


def _short(seconds: float) -> str:
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms" if seconds else "0"
