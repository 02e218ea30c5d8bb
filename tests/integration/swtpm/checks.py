# SPDX-License-Identifier: Apache-2.0
"""What the tests of the agent process share: refusals read back, evidence judged with the trust package's own parsers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from jarvis.capture.v1.agent_pb2 import StreamFlowsResponse
from jarvis.capture.v1.trust_pb2 import Evidence
from jarvis_trust.ca import spki_sha256
from jarvis_trust.eventlog import parse_log, replay
from jarvis_trust.quote import quote_binding
from jarvis_trust.status import error_info, field_violations
from jarvis_trust.tpm_structures import parse_attest_quote, parse_ecdsa_signature

from tests.integration.swtpm.small_controller import KnownAgent, SmallController


def status_of(error: grpc.aio.AioRpcError) -> Status:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has the same three methods
    assert status is not None, error
    return status


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    info = error_info(status_of(error))
    assert info is not None, error
    return info


async def refusal_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, ErrorInfo]:
    """Code and details of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), info_of(caught.value)


async def reason_of(call: Awaitable[Any]) -> str:
    """Reason of a call that must fail."""
    _, info = await refusal_of(call)
    return str(info.reason)


async def bad_fields_of(call: Awaitable[Any]) -> dict[str, str]:
    """Field violations of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return dict(field_violations(status_of(caught.value)))


async def read_flows(stream: AsyncIterator[bytes]) -> tuple[list[StreamFlowsResponse], grpc.aio.AioRpcError | None]:
    """Every message of a stream, and the error that ended it."""
    messages = []
    try:
        async for message in stream:
            messages.append(StreamFlowsResponse.FromString(message))  # noqa: PERF401 - what came before an error counts
    except grpc.aio.AioRpcError as error:
        return messages, error
    return messages, None


def packets_in(messages: list[StreamFlowsResponse]) -> int:
    return sum(record.fwd_packets + record.rev_packets for message in messages for record in message.batch.records)


async def until(what: str, condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        await asyncio.sleep(0.05)


def check_evidence(nonce: bytes, evidence: Evidence, agent: KnownAgent, controller: SmallController) -> None:
    """Signature, binding, PCR digest and replay of the log."""
    quote = parse_attest_quote(evidence.attest)
    _, der = parse_ecdsa_signature(evidence.signature)
    assert isinstance(agent.ak.key, ec.EllipticCurvePublicKey)
    agent.ak.key.verify(der, evidence.attest, ec.ECDSA(hashes.SHA256()))
    assert quote.extra_data == quote_binding(
        nonce=nonce,
        agent_spki_sha256=spki_sha256(agent.certificate_pem),
        controller_spki_sha256=spki_sha256(controller.certificate_pem),
        agent_id=agent.agent_id,
        boot_id=evidence.boot_id,
        session_id=evidence.session_id,
        manifest=evidence.manifest,
        event_log=evidence.event_log,
    )
    digests = {value.index: value.digest for value in evidence.pcrs}
    hasher = hashes.Hash(hashes.SHA256())
    for index in sorted(digests):
        hasher.update(digests[index])
    assert quote.pcr_digest == hasher.finalize()
    assert replay(parse_log(evidence.event_log)) == digests[14]
