# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl capture interfaces add|remove|list`: the interfaces of live captures, changed while they run."""

import uuid
from typing import Annotated

import typer
from jarvis.capture.v1 import capture_pb2, fleet_pb2

from jarvisctl.client import Fleet, run
from jarvisctl.commands.capture_outcomes import CaptureView
from jarvisctl.commands.outcomes import print_outcomes
from jarvisctl.errors import ExitCode
from jarvisctl.format.objects import enum_text
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import count, printable
from jarvisctl.options import AgentOption, AllOption, SelectorOption, make_selector

app = typer.Typer(no_args_is_help=True, add_completion=False)

_STATE = capture_pb2.InterfaceState.DESCRIPTOR

NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME...", help="Network interfaces on the agents.")]


@app.command()
def add(
    context: typer.Context,
    names: NamesArgument,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
) -> None:
    """Adds interfaces to the capture that runs on every agent addressed. Needs role operator.

    They are added one after the other: those before one that is refused stay added.
    """
    wanted = make_selector(agent, selector, everybody, changes=True)
    _update(context, fleet_pb2.FleetUpdateInterfacesRequest(selector=wanted, add=names))


@app.command()
def remove(
    context: typer.Context,
    names: NamesArgument,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
) -> None:
    """Removes interfaces; what their rings hold is metered first. Needs role operator.

    They are removed one after the other: those before one that is refused stay removed.
    """
    wanted = make_selector(agent, selector, everybody, changes=True)
    _update(context, fleet_pb2.FleetUpdateInterfacesRequest(selector=wanted, remove=names))


@app.command("list")
def list_interfaces(
    context: typer.Context, agent: AgentOption = None, selector: SelectorOption = "", everybody: AllOption = False
) -> None:
    """Lists the interfaces of captures with their states and counters."""
    request = fleet_pb2.GetCaptureStatusesRequest(selector=make_selector(agent, selector, everybody))

    async def ask(fleet: Fleet) -> ExitCode:
        answers = fleet.stub.GetCaptureStatuses(request, timeout=fleet.timeout_s)
        return await print_outcomes(fleet, "asking", answers, InterfacesView())

    run(context, ask)


def _update(context: typer.Context, request: fleet_pb2.FleetUpdateInterfacesRequest) -> None:
    request.request_id = str(uuid.uuid4())

    async def ask(fleet: Fleet) -> ExitCode:
        answers = fleet.stub.UpdateInterfaces(request, timeout=fleet.timeout_s)
        return await print_outcomes(fleet, "changing", answers, InterfacesView())

    run(context, ask)


class InterfacesView(CaptureView):
    """One row an interface; an agent without any, or that failed, has a row that says so."""

    def table(self) -> Table:
        """Empty, with its columns."""
        return Table(
            columns=[
                Column(title="AGENT", cut=12),
                Column(title="INTERFACE"),
                Column(title="STATE", states=True),
                Column(title="BACKEND"),
                Column(title="PACKETS", right=True),
                Column(title="DROPPED", right=True),
                Column(title="MESSAGE", fold=True),
            ]
        )

    def rows(self, outcome: fleet_pb2.CaptureOutcome, failure: str) -> list[list[str]]:
        """A row an interface."""
        if failure or not outcome.capture.interfaces:
            return [[outcome.agent_id, "-", "failed" if failure else "-", "-", "-", "-", failure or "no live capture"]]
        return [
            [
                outcome.agent_id,
                printable(interface.name),
                enum_text(_STATE, interface.state),
                printable(interface.backend),
                count(interface.received),
                count(interface.dropped_nic + interface.dropped_kernel),
                printable(interface.error) or "-",
            ]
            for interface in outcome.capture.interfaces
        ]
