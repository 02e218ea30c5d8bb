# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl agents list|show|quarantine|release|retire`."""

from collections.abc import AsyncIterator
from typing import Annotated

import typer
from jarvis.capture.v1 import enrollment_pb2, fleet_pb2

from jarvisctl.client import Fleet, nothing_selected, run
from jarvisctl.completion import complete_agent
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import age, is_set, local_time, printable
from jarvisctl.options import AgentOption, SelectorOption, check_agent, make_selector

app = typer.Typer(no_args_is_help=True, add_completion=False)

_PAGE_SIZE = 1000
_STATE = fleet_pb2.AgentState.DESCRIPTOR
_CARRIER = enrollment_pb2.Carrier.DESCRIPTOR

AgentArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Agent id, or a prefix of at least 4 characters that only one has.", autocompletion=complete_agent
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit chain.")]


@app.command("list")
def list_agents(
    context: typer.Context,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: Annotated[bool, typer.Option("--all", help="Retired agents too.")] = False,
) -> None:
    """Lists agents: all that are not retired, or those selected."""
    wanted = make_selector(agent, selector, everybody=False)
    run(context, lambda fleet: _list(fleet, wanted, show_retired=everybody))


@app.command()
def show(context: typer.Context, agent_id: AgentArgument) -> None:
    """Shows everything the controller knows of one agent."""
    check_agent("ID", agent_id)
    run(context, lambda fleet: _show(fleet, agent_id))


@app.command()
def quarantine(context: typer.Context, agent_id: AgentArgument, reason: ReasonOption) -> None:
    """Takes the trust from an agent: its lease ends, its streams are cut. Needs role operator."""
    _check(agent_id, reason)
    run(context, lambda fleet: _change_state(fleet, "QuarantineAgent", agent_id, reason))


@app.command()
def release(context: typer.Context, agent_id: AgentArgument, reason: ReasonOption) -> None:
    """Lets a quarantined agent attest again. Needs role admin."""
    _check(agent_id, reason)
    run(context, lambda fleet: _change_state(fleet, "ReleaseAgent", agent_id, reason))


@app.command()
def retire(context: typer.Context, agent_id: AgentArgument, reason: ReasonOption) -> None:
    """Ends an agent's membership: only a new join file admits its TPM again. Needs role admin."""
    _check(agent_id, reason)
    run(context, lambda fleet: _change_state(fleet, "RetireAgent", agent_id, reason))


def _check(agent_id: str, reason: str) -> None:
    check_agent("ID", agent_id)
    if not reason.strip():
        raise usage_error(f"--reason is {reason!r}: some words are needed, they are kept in the audit chain")


async def each_agent(
    fleet: Fleet, selector: fleet_pb2.AgentSelector, *, show_retired: bool = False
) -> AsyncIterator[fleet_pb2.Agent]:
    """Every selected agent, page after page."""
    token = ""
    while True:
        request = fleet_pb2.ListAgentsRequest(
            selector=selector, page_size=_PAGE_SIZE, page_token=token, show_retired=show_retired
        )
        answer = await fleet.stub.ListAgents(request, timeout=fleet.timeout_s)
        for agent in answer.agents:
            yield agent
        token = answer.next_page_token
        if not token:
            return


async def _one_agent(fleet: Fleet, agent_id: str) -> fleet_pb2.Agent:
    found = [agent async for agent in each_agent(fleet, fleet_pb2.AgentSelector(agent_ids=[agent_id]))]
    if not found:
        raise nothing_selected()
    if len(found) > 1:
        begins = ", ".join(agent.agent_id for agent in found[:3])
        raise usage_error(f"ID {agent_id!r} is the beginning of {len(found)} agent ids: give more of it ({begins} ...)")
    return found[0]


