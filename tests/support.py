# SPDX-License-Identifier: Apache-2.0
"""What fixtures and tests share: where things are, and how firmware is signed for a test."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jarvis_native.loader import LIBRARY
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, sign_manifest
from jarvis_trust.release_root import ReleaseRoot, single_key_root

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
MODULE = "libjarvis_capture_double.so"
"""The module that build_module makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKey:
    """A key pair such as a release is signed with, PEM, and the release root in which it signs alone."""

    private_pem: bytes
    public_pem: bytes
    root: bytes = field(init=False)
    """root.json."""

    def __post_init__(self) -> None:
        created, expires = datetime(2026, 11, 22, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
        object.__setattr__(self, "root", single_key_root(self.private_pem, created=created, expires=expires))

    @property
    def release_root(self) -> ReleaseRoot:
        """The same, verified."""
        return ReleaseRoot.from_bytes(self.root)


def find_library() -> Path:
    """The library under test: $JARVIS_LIBRARY, else the environment's."""
    path = Path(os.environ.get("JARVIS_LIBRARY") or Path(sys.prefix, "lib", "jarvis-capture", LIBRARY))
    if not path.is_file():
        pytest.fail(f"no native library at {path}: run make setup, or name one with JARVIS_LIBRARY")
    return path


def copy_objects(library: Path, directory: Path) -> None:
    """Copies the library, and the modules that lie beside it, into a directory."""
    for path in [library, *library.parent.glob(f"{library.stem}_*.so")]:
        shutil.copyfile(path, directory / path.name)


def sign_firmware(directory: Path, key: ReleaseKey, *, version: str = "0.1.0", security_version: int = 1, **changes: Any) -> None:
    """Writes manifest.json and manifest.sig for the library and the modules in a directory."""
    objects = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("libjarvis_capture*.so")}
    fields: dict[str, Any] = {
        "name": "jarvis-capture",
        "architecture": os.uname().machine,
        "created": "2026-11-22T10:00:00Z",
        "expires": "2100-01-01T00:00:00Z",
    }
    manifest = Manifest(version=version, security_version=security_version, objects=objects, **(fields | changes))
    data, signature = sign_manifest(manifest, key.private_pem)
    (directory / MANIFEST_FILE).write_bytes(data)
    (directory / SIGNATURE_FILE).write_bytes(signature)


def build_module(target: Path, *, version: str = "0.1.0", link: tuple[str, ...] = ()) -> None:
    """Compiles the smallest module that the library takes, of this release or another, linked with what is named."""
    native = ROOT / "native"
    includes = [f"-I{native / 'include'}", f"-I{native / 'src'}"]
    source = str(DATA / "module_double.c")
    command = ["cc", "-shared", "-fPIC", f'-DVERSION="{version}"', *includes, "-o", str(target), source, *link]
    subprocess.run(command, check=True, capture_output=True, text=True)


def make_release(directory: Path, key: ReleaseKey, *flags: str, version: str = "0.1.0", security_version: int = 1) -> str:
    """Another genuine release of the library under test, without its modules; SHA-256 of its manifest, hex.

    Args:
        directory: made here.
        key: signs it.
        flags: for tests/data/changed_release.c, e.g. "-DFATE=abort". None: only the digest differs.
        version: what the manifest says, and the library.
        security_version: the manifest's.
    """
    directory.mkdir()
    library, target = find_library().resolve(), directory / LIBRARY
    if flags or version != "0.1.0":
        options = [*flags, f'-DVERSION="{version}"', "-Wl,--no-as-needed", f"-Wl,-rpath,{library.parent}"]
        command = ["cc", "-shared", "-fPIC", "-o", str(target), str(DATA / "changed_release.c"), *options, str(library)]
    else:
        section = directory / "section"
        section.write_text(str(directory))
        command = ["objcopy", "--add-section", f".note.test={section}", str(library), str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (directory / "section").unlink(missing_ok=True)
    sign_firmware(directory, key, version=version, security_version=security_version)
    return hashlib.sha256((directory / MANIFEST_FILE).read_bytes()).hexdigest()
