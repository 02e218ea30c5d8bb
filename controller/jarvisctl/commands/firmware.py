# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware keygen|sign|verify|root|revoke`: the release side of the firmware's trust, without controller and gRPC."""

import hashlib
import struct
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from jarvis_trust.encoding import rfc3339_utc
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, verify_manifest
from jarvis_trust.keyfiles import write_private
from jarvis_trust.release_root import ReleaseRoot, single_key_root
from jarvis_trust.release_signatures import generate_release_key, key_id, load_release_public_key

from jarvisctl.commands import firmware_revoke, firmware_root
from jarvisctl.config import read_public
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.output import Output
from jarvisctl.release_files import (
    add_signature,
    count_object,
    describe_count,
    expiry,
    nothing_signed,
    now,
    read_root,
    write,
)
from jarvisctl.settings import settings_of

app = typer.Typer(no_args_is_help=True, add_completion=False)

LIBRARY = "libjarvis_capture.so"
#: ELF e_machine (System V gABI) to what `uname -m` says.
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l", 243: "riscv64", 21: "ppc64le", 22: "s390x"}


@app.command()
def keygen(
    context: typer.Context,
    *,
    private: Annotated[Path, typer.Option("--private", metavar="FILE", help="Where the private key goes, mode 0600.")] = Path(
        "release.pem"
    ),
    public: Annotated[
        Path, typer.Option("--public", metavar="FILE", help="Where the public key goes, for `jarvisctl firmware root init`.")
    ] = Path("release.pub"),
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="FILE", help="Also make a release root in which this key signs alone, to be pinned."),
    ] = None,
    expires_days: Annotated[int, typer.Option("--expires-days", metavar="N", help="Life of that root.")] = 3650,
) -> None:
    """Makes a release key, RSA-4096. Never overwrites one."""
    expires = expiry(expires_days)
    for option, path in (("--private", private), ("--public", public), ("--root", root)):
        if path is not None and path.exists():
            raise usage_error(
                f"{option} is {path}, which exists: a name that is free is needed, a release key is never overwritten"
            )
    private_pem, public_pem = generate_release_key()
    try:
        write_private(private, private_pem)
        public.write_bytes(public_pem)
        if root is not None:
            root.write_bytes(single_key_root(private_pem, created=now(), expires=expires))
    except OSError as error:
        raise usage_error(
            f"--private is {private} and --public is {public}: {error.filename} cannot be written: {error.strerror}"
        ) from error
    output = Output(json=settings_of(context).json)
    fingerprint = key_id(load_release_public_key(public_pem))
    if output.json:
        output.line(
            {
                "private": str(private),
                "public": str(public),
                "public_key_sha256": fingerprint,
                "root": "" if root is None else str(root),
            }
        )
        return
    output.text(
        f"{private}: private release key, keep it off every host that captures\n"
        f"{public}: public release key, SHA-256 {fingerprint}\n"
    )
    if root is not None:
        output.text(f"{root}: release root of this key alone, until {rfc3339_utc(expires)}; agents and controller pin it\n")


