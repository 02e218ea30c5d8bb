# SPDX-License-Identifier: Apache-2.0
"""Readings that are kept: by content, bounded, and of no weight in the judgement."""

from __future__ import annotations

import hashlib

import pytest
from jarvis_controller.readings import ReadingCache
from jarvis_trust.errors import AttestationError

FIRST, SECOND = hashlib.sha256(b"first").digest(), hashlib.sha256(b"second").digest()


def test_the_same_bytes_are_read_once_for_each_kind() -> None:
    cache, made = ReadingCache(1000), []
    for kind, digest in (("log", FIRST), ("log", FIRST), ("facts", FIRST), ("log", SECOND), ("log", FIRST)):
        cache.get(kind, digest, 100, lambda kind=kind, digest=digest: made.append((kind, digest)))  # type: ignore[misc]
    assert made == [("log", FIRST), ("facts", FIRST), ("log", SECOND)]


def test_what_cannot_be_read_is_not_kept() -> None:
    cache = ReadingCache(1000)

    def broken() -> int:
        raise AttestationError("BOOT_LOG_INVALID", "not a log")

    for _ in range(2):
        with pytest.raises(AttestationError):
            cache.get("log", FIRST, 100, broken)
    assert cache.get("log", FIRST, 100, lambda: 7) == 7


def test_the_least_recently_used_go_when_the_room_is_over() -> None:
    cache = ReadingCache(250)
    cache.get("log", FIRST, 100, lambda: "first")
    cache.get("log", SECOND, 100, lambda: "second")
    cache.get("log", FIRST, 100, lambda: "again")
    cache.get("log", b"third", 100, lambda: "third")
    assert cache.get("log", FIRST, 100, lambda: "anew") == "first"
    assert cache.get("log", SECOND, 100, lambda: "anew") == "anew"


def test_a_cache_without_room_keeps_nothing() -> None:
    cache = ReadingCache(0)
    assert cache.get("log", FIRST, 1, lambda: 1) == 1
    assert cache.get("log", FIRST, 1, lambda: 2) == 2
