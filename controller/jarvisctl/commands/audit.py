# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl audit list|verify|replay|export`: the chain as the controller gives it, and the proof of it computed here."""

from collections import deque
from typing import Annotated

import typer
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead

from jarvisctl.client import Fleet, run
from jarvisctl.commands import audit_export, audit_replay
from jarvisctl.commands.audit_chain import VerifiedChain, each_page
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable
from jarvisctl.options import check_range

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command("list")
def list_events(
    context: typer.Context,
    last: Annotated[int, typer.Option("--last", metavar="N", help="Only the newest N; 0: all.")] = 50,
    agent: Annotated[str, typer.Option("--agent", "-a", metavar="ID", help="Only what concerns agents whose id begins so.")] = "",
) -> None:
    """Lists who did what, oldest first."""
    check_range("--last", last, 0, 1_000_000_000, "events")
    run(context, lambda fleet: _list(fleet, last, agent))


@app.command()
def verify(
    context: typer.Context,
    expect: Annotated[
        str,
        typer.Option(
            "--expect", metavar="SEQUENCE:HASH", help="What an earlier verify ended with: the chain must still contain it."
        ),
    ] = "",
) -> None:
    """Recomputes the whole chain here and checks its signed checkpoints; an edit makes it leave with 4.

    The first bad entry is named. The checkpoints are checked with the fleet CA of the configuration. An edit after the last one,
    and a chain that was cut back to an earlier one, show only against what was known before: keep what verify prints and hand it
    to --expect next time.
    """
    expected = _parse_expected(expect) if expect else None
    run(context, lambda fleet: _verify(fleet, expected))


def _parse_expected(text: str) -> AuditHead:
    sequence, _, digest = text.partition(":")
    try:
        head = AuditHead(sequence=int(sequence), hash=bytes.fromhex(digest))
    except ValueError:
        head = GENESIS
    if head.sequence < 1 or len(head.hash) != 32:
        raise usage_error(f"--expect is {text!r}: accepted is SEQUENCE:HASH, a number and 64 hex digits, as verify prints them")
    return head


async def _list(fleet: Fleet, last: int, agent: str) -> ExitCode:
    events: deque[fleet_pb2.AuditEvent] = deque(maxlen=last or None)
    async for page in each_page(fleet):
        events.extend(event for event in page if event.agent_id.startswith(agent))
    if fleet.output.json:
        for event in events:
            fleet.output.line(to_object(event))
        return ExitCode.OK
    table = Table(
        columns=[
            Column(title="SEQUENCE", right=True),
            Column(title="TIME"),
            Column(title="PRINCIPAL"),
            Column(title="ACTION"),
            Column(title="AGENT", cut=12),
            Column(title="DETAIL", fold=True),
        ]
    )
    for event in events:
        table.add(
            str(event.sequence),
            local_time(event.time),
            printable(event.principal),
            printable(event.action),
            event.agent_id or "-",
            printable(event.detail) or "-",
        )
    fleet.output.table(table)
    return ExitCode.OK


async def _verify(fleet: Fleet, expected: AuditHead | None) -> ExitCode:
    chain = await VerifiedChain.of(fleet, expected)
    async for _ in chain.events():
        pass
    head = chain.head
    if fleet.output.json:
        fleet.output.line(
            {
                "ok": True,
                "events": head.sequence,
                "sequence": head.sequence,
                "hash": head.hash.hex(),
                "checkpoints": chain.checkpoints,
                "uncovered": chain.uncovered,
            }
        )
    else:
        fleet.output.text(
            f"the audit chain holds: {head.sequence:,} events, the last is {head.sequence}:{head.hash.hex()}\n"
            f"signed checkpoints: {chain.checkpoints:,}; events after the last of them: {chain.uncovered:,}\n"
        )
    return ExitCode.OK


app.command("replay")(audit_replay.replay)
app.command("export")(audit_export.export)
