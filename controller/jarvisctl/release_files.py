# SPDX-License-Identifier: Apache-2.0
"""What the commands of releases share: signature files that grow by one signer at a time, and who has signed.

Needs neither a controller nor gRPC: these commands run off line, where the release keys are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jarvis_trust.errors import FirmwareError
from jarvis_trust.keyfiles import replace_public
from jarvis_trust.release_root import ReleaseRoot, RootVersion
from jarvis_trust.release_signatures import (
    SignatureCount,
    encode_signatures,
    key_id,
    load_release_public_key,
    parse_signatures,
    sign_bytes,
)

from jarvisctl.config import read_private, read_public
from jarvisctl.errors import CtlError, ExitCode, usage_error

MAX_DAYS = 36_500


def now() -> datetime:
    """To the second."""
    return datetime.now(UTC).replace(microsecond=0)


def expiry(days: int) -> datetime:
    """The instant so many days from now.

    Raises:
        CtlError: not 1..36500.
    """
    if not 1 <= days <= MAX_DAYS:
        raise usage_error(f"--expires-days is {days}: 1 to {MAX_DAYS} are accepted")
    return now() + timedelta(days=days)


def add_signature(data: bytes, signature_file: Path, key: Path, *, what: str) -> tuple[str, ...]:
    """Signs the bytes and adds that to the signature file, which is made if there is none. Gives the ids of all who signed.

    Raises:
        CtlError: the key or the file cannot be used; nothing was written.
    """
    private_pem = read_private(key, "the release key")
    try:
        present = parse_signatures(signature_file.read_bytes(), what=what) if signature_file.exists() else ()
        signed = encode_signatures((*present, sign_bytes(data, private_pem)))
        signers = tuple(signature.keyid for signature in parse_signatures(signed, what=what))
    except FirmwareError as error:
        raise nothing_signed(error) from error
    write(signature_file, signed)
    return signers


def nothing_signed(error: FirmwareError) -> CtlError:
    """What to leave with when there is nothing to sign, or nothing to sign it with."""
    return CtlError(f"nothing was signed: {error.message}", ExitCode.USAGE, reason=error.reason)


def write(path: Path, data: bytes) -> None:
    """The whole file or the one before.

    Raises:
        CtlError: it cannot be written.
    """
    try:
        replace_public(path, data)
    except OSError as error:
        raise usage_error(f"{path} cannot be written: {error.strerror}") from error


def read_root(path: Path) -> ReleaseRoot:
    """A verified release root.

    Raises:
        FirmwareError: it is none, or not signed as it must be.
        CtlError: it cannot be read.
    """
    return ReleaseRoot.from_bytes(read_public(path, "the release root"))


def public_key_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """The id of each public key file."""
    return {path: key_id(load_release_public_key(read_public(path, "the release key"))) for path in paths}


def missing(count: SignatureCount, root: RootVersion) -> tuple[str, ...]:
    """Ids of the root's keys that have not signed; empty once the threshold is met."""
    return () if len(count.valid) >= root.threshold else tuple(sorted(root.keys.keys() - set(count.valid)))


def describe_count(count: SignatureCount, root: RootVersion) -> str:
    """Who signed and who is still to sign, a line each."""
    lines = [
        f"signed by {len(count.valid)} of {len(root.keys)} keys of release root version {root.version}, {root.threshold} needed"
    ]
    lines += [f"  signed   {keyid}" for keyid in count.valid]
    lines += [f"  invalid  {keyid}" for keyid in count.invalid]
    lines += [f"  missing  {keyid}" for keyid in sorted(root.keys.keys() - {*count.valid, *count.invalid})]
    lines += [f"  unknown  {keyid}" for keyid in count.unknown]
    return "\n".join(lines) + "\n"


def count_object(count: SignatureCount, root: RootVersion) -> dict[str, object]:
    """The same for programs."""
    return {
        "root_version": root.version,
        "threshold": root.threshold,
        "signed": list(count.valid),
        "invalid": list(count.invalid),
        "missing": sorted(root.keys.keys() - {*count.valid, *count.invalid}),
        "unknown": list(count.unknown),
    }
