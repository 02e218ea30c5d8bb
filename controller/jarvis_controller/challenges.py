# SPDX-License-Identifier: Apache-2.0
"""Challenges: 32 random bytes, kept before they are sent, good for one answer from one agent within 60 s.

They live in memory on purpose: a challenge is answered in the call that carried it, and a controller that restarted must not
accept an answer to a question it does not remember. Used from the event loop only, so taking one out is atomic.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

LIFETIME_NS = 60 * 10**9
_NONCE_BYTES = 32
_REMEMBERED = 100_000
"""Used nonces that can still be told apart from unknown ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A question to one agent."""

    agent_id: str
    nonce: bytes
    pcrs: tuple[int, ...]
    """Ascending."""
    sent_ns: int
    """CLOCK_BOOTTIME of the controller when it was made: the agent's quote cannot be older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumedChallenge:
    """A challenge as it was when its answer came; it cannot be used again, whatever the answer is worth."""

    agent_id: str
    nonce: bytes
    pcrs: tuple[int, ...]
    problem: str
    """Empty, or CHALLENGE_UNKNOWN, CHALLENGE_USED, CHALLENGE_EXPIRED, CHALLENGE_OF_ANOTHER_AGENT."""


class ChallengeStore:
    """The challenges under way."""

    def __init__(self, *, now_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)) -> None:
        self._now_ns = now_ns
        self._pending: dict[bytes, Challenge] = {}
        self._used: dict[bytes, tuple[int, ...]] = {}

    def issue(self, agent_id: str, pcrs: tuple[int, ...]) -> Challenge:
        """A new challenge for an agent, for an exact set of PCRs."""
        now = self._now_ns()
        self._forget_expired(now)
        challenge = Challenge(agent_id=agent_id, nonce=secrets.token_bytes(_NONCE_BYTES), pcrs=tuple(sorted(pcrs)), sent_ns=now)
        self._pending[challenge.nonce] = challenge
        return challenge

    def consume(self, nonce: bytes, agent_id: str) -> ConsumedChallenge:
        """Takes a challenge out for the answer that an agent gave to it. Never raises: what is wrong is said in `problem`."""
        challenge = self._pending.pop(nonce, None)
        if challenge is None:
            problem = "CHALLENGE_USED" if nonce in self._used else "CHALLENGE_UNKNOWN"
            return ConsumedChallenge(agent_id=agent_id, nonce=nonce, pcrs=self._used.get(nonce, ()), problem=problem)
        self._used[nonce] = challenge.pcrs
        if len(self._used) > _REMEMBERED:
            del self._used[next(iter(self._used))]
        problem = ""
        if challenge.agent_id != agent_id:
            problem = "CHALLENGE_OF_ANOTHER_AGENT"
        elif self._now_ns() - challenge.sent_ns > LIFETIME_NS:
            problem = "CHALLENGE_EXPIRED"
        return ConsumedChallenge(agent_id=agent_id, nonce=nonce, pcrs=challenge.pcrs, problem=problem)

    def _forget_expired(self, now_ns: int) -> None:
        # Twice the lifetime, so that a late answer is still told to be late. Oldest first: dicts keep their order.
        for nonce, challenge in list(self._pending.items()):
            if now_ns - challenge.sent_ns <= 2 * LIFETIME_NS:
                break
            del self._pending[nonce]
