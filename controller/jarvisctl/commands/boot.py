# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl boot show|record|sign|diff`: what hosts' firmware measured, and the reference sets made of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.boot_events import component
from jarvis_trust.boot_log import BootEvent, BootLog, EventType, parse_boot_log
from jarvis_trust.boot_reference import MAX_REFERENCE_BYTES, BootReference, record_reference
from jarvis_trust.errors import TrustError

from jarvisctl.client import Fleet, run
from jarvisctl.config import read_public
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.format.output import Output
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable
from jarvisctl.release_files import add_signature
from jarvisctl.settings import settings_of

app = typer.Typer(no_args_is_help=True, add_completion=False)

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="An agent's id, or the beginning of it.")]


@app.command()
def show(context: typer.Context, agent: AgentArgument) -> None:
    """Shows what an agent's firmware measured at its last attestation, event by event."""
    run(context, lambda fleet: _show(fleet, agent))


@app.command()
def record(
    context: typer.Context,
    agent: AgentArgument,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the set: a-z 0-9 . _ -, such as r650-bios-1.9.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the set goes, NAME.json.")],
    version: Annotated[int, typer.Option("--version", metavar="N", help="Edition of the set, from 1.")] = 1,
) -> None:
    """Makes a reference set of how this agent booted. It counts once it is signed (`jarvisctl boot sign`)."""
    if out.exists():
        raise usage_error(f"--out is {out}, which exists: a name that is free is needed")
    run(context, lambda fleet: _record(fleet, agent, name, version, out))


@app.command()
def sign(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `jarvisctl boot record` wrote.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private release key, PEM, mode 0600.")],
) -> None:
    """Signs a reference set: writes FILE.sig beside it, or adds a signature to those of others. Needs no controller."""
    output = Output(json=settings_of(context).json)
    data = read_public(file, "FILE")
    try:
        reference = BootReference.from_bytes(data)
    except TrustError as error:
        raise CtlError(f"nothing was signed: {error.message}", ExitCode.USAGE, reason=error.reason) from error
    target = file.with_name(file.name + ".sig")
    signers = add_signature(data, target, key, what="the boot reference")
    if output.json:
        summary = _summary(reference)
        output.line({"file": str(file), "signature": str(target), "bytes": len(data), "signed": list(signers), **summary})
    else:
        who = "".join(f"signed by {keyid}\n" for keyid in signers)
        output.text(f"{target}: signature of {reference.name} version {reference.version}, PCRs {_numbers(reference)}\n{who}")


@app.command()
def diff(
    context: typer.Context,
    agent: AgentArgument,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another agent's id, or the beginning of it.")],
) -> None:
    """Compares how two agents booted, PCR by PCR; leaves with 4 when they differ."""
    run(context, lambda fleet: _diff(fleet, agent, other))


async def _report(fleet: Fleet, agent: str) -> tuple[fleet_pb2.GetBootReportResponse, BootLog]:
    """What the controller holds, once its log has been replayed to the quoted values here too."""
    report = await fleet.stub.GetBootReport(fleet_pb2.GetBootReportRequest(agent_id=agent), timeout=fleet.timeout_s)
    try:
        log = parse_boot_log(report.boot_log)
    except TrustError as error:
        raise CtlError(f"agent {report.agent_id}: {error.message}", ExitCode.UNVERIFIED, reason=error.reason) from error
    quoted = {value.index: value.digest for value in report.pcrs}
    if log.replay(quoted) != quoted:
        message = f"agent {report.agent_id}: the boot log does not give the quoted PCR values"
        raise CtlError(message, ExitCode.UNVERIFIED, reason="BOOT_LOG_MISMATCH")
    return report, log


