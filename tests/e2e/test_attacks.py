# SPDX-License-Identifier: Apache-2.0
"""A dozen of the named attacks, one from each kind; `make attack` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.attack.arena import RELEASE_KEY
from testbed.attack.catalogue import ATTACKS
from testbed.attack.runner import Outcome, run
from testbed.fleet import FIRMWARE

FAST = [attack for attack in ATTACKS if attack.is_fast]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All of them in one arena."""
    if not RELEASE_KEY.exists() or not (FIRMWARE / "manifest.sig").exists():
        pytest.fail("there is no signed firmware with its developer's key: run `make setup`")
    directory: Path = tmp_path_factory.mktemp("attack")
    return run(FAST, directory, lambda _result: None)


@pytest.mark.parametrize("name", [attack.name for attack in FAST])
def test_an_attack_is_refused_with_its_own_reason(outcome: Outcome, name: str) -> None:
    (result,) = [result for result in outcome.results if result.attack.name == name]
    assert result.got == result.attack.expected


def test_the_honest_agent_beside_them_lost_no_record(outcome: Outcome) -> None:
    assert outcome.honest_failures == ()
    assert outcome.records > 0


def test_every_attack_has_a_name_of_its_own_and_there_are_at_least_80() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) >= 80
    assert len(FAST) >= 12
