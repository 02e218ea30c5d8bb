# SPDX-License-Identifier: Apache-2.0
"""What a controller does must not depend on how it reaches its agents: tests that ask for `carrier` run over both."""

from __future__ import annotations

import pytest
from jarvis_controller.agent_record import Carrier


@pytest.fixture(params=list(Carrier), ids=str)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    found: Carrier = request.param
    return found