@app.command()
def sign(
    context: typer.Context,
    *,
    objects: Annotated[
        list[Path],
        typer.Argument(
            metavar="LIBRARY...",
            help=f"{LIBRARY} and its modules, all in one directory; or the {MANIFEST_FILE} that another key has signed already.",
        ),
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private release key, PEM, mode 0600.")],
    version: Annotated[str, typer.Option("--version", metavar="X.Y.Z", help="The version the library says of itself.")] = "",
    security_version: Annotated[
        int, typer.Option("--security-version", metavar="N", help="Rollback counter: agents refuse releases below their floor.")
    ] = 0,
    minimum_security_version: Annotated[
        int,
        typer.Option(
            "--minimum-security-version",
            metavar="N",
            help="The floor that it sets in the TPM of each host where it was attested: none below it runs there again.",
        ),
    ] = 0,
    expires_days: Annotated[
        int, typer.Option("--expires-days", metavar="N", help="After so many days the release is not loaded any more.")
    ] = 365,
    name: Annotated[str, typer.Option("--name", help="Product.")] = "jarvis-capture",
    architecture: Annotated[
        str, typer.Option("--architecture", help="As uname -m says it; otherwise read from the library's ELF header.")
    ] = "",
) -> None:
    """Signs a release: writes manifest.json and manifest.sig beside the library, or adds a signature to those of others."""
    if [path.name for path in objects] == [MANIFEST_FILE]:
        if version:
            raise usage_error(f"--version is {version}: {objects[0]} says which version it is, so it is not accepted")
        _cosign(context, objects[0], key)
        return
    if not version:
        raise usage_error("--version is missing: the version that the library says of itself, X.Y.Z, is needed")
    expires = expiry(expires_days)
    contents = _read_objects(objects)
    machine = architecture or _architecture(objects[0], contents[objects[0].name])
    try:
        manifest = Manifest(
            name=name,
            version=version,
            security_version=security_version,
            minimum_security_version=minimum_security_version,
            architecture=machine,
            objects={filename: hashlib.sha256(content).hexdigest() for filename, content in sorted(contents.items())},
            created=rfc3339_utc(now()),
            expires=rfc3339_utc(expires),
        )
    except FirmwareError as error:
        raise nothing_signed(error) from error
    directory = objects[0].parent
    (directory / SIGNATURE_FILE).unlink(missing_ok=True)  # signatures of another manifest
    signers = add_signature(manifest.to_bytes(), directory / SIGNATURE_FILE, key, what="the manifest")
    write(directory / MANIFEST_FILE, manifest.to_bytes())
    _report_signed(context, directory, manifest, signers)


def _cosign(context: typer.Context, path: Path, key: Path) -> None:
    data = read_public(path, "the manifest")
    try:
        manifest = Manifest.from_bytes(data)
    except FirmwareError as error:
        raise nothing_signed(error) from error
    signers = add_signature(data, path.with_name(SIGNATURE_FILE), key, what="the manifest")
    _report_signed(context, path.parent, manifest, signers)


def _report_signed(context: typer.Context, directory: Path, manifest: Manifest, signers: tuple[str, ...]) -> None:
    output = Output(json=settings_of(context).json)
    if output.json:
        output.line({"directory": str(directory), "signed": list(signers), **_manifest_object(manifest)})
        return
    who = "".join(f"signed by {keyid}\n" for keyid in signers)
    output.text(f"{directory / MANIFEST_FILE}\n{directory / SIGNATURE_FILE}\n{who}{_describe(manifest)}")


@app.command()
def verify(
    context: typer.Context,
    *,
    place: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where the library and its manifest are, or the library itself.")
    ],
    root: Annotated[Path, typer.Option("--root", metavar="FILE", help="The release root that agents pin, root.json.")],
    floor: Annotated[int, typer.Option("--floor", metavar="N", help="Least security version that is accepted.")] = 0,
    architecture: Annotated[str | None, typer.Option("--architecture", help="What it must be for; otherwise any.")] = None,
) -> None:
    """Judges firmware as an agent would, and says who signed what; leaves with 4 and the exact reason when it must not run."""
    output = Output(json=settings_of(context).json)
    try:
        release_root = read_root(root)
        signers = _signers(place, release_root)
    except FirmwareError as error:
        raise _refused(output, place, error, {}) from error
    try:
        manifest = _verified(place, release_root, floor, architecture)
    except FirmwareError as error:
        if signers and not output.json:
            output.text(signers["text"])
        raise _refused(output, place, error, signers.get("object", {})) from error
    if output.json:
        output.line({"ok": True, **signers["object"], **_manifest_object(manifest)})
    else:
        output.text(f"{signers['text']}{_describe(manifest)}")


def _refused(output: Output, place: Path, error: FirmwareError, signers: dict[str, object]) -> CtlError:
    if output.json:
        output.line({"ok": False, "reason": error.reason, "message": error.message, **signers})
    return CtlError(f"{place} must not run: {error.reason}: {error.message}", ExitCode.UNVERIFIED, reason=error.reason)


