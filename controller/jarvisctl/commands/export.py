# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl export enable|disable|status`: exports of flows to collectors, one outcome per agent, as the agents answer."""

import asyncio
import importlib
import uuid
from typing import Annotated

import typer
from jarvis.capture.v1 import export_pb2, fleet_pb2

from jarvisctl.client import Fleet, nothing_selected, run
from jarvisctl.commands.export_outcomes import ExportsView
from jarvisctl.commands.export_spec import (
    PROFILES,
    PROTOCOLS,
    TIME_UNITS,
    TRANSPORTS,
    ExportProtocol,
    Profile,
    TimeUnit,
    Transport,
    check_fields,
    check_id,
    parse_collectors,
)
from jarvisctl.commands.outcomes import outcome_object, print_outcomes
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.table import Table, is_terminal
from jarvisctl.options import AgentOption, AllOption, SelectorOption, check_range, make_selector, parse_duration, to_duration
from jarvisctl.status import failure_of

app = typer.Typer(no_args_is_help=True, add_completion=False)

_DAY_S = 86_400.0


@app.command()
def enable(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    export_id: Annotated[str, typer.Option("--id", metavar="ID", help="Names the export: 1 to 32 of a-z 0-9 -.")],
    collector: Annotated[
        list[str] | None,
        typer.Option(
            "--collector",
            "-c",
            metavar="HOST[:PORT]",
            help="Address or DNS name that the policy allows; [IPv6]:PORT; repeat for several. Without a port the protocol's: "
            "2055 NetFlow, 4739 IPFIX, 4740 over TLS, 6343 sFlow.",
        ),
    ] = None,
    protocol: Annotated[
        ExportProtocol, typer.Option("--protocol", help="netflow5 says IPv4 only; sflow sends samples of frames, not flows.")
    ] = ExportProtocol.IPFIX,
    transport: Annotated[
        Transport, typer.Option("--transport", help="tcp, tls, sctp and file (RFC 5655) are of IPFIX alone.")
    ] = Transport.UDP,
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            "--tls-name",
            metavar="NAME",
            help="Name in the collectors' certificates, where it is not their host: one for all, or one for each in their order.",
        ),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Spread flows over the collectors; otherwise each gets every record.")
    ] = False,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval",
            metavar="TIME",
            help="How long a record may wait for its message to fill, and between counters of sflow: 1s to 1h. [default: 1s; "
            "sflow: 20s]",
        ),
    ] = None,
    profile: Annotated[Profile, typer.Option("--profile", help="Which information elements records have.")] = Profile.DEFAULT,
    biflow: Annotated[
        bool, typer.Option("--biflow", help="IPFIX: one record a flow (RFC 5103); otherwise one a direction.")
    ] = False,
    time: Annotated[TimeUnit, typer.Option("--time", help="Resolution of flow times.")] = TimeUnit.MS,
    domain: Annotated[
        int, typer.Option("--domain", metavar="N", help="IPFIX observation domain, source id, engine (netflow5: to 65,535).")
    ] = 0,
    template_refresh: Annotated[
        str | None,
        typer.Option(
            "--template-refresh", metavar="TIME", help="Templates and options are sent again so often: 1s to 1d. [default: 60s]"
        ),
    ] = None,
    template_messages: Annotated[
        int, typer.Option("--template-messages", metavar="N", help="And after N messages, over UDP: to 1,000,000; 0: 4,096.")
    ] = 0,
    max_rate: Annotated[
        int, typer.Option("--max-rate", metavar="RECORDS", help="A second and collector at most; 0: as fast as they come.")
    ] = 0,
    filter_: Annotated[str, typer.Option("--filter", "-f", metavar="BPF", help="Only flows that match.")] = "",
    sampling_rate: Annotated[
        int, typer.Option("--sampling-rate", metavar="N", help="sflow: one of N frames, to 16,777,215; 0: 1,000.")
    ] = 0,
    file_size: Annotated[
        int, typer.Option("--file-size", metavar="MIB", help="A file is finished at this size: to 65,536; 0: 256.")
    ] = 0,
    file_age: Annotated[
        str | None, typer.Option("--file-age", metavar="TIME", help="Or at this age: 1s to 1d. [default: 5m]")
    ] = None,
    files_kept: Annotated[
        int, typer.Option("--files-kept", metavar="N", help="Finished files kept, the oldest removed: to 100,000; 0: all.")
    ] = 0,
) -> None:
    """Exports the flows of every agent addressed to collectors that the policy allows. Needs role operator.

    It goes on over captures and restarts until it is disabled. The same again is no error; the same id with another
    specification is.
    """
    wanted = make_selector(agent, selector, everybody, changes=True)
    spec = export_pb2.ExportSpec(
        export_id=check_id("--id", export_id),
        protocol=PROTOCOLS[protocol],
        transport=TRANSPORTS[transport],
        collectors=parse_collectors(collector or (), tls_name or ()),
        distribution=export_pb2.EXPORT_DISTRIBUTION_BALANCE if balance else export_pb2.EXPORT_DISTRIBUTION_UNSPECIFIED,
        export_interval_sec=0 if interval is None else _whole_seconds("--interval", interval),
        profile=PROFILES[profile],
        biflow=biflow,
        time_unit=TIME_UNITS[time],
        observation_domain_id=check_range("--domain", domain, 0, 2**32 - 1),
        template_refresh_messages=check_range("--template-messages", template_messages, 1, 1_000_000, zero="4,096"),
        max_records_per_second=check_range("--max-rate", max_rate, 0, 2**32 - 1, "records"),
        filter=filter_,
        sampling_rate=check_range("--sampling-rate", sampling_rate, 1, 16_777_215, zero="1,000"),
        file_size_mb=check_range("--file-size", file_size, 1, 65_536, "MiB", zero="256"),
        files_kept=check_range("--files-kept", files_kept, 1, 100_000, "files", zero="all"),
    )
    if template_refresh is not None:
        spec.template_refresh.CopyFrom(to_duration(parse_duration("--template-refresh", template_refresh, 1.0, _DAY_S)))
    if file_age is not None:
        spec.file_age.CopyFrom(to_duration(parse_duration("--file-age", file_age, 1.0, _DAY_S)))
    check_fields(spec, protocol, transport)
    request = fleet_pb2.EnableExportsRequest(selector=wanted, spec=spec, request_id=str(uuid.uuid4()))
    run(
        context,
        lambda fleet: print_outcomes(
            fleet, "enabling", fleet.stub.EnableExports(request, timeout=fleet.timeout_s), ExportsView(export_id)
        ),
    )


