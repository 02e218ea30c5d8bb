# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware keygen|sign|verify`: the release side of the firmware's trust, without a controller and without gRPC."""

import hashlib
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Manifest,
    generate_release_key,
    load_release_public_key,
    sign_manifest,
    verify_manifest,
)
from jarvis_trust.keyfiles import write_private

from jarvisctl.config import read_private, read_public
from jarvisctl.errors import CtlError, ExitCode, usage_error
from jarvisctl.format.output import Output
from jarvisctl.settings import settings_of

app = typer.Typer(no_args_is_help=True, add_completion=False)

LIBRARY = "libjarvis_capture.so"
#: ELF e_machine (System V gABI) to what `uname -m` says.
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l", 243: "riscv64", 21: "ppc64le", 22: "s390x"}


@app.command()
def keygen(
    context: typer.Context,
    private: Annotated[Path, typer.Option("--private", metavar="FILE", help="Where the private key goes, mode 0600.")] = Path(
        "release.pem"
    ),
    public: Annotated[
        Path, typer.Option("--public", metavar="FILE", help="Where the public key goes; agents and controller pin it.")
    ] = Path("release.pub"),
) -> None:
    """Makes a release key, RSA-4096. Never overwrites one."""
    for option, path in (("--private", private), ("--public", public)):
        if path.exists():
            raise usage_error(
                f"{option} is {path}, which exists: a name that is free is needed, a release key is never overwritten"
            )
    private_pem, public_pem = generate_release_key()
    try:
        write_private(private, private_pem)
        public.write_bytes(public_pem)
    except OSError as error:
        raise usage_error(
            f"--private is {private} and --public is {public}: {error.filename} cannot be written: {error.strerror}"
        ) from error
    output = Output(json=settings_of(context).json)
    fingerprint = _fingerprint(public_pem)
    if output.json:
        output.line({"private": str(private), "public": str(public), "public_key_sha256": fingerprint})
    else:
        output.text(
            f"{private}: private release key, keep it off every host that captures\n"
            f"{public}: public release key, SHA-256 {fingerprint}\n"
        )


@app.command()
def sign(
    context: typer.Context,
    *,
    objects: Annotated[
        list[Path], typer.Argument(metavar="LIBRARY...", help=f"{LIBRARY} and its modules, all in one directory.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private release key, PEM, mode 0600.")],
    version: Annotated[str, typer.Option("--version", metavar="X.Y.Z", help="The version the library says of itself.")],
    security_version: Annotated[
        int, typer.Option("--security-version", metavar="N", help="Rollback counter: agents refuse releases below their floor.")
    ] = 0,
    name: Annotated[str, typer.Option("--name", help="Product.")] = "jarvis-capture",
    architecture: Annotated[
        str, typer.Option("--architecture", help="As uname -m says it; otherwise read from the library's ELF header.")
    ] = "",
) -> None:
    """Signs a release: writes manifest.json and manifest.sig beside the library."""
    contents = _read_objects(objects)
    machine = architecture or _architecture(objects[0], contents[objects[0].name])
    private_pem = read_private(key, "the release key")
    try:
        manifest = Manifest(
            name=name,
            version=version,
            security_version=security_version,
            architecture=machine,
            objects={filename: hashlib.sha256(content).hexdigest() for filename, content in sorted(contents.items())},
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        manifest_bytes, signature = sign_manifest(manifest, private_pem)
    except FirmwareError as error:
        raise CtlError(f"nothing was signed: {error.message}", ExitCode.USAGE, reason=error.reason) from error
    directory = objects[0].parent
    try:
        (directory / MANIFEST_FILE).write_bytes(manifest_bytes)
        (directory / SIGNATURE_FILE).write_bytes(signature)
    except OSError as error:
        raise usage_error(f"LIBRARY is in {directory}: {error.filename} cannot be written: {error.strerror}") from error
    output = Output(json=settings_of(context).json)
    if output.json:
        output.line({"directory": str(directory), **_manifest_object(manifest)})
    else:
        output.text(f"{directory / MANIFEST_FILE}\n{directory / SIGNATURE_FILE}\n{_describe(manifest)}")


@app.command()
def verify(
    context: typer.Context,
    place: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where the library and its manifest are, or the library itself.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Public release key, PEM.")],
    floor: Annotated[int, typer.Option("--floor", metavar="N", help="Least security version that is accepted.")] = 0,
    architecture: Annotated[str | None, typer.Option("--architecture", help="What it must be for; otherwise any.")] = None,
) -> None:
    """Judges firmware as an agent would, and says who signed what; leaves with 4 and the exact reason when it must not run."""
    public_pem = read_public(key, "the release key")
    output = Output(json=settings_of(context).json)
    try:
        manifest = _verified(place, public_pem, floor, architecture)
    except FirmwareError as error:
        if output.json:
            output.line({"ok": False, "reason": error.reason, "message": error.message})
        raise CtlError(
            f"{place} must not run: {error.reason}: {error.message}", ExitCode.UNVERIFIED, reason=error.reason
        ) from error
    if output.json:
        output.line({"ok": True, "public_key_sha256": _fingerprint(public_pem), **_manifest_object(manifest)})
    else:
        output.text(f"signed by release key SHA-256 {_fingerprint(public_pem)}\n{_describe(manifest)}")


def _verified(place: Path, public_pem: bytes, floor: int, architecture: str | None) -> Manifest:
    """The manifest, once signature and every object's digest hold.

    Raises:
        FirmwareError: FIRMWARE_MISSING, or what verify_manifest and check_object give.
    """
    directory = place if place.is_dir() else place.parent
    library = LIBRARY if place.is_dir() else place.name
    if not (directory / library).is_file():
        raise FirmwareError("FIRMWARE_MISSING", f"there is no file {directory / library}")
    manifest_bytes = _content(directory / MANIFEST_FILE)
    manifest = verify_manifest(
        manifest_bytes, _content(directory / SIGNATURE_FILE), public_pem, floor=floor, architecture=architecture
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


def _fingerprint(public_pem: bytes) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, hex."""
    return hashlib.sha256(
        load_release_public_key(public_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _manifest_object(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "security_version": manifest.security_version,
        "architecture": manifest.architecture,
        "created": manifest.created,
        "objects": dict(manifest.objects),
    }


def _describe(manifest: Manifest) -> str:
    lines = [
        f"{manifest.name} {manifest.version} for {manifest.architecture}",
        f"security version {manifest.security_version}, made {manifest.created}",
        *(f"  {filename}  SHA-256 {digest}" for filename, digest in manifest.objects.items()),
    ]
    return "\n".join(lines) + "\n"
