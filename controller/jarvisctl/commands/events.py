# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl events`: what happened in the fleet, as kept by the controller, or as it comes (event_stream.py)."""

from enum import StrEnum
from typing import Annotated

import typer
from jarvis.capture.v1 import event_pb2, fleet_pb2

from jarvisctl.client import Fleet, run
from jarvisctl.commands.event_stream import EventStream
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.events import TYPE, event_object, loss_object, loss_text, table
from jarvisctl.format.objects import enum_text
from jarvisctl.options import OLDEST, AgentOption, AllOption, SelectorOption, check_range, make_selector, parse_moment

app = typer.Typer(add_completion=False)

_DEFAULT_LAST = 100


class Severity(StrEnum):
    """The least severity that is shown."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


_SEVERITIES = {
    Severity.INFO: event_pb2.EVENT_SEVERITY_INFO,
    Severity.WARNING: event_pb2.EVENT_SEVERITY_WARNING,
    Severity.ERROR: event_pb2.EVENT_SEVERITY_ERROR,
    Severity.CRITICAL: event_pb2.EVENT_SEVERITY_CRITICAL,
}
_TYPES: dict[str, event_pb2.EventType.ValueType] = {
    enum_text(TYPE, number): number for number in event_pb2.EventType.values() if number
}


def complete_type(incomplete: str) -> list[str]:
    """Event types that begin so, for the shell's TAB."""
    return [name for name in _TYPES if name.startswith(incomplete)]


@app.command()
def events(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    follow: Annotated[bool, typer.Option("--follow", help="Events as they come, until Ctrl-C.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help='Events that the controller came to know since: 10m ago, RFC 3339, or "oldest" for all that it keeps.',
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option("--last", metavar="N", help="The newest N; 100 if neither --since nor --follow is given."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="With --follow: end after so many events; 0: never.")] = 0,
    severity: Annotated[Severity, typer.Option("--severity", help="Only events of this severity or above.")] = Severity.INFO,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only events of this type. Repeatable.", autocompletion=complete_type),
    ] = None,
) -> None:
    """Shows what happened: losses, clock steps, interfaces, captures, leases, and what became of agents.

    Retired agents' events are shown too. --follow reconnects by itself and goes on where it stopped, without a repeat or a gap;
    what the controller no longer keeps is said as a loss on stderr (as an object among the events with --output json).
    """
    request = fleet_pb2.WatchEventsRequest(
        selector=make_selector(agent, selector, everybody),
        follow=follow,
        min_severity=_SEVERITIES[severity],
        types=[_type_of(name) for name in type_ or ()],
    )
    _set_start(request, since, last)
    bound = check_range("--limit", limit, 1, 2**63, "events", zero="no end")
    if bound and not follow:
        raise usage_error(f"--limit is {bound:,}: accepted only together with --follow; --last N gives the newest N")
    if follow:
        run(context, lambda fleet: EventStream(fleet, request, limit=bound).run())
    else:
        run(context, lambda fleet: _kept(fleet, request))


def _type_of(name: str) -> event_pb2.EventType.ValueType:
    if name not in _TYPES:
        raise usage_error(f"--type is {name!r}: accepted are {', '.join(_TYPES)}")
    return _TYPES[name]


def _set_start(request: fleet_pb2.WatchEventsRequest, since: str | None, last: int | None) -> None:
    if since is not None and last is not None:
        raise usage_error(f"--since is {since!r} and --last is {last}: only one of them is accepted")
    if last is not None:
        request.last_events = check_range("--last", last, 1, 100_000, "events")
    elif since is None and request.follow:
        request.only_new = True
    elif since is None:
        request.last_events = _DEFAULT_LAST
    elif since != OLDEST:
        request.since.FromDatetime(parse_moment("--since", since))


async def _kept(fleet: Fleet, request: fleet_pb2.WatchEventsRequest) -> ExitCode:
    found: list[event_pb2.Event] = []
    async for answer in fleet.stub.WatchEvents(request, timeout=fleet.timeout_s):
        kind = answer.WhichOneof("event")
        if kind == "loss":
            if fleet.output.json:
                fleet.output.line(loss_object(answer.loss))
            else:
                fleet.output.remark(loss_text(answer.loss))
        elif kind == "happened" and fleet.output.json:
            fleet.output.line(event_object(answer.happened))
        elif kind == "happened":
            found.append(answer.happened)
    if not fleet.output.json:
        fleet.output.table(table(found))
    return ExitCode.OK
