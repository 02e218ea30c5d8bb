# SPDX-License-Identifier: Apache-2.0
"""A few seconds of the soak: everything but memory, which seconds say nothing about, must hold."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.netns import is_available
from testbed.soak import leg as soak_leg
from testbed.soak.leg import Leg

pytestmark = pytest.mark.skipif(bool(is_available()), reason=is_available() or "namespaces can be made")


def test_a_short_leg_accounts_for_every_frame_and_record() -> None:
    samples: list[dict[str, Any]] = []
    outcome = soak_leg.run(Leg(backend="afpacket", seconds=5, rate=10_000), samples.append)
    assert [failure for failure in outcome.failures if not failure.startswith("memory ")] == []
    assert outcome.final["metrics"]["received"] == outcome.sent.sent == 50_000
    assert outcome.sent.flows > soak_leg.FLOWS  # flows came and went
    assert outcome.final["account"]["by_reason"]
    assert min(outcome.final["times"].values()) > 0  # readers, queries and snapshots took place
    assert samples == outcome.samples


def test_a_backend_that_cannot_capture_is_an_error_with_its_words() -> None:
    with pytest.raises(RuntimeError, match="no-such-backend"):
        soak_leg.run(Leg(backend="no-such-backend", seconds=5, rate=1000), lambda _sample: None)
