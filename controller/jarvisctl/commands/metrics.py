# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl metrics`: counters once, or at an interval until Ctrl-C."""

import importlib
from collections.abc import AsyncIterable, Mapping
from typing import Annotated, Any

import typer
from jarvis.capture.v1 import capture_pb2, fleet_pb2

from jarvisctl.client import Fleet, nothing_selected, run
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.format.table import Column, Table, is_terminal
from jarvisctl.format.units import count, scaled
from jarvisctl.options import AgentOption, AllOption, SelectorOption, make_selector, parse_duration, to_duration
from jarvisctl.status import failure_of

app = typer.Typer(add_completion=False)


@app.command()
def metrics(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    follow: Annotated[bool, typer.Option("--follow", help="Again and again until Ctrl-C.")] = False,
    interval: Annotated[
        str | None,
        typer.Option("--interval", metavar="TIME", help="Between two answers of --follow: 100ms to 1h; 1s if not given."),
    ] = None,
) -> None:
    """Shows the counters of captures.

    On a terminal --follow keeps one table up to date; in a pipe each answer is a line.
    """
    if interval is not None and not follow:
        raise usage_error(f"--interval is {interval}: accepted only together with --follow")
    seconds = parse_duration("--interval", interval or "1s", 0.1, 3600)
    request = fleet_pb2.WatchMetricsRequest(
        selector=make_selector(agent, selector, everybody), follow=follow, interval=to_duration(seconds) if follow else None
    )
    run(context, lambda fleet: _metrics(fleet, request))


async def _metrics(fleet: Fleet, request: fleet_pb2.WatchMetricsRequest) -> ExitCode:
    call = fleet.stub.WatchMetrics(request, timeout=None if request.follow else fleet.timeout_s)
    if fleet.output.json:
        rows = await _print_objects(fleet, call)
    elif request.follow and is_terminal():
        rows = await _follow_on_terminal(call)
    elif request.follow:
        rows = await _follow_in_pipe(fleet, call)
    else:
        rows = {answer.agent_id: answer async for answer in call}
        if rows:
            fleet.output.table(_table(rows))
    if not rows:
        raise nothing_selected()
    return ExitCode.FAILED if any(answer.HasField("status") for answer in rows.values()) else ExitCode.OK


async def _print_objects(
    fleet: Fleet, call: AsyncIterable[fleet_pb2.WatchMetricsResponse]
) -> dict[str, fleet_pb2.WatchMetricsResponse]:
    last = {}
    async for answer in call:
        last[answer.agent_id] = answer
        fleet.output.line(_object(answer))
    return last


async def _follow_on_terminal(call: AsyncIterable[fleet_pb2.WatchMetricsResponse]) -> dict[str, fleet_pb2.WatchMetricsResponse]:
    render = importlib.import_module("jarvisctl.format.terminal").render
    last: dict[str, fleet_pb2.WatchMetricsResponse] = {}
    with importlib.import_module("rich.live").Live(refresh_per_second=4) as live:
        async for answer in call:
            last[answer.agent_id] = answer
            live.update(render(_table(last)))
    return last


async def _follow_in_pipe(
    fleet: Fleet, call: AsyncIterable[fleet_pb2.WatchMetricsResponse]
) -> dict[str, fleet_pb2.WatchMetricsResponse]:
    last: dict[str, fleet_pb2.WatchMetricsResponse] = {}
    async for answer in call:
        if not last:
            fleet.output.text("  ".join(column.title for column in _COLUMNS) + "\n")
        last[answer.agent_id] = answer
        fleet.output.text("  ".join(_row(answer)) + "\n")
    return last


def _object(answer: fleet_pb2.WatchMetricsResponse) -> dict[str, Any]:
    failure = failure_of(answer.status) if answer.HasField("status") else None
    return {
        "agent_id": answer.agent_id,
        "ok": not answer.HasField("status"),
        "error": failure.to_object() if failure else None,
        "metrics": to_object(answer.metrics) if answer.HasField("metrics") else None,
    }


_COLUMNS = [
    Column(title="AGENT", cut=12),
    Column(title="RECEIVED", right=True),
    Column(title="METERED", right=True),
    Column(title="UNSAMPLED", right=True),
    Column(title="RATE", right=True),
    Column(title="THROUGHPUT", right=True),
    Column(title="DROP-NIC", right=True),
    Column(title="DROP-KERNEL", right=True),
    Column(title="DROP-USER", right=True),
    Column(title="MALFORMED", right=True),
    Column(title="FLOWS", right=True),
    Column(title="FLOWS-TOTAL", right=True),
    Column(title="EVICTED", right=True),
    Column(title="RING", right=True),
    Column(title="ERROR", fold=True),
]


def _table(answers: Mapping[str, fleet_pb2.WatchMetricsResponse]) -> Table:
    table = Table(columns=_COLUMNS)
    for agent_id in sorted(answers):
        table.add(*_row(answers[agent_id]))
    return table


def _row(answer: fleet_pb2.WatchMetricsResponse) -> list[str]:
    if not answer.HasField("metrics"):
        failure = failure_of(answer.status)
        return [answer.agent_id, *["-"] * (len(_COLUMNS) - 2), failure.sentence if failure else "no metrics"]
    return [answer.agent_id, *_numbers(answer.metrics), "-"]


def _numbers(metrics: capture_pb2.CaptureMetrics) -> list[str]:
    return [
        count(metrics.received),
        count(metrics.metered),
        count(metrics.unsampled),
        scaled(metrics.throughput_pps, "pps"),
        scaled(metrics.throughput_bps, "bit/s"),
        count(metrics.dropped_nic),
        count(metrics.dropped_kernel),
        count(metrics.dropped_user),
        count(metrics.malformed),
        count(metrics.flows_active),
        count(metrics.flows_total),
        count(metrics.flows_evicted),
        f"{metrics.ring_usage:.0%}",
    ]
