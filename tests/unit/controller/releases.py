# SPDX-License-Identifier: Apache-2.0
"""Signed manifests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jarvis_trust.firmware import Manifest, sign_manifest

from tests.support import ReleaseKey
from tests.unit.controller.software_tpm import LIBRARY

GOOD_LIBRARY = hashlib.sha256(b"the good library").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A signed manifest."""

    manifest: bytes
    signature: bytes
    sha256: bytes
    """Of the library."""


def make_release(
    key: ReleaseKey,
    *,
    library: bytes = GOOD_LIBRARY,
    version: str = "1.0.0",
    security_version: int = 5,
    expires: str = "2100-01-01T00:00:00Z",
) -> Release:
    manifest = Manifest(
        name="jarvis-capture",
        version=version,
        security_version=security_version,
        architecture="x86_64",
        objects={LIBRARY: library.hex()},
        created="2026-11-22T10:00:00Z",
        expires=expires,
    )
    data, signature = sign_manifest(manifest, key.private_pem)
    return Release(manifest=data, signature=signature, sha256=library)
