# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl enroll token`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from jarvis.capture.v1 import fleet_pb2

from jarvisctl.client import Fleet, run
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.units import age, local_time, rfc3339
from jarvisctl.options import parse_duration, parse_labels, to_duration

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def enroll() -> None:
    """Makes join files for new agents."""


@app.command()
def token(
    context: typer.Context,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Given to the agent that uses the file. Repeatable.")
    ] = None,
    lifetime: Annotated[str, typer.Option("--lifetime", metavar="TIME", help="How long it may be used: 1m to 7d.")] = "1h",
    without_tpm: Annotated[
        bool,
        typer.Option(
            "--without-tpm", help="Admits an agent without a TPM (level L0) too, where the fleet's policy names that agent."
        ),
    ] = False,
    path: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write it here, mode 0600, instead of to stdout.")
    ] = None,
) -> None:
    """Makes a join file that one new agent may use once. Needs role admin.

    Whoever holds the file can enrol a host: treat it as a secret.
    """
    seconds = parse_duration("--lifetime", lifetime, 60, 7 * 86_400)
    request = fleet_pb2.CreateJoinTokenRequest(
        labels=parse_labels("--label", label or []), lifetime=to_duration(seconds), without_tpm=without_tpm
    )
    run(context, lambda fleet: _token(fleet, request, path))


async def _token(fleet: Fleet, request: fleet_pb2.CreateJoinTokenRequest, path: Path | None) -> ExitCode:
    if path is None:
        answer = await fleet.stub.CreateJoinToken(request, timeout=fleet.timeout_s)
        _print(fleet, answer)
        return ExitCode.OK
    # The file comes first: a token that could not be kept would be lost.
    descriptor = _create_private(path)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            answer = await fleet.stub.CreateJoinToken(request, timeout=fleet.timeout_s)
            file.write(answer.join_file)
    except BaseException:
        os.unlink(path)  # noqa: PTH108 (pathlib's is a blocking call too, and linted as one)
        raise
    if fleet.output.json:
        fleet.output.line({"path": str(path), "expire_time": rfc3339(answer.expire_time)})
    else:
        fleet.output.remark(f"{path}: for one agent, until {local_time(answer.expire_time)} ({age(answer.expire_time)})")
    return ExitCode.OK


def _create_private(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise usage_error(f"-o is {path}, which exists: a name that is free is needed") from None
    except OSError as error:
        raise usage_error(f"-o is {path}, which cannot be written: {error.strerror}") from error


def _print(fleet: Fleet, answer: fleet_pb2.CreateJoinTokenResponse) -> None:
    if fleet.output.json:
        fleet.output.line({"join_file": json.loads(answer.join_file), "expire_time": rfc3339(answer.expire_time)})
        return
    fleet.output.text(answer.join_file if answer.join_file.endswith("\n") else answer.join_file + "\n")
    fleet.output.remark(f"for one agent, until {local_time(answer.expire_time)} ({age(answer.expire_time)})")
