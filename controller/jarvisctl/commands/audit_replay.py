# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl audit replay`: old verdicts reached again here, from the evidence that the controller kept by hash.

    verified chain -> entries that name a case -> the case, its hash checked -> the verifier, in this process -> then beside now

The controller is only asked for bytes: what they are worth is judged here, by the fleet CA and the chain.
"""

import json
from typing import Annotated

import typer
from grpc import aio
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.attestation_case import Replay
from jarvis_controller.attestation_case import replay as reach_again
from jarvis_trust.errors import TrustError

from jarvisctl.client import Fleet, run
from jarvisctl.commands.audit_chain import VerifiedChain
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable
from jarvisctl.options import check_range
from jarvisctl.status import failure_of_call

_CASE_NOT_KEPT = "CASE_NOT_KEPT"


def replay(
    context: typer.Context,
    sequence: Annotated[int, typer.Option("--sequence", metavar="N", help="The verdict of this audit entry.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="Every verdict in the chain.")] = False,
) -> None:
    """Reaches old verdicts again from the evidence that was kept, without an agent, and compares them with what was recorded.

    Leaves with 4 when the chain does not hold, or a verdict or a check comes out otherwise than recorded; with 1 when evidence
    is not kept any more.
    """
    if every == bool(sequence):
        raise usage_error("give one of --sequence N and --all")
    check_range("--sequence", sequence, 1, 2**63 - 1, zero="--all")
    run(context, lambda fleet: _replay(fleet, sequence))


async def _replay(fleet: Fleet, sequence: int) -> ExitCode:
    named: list[tuple[fleet_pb2.AuditEvent, dict[str, object]]] = []
    chain = await VerifiedChain.of(fleet)
    async for event in chain.events():
        detail = _detail(event)
        if sequence in {0, event.sequence} and "case_sha256" in detail:
            named.append((event, detail))
    if sequence and not named:
        raise usage_error(f"--sequence is {sequence}: accepted is an entry of the chain that names a case (case_sha256)")
    worst = ExitCode.OK
    for event, detail in named:
        worst = max(worst, await _one(fleet, event, detail, in_full=bool(sequence)))
    if not fleet.output.json and not sequence:
        fleet.output.text(f"{len(named):,} verdicts were replayed\n")
    return worst


async def _one(fleet: Fleet, event: fleet_pb2.AuditEvent, detail: dict[str, object], *, in_full: bool) -> ExitCode:
    try:
        digest = bytes.fromhex(str(detail["case_sha256"]))
        request = fleet_pb2.GetAttestationCaseRequest(case_sha256=digest)
        answer = await fleet.stub.GetAttestationCase(request, timeout=fleet.timeout_s)
    except ValueError as error:
        raise CtlError(f"audit entry {event.sequence} names no case: {error}", ExitCode.UNVERIFIED) from error
    except aio.AioRpcError as error:
        if failure_of_call(error).reason != _CASE_NOT_KEPT:
            raise
        return _said(fleet, event, ExitCode.FAILED, _CASE_NOT_KEPT, "the evidence is not kept any more")
    try:
        result = reach_again(answer.attestation_case, answer.boot_log, case_sha256=digest)
    except TrustError as error:
        return _said(fleet, event, ExitCode.UNVERIFIED, error.reason, error.message)
    if result.case.agent.agent_id != event.agent_id or result.case.verdict != detail.get("verdict"):
        message = "the case is of another agent or verdict than the entry that names it"
        return _said(fleet, event, ExitCode.UNVERIFIED, "CASE_OF_ANOTHER_ENTRY", message)
    _show(fleet, event, result, in_full=in_full or not result.same)
    return ExitCode.OK if result.same else ExitCode.UNVERIFIED


def _said(fleet: Fleet, event: fleet_pb2.AuditEvent, code: ExitCode, reason: str, message: str) -> ExitCode:
    if fleet.output.json:
        fleet.output.line(
            {"sequence": event.sequence, "agent_id": event.agent_id, "same": False, "reason": reason, "message": message}
        )
    else:
        fleet.output.text(f"{event.sequence}: {printable(message)} [{reason}]\n")
    return code


def _show(fleet: Fleet, event: fleet_pb2.AuditEvent, result: Replay, *, in_full: bool) -> None:
    case = result.case
    if fleet.output.json:
        checks = [
            {"name": check.name, "recorded": check.recorded, "found": check.found, "message": check.message}
            for check in result.checks
        ]
        fleet.output.line(
            {
                "sequence": event.sequence,
                "agent_id": event.agent_id,
                "same": result.same,
                "recorded": case.verdict,
                "found": result.verdict,
                "version": case.version,
                "not_run": list(result.not_run),
                "checks": checks,
            }
        )
        return
    same = "as recorded" if result.same else f"RECORDED AS {case.verdict}"
    fleet.output.text(f"{event.sequence}: {event.agent_id} {local_time(event.time)}: {result.verdict}, {same}\n")
    if not in_full:
        return
    columns = [Column(title="CHECK"), Column(title="RECORDED"), Column(title="NOW"), Column(title="MESSAGE", fold=True)]
    table = Table(columns=columns)
    for check in result.checks:
        table.add(check.name, check.recorded or "passed", check.found or "passed", printable(check.message) or "-")
    for name in result.not_run:
        table.add(name, "not run", "-", f"version {printable(case.version)} ran no such check")
    fleet.output.table(table)


def _detail(event: fleet_pb2.AuditEvent) -> dict[str, object]:
    try:
        detail = json.loads(event.detail)
    except ValueError:
        return {}
    return detail if isinstance(detail, dict) else {}