def _signers(place: Path, root: ReleaseRoot) -> dict[str, Any]:
    """Who signed the manifest: `text` and `object`; empty when there is nothing to count."""
    directory = place if place.is_dir() else place.parent
    manifest, signatures = _content(directory / MANIFEST_FILE), _content(directory / SIGNATURE_FILE)
    if not manifest or not signatures:
        return {}
    count = root.count(manifest, signatures, what="the manifest")
    return {"text": describe_count(count, root.current), "object": count_object(count, root.current)}


def _verified(place: Path, root: ReleaseRoot, floor: int, architecture: str | None) -> Manifest:
    """The manifest, once signatures, expiry and every object's digest hold.

    Raises:
        FirmwareError: FIRMWARE_MISSING, or what verify_manifest and check_object give.
    """
    directory = place if place.is_dir() else place.parent
    library = LIBRARY if place.is_dir() else place.name
    if not (directory / library).is_file():
        raise FirmwareError("FIRMWARE_MISSING", f"there is no file {directory / library}")
    manifest = verify_manifest(
        _content(directory / MANIFEST_FILE),
        _content(directory / SIGNATURE_FILE),
        root,
        floor=floor,
        architecture=architecture,
        now_ns=time.time_ns(),
    )
    for filename in sorted({library, *manifest.objects}):
        path = directory / filename
        if not path.is_file():
            raise FirmwareError("FIRMWARE_MISSING", f"the manifest names {filename}, and there is no file {path}")
        manifest.check_object(filename, hashlib.sha256(_content(path)).hexdigest())
    return manifest


def _content(path: Path) -> bytes:
    """Empty when there is no such file: verify_manifest knows what that means."""
    return read_public(path, "the file") if path.exists() else b""


def _read_objects(paths: list[Path]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path in paths:
        if path.parent.resolve() != paths[0].parent.resolve():
            raise usage_error(f"LIBRARY is {path}: all objects of a release must be in one directory, here {paths[0].parent}")
        if not path.is_file():
            raise usage_error(f"LIBRARY is {path}: there is no such file")
        if path.name in contents:
            raise usage_error(f"LIBRARY is {path}: it was given twice")
        contents[path.name] = read_public(path, "LIBRARY")
    return contents


def _architecture(path: Path, content: bytes) -> str:
    """From the ELF header: e_machine is the 16 bits at offset 18, in the byte order that EI_DATA (offset 5) says."""
    if content[:4] != b"\x7fELF" or len(content) < 20:
        raise usage_error(
            f"LIBRARY is {path}, which is no ELF file: a shared library is needed, or --architecture to sign it all the same"
        )
    machine = struct.unpack_from(">H" if content[5] == 2 else "<H", content, 18)[0]
    if machine not in _MACHINES:
        raise usage_error(
            f"LIBRARY is {path} for ELF machine {machine}, which has no name here: give --architecture as uname -m says it"
        )
    return _MACHINES[machine]


def _manifest_object(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "security_version": manifest.security_version,
        "minimum_security_version": manifest.minimum_security_version,
        "architecture": manifest.architecture,
        "created": manifest.created,
        "expires": manifest.expires,
        "objects": dict(manifest.objects),
    }


def _describe(manifest: Manifest) -> str:
    lines = [
        f"{manifest.name} {manifest.version} for {manifest.architecture}",
        f"security version {manifest.security_version}, sets the floor {manifest.minimum_security_version}",
        f"made {manifest.created}, expires {manifest.expires}",
        *(f"  {filename}  SHA-256 {digest}" for filename, digest in manifest.objects.items()),
    ]
    return "\n".join(lines) + "\n"


app.add_typer(firmware_root.app, name="root", help="The release root: which keys sign releases, and how many of them must.")
app.command(name="revoke")(firmware_revoke.revoke)
