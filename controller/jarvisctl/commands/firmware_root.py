# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware root init|sign|show|verify`: the keys of releases, made and changed in turns by those who hold them."""

from pathlib import Path
from typing import Annotated

import typer
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_root import (
    ReleaseRoot,
    RootVersion,
    SignedRoot,
    check_successor,
    encode_root_file,
    read_root_file,
    root_version,
    with_signature,
)
from jarvis_trust.release_signatures import load_release_public_key, sign_bytes

from jarvisctl.config import read_private, read_public
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.output import Output
from jarvisctl.release_files import count_object, describe_count, expiry, nothing_signed, now, read_root, write
from jarvisctl.settings import settings_of

app = typer.Typer(no_args_is_help=True, add_completion=False)

RootArgument = Annotated[Path, typer.Argument(metavar="ROOT", help="The release root, root.json.")]


@app.command()
def init(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="ROOT", help="Where the root goes; a name that is free.")],
    key: Annotated[list[Path], typer.Option("--key", metavar="FILE", help="A public release key, PEM; once for each key.")],
    threshold: Annotated[int, typer.Option("--threshold", metavar="K", help="How many different keys must sign.")],
    previous: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The root that is in force: the new one is its next version."),
    ] = None,
    expires_days: Annotated[int, typer.Option("--expires-days", metavar="N", help="Life of this version.")] = 1825,
) -> None:
    """Makes a release root of these keys, or the next version of one (--from). It counts once enough keys have signed it."""
    if file.exists():
        raise usage_error(f"ROOT is {file}, which exists: a name that is free is needed")
    try:
        before = () if previous is None else read_root(previous).versions
        public = [load_release_public_key(read_public(path, "the release key")) for path in key]
        version = before[-1].root.version + 1 if before else 1
        made = root_version(public, threshold=threshold, version=version, created=now(), expires=expiry(expires_days))
        data = encode_root_file([*before, SignedRoot(root=made, signatures=())])
        read_root_file(data)
    except FirmwareError as error:
        raise CtlError(f"nothing was made: {error.message}", ExitCode.USAGE, reason=error.reason) from error
    if len(made.keys) != len(key):
        raise usage_error(f"--key names {len(key)} files with {len(made.keys)} different keys: each key counts once")
    write(file, data)
    _report(context, file, read_root_file(data))


@app.command()
def sign(
    context: typer.Context,
    *,
    file: RootArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private release key, PEM, mode 0600.")],
) -> None:
    """Adds a key's signature to the last version of a release root."""
    private_pem = read_private(key, "the release key")
    try:
        versions = read_root_file(read_public(file, "the release root"))
        signature = sign_bytes(versions[-1].root.to_bytes(), private_pem)
    except FirmwareError as error:
        raise nothing_signed(error) from error
    if not any(signature.keyid in signed.root.keys for signed in versions[-2:]):
        message = f"--key {key} is key {signature.keyid}: one of this version's keys, or of the version before, is accepted"
        raise usage_error(message)
    versions = (*versions[:-1], with_signature(versions[-1], signature))
    write(file, encode_root_file(versions))
    _report(context, file, versions)


@app.command()
def show(context: typer.Context, file: RootArgument) -> None:
    """Shows every version of a release root, its keys, who signed it and who is still to sign."""
    try:
        versions = read_root_file(read_public(file, "the release root"))
    except FirmwareError as error:
        raise CtlError(f"{file}: {error.message}", ExitCode.UNVERIFIED, reason=error.reason) from error
    _report(context, file, versions)


@app.command()
def verify(
    context: typer.Context,
    *,
    file: RootArgument,
    pinned: Annotated[
        Path | None,
        typer.Option("--pinned", metavar="FILE", help="The root that a host trusts now; ROOT must go on from it."),
    ] = None,
) -> None:
    """Judges a release root as an agent would that trusts --pinned; leaves with 4 and the exact reason when it is refused."""
    try:
        root = read_root(file)
        if pinned is not None:
            check_successor(root, read_root(pinned))
        root.check_expiry(int(now().timestamp()) * 10**9)
    except FirmwareError as error:
        raise CtlError(f"{file} is refused: {error.reason}: {error.message}", ExitCode.UNVERIFIED, reason=error.reason) from error
    _report(context, file, root.versions)


def _report(context: typer.Context, file: Path, versions: tuple[SignedRoot, ...]) -> None:
    output = Output(json=settings_of(context).json)
    whole = _is_whole(versions)
    if output.json:
        objects = [_version_object(signed, before) for before, signed in _with_before(versions)]
        output.line({"file": str(file), "whole": whole, "versions": objects})
        return
    text = "".join(_describe_version(signed, before) for before, signed in _with_before(versions))
    output.text(f"{text}{file}: {'signed as it must be' if whole else 'not signed by enough keys yet'}\n")


def _with_before(versions: tuple[SignedRoot, ...]) -> list[tuple[SignedRoot | None, SignedRoot]]:
    return list(zip((None, *versions), versions, strict=False))


def _is_whole(versions: tuple[SignedRoot, ...]) -> bool:
    try:
        ReleaseRoot(data=b"", versions=versions).check_signatures()
    except FirmwareError:
        return False
    return True


def _signers(signed: SignedRoot, before: SignedRoot | None) -> list[RootVersion]:
    return [signed.root] if before is None else [before.root, signed.root]


def _describe_version(signed: SignedRoot, before: SignedRoot | None) -> str:
    root = signed.root
    text = f"version {root.version}, {root.threshold} of {len(root.keys)} keys, made {root.created}, expires {root.expires}\n"
    return text + "".join(describe_count(signed.signed_by(signer), signer) for signer in _signers(signed, before))


def _version_object(signed: SignedRoot, before: SignedRoot | None) -> dict[str, object]:
    root = signed.root
    return {
        "version": root.version,
        "threshold": root.threshold,
        "keys": sorted(root.keys),
        "created": root.created,
        "expires": root.expires,
        "signatures": [count_object(signed.signed_by(signer), signer) for signer in _signers(signed, before)],
    }
