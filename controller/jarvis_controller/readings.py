# SPDX-License-Identifier: Apache-2.0
"""What was read from bytes that come again and again: a host shows the same boot log with every quote, a fleet the same manifest.

Kept by kind and SHA-256 of the bytes that it was read from, never by what somebody calls them; only what could be read is kept.
What is kept says what the bytes say: whether that is accepted is judged anew each time. Used from one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ReadingCache:
    """The most recently used readings of bounded size."""

    def __init__(self, octets: int) -> None:
        """Args: octets: of the bytes that readings are of, altogether; a reading is a small multiple of its bytes."""
        self._capacity = octets
        self._held = 0
        self._readings: OrderedDict[tuple[str, bytes], tuple[Any, int]] = OrderedDict()

    def get(self, kind: str, digest: bytes, octets: int, read: Callable[[], T]) -> T:
        """The reading of this kind of the bytes with this digest, made now if it is not held.

        Args:
            kind: what is read, e.g. "boot-log".
            digest: SHA-256 of the bytes, computed by the caller.
            octets: how many they are.
            read: makes the reading; what it raises is not kept.
        """
        key = (kind, digest)
        found = self._readings.get(key)
        if found is not None:
            self._readings.move_to_end(key)
            reading: T = found[0]
            return reading
        made = read()
        self._readings[key] = (made, octets)
        self._held += octets
        while self._held > self._capacity:
            _, (_, size) = self._readings.popitem(last=False)
            self._held -= size
        return made
