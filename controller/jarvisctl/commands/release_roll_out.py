# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl releases roll-out`: a release brought to the fleet stage by stage, a line for each agent as it comes."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from google.rpc import status_pb2
from jarvis.capture.v1 import release_pb2 as pb
from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceStub

from jarvisctl.client import Fleet, run
from jarvisctl.commands.release_names import ReleaseArgument, find_release
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.units import count, printable, seconds_of, span
from jarvisctl.options import AgentOption, AllOption, SelectorOption, check_range, make_selector, parse_duration, to_duration
from jarvisctl.status import failure_of

if TYPE_CHECKING:
    # Exists in the type stubs only.
    from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceAsyncStub

_RESULT = pb.RollOutResult.DESCRIPTOR
_DAY_S = 86_400.0


def roll_out(
    context: typer.Context,
    release: ReleaseArgument,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    stages: Annotated[
        str,
        typer.Option(
            "--stages",
            metavar="LIST",
            help="Agents that are to have it at the end of each stage, comma-separated: numbers, or percent of those selected.",
        ),
    ] = "1,10%,50%,100%",
    max_failures: Annotated[
        int, typer.Option("--max-failures", metavar="N", help="No further agent is begun once so many have failed, 1 to 10000.")
    ] = 1,
    wait: Annotated[
        str, typer.Option("--wait", metavar="TIME", help="How long a stage's agents must stay verified with it, up to 24h.")
    ] = "30s",
    concurrency: Annotated[int, typer.Option("--concurrency", metavar="N", help="Agents under way at once, 1 to 256.")] = 8,
    trial: Annotated[
        str,
        typer.Option(
            "--trial", metavar="TIME", help="How long an agent's new process may take to get its first lease, 5s to 10m."
        ),
    ] = "60s",
) -> None:
    """Brings a release to agents, stage by stage; agents that have it already are left alone, so that it may be run again.

    Ctrl-C begins no further agent; those under way finish. Leaves with 0 when every agent of the stages has the release, with 1
    when one was rolled back, failed, was left alone or could not be reached. Needs role operator.
    """
    request = pb.RollOutReleaseRequest(
        selector=make_selector(agent, selector, everybody, changes=True),
        stages=parse_stages(stages),
        max_failures=check_range("--max-failures", max_failures, 1, 10_000),
        wait=to_duration(parse_duration("--wait", wait, 0.0, _DAY_S)),
        concurrency=check_range("--concurrency", concurrency, 1, 256),
        trial=to_duration(parse_duration("--trial", trial, 5.0, 600.0)),
    )
    run(context, lambda fleet: _roll_out(fleet, release, request))


def parse_stages(text: str) -> list[pb.RollOutStage]:
    """Stages from "1,10%,100%".

    Raises:
        CtlError: a part is neither a number of agents nor a percentage.
    """
    stages = []
    for part in text.split(","):
        digits = part.strip().removesuffix("%")
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 9 else 0
        is_percent = part.strip().endswith("%")
        if number < 1 or (is_percent and number > 100):
            raise usage_error(
                f"--stages is {text!r}: {part!r} is no stage; accepted are numbers from 1, and 1% to 100%: 1,10%,100%"
            )
        stages.append(pb.RollOutStage(percent=number) if is_percent else pb.RollOutStage(agents=number))
    return stages


async def _roll_out(fleet: Fleet, wanted: str, request: pb.RollOutReleaseRequest) -> ExitCode:
    request.manifest_sha256 = (await find_release(fleet, wanted)).manifest_sha256
    stub: ReleaseServiceAsyncStub = ReleaseServiceStub(fleet.channel)
    end = pb.RollOutEnded(stopped=True)
    try:
        async for message in stub.RollOutRelease(request):  # for as long as it takes
            if message.HasField("ended"):
                end = message.ended
            if fleet.output.json:
                kind = message.WhichOneof("event")
                fleet.output.line({"event": kind, **to_object(getattr(message, str(kind)))})
            else:
                fleet.output.text(_line(message) + "\n")
    except asyncio.CancelledError:
        fleet.output.remark("no further agent is begun; those under way finish. Run it again to go on")
        raise
    return ExitCode.FAILED if end.stopped or end.rolled_back + end.failed + end.not_reached + end.skipped else ExitCode.OK


def _line(message: pb.RollOutReleaseResponse) -> str:
    """What a person reads of it."""
    match message.WhichOneof("event"):
        case "started":
            started = message.started
            stages = ", ".join(count(target) for target in started.stages)
            return f"release {printable(started.release.version)} over {count(started.agents)} agents, stages of {stages}"
        case "agent":
            return _agent_line(message.agent)
        case "stage_ended":
            ended = message.stage_ended
            return f"stage {ended.stage} ended: {count(ended.updated)} agents have it, {count(ended.failures)} failed"
        case _:
            return _end_line(message.ended)


def _agent_line(agent: pb.RollOutAgent) -> str:
    parts = [f"{agent.agent_id}  {enum_text(_RESULT, agent.result).replace('_', ' ')}"]
    failure = failure_of(agent.status)
    if failure is not None:
        parts.append(failure.sentence)
    if agent.HasField("capture"):
        parts.append(_capture_text(agent.capture, seconds_of(agent.capture_gap)))
    return "  ".join(parts)


def _capture_text(status: status_pb2.Status, gap_s: float) -> str:
    failure = failure_of(status)
    if failure is not None:
        return f"its capture could not be started again: {failure.sentence}"
    return f"capture goes on after at most {span(gap_s)}"


def _end_line(end: pb.RollOutEnded) -> str:
    names = ("updated", "current", "skipped", "not_reached", "rolled_back", "failed", "untouched")
    counts = [f"{count(getattr(end, name))} {name.replace('_', ' ')}" for name in names if getattr(end, name)]
    return f"{'stopped' if end.stopped else 'done'}: {', '.join(counts) or 'nothing to do'}"
