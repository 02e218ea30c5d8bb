# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl releases add|list|remove`: the releases that the controller holds; `roll-out` is release_roll_out.py."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from jarvis.capture.v1 import release_pb2
from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceStub
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest

from jarvisctl.client import Fleet, run
from jarvisctl.commands import release_roll_out
from jarvisctl.commands.release_names import ReleaseArgument, find_release
from jarvisctl.config import read_public
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import to_object
from jarvisctl.format.progress import progress
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable, scaled

if TYPE_CHECKING:
    # Exists in the type stubs only.
    from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceAsyncStub

app = typer.Typer(no_args_is_help=True, add_completion=False)

_PART_BYTES = 512 * 1024


@app.command()
def add(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Holds manifest.json, its signature and every object that it names.")
    ],
) -> None:
    """Hands a signed release to the controller, which judges it as an agent would. Needs role admin."""
    files = _files(directory)
    run(context, lambda fleet: _add(fleet, files))


@app.command("list")
def list_releases(context: typer.Context) -> None:
    """Lists the releases that the controller holds, newest first."""
    run(context, _list)


@app.command()
def remove(context: typer.Context, release: ReleaseArgument) -> None:
    """Deletes a release at the controller; agents that run it go on. Needs role admin."""
    run(context, lambda fleet: _remove(fleet, release))


def _files(directory: Path) -> dict[str, bytes]:
    """Every file of the release, in the order in which they are handed over."""
    if not directory.is_dir():
        raise usage_error(f"DIRECTORY is {directory}: a directory with {MANIFEST_FILE} and {SIGNATURE_FILE} is accepted")
    manifest = read_public(directory / MANIFEST_FILE, "the manifest")
    try:
        objects = sorted(Manifest.from_bytes(manifest).objects)
    except FirmwareError as error:
        raise usage_error(f"DIRECTORY is {directory}: {error.reason}: {error.message}") from error
    signature = read_public(directory / SIGNATURE_FILE, "the signature")
    return {
        MANIFEST_FILE: manifest,
        SIGNATURE_FILE: signature,
        **{name: read_public(directory / name, "the object") for name in objects},
    }


async def _add(fleet: Fleet, files: dict[str, bytes]) -> ExitCode:
    stub: ReleaseServiceAsyncStub = ReleaseServiceStub(fleet.channel)
    digest = hashlib.sha256(files[MANIFEST_FILE]).digest()
    answer = release_pb2.AddReleaseResponse()
    with progress("handing over", fleet.output) as handed_over:
        for name, data in files.items():
            for offset in range(0, max(len(data), 1), _PART_BYTES):
                part = release_pb2.AddReleaseRequest(
                    manifest_sha256=digest,
                    file_name=name,
                    offset=offset,
                    data=data[offset : offset + _PART_BYTES],
                    size=len(data),
                )
                answer = await stub.AddRelease(part, timeout=fleet.timeout_s)
                handed_over()
    release = answer.release
    if fleet.output.json:
        fleet.output.line(to_object(release))
    else:
        fleet.output.text(f"release {printable(release.version)}, {release.manifest_sha256.hex()}, is at the controller\n")
    return ExitCode.OK


async def _list(fleet: Fleet) -> ExitCode:
    stub: ReleaseServiceAsyncStub = ReleaseServiceStub(fleet.channel)
    answer = await stub.ListReleases(release_pb2.ListReleasesRequest(), timeout=fleet.timeout_s)
    if fleet.output.json:
        for release in answer.releases:
            fleet.output.line(to_object(release))
        return ExitCode.OK
    table = Table(
        columns=[
            Column(title="RELEASE", cut=12),
            Column(title="VERSION"),
            Column(title="SECURITY", right=True),
            Column(title="ARCHITECTURE"),
            Column(title="OBJECTS", right=True),
            Column(title="SIZE", right=True),
            Column(title="ADDED"),
            Column(title="REFUSED", fold=True),
        ]
    )
    for release in answer.releases:
        refused = ": ".join(part for part in (release.refused_reason, release.refused_message) if part)
        table.add(
            release.manifest_sha256.hex(),
            printable(release.version) or "-",
            str(release.security_version),
            printable(release.architecture) or "-",
            str(len(release.objects)),
            scaled(release.size, "B"),
            local_time(release.add_time) if release.HasField("add_time") else "-",
            printable(refused) or "-",
        )
    fleet.output.table(table)
    return ExitCode.OK


async def _remove(fleet: Fleet, wanted: str) -> ExitCode:
    stub: ReleaseServiceAsyncStub = ReleaseServiceStub(fleet.channel)
    release = await find_release(fleet, wanted)
    request = release_pb2.RemoveReleaseRequest(manifest_sha256=release.manifest_sha256)
    await stub.RemoveRelease(request, timeout=fleet.timeout_s)
    if fleet.output.json:
        fleet.output.line({"manifest_sha256": release.manifest_sha256.hex(), "removed": True})
    else:
        fleet.output.text(f"release {printable(release.version)}, {release.manifest_sha256.hex()}, is deleted\n")
    return ExitCode.OK


app.command("roll-out")(release_roll_out.roll_out)
