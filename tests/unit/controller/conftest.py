# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the controller's tests: signed manifests, an open store, a record of an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from jarvis_controller.store import Store

from tests.support import ReleaseKey
from tests.unit.controller.releases import Release, make_release
from tests.unit.controller.software_tpm import SoftwareTpm


@pytest.fixture(scope="session")
def release(release_key: ReleaseKey) -> Release:
    return make_release(release_key)


@pytest.fixture(scope="session")
def keys() -> SoftwareTpm:
    """Of the TPMs of a session's benches: for its keys alone, which take time to make."""
    return SoftwareTpm()


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'controller.db'}")
    await opened.open()
    yield opened
    await opened.close()
