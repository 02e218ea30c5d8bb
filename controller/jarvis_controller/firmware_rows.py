# SPDX-License-Identifier: Apache-2.0
"""The objects of every signed manifest that was seen. Functions over a session, run on the store's thread."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from jarvis_controller.models import FirmwareRow


def know(session: Session, objects: Mapping[str, str], version: str, security_version: int) -> None:
    """Keeps the objects of a verified manifest: file name -> SHA-256 hex."""
    for name, digest in objects.items():
        sha256 = bytes.fromhex(digest)
        session.merge(FirmwareRow(object=name, sha256=sha256, version=version, security_version=security_version))


def known(session: Session, floor: int) -> frozenset[tuple[str, str]]:
    """(object, SHA-256 hex) of all that are not below the floor."""
    rows = session.scalars(select(FirmwareRow).where(FirmwareRow.security_version >= floor))
    return frozenset((row.object, row.sha256.hex()) for row in rows)
