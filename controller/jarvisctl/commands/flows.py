# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl flows`: live flows as a table, or finished ones as a stream (flow_stream.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from jarvis.capture.v1 import capture_pb2, fleet_pb2, flow_pb2

from jarvisctl.client import Fleet, nothing_selected, run
from jarvisctl.commands.flow_stream import FlowStream
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.flows import FlowJson, arrow_for_output, endpoints, has_statistics, statistics_text, tunnel_text
from jarvisctl.format.objects import enum_text
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import count, scaled, span
from jarvisctl.options import OLDEST, AgentOption, AllOption, SelectorOption, check_range, make_selector, parse_moment
from jarvisctl.status import failure_of

app = typer.Typer(add_completion=False)


class Sort(StrEnum):
    """What a table of live flows is ordered by, greatest first."""

    PACKETS = "packets"
    OCTETS = "octets"
    START = "start"
    LAST = "last"
    DURATION = "duration"


_SORTS = {
    Sort.PACKETS: capture_pb2.FLOW_SORT_PACKETS,
    Sort.OCTETS: capture_pb2.FLOW_SORT_OCTETS,
    Sort.START: capture_pb2.FLOW_SORT_START,
    Sort.LAST: capture_pb2.FLOW_SORT_LAST,
    Sort.DURATION: capture_pb2.FLOW_SORT_DURATION,
}

#: The same order here, to merge what several agents sent. The arguments are the record and its batch's base time.
_KEYS: dict[Sort, Callable[[flow_pb2.FlowRecord, int], int]] = {
    Sort.PACKETS: lambda record, _: record.fwd_packets + record.rev_packets,
    Sort.OCTETS: lambda record, _: record.fwd_octets + record.rev_octets,
    Sort.START: lambda record, base: base + record.start_delta_ns,
    Sort.LAST: lambda record, base: base + record.end_delta_ns,
    Sort.DURATION: lambda record, _: record.end_delta_ns - record.start_delta_ns,
}

_STATE = flow_pb2.FlowState.DESCRIPTOR


@app.command()
def flows(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    follow: Annotated[bool, typer.Option("--follow", help="Finished flows as they arrive, until Ctrl-C.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Live: 1 to 100,000, 100 if not given. Finished: end after so many."),
    ] = None,
    min_packets: Annotated[
        int, typer.Option("--min-packets", metavar="N", help="Only flows of at least N packets, both directions together.")
    ] = 0,
    sort_by: Annotated[
        Sort | None, typer.Option("--sort-by", help="Order of live flows, greatest first; packets if not given.")
    ] = None,
    filter_: Annotated[
        str, typer.Option("--filter", "-f", metavar="BPF", help="Addresses, ports, protocol, VLAN; either direction.")
    ] = "",
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help='Finished flows that ended since: 5m ago, RFC 3339, or "oldest" for all that is kept.'
        ),
    ] = None,
    last: Annotated[int | None, typer.Option("--last", metavar="N", help="The newest N finished flows of each agent.")] = None,
) -> None:
    """Shows live flows; with --since or --last the finished ones that agents keep; with --follow those that finish from now on.

    Losses and agents that come and go are said on stderr (as objects among the flows with --output json). --follow reconnects by
    itself; only with one --agent can it take up again where it stopped, and otherwise it says what may be missing.
    """
    wanted = make_selector(agent, selector, everybody)
    check_range("--min-packets", min_packets, 0, 2**64 - 1, "packets")
    if not follow and since is None and last is None:
        order = sort_by or Sort.PACKETS
        bound = check_range("--limit", 100 if limit is None else limit, 1, 100_000, "flows")
        query = capture_pb2.FlowQuery(filter=filter_, min_packets=min_packets, sort_by=_SORTS[order], limit=bound)
        run(context, lambda fleet: _live(fleet, fleet_pb2.FleetListFlowsRequest(selector=wanted, query=query), order))
        return
    if sort_by is not None:
        raise usage_error(
            f"--sort-by is {sort_by.value!r}: accepted for live flows only, finished ones come in the order of their records"
        )
    bound = check_range("--limit", 0 if limit is None else limit, 1, 2**63, "flows", zero="no end")
    subscription = capture_pb2.FlowSubscription(filter=filter_, min_packets=min_packets, follow=follow)
    _set_start(subscription, since, last)
    request = fleet_pb2.WatchFlowsRequest(selector=wanted, subscription=subscription)
    run(context, lambda fleet: FlowStream(fleet, request, limit=bound).run())


