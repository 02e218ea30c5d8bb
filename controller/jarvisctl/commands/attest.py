# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl attest`; with --simulate what a policy would do (policy_simulation.py)."""

from pathlib import Path
from typing import Annotated

import typer
from jarvis.capture.v1 import fleet_pb2

from jarvisctl.client import Fleet, nothing_selected, run
from jarvisctl.commands.check_text import place_of, result_of
from jarvisctl.commands.policy import read_policy
from jarvisctl.commands.policy_simulation import simulate
from jarvisctl.errors import ExitCode
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.progress import progress
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import printable
from jarvisctl.options import AgentOption, AllOption, SelectorOption, make_selector
from jarvisctl.status import failure_of

app = typer.Typer(add_completion=False)

_STATE = fleet_pb2.AgentState.DESCRIPTOR


@app.command()
def attest(
    context: typer.Context,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--simulate",
            metavar="POLICY",
            help="Asks nobody and changes nothing: says what this policy.toml would do to them, judged over the evidence kept.",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Challenges agents now (all, or those selected) and shows every check.

    Leaves with 4 if a check failed anywhere, with 1 if an agent could not be asked. With --simulate: with 4 if an agent would
    lose trust, with 1 if none would but it cannot be told of one, with 0 otherwise. Needs role operator.
    """
    wanted = make_selector(agent, selector, everybody)
    if policy is not None:
        document = read_policy("--simulate", policy)
        run(context, lambda fleet: simulate(fleet, document, wanted))
    run(context, lambda fleet: _attest(fleet, wanted))


async def _attest(fleet: Fleet, selector: fleet_pb2.AgentSelector) -> ExitCode:
    exit_codes: list[ExitCode] = []
    call = fleet.stub.AttestAgents(fleet_pb2.AttestAgentsRequest(selector=selector), timeout=fleet.timeout_s)
    with progress("attesting", fleet.output) as answered:
        async for answer in call:
            answered()
            exit_codes.append(_verdict(answer))
            if fleet.output.json:
                failure = failure_of(answer.status)
                fleet.output.line(
                    {
                        "agent_id": answer.agent.agent_id,
                        "ok": failure is None,
                        "error": failure.to_object() if failure else None,
                        "agent": to_object(answer.agent),
                        "checks": [to_object(check) for check in answer.checks],
                    }
                )
            else:
                _print(fleet, answer)
    if not exit_codes:
        raise nothing_selected()
    return max(exit_codes)


def _verdict(answer: fleet_pb2.AttestAgentsResponse) -> ExitCode:
    if any(not check.passed and not check.reported for check in answer.checks):
        return ExitCode.UNVERIFIED
    return ExitCode.OK if failure_of(answer.status) is None else ExitCode.FAILED


def _print(fleet: Fleet, answer: fleet_pb2.AttestAgentsResponse) -> None:
    agent = answer.agent
    failure = failure_of(answer.status)
    verdict = "passed" if failure is None else f"failed: {failure.sentence}"
    host = f" ({printable(agent.hostname)})" if agent.hostname else ""
    title = f"{agent.agent_id}{host}: {enum_text(_STATE, agent.state)}, {verdict}"
    if not answer.checks:
        fleet.output.text(title + "\n")
        return
    table = Table(
        title=title,
        columns=[
            Column(title="CHECK"),
            Column(title="RESULT", states=True),
            Column(title="REASON"),
            Column(title="WHERE", fold=True),
            Column(title="MESSAGE", fold=True),
        ],
    )
    for check in answer.checks:
        table.add(
            printable(check.name),
            result_of(check),
            printable(check.reason) or "-",
            place_of(check) or "-",
            printable(check.message) or "-",
        )
    fleet.output.table(table)
