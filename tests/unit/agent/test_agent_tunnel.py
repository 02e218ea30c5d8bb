# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the tunnel without a controller: waits between attempts, the address on disk, calls and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1.tunnel_pb2 import Call, TunnelHello
from jarvis_agent.peer import controller_spki_sha256, own_spki_sha256
from jarvis_agent.tunnel import Tunnel, TunnelRetry
from jarvis_agent.tunnel_address import FILE, TunnelAddress
from jarvis_agent.tunnel_calls import StreamEndedError, TunnelContext, TunnelEnds, carry_out
from jarvis_agent.tunnel_link import CHANNEL_OPTIONS, Dialled, TunnelRefusedError
from jarvis_trust.errors import EnrollmentError
from jarvis_trust.status import error_status

ENDS = TunnelEnds(controller_spki_sha256=b"c" * 32, agent_spki_sha256=b"a" * 32)
SERVICE = "jarvis.capture.v1.AgentService"


def refused(*, retry_after_ns: int | None = None) -> TunnelRefusedError:
    return TunnelRefusedError(error_status(code_pb2.RESOURCE_EXHAUSTED, "TUNNEL_BUSY", "later", retry_after_ns=retry_after_ns))


def tunnel(**options: Any) -> Tunnel:
    def dial() -> Dialled:
        raise AssertionError("not dialled here")

    return Tunnel(
        **{
            "dial": dial,
            "certificate": lambda: b"",
            "handlers": grpc.method_handlers_generic_handler(SERVICE, {}),
            "hello": TunnelHello(session_id=bytes(16), version="1"),
            "retry": TunnelRetry(first_s=0.5, longest_s=60.0),
            "draw": lambda low, high: (low, high)[1],
            **options,
        }
    )


def test_waits_are_drawn_from_nothing_to_a_ceiling_that_doubles_up_to_the_longest() -> None:
    made = tunnel()
    assert [made._delay(attempt, refused()) for attempt in (0, 1, 2, 6, 7, 40, 4000)] == [0.5, 1.0, 2.0, 32.0, 60.0, 60.0, 60.0]
    assert tunnel(draw=lambda low, _high: low)._delay(5, refused()) == 0.0


def test_when_the_controller_says_when_that_is_when() -> None:
    assert tunnel()._delay(9, refused(retry_after_ns=3_250_000_000)) == 3.25
    assert tunnel()._delay(0, refused(retry_after_ns=10**18)) == 600.0, "but not for years"


async def test_a_controller_that_is_not_there_is_tried_again_and_again() -> None:
    dialled, enough = [], asyncio.Event()

    def dial() -> Dialled:
        dialled.append(1)
        if len(dialled) >= 3:
            enough.set()
        return Dialled(channel=grpc.aio.insecure_channel("127.0.0.1:1", options=CHANNEL_OPTIONS), certificate_pem=b"")

    made = tunnel(dial=dial, draw=lambda _low, _high: 0.0)
    running = asyncio.ensure_future(made.run())
    async with asyncio.timeout(20):
        await enough.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.stop(0.0)
    assert not made.is_open


# ---- the address


def test_an_address_survives_a_restart_in_a_file_of_its_owners_alone(tmp_path: Path) -> None:
    address = TunnelAddress(tmp_path, is_wanted=True)
    assert not address.is_told
    address.told("controller.lab.example:7442")
    assert address.is_told
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = TunnelAddress(tmp_path, is_wanted=True)
    assert (again.current, again.is_told) == ("controller.lab.example:7442", True)


def test_another_carrier_in_the_configuration_has_to_be_told_to_the_controller(tmp_path: Path) -> None:
    TunnelAddress(tmp_path, is_wanted=True).told("controller:7442")
    direct = TunnelAddress(tmp_path, is_wanted=False)
    assert not direct.is_told
    direct.told("controller:7442")
    assert direct.is_told
    assert not TunnelAddress(tmp_path, is_wanted=True).is_told


@pytest.mark.parametrize("given", ["", "controller", "controller:0"])
def test_a_controller_that_names_no_tunnel_is_said_so(tmp_path: Path, given: str) -> None:
    with pytest.raises(EnrollmentError, match="tunnel_address") as error:
        TunnelAddress(tmp_path, is_wanted=True).told(given)
    assert error.value.reason == "ENROLLMENT_RESULT_INVALID"


def test_a_damaged_address_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    (tmp_path / FILE).chmod(0o600)
    assert not TunnelAddress(tmp_path, is_wanted=True).is_told


# ---- calls


async def nothing(_message: bytes) -> None:
    raise AssertionError("a unary call sends no messages")


def served(**handlers: Any) -> grpc.GenericRpcHandler[Any, Any]:
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def call(rpc: str, payload: bytes = b"", **fields: Any) -> Call:
    return Call(call_id=1, method=f"/{SERVICE}/{rpc}", payload=payload, **fields)


async def test_a_handler_sees_whose_keys_the_tunnel_is_between() -> None:
    async def keys(_payload: bytes, context: Any) -> bytes:
        return controller_spki_sha256(context) + (own_spki_sha256(context) or b"")

    handlers = served(Attest=grpc.unary_unary_rpc_method_handler(keys))
    assert await carry_out(handlers, call("Attest"), ENDS, nothing) == (status_pb2.Status(), b"c" * 32 + b"a" * 32)


async def test_details_that_cannot_be_read_leave_the_code_and_the_text() -> None:
    context = TunnelContext(call("Attest"), ENDS)
    with pytest.raises(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff"), ("other", b"")))
    assert context.status == status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone")


async def test_a_deadline_that_is_the_handlers_own_is_a_fault_and_not_the_callers() -> None:
    async def slow(_payload: bytes, _context: Any) -> bytes:
        raise TimeoutError("its own")

    handlers = served(Attest=grpc.unary_unary_rpc_method_handler(slow))
    status, _ = await carry_out(handlers, call("Attest", timeout_ns=10**10), ENDS, nothing)
    assert status.code == code_pb2.UNKNOWN


async def test_an_answer_that_no_controller_takes_is_refused_here() -> None:
    async def large(_payload: bytes, _context: Any) -> bytes:
        return bytes(9 << 20)

    handlers = served(Attest=grpc.unary_unary_rpc_method_handler(large))
    status, payload = await carry_out(handlers, call("Attest"), ENDS, nothing)
    assert (status.code, payload) == (code_pb2.RESOURCE_EXHAUSTED, b"")


async def test_a_stream_that_nobody_takes_any_more_ends_its_handler() -> None:
    ended = []

    async def many(_payload: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"message"
        finally:
            ended.append(True)

    async def send(_message: bytes) -> None:
        raise StreamEndedError

    with pytest.raises(StreamEndedError):
        await carry_out(served(StreamFlows=grpc.unary_stream_rpc_method_handler(many)), call("StreamFlows"), ENDS, send)
    assert ended == [True]
