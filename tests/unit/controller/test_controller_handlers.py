# SPDX-License-Identifier: Apache-2.0
"""Requests at the handlers: what is too large or no message gets to no service."""

from __future__ import annotations

from typing import Any

import pytest
from jarvis_controller import handlers
from jarvis_controller.rpc_status import MAX_REQUEST_BYTES, RpcError
from jarvis_trust.status import reason_of


class Untouched:
    """Stands for every service; none may be called."""

    def __getattr__(self, name: str) -> Any:
        def behaviour(*_arguments: Any) -> Any:
            pytest.fail(f"{name} was called")

        return behaviour


SERVICE: Any = Untouched()
SERVED = {
    "Fleet": handlers.fleet_handlers(SERVICE, SERVICE, SERVICE),
    "Policy": handlers.policy_handlers(SERVICE),
    "Enrollment": handlers.enrollment_handlers(SERVICE),
}
LIMITS = dict.fromkeys((("Policy", "ApplyPolicy"), ("Policy", "SimulatePolicy")), handlers.MAX_POLICY_BYTES)
"""Of methods that take more than others."""
METHODS = [(service, method) for service, table in SERVED.items() for method in table]


async def answer(handler: Any, payload: bytes) -> None:
    """Calls a handler of any kind with one request."""
    if handler.unary_unary:
        await handler.unary_unary(payload, None)
        return
    calls = handler.stream_stream or handler.unary_stream

    async def requests() -> Any:
        yield payload

    async for _ in calls(requests() if handler.stream_stream else payload, None):
        pytest.fail("answered")


@pytest.mark.parametrize(("service", "method"), [pair for pair in METHODS if pair != ("Enrollment", "Enroll")])
async def test_a_request_that_is_too_large_is_refused_before_it_is_parsed(service: str, method: str) -> None:
    limit = LIMITS.get((service, method), MAX_REQUEST_BYTES)
    with pytest.raises(RpcError) as caught:
        # Not a message either: that is not what it is refused for.
        await answer(SERVED[service][method], b"\xff" * (limit + 1))
    assert reason_of(caught.value.status) == "REQUEST_TOO_LARGE"
    assert str(limit) in caught.value.status.message


@pytest.mark.parametrize(("service", "method"), [pair for pair in METHODS if pair != ("Enrollment", "Enroll")])
async def test_a_request_that_is_no_message_is_refused(service: str, method: str) -> None:
    with pytest.raises(RpcError) as caught:
        await answer(SERVED[service][method], b"\xff" * 8)
    assert "are no jarvis.capture.v1." in str(caught.value.status)
