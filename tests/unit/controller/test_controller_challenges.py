# SPDX-License-Identifier: Apache-2.0
"""Challenges: random, for one agent, for one answer, for 60 s."""

from __future__ import annotations

from jarvis_controller.challenges import LIFETIME_NS, ChallengeStore

AGENT = "a" * 32


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


def test_a_thousand_challenges_are_all_different_and_of_256_bits() -> None:
    store = ChallengeStore()
    nonces = {store.issue(AGENT, (14,)).nonce for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {32}
    # A nonce that were not random would repeat bits: each of the 256 is 1 in about half of them.
    ones = [sum(int.from_bytes(nonce, "big") >> bit & 1 for nonce in nonces) for bit in range(256)]
    assert all(350 < count < 650 for count in ones)


def test_an_answer_in_time_finds_its_challenge_with_its_pcrs() -> None:
    store = ChallengeStore()
    challenge = store.issue(AGENT, (14, 7))
    consumed = store.consume(challenge.nonce, AGENT)
    assert (consumed.problem, consumed.pcrs) == ("", (7, 14))


def test_a_challenge_is_good_for_one_answer() -> None:
    store = ChallengeStore()
    challenge = store.issue(AGENT, (14,))
    store.consume(challenge.nonce, AGENT)
    assert store.consume(challenge.nonce, AGENT).problem == "CHALLENGE_USED"


def test_a_wrong_agents_answer_uses_the_challenge_up() -> None:
    store = ChallengeStore()
    challenge = store.issue(AGENT, (14,))
    assert store.consume(challenge.nonce, "b" * 32).problem == "CHALLENGE_OF_ANOTHER_AGENT"
    assert store.consume(challenge.nonce, AGENT).problem == "CHALLENGE_USED"


def test_an_unknown_nonce_is_told_from_a_used_one() -> None:
    assert ChallengeStore().consume(bytes(32), AGENT).problem == "CHALLENGE_UNKNOWN"


def test_a_challenge_expires_after_60_seconds() -> None:
    clock = Clock()
    store = ChallengeStore(now_ns=clock)
    on_time, late = store.issue(AGENT, (14,)), store.issue(AGENT, (14,))
    clock.now_ns += LIFETIME_NS
    assert store.consume(on_time.nonce, AGENT).problem == ""
    clock.now_ns += 1
    assert store.consume(late.nonce, AGENT).problem == "CHALLENGE_EXPIRED"


def test_challenges_that_nobody_answers_are_forgotten() -> None:
    clock = Clock()
    store = ChallengeStore(now_ns=clock)
    forgotten = store.issue(AGENT, (14,))
    clock.now_ns += 2 * LIFETIME_NS + 1
    store.issue(AGENT, (14,))
    assert store.consume(forgotten.nonce, AGENT).problem == "CHALLENGE_UNKNOWN"
