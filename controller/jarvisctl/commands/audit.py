# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl audit list|verify`: the chain as the controller gives it, and the proof of it computed here."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import typer
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead, verify_chain
from jarvis_trust.errors import AuditError

from jarvisctl.client import Fleet, run
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable
from jarvisctl.options import check_range

app = typer.Typer(no_args_is_help=True, add_completion=False)

_PAGE_SIZE = 1000


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
    """Recomputes the whole chain here; any edit makes it leave with 4 and name the first bad entry.

    A chain that was cut at its end is still a chain: keep what verify prints and hand it to --expect the next time.
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


async def _each_page(fleet: Fleet) -> AsyncIterator[Sequence[fleet_pb2.AuditEvent]]:
    token = ""
    while True:
        request = fleet_pb2.ListAuditEventsRequest(page_size=_PAGE_SIZE, page_token=token)
        answer = await fleet.stub.ListAuditEvents(request, timeout=fleet.timeout_s)
        yield answer.events
        token = answer.next_page_token
        if not token:
            return


async def _list(fleet: Fleet, last: int, agent: str) -> ExitCode:
    events: deque[fleet_pb2.AuditEvent] = deque(maxlen=last or None)
    async for page in _each_page(fleet):
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
    head = GENESIS
    try:
        async for page in _each_page(fleet):
            # Only the page that holds the expected entry can tell whether it is there.
            here = expected if expected and page and page[0].sequence <= expected.sequence <= page[-1].sequence else None
            head = verify_chain(page, after=head, expected=here)
        # The pages are through: an expected entry beyond the head was cut away.
        verify_chain((), after=head, expected=expected if expected and expected.sequence > head.sequence else None)
    except AuditError as error:
        raise CtlError(
            f"the audit chain does not hold: {error.message}",
            ExitCode.UNVERIFIED,
            reason=error.reason,
            metadata={"sequence": str(error.sequence)},
        ) from error
    if fleet.output.json:
        fleet.output.line({"ok": True, "events": head.sequence, "sequence": head.sequence, "hash": head.hash.hex()})
    else:
        fleet.output.text(f"the audit chain holds: {head.sequence:,} events, the last is {head.sequence}:{head.hash.hex()}\n")
    return ExitCode.OK
