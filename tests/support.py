# SPDX-License-Identifier: Apache-2.0
"""What fixtures and tests share: where things are, and how firmware is signed for a test."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from jarvis_native.loader import LIBRARY
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, sign_manifest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKey:
    """A key pair such as a release is signed with, PEM."""

    private_pem: bytes
    public_pem: bytes


def find_library() -> Path:
    """The library under test: $JARVIS_LIBRARY, else the environment's."""
    path = Path(os.environ.get("JARVIS_LIBRARY") or Path(sys.prefix, "lib", "jarvis-capture", LIBRARY))
    if not path.is_file():
        pytest.fail(f"no native library at {path}: run make setup, or name one with JARVIS_LIBRARY")
    return path


def sign_firmware(directory: Path, key: ReleaseKey, *, version: str = "0.1.0", security_version: int = 1, **changes: str) -> None:
    """Writes manifest.json and manifest.sig for the library in a directory."""
    digest = hashlib.sha256((directory / LIBRARY).read_bytes()).hexdigest()
    fields: dict[str, str] = {"name": "jarvis-capture", "architecture": os.uname().machine, "created": "2026-11-22T10:00:00Z"}
    manifest = Manifest(version=version, security_version=security_version, objects={LIBRARY: digest}, **(fields | changes))
    data, signature = sign_manifest(manifest, key.private_pem)
    (directory / MANIFEST_FILE).write_bytes(data)
    (directory / SIGNATURE_FILE).write_bytes(signature)
