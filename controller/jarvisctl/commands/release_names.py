# SPDX-License-Identifier: Apache-2.0
"""How operators name a release: by its version, or the beginning of its manifest's digest."""

import asyncio
import re
from typing import TYPE_CHECKING, Annotated

import typer
from grpc import aio
from jarvis.capture.v1 import release_pb2
from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceStub

from jarvisctl.client import Fleet, open_channel
from jarvisctl.config import CtlConfig, load_config
from jarvisctl.credentials import load_credentials
from jarvisctl.errors import CtlError, ExitCode, usage_error

if TYPE_CHECKING:
    # Exists in the type stubs only.
    from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceAsyncStub

_TIMEOUT_S = 2.0
_FORM = re.compile(r"[0-9a-f]{6,64}|\d+\.\d+\.\d+")


def complete_release(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(digest, version) of the releases that begin so; empty when the controller cannot be asked."""
    try:
        config = load_config(context.find_root().params.get("config"))
        return asyncio.run(_releases(config, incomplete))
    except (CtlError, aio.AioRpcError):
        return []


ReleaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE",
        help="Version, or at least 6 digits of the manifest's SHA-256, that only one release has.",
        autocompletion=complete_release,
    ),
]


async def find_release(fleet: Fleet, wanted: str) -> release_pb2.Release:
    """The one release that is meant.

    Raises:
        CtlError: none is, or several are.
    """
    if _FORM.fullmatch(wanted) is None:
        raise usage_error(
            f"RELEASE is {wanted!r}: accepted is a version like 1.2.3, or 6 to 64 hex digits of a manifest's SHA-256"
        )
    stub: ReleaseServiceAsyncStub = ReleaseServiceStub(fleet.channel)
    answer = await stub.ListReleases(release_pb2.ListReleasesRequest(), timeout=fleet.timeout_s)
    found = [
        release for release in answer.releases if release.version == wanted or release.manifest_sha256.hex().startswith(wanted)
    ]
    if not found:
        there = (
            ", ".join(f"{release.version} ({release.manifest_sha256.hex()[:12]})" for release in answer.releases[:5]) or "none"
        )
        raise CtlError(f"RELEASE is {wanted!r}: the controller has no such release; it has {there}", ExitCode.USAGE)
    if len(found) > 1:
        meant = ", ".join(release.manifest_sha256.hex()[:12] for release in found[:5])
        raise usage_error(f"RELEASE is {wanted!r}, which {len(found)} releases are: name one by its digest ({meant})")
    return found[0]


async def _releases(config: CtlConfig, incomplete: str) -> list[tuple[str, str]]:
    async with open_channel(config, load_credentials(config)) as channel:
        stub: ReleaseServiceAsyncStub = ReleaseServiceStub(channel)
        answer = await stub.ListReleases(release_pb2.ListReleasesRequest(), timeout=_TIMEOUT_S)
    return [
        (release.manifest_sha256.hex(), release.version)
        for release in answer.releases
        if release.manifest_sha256.hex().startswith(incomplete)
    ]
