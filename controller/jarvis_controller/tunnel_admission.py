# SPDX-License-Identifier: Apache-2.0
"""How many tunnels may begin: so many a second and so many at once; who is not let in is told when to come back.

    thousands of agents at once -> the first few are let in -> each other one gets a place in time of its own, 1/rate apart
    one agent over and over     -> held back by a bucket of its own key, before it can take a place of anybody else's

So a fleet that lost its controller comes back in as many seconds as it takes, and asks little more often than it is let in.
Sans-I/O: times are seconds of any steady clock.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable

_DRAW = random.SystemRandom().uniform


class Admission:
    """A token bucket that gives appointments. Used from the event loop only."""

    def __init__(
        self,
        *,
        per_s: float,
        burst: float,
        at_once: int,
        longest_s: float,
        draw: Callable[[float, float], float] = _DRAW,
    ) -> None:
        """Full at the start.

        Args:
            per_s: tunnels that may begin in a second.
            burst: how many of them in one moment.
            at_once: how many may be beginning at a time.
            longest_s: the farthest appointment.
            draw: uniform random number between two bounds.
        """
        self._per_s, self._burst, self._at_once, self._longest_s = per_s, burst, at_once, longest_s
        self._draw = draw
        self._left, self._at_s, self._next_s = burst, 0.0, 0.0
        self._beginning = 0

    def enter(self, now_s: float) -> float:
        """Lets one in (0.0; it must `leave` when it has begun or failed), or says in how many seconds it should ask again."""
        self._left = min(self._burst, self._left + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left >= 1.0 and self._beginning < self._at_once:
            self._left -= 1.0
            self._beginning += 1
            return 0.0
        self._next_s = max(self._next_s, now_s) + 1.0 / self._per_s
        wait_s = self._next_s - now_s
        if wait_s > self._longest_s:
            # More are waiting than there are appointments: whoever comes then is spread once more.
            return self._draw(self._longest_s / 2, self._longest_s)
        return wait_s + self._draw(0.0, 1.0 / self._per_s)

    def leave(self) -> None:
        """One that was let in has begun, or failed to."""
        self._beginning -= 1


class AdmissionPerKey:
    """One small bucket for each TLS key: whoever opens tunnels in a loop, or begins many and says nothing, is alone in waiting.

    By key and not by id, so that who has an agent's name but not its key does not hold that agent up. Used from the event loop
    only. Keys that were not seen for the longest are forgotten; there are as many as certificates were issued.
    """

    def __init__(self, make: Callable[[], Admission], *, most: int = 16_384) -> None:
        """Args: make: a key's bucket, full; most: keys that are remembered."""
        self._make = make
        self._most = most
        self._known: OrderedDict[bytes, Admission] = OrderedDict()

    def of(self, key: bytes) -> Admission:
        """The bucket of a key."""
        found = self._known.pop(key, None) or self._make()
        self._known[key] = found
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return found