async def _list(fleet: Fleet, selector: fleet_pb2.AgentSelector, *, show_retired: bool) -> ExitCode:
    table = Table(
        columns=[
            Column(title="AGENT", cut=12),
            Column(title="STATE", states=True),
            Column(title="HOST"),
            Column(title="LABELS"),
            Column(title="FIRMWARE"),
            Column(title="LEVEL"),
            Column(title="CONNECTED"),
            Column(title="VERIFIED"),
            Column(title="REASON", fold=True),
        ]
    )
    found = 0
    async for agent in each_agent(fleet, selector, show_retired=show_retired):
        found += 1
        if fleet.output.json:
            fleet.output.line(to_object(agent))
        else:
            table.add(
                agent.agent_id,
                enum_text(_STATE, agent.state),
                printable(agent.hostname) or "-",
                printable(labels_text(agent)) or "-",
                printable(agent.firmware_version) or "-",
                printable(agent.assurance) or "-",
                _connected(agent),
                age(agent.verify_time),
                printable(agent.reason) or "-",
            )
    if not found and (selector.agent_ids or selector.label_selector):
        raise nothing_selected()
    if not found:
        raise CtlError(
            "the fleet has no agents yet: make a join file with `jarvisctl enroll token`", ExitCode.USAGE, code="not_found"
        )
    if not fleet.output.json:
        fleet.output.table(table)
    return ExitCode.OK


async def _show(fleet: Fleet, agent_id: str) -> ExitCode:
    _print_agent(fleet, await _one_agent(fleet, agent_id))
    return ExitCode.OK


async def _change_state(fleet: Fleet, rpc: str, agent_id: str, reason: str) -> ExitCode:
    """QuarantineAgent, ReleaseAgent and RetireAgent ask alike, and answer with the agent as it is then."""
    agent = await _one_agent(fleet, agent_id)
    request = getattr(fleet_pb2, f"{rpc}Request")(agent_id=agent.agent_id, reason=reason)
    answer = await getattr(fleet.stub, rpc)(request, timeout=fleet.timeout_s)
    _print_agent(fleet, answer.agent)
    return ExitCode.OK


def _connected(agent: fleet_pb2.Agent) -> str:
    """Of an agent that dials; one that is dialled is asked only when there is something to ask."""
    if agent.carrier != enrollment_pb2.CARRIER_TUNNEL:
        return "-"
    return "yes" if agent.connected else "no"


def labels_text(agent: fleet_pb2.Agent) -> str:
    """key=value, sorted, joined by commas as a selector would be written."""
    return ",".join(f"{key}={value}" for key, value in sorted(agent.labels.items()))


def _print_agent(fleet: Fleet, agent: fleet_pb2.Agent) -> None:
    if fleet.output.json:
        fleet.output.line(to_object(agent))
        return
    table = Table(columns=[Column(title="FIELD"), Column(title="VALUE", fold=True, states=True)])
    table.add("agent id", agent.agent_id)
    table.add("state", enum_text(_STATE, agent.state))
    for name, text in (
        ("reason", agent.reason),
        ("labels", labels_text(agent)),
        ("host", agent.hostname),
        ("address", agent.address),
        ("agent version", agent.version),
        ("firmware version", agent.firmware_version),
        ("firmware SHA-256", agent.firmware_sha256.hex()),
        ("assurance", agent.assurance),
    ):
        table.add(name, printable(text) or "-")
    table.add("TPM", "yes" if agent.has_tpm else "none: level L0")
    table.add("carrier", enum_text(_CARRIER, agent.carrier))
    table.add("connected", _connected(agent))
    table.add("TLS channel", "bound" if agent.channel_bound else "unbound")
    for name, time in (
        ("enrolled", agent.enroll_time),
        ("verified", agent.verify_time),
        ("in this state since", agent.state_time),
        ("lease ends", agent.lease_expire_time),
        ("certificate ends", agent.certificate_expire_time),
    ):
        table.add(name, f"{local_time(time)} ({age(time)})" if is_set(time) else "-")
    fleet.output.table(table)