async def _show(fleet: Fleet, agent: str) -> ExitCode:
    report, log = await _report(fleet, agent)
    quoted = {value.index for value in report.pcrs}
    if fleet.output.json:
        answer = to_object(report)
        answer.pop("boot_log", None)
        answer["events"] = [_event_object(event) for event in log.events if event.pcr in quoted]
        fleet.output.line(answer)
        return ExitCode.OK
    secure_boot = {True: "on", False: "off"}[report.secure_boot] if report.HasField("secure_boot") else "not told"
    fleet.output.text(
        f"agent {report.agent_id}, quoted {local_time(report.time)}\n"
        f"secure boot {secure_boot}; reference set {printable(report.reference) or 'none'}\n"
        + (f"kernel command line {printable(report.kernel_command_line)}\n" if report.kernel_command_line else "")
    )
    table = Table(
        columns=[
            Column(title="EVENT", right=True),
            Column(title="PCR", right=True),
            Column(title="TYPE"),
            Column(title="DIGEST", cut=16),
            Column(title="CLAIMS TO BE", fold=True),
        ]
    )
    for event in log.events:
        if event.pcr in quoted:
            table.add(str(event.number), str(event.pcr), event.type_name, event.digest.hex(), component(event))
    fleet.output.table(table)
    return ExitCode.OK


async def _record(fleet: Fleet, agent: str, name: str, version: int, out: Path) -> ExitCode:
    report, log = await _report(fleet, agent)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    pcrs = [value.index for value in report.pcrs]
    try:
        reference = record_reference(log, name=name, version=version, created=created, pcrs=pcrs)
    except TrustError as error:
        raise CtlError(f"nothing was recorded: {error.message}", ExitCode.USAGE, reason=error.reason) from error
    data = reference.to_bytes()
    if len(data) > MAX_REFERENCE_BYTES:
        raise usage_error(f"the set has {len(data)} bytes; at most {MAX_REFERENCE_BYTES} are accepted by controllers")
    _write(out, data)
    if fleet.output.json:
        fleet.output.line({"file": str(out), "agent_id": report.agent_id, **_summary(reference)})
    else:
        fleet.output.text(
            f"{out}: {name} version {version} as agent {report.agent_id} booted, PCRs {_numbers(reference)}; sign it with\n"
            f"  jarvisctl boot sign --key release.pem {out}\n"
        )
    return ExitCode.OK


async def _diff(fleet: Fleet, agent: str, other: str) -> ExitCode:
    (first, left), (second, right) = await _report(fleet, agent), await _report(fleet, other)
    pcrs = sorted({value.index for value in first.pcrs} & {value.index for value in second.pcrs})
    table = Table(
        title=f"{first.agent_id} and {second.agent_id}",
        columns=[
            Column(title="PCR", right=True),
            Column(title="RESULT", states=True),
            Column(title=first.agent_id[:12], fold=True),
            Column(title=second.agent_id[:12], fold=True),
        ],
    )
    differing = 0
    for pcr in pcrs:
        where = _first_difference(left, right, pcr)
        differing += where is not None
        here, there = where or (None, None)
        if fleet.output.json:
            fleet.output.line(
                {
                    "pcr": pcr,
                    "equal": where is None,
                    "first": None if here is None else _event_object(here),
                    "second": None if there is None else _event_object(there),
                }
            )
        table.add(str(pcr), "differs" if where else "equal", _claimed(where, here), _claimed(where, there))
    if not fleet.output.json:
        fleet.output.table(table)
    return ExitCode.UNVERIFIED if differing else ExitCode.OK


def _first_difference(left: BootLog, right: BootLog, pcr: int) -> tuple[BootEvent | None, BootEvent | None] | None:
    """The first place where two logs extend a PCR differently; None at a side that has ended there."""
    ours, theirs = left.of_pcr(pcr), right.of_pcr(pcr)
    for position in range(max(len(ours), len(theirs))):
        here = ours[position] if position < len(ours) else None
        there = theirs[position] if position < len(theirs) else None
        if here is None or there is None or here.digest != there.digest:
            return here, there
    return None if pcr or left.startup_locality == right.startup_locality else (None, None)


def _claimed(where: object, event: BootEvent | None) -> str:
    if where is None:
        return "-"
    return "(ends)" if event is None else f"{event.type_name} {component(event)}"


def _event_object(event: BootEvent) -> dict[str, object]:
    return {
        "number": event.number,
        "pcr": event.pcr,
        "type": event.type_name,
        "digest": event.digest.hex(),
        "component": component(event),
        "extends": event.type != EventType.NO_ACTION,
    }


def _summary(reference: BootReference) -> dict[str, object]:
    return {"name": reference.name, "version": reference.version, "pcrs": sorted(reference.pcrs)}


def _numbers(reference: BootReference) -> str:
    return ", ".join(str(pcr) for pcr in sorted(reference.pcrs))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise usage_error(f"{path} cannot be written: {error.strerror}") from error