@app.command()
def disable(
    context: typer.Context,
    export_id: Annotated[str, typer.Argument(metavar="ID", help="Of the export.")],
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    discard: Annotated[bool, typer.Option("--discard", help="Drop what is spooled instead of delivering it first.")] = False,
) -> None:
    """Ends an export on every agent addressed; what is left is delivered, for at most 5 seconds. Needs role operator."""
    wanted = make_selector(agent, selector, everybody, changes=True)
    request = fleet_pb2.DisableExportsRequest(
        selector=wanted, export_id=check_id("ID", export_id), discard=discard, request_id=str(uuid.uuid4())
    )
    run(
        context,
        lambda fleet: print_outcomes(
            fleet, "disabling", fleet.stub.DisableExports(request, timeout=fleet.timeout_s), ExportsView(export_id)
        ),
    )


@app.command()
def status(
    context: typer.Context,
    export_id: Annotated[str, typer.Argument(metavar="[ID]", help="Only exports of this name.")] = "",
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    follow: Annotated[bool, typer.Option("--follow", help="Again and again until Ctrl-C.")] = False,
    interval: Annotated[
        str | None,
        typer.Option("--interval", metavar="TIME", help="Between two answers of --follow: 500ms to 1h; 2s if not given."),
    ] = None,
) -> None:
    """Shows exports and how their collectors do: flows sent, waiting in the spool, lost.

    On a terminal --follow keeps one table up to date; in a pipe each answer is a table, or a line with --output json.
    """
    if interval is not None and not follow:
        raise usage_error(f"--interval is {interval}: accepted only together with --follow")
    pause_s = parse_duration("--interval", interval or "2s", 0.5, 3600.0)
    request = fleet_pb2.FleetListExportsRequest(selector=make_selector(agent, selector, everybody))
    view = ExportsView(check_id("ID", export_id) if export_id else "")
    if follow:
        run(context, lambda fleet: _follow(fleet, request, view, pause_s))
    else:
        run(context, lambda fleet: _once(fleet, request, view, export_id))


async def _once(fleet: Fleet, request: fleet_pb2.FleetListExportsRequest, view: ExportsView, export_id: str) -> ExitCode:
    code = await print_outcomes(fleet, "asking", fleet.stub.ListExports(request, timeout=fleet.timeout_s), view)
    if export_id and code is ExitCode.OK and not view.shown:
        raise usage_error(
            f"ID is {export_id!r}: no agent addressed has an export of this name, `jarvisctl export status` shows all"
        )
    return code


async def _follow(fleet: Fleet, request: fleet_pb2.FleetListExportsRequest, view: ExportsView, pause_s: float) -> ExitCode:
    """Until Ctrl-C, which leaves with its own code."""
    if fleet.output.json or not is_terminal():
        while True:
            await _print_answers(fleet, request, view)
            await asyncio.sleep(pause_s)
    render = importlib.import_module("jarvisctl.format.terminal").render
    with importlib.import_module("rich.live").Live(auto_refresh=False) as live:
        while True:
            live.update(render(await _ask(fleet, request, view)), refresh=True)
            await asyncio.sleep(pause_s)


async def _print_answers(fleet: Fleet, request: fleet_pb2.FleetListExportsRequest, view: ExportsView) -> None:
    if not fleet.output.json:
        fleet.output.table(await _ask(fleet, request, view))
        return
    async for outcome in fleet.stub.ListExports(request, timeout=fleet.timeout_s):
        fleet.output.line(outcome_object(outcome, view))


async def _ask(fleet: Fleet, request: fleet_pb2.FleetListExportsRequest, view: ExportsView) -> Table:
    """The table of one round, agents in the order of their ids."""
    answers = [outcome async for outcome in fleet.stub.ListExports(request, timeout=fleet.timeout_s)]
    if not answers:
        raise nothing_selected()
    table = view.table()
    for outcome in sorted(answers, key=lambda one: one.agent_id):
        failure = failure_of(outcome.status)
        for row in view.rows(outcome, failure.sentence if failure else ""):
            table.add(*row)
    return table


def _whole_seconds(option: str, text: str) -> int:
    seconds = parse_duration(option, text, 1.0, 3600.0)
    if seconds != int(seconds):
        raise usage_error(f"{option} is {text}: accepted are whole seconds, 1s to 1h")
    return int(seconds)
