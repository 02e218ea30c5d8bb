# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl attest --simulate POLICY`: what the policy would do to each agent, and what that comes to."""

from jarvis.capture.v1 import fleet_pb2, policy_pb2
from jarvis_trust.policy_document import PolicyDocument

from jarvisctl.client import Fleet
from jarvisctl.commands.check_text import place_of
from jarvisctl.commands.policy import policy_stub
from jarvisctl.errors import ExitCode
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import printable
from jarvisctl.status import failure_of

_STATE = fleet_pb2.AgentState.DESCRIPTOR
_VERDICT = policy_pb2.SimulatedVerdict.DESCRIPTOR


async def simulate(fleet: Fleet, document: PolicyDocument, selector: fleet_pb2.AgentSelector) -> ExitCode:
    """Prints one row an agent and a summary; the exit code says whether somebody would lose trust."""
    request = policy_pb2.SimulatePolicyRequest(document=document.to_message(), selector=selector)
    summary = policy_pb2.SimulationSummary()
    table = Table(
        columns=[
            Column(title="AGENT"),
            Column(title="HOST"),
            Column(title="STATE", states=True),
            Column(title="NOW", states=True),
            Column(title="THEN", states=True),
            Column(title="WHY", fold=True),
        ]
    )
    async for answer in policy_stub(fleet).SimulatePolicy(request, timeout=fleet.timeout_s):
        if answer.HasField("summary"):
            summary = answer.summary
        elif fleet.output.json:
            fleet.output.line({"agent": to_object(answer.agent)})
        else:
            _add(table, answer.agent)
    if fleet.output.json:
        fleet.output.line({"summary": to_object(summary)})
    else:
        if table.rows:
            fleet.output.table(table)
        fleet.output.text(
            f"version {summary.version} of policy {printable(summary.name)}: of {summary.agents:,} agents {summary.changed:,} "
            f"would change, {summary.losing_trust:,} would lose trust, {summary.undecided:,} cannot be told\n"
        )
    if summary.losing_trust:
        return ExitCode.UNVERIFIED
    return ExitCode.FAILED if summary.undecided else ExitCode.OK


def _add(table: Table, agent: policy_pb2.SimulatedAgent) -> None:
    reasons = [f"{check.reason} {place_of(check)}".strip() for check in agent.failed if check.reason != "NOT_EVALUATED"]
    refused = failure_of(agent.enrollment) if agent.HasField("enrollment") else None
    if refused is not None:
        reasons.append(f"renewal refused: {refused.sentence}")
    if agent.message:
        reasons.append(agent.message)
    table.add(
        agent.agent.agent_id,
        printable(agent.agent.hostname) or "-",
        enum_text(_STATE, agent.agent.state),
        _verdict(agent.before, agent.assurance_before),
        _verdict(agent.after, agent.assurance_after),
        printable("; ".join(reasons)) or "-",
    )


def _verdict(verdict: policy_pb2.SimulatedVerdict.ValueType, assurance: str) -> str:
    text = enum_text(_VERDICT, verdict).replace("_", " ")
    return f"{text} {printable(assurance)}" if assurance else text
