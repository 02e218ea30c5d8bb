# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl audit export`: the chain as JSON lines or syslog messages, to a file or stdout, going on where the file ends.

Every entry is verified against the one before it on its way; a file that is gone on with must be of this very chain.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import grpc
import typer
from grpc import aio
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead, verify_chain
from jarvis_trust.audit_syslog import DEFAULT_SD_ID, syslog_message, valid_sd_id
from jarvis_trust.errors import AuditError

from jarvisctl.client import Fleet, run
from jarvisctl.commands.audit_chain import each_page
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.options import check_range

_LOOK_S = 1.0
_LONGEST_BACKOFF_S = 30.0
_LAST_BYTES = 1 << 20
_TRANSIENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_SYSLOG_FIELDS = re.compile(rb' sequence="(\d+)".* hash="([0-9a-f]{64})"\]')


class ExportFormat(StrEnum):
    """What a line is."""

    JSONL = "jsonl"
    RFC5424 = "rfc5424"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    follow: bool
    encode: Callable[[fleet_pb2.AuditEvent], bytes]
    start: AuditHead | None
    """Verified from here on; None: from the first entry that comes."""
    after: int


def export(  # noqa: PLR0917 - typer gives them by name
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until interrupted.")] = False,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="JSON lines, or one syslog message a line.")
    ] = ExportFormat.JSONL,
    output: Annotated[
        Path | None, typer.Option("--output", help="Append to this file, from its last entry on; else stdout.", dir_okay=False)
    ] = None,
    after: Annotated[
        int, typer.Option("--after", metavar="SEQUENCE", help="Only entries after this one; not with a file that has some.")
    ] = 0,
    sd_id: Annotated[str, typer.Option("--sd-id", help="SD-ID of the structured data of syslog messages.")] = DEFAULT_SD_ID,
) -> None:
    """Writes the audit chain, oldest first; any entry that does not follow from the one before makes it leave with 4."""
    check_range("--after", after, 0, 2**63 - 1, "as a sequence")
    if not valid_sd_id(sd_id):
        raise usage_error(
            f"--sd-id is {sd_id!r}: accepted is name@enterprise-number, at most 32 characters, such as {DEFAULT_SD_ID}"
        )
    last = _last_in(output) if output is not None else None
    if last is not None and after:
        raise usage_error(f"--after is {after}: {output} ends with entry {last.sequence} and is gone on with; leave it out")
    start = last or (None if after else GENESIS)

    async def action(fleet: Fleet) -> ExitCode:
        encode = _encoder(form, f"controller.{fleet.config.fleet}", sd_id)
        wanted = _Wanted(follow=follow, encode=encode, start=start, after=last.sequence if last else after)
        if output is None:
            return await _export(fleet, wanted, sys.stdout.buffer)
        try:
            with output.open("ab") as file:
                return await _export(fleet, wanted, file)
        except OSError as error:
            raise usage_error(f"--output {output} cannot be written: {error.strerror}") from error

    run(context, action)


def _encoder(form: ExportFormat, hostname: str, sd_id: str) -> Callable[[fleet_pb2.AuditEvent], bytes]:
    if form is ExportFormat.RFC5424:
        return lambda event: syslog_message(event, hostname=hostname, sd_id=sd_id)
    return _json_line


def _json_line(event: fleet_pb2.AuditEvent) -> bytes:
    # The hash covers the time to the nanosecond.
    return json.dumps({**to_object(event), "time_unix_ns": event.time.ToNanoseconds()}, separators=(",", ":")).encode()


async def _export(fleet: Fleet, wanted: _Wanted, file: BinaryIO) -> ExitCode:
    head, after, failures = wanted.start, wanted.after, 0
    while True:
        try:
            async for page in each_page(fleet, after=after):
                head = _verified(page, head)
                _write(file, [wanted.encode(event) for event in page])
                after, failures = (page[-1].sequence if page else after), 0
        except aio.AioRpcError as error:
            if not wanted.follow or error.code() not in _TRANSIENT:
                raise
            failures += 1
            typer.echo(f"the controller does not answer; trying again after entry {after}", err=True)
        if not wanted.follow:
            return ExitCode.OK
        await asyncio.sleep(min(_LONGEST_BACKOFF_S, _LOOK_S * 2.0 ** min(failures, 10)))


def _verified(page: Sequence[fleet_pb2.AuditEvent], head: AuditHead | None) -> AuditHead | None:
    if not page:
        return head
    first = page[0]
    start = head or AuditHead(sequence=first.sequence - 1, hash=first.previous_hash)
    try:
        return verify_chain(page, after=start)
    except AuditError as error:
        raise CtlError(
            f"the audit chain does not go on from what was exported: {error.message}",
            ExitCode.UNVERIFIED,
            reason=error.reason,
            metadata={"sequence": str(error.sequence)},
        ) from error


def _write(file: BinaryIO, lines: Sequence[bytes]) -> None:
    if not lines:
        return
    file.write(b"".join(line + b"\n" for line in lines))
    file.flush()
    if file.seekable() and file is not sys.stdout.buffer:
        os.fsync(file.fileno())


def _last_in(path: Path) -> AuditHead | None:
    """Where an earlier export into this file ended; a last line that was cut in the middle is taken off."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return None
            begin = file.seek(max(0, size - _LAST_BYTES))
            tail = file.read()
            whole = tail.rfind(b"\n") + 1
            if whole < len(tail):
                file.truncate(begin + whole)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise usage_error(f"--output {path} cannot be read: {error.strerror}") from error
    lines = tail[:whole].splitlines()
    if not lines:
        return None
    head = _head_of(lines[-1])
    if head is None:
        raise usage_error(
            f"--output {path}: its last line is no exported audit entry; accepted is a new file or an earlier export"
        )
    return head


def _head_of(line: bytes) -> AuditHead | None:
    if found := _SYSLOG_FIELDS.search(line):
        return AuditHead(sequence=int(found[1]), hash=bytes.fromhex(found[2].decode()))
    try:
        entry = json.loads(line)
        head = AuditHead(sequence=int(entry["sequence"]), hash=bytes.fromhex(entry["hash"]))
    except (ValueError, KeyError, TypeError):
        return None
    return head if len(head.hash) == 32 else None