def _set_start(subscription: capture_pb2.FlowSubscription, since: str | None, last: int | None) -> None:
    if since is not None and last is not None:
        raise usage_error(f"--since is {since!r} and --last is {last}: only one of them is accepted")
    if last is not None:
        subscription.last_records = check_range("--last", last, 1, 2**32 - 1, "flows")
    elif since is None:
        subscription.only_new = True
    elif since != OLDEST:
        subscription.since.FromDatetime(parse_moment("--since", since))


@dataclass(slots=True, kw_only=True)
class _Row:
    """A live flow and whose it is."""

    agent_id: str
    base_ns: int
    shard: int
    record: flow_pb2.FlowRecord


async def _live(fleet: Fleet, request: fleet_pb2.FleetListFlowsRequest, order: Sort) -> ExitCode:
    rows: list[_Row] = []
    failures: dict[str, dict[str, Any]] = {}
    answers = 0
    async for answer in fleet.stub.ListFlows(request, timeout=fleet.timeout_s):
        answers += 1
        if answer.HasField("status"):
            failure = failure_of(answer.status)
            if failure is not None:
                failures[answer.agent_id] = {
                    "event": "status",
                    "agent_id": answer.agent_id,
                    "ok": False,
                    "error": failure.to_object(),
                }
                if not fleet.output.json:
                    fleet.output.remark(f"{answer.agent_id}: {failure.sentence}")
        else:
            base, shard = answer.batch.base_time_unix_ns, answer.batch.shard
            rows += [_Row(agent_id=answer.agent_id, base_ns=base, shard=shard, record=record) for record in answer.batch.records]
    if not answers:
        raise nothing_selected()
    key = _KEYS[order]
    rows.sort(key=lambda row: key(row.record, row.base_ns), reverse=True)
    del rows[request.query.limit :]
    if fleet.output.json:
        _print_objects(fleet, rows)
        for value in failures.values():
            fleet.output.line(value)
    else:
        fleet.output.table(_table(rows))
    return ExitCode.FAILED if failures else ExitCode.OK


def _print_objects(fleet: Fleet, rows: list[_Row]) -> None:
    formatter = FlowJson()
    for row in rows:
        batch = flow_pb2.FlowBatch(shard=row.shard, base_time_unix_ns=row.base_ns, records=[row.record])
        fleet.output.text(formatter.lines(row.agent_id, batch))


def _table(rows: list[_Row]) -> Table:
    statistics = any(has_statistics(row.record) for row in rows)
    table = Table(
        columns=[
            Column(title="AGENT", cut=8),
            Column(title="FLOW"),
            Column(title="FWD", right=True),
            Column(title="FWD-BYTES", right=True),
            Column(title="REV", right=True),
            Column(title="REV-BYTES", right=True),
            Column(title="VLAN", right=True),
            Column(title="DURATION", right=True),
            Column(title="LAST", right=True),
            Column(title="STATE", states=True),
            *([Column(title="STATISTICS")] if statistics else []),
        ]
    )
    arrow = arrow_for_output()
    for row in rows:
        record = row.record
        end = datetime.fromtimestamp((row.base_ns + record.end_delta_ns) / 1e9, UTC).astimezone()
        table.add(
            row.agent_id,
            endpoints(record, arrow) + (f"  in {tunnel_text(record)}" if record.tunnel_type else ""),
            count(record.fwd_packets),
            scaled(record.fwd_octets, "B"),
            count(record.rev_packets),
            scaled(record.rev_octets, "B"),
            str(record.vlan_id or "-"),
            span((record.end_delta_ns - record.start_delta_ns) / 1e9),
            f"{end:%H:%M:%S}",
            enum_text(_STATE, record.state),
            *([statistics_text(record).strip()] if statistics else []),
        )
    return table
