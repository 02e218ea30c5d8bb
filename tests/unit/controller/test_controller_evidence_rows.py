# SPDX-License-Identifier: Apache-2.0
"""What is kept of evidence, and what goes when there is too much of it or it is too old."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from jarvis_controller import evidence_rows
from jarvis_controller.attestation_case import AttestedCase
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.store import Store

LIMITS = EvidenceLimits(age_ns=1000, octets=10_000)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'controller.db'}")
    await opened.open()
    yield opened
    await opened.close()


def case(mark: int, *, boot_log: bytes = b"", size: int = 100) -> AttestedCase:
    return AttestedCase(data=bytes([mark]) * size, boot_log=boot_log)


async def keep(store: Store, kept: AttestedCase, now_ns: int) -> bytes:
    return await store.run(lambda session: evidence_rows.keep(session, kept, now_ns, LIMITS))


async def is_kept(store: Store, data: bytes) -> bool:
    digest = hashlib.sha256(data).digest()
    return await store.run(lambda session: evidence_rows.find(session, digest)) == data


async def test_a_case_is_found_by_its_hash_and_its_boot_log_is_kept_once(store: Store) -> None:
    first, second = case(1, boot_log=b"log"), case(2, boot_log=b"log")
    assert await keep(store, first, 0) == first.sha256
    await keep(store, second, 1)
    assert await is_kept(store, first.data)
    assert await is_kept(store, second.data)
    assert await is_kept(store, b"log")
    assert not await is_kept(store, b"never seen")


async def test_what_is_too_old_goes_but_a_boot_log_stays_for_its_last_case(store: Store) -> None:
    first, second = case(1, boot_log=b"log"), case(2, boot_log=b"log")
    await keep(store, first, 0)
    await keep(store, second, 900)
    await keep(store, case(3), 1500)
    assert not await is_kept(store, first.data)
    assert await is_kept(store, second.data)
    assert await is_kept(store, b"log")
    await keep(store, case(4), 1901)
    assert not await is_kept(store, b"log")


async def test_beyond_the_size_the_oldest_go_first(store: Store) -> None:
    cases = [case(mark, size=2000) for mark in range(6)]
    for time_ns, one in enumerate(cases):
        await keep(store, one, time_ns)
    assert [await is_kept(store, one.data) for one in cases] == [False, False, True, True, True, True]
