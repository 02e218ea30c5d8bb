# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware revoke`: the list of firmware that must not run although it was signed, made and signed in turns."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from jarvis_trust.encoding import is_sha256_hex, rfc3339_utc
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_root import RootVersion
from jarvis_trust.release_signatures import Signature, count_signatures, sign_bytes
from jarvis_trust.revocations import Revocations, encode_revocations_file, read_revocations_file

from jarvisctl.config import read_private, read_public
from jarvisctl.errors import usage_error
from jarvisctl.format.output import Output
from jarvisctl.release_files import count_object, describe_count, expiry, nothing_signed, now, read_root, write
from jarvisctl.settings import settings_of


def revoke(
    context: typer.Context,
    *,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT...", help="SHA-256 (hex) of objects or manifests, or such files; none: sign the list as it is."
        ),
    ] = None,
    file: Annotated[Path, typer.Option("--list", metavar="FILE", help="The list; made when there is none.")] = Path(
        "revoked.json"
    ),
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private release key, PEM, mode 0600.")],
    root: Annotated[
        Path | None, typer.Option("--root", metavar="FILE", help="The release root: also say who is still to sign.")
    ] = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="What is wrong with it; shown wherever it is refused.")] = "",
    renew: Annotated[bool, typer.Option("--renew", help="Make the next version though nothing is added.")] = False,
    expires_days: Annotated[int, typer.Option("--expires-days", metavar="N", help="Until then no newer list is needed.")] = 365,
) -> None:
    """Adds firmware to the list of revoked ones and signs it; without WHAT, adds a signature to the list as it is."""
    private_pem = read_private(key, "the release key")
    try:
        present, signatures = read_revocations_file(read_public(file, "--list")) if file.exists() else (None, ())
        if what or renew or present is None:
            if not what and present is None:
                raise usage_error(f"WHAT is missing and --list is {file}, which does not exist: one of them is needed")
            present, signatures = _next(present, _digests(what or []), why, expires_days), ()
        signature = sign_bytes(present.to_bytes(), private_pem)
        others = [other for other in signatures if other.keyid != signature.keyid]
        signatures = (*others, signature)
        data = encode_revocations_file(present, signatures)
        read_revocations_file(data)
        release_root = None if root is None else read_root(root)
    except FirmwareError as error:
        raise nothing_signed(error) from error
    write(file, data)
    _report(context, file, present, signatures, None if release_root is None else release_root.current)


def _next(present: Revocations | None, added: dict[str, str], why: str, expires_days: int) -> Revocations:
    if added and not why:
        raise usage_error("--why is missing: what is wrong with the firmware is needed")
    return Revocations(
        version=1 if present is None else present.version + 1,
        created=rfc3339_utc(now()),
        expires=rfc3339_utc(expiry(expires_days)),
        digests={**({} if present is None else present.digests), **dict.fromkeys(added, why)},
    )


def _digests(what: list[str]) -> dict[str, str]:
    """Digest -> the argument that gave it."""
    digests = {}
    for text in what:
        if is_sha256_hex(text):
            digests[text] = text
        elif Path(text).is_file():
            digests[hashlib.sha256(read_public(Path(text), "WHAT")).hexdigest()] = text
        else:
            raise usage_error(f"WHAT is {text}: 64 lower-case hex digits or an existing file are accepted")
    return digests


def _report(
    context: typer.Context, file: Path, revocations: Revocations, signatures: tuple[Signature, ...], root: RootVersion | None
) -> None:
    output = Output(json=settings_of(context).json)
    count = None if root is None else count_signatures(revocations.to_bytes(), signatures, root.keys)
    if output.json:
        judged = {} if count is None or root is None else count_object(count, root)
        signers = [signature.keyid for signature in signatures]
        output.line(
            {
                "file": str(file),
                "version": revocations.version,
                "expires": revocations.expires,
                "digests": dict(revocations.digests),
                "signatures": signers,
                **judged,
            }
        )
        return
    lines = [f"{file}: version {revocations.version}, expires {revocations.expires}"]
    lines += [f"  {digest}  {why}" for digest, why in sorted(revocations.digests.items())]
    lines += [f"signed by {signature.keyid}" for signature in signatures] if count is None else []
    output.text("\n".join(lines) + "\n" + ("" if count is None or root is None else describe_count(count, root)))
