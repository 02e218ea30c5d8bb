# SPDX-License-Identifier: Apache-2.0
"""Commands at the gate: freshness, replays, roles, and first answers that are given again."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from jarvis_agent import authorization
from jarvis_agent.authorization import AnswerCache, Command, CommandGate
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY
from jarvis_trust.errors import TrustError

from tests.unit.agent.fakes import FakeClock
from tests.unit.agent.test_agent_leases import SUBJECT, Bench

FLEET = "lab.example"
START, METRICS = AGENT_SERVICE + "StartCapture", AGENT_SERVICE + "GetMetrics"


class Gate:
    """A gate with a lease in force, and signed commands for it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.lease = bench.give()
        self.gate = CommandGate(
            fleet=FLEET,
            agent_id=SUBJECT.agent_id,
            session_id=SUBJECT.session_id,
            command_public_pem=bench.public_pem,
            leases=bench.keeper,
            authority=None,
            clock=bench.clock,
        )

    def signed(self, method: str, payload: bytes = b"", **changes: Any) -> list[tuple[str, str | bytes]]:
        fields: dict[str, Any] = {
            "agent_id": SUBJECT.agent_id,
            "method": method,
            "session_id": SUBJECT.session_id,
            "lease_sequence": self.lease.sequence,
            "request_id": str(uuid.uuid4()),
            "principal": f"spiffe://{FLEET}/operator/operator/ada",
            "expires_ns": 5 * 10**9,
            "payload": payload,
        }
        message = self.bench.signer.authorize(**(fields | changes))
        return [("user-agent", "test"), (AUTHORIZATION_METADATA_KEY, message.SerializeToString())]

    def admit(self, method: str, payload: bytes = b"", **changes: Any) -> Command:
        return self.gate.admit(method, payload, self.signed(method, payload, **changes))

    def refusal(self, method: str, payload: bytes = b"", **changes: Any) -> str:
        with pytest.raises(TrustError) as refused:
            self.admit(method, payload, **changes)
        return refused.value.reason


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Bench(tmp_path / "lease.json"))


def test_a_command_expires_by_the_boot_clock_counted_from_the_quote(gate: Gate) -> None:
    gate.bench.clock.now = gate.lease.quoted_ns + 5 * 10**9 - 1
    gate.admit(METRICS)
    gate.bench.clock.now += 1
    assert gate.refusal(METRICS) == "COMMAND_EXPIRED"


def test_a_command_needs_a_lease_even_when_it_is_well_signed(gate: Gate) -> None:
    gate.bench.clock.advance(10)
    assert gate.refusal(METRICS, expires_ns=60 * 10**9) == "LEASE_EXPIRED"


def test_a_payload_that_changed_on_the_way_is_refused(gate: Gate) -> None:
    with pytest.raises(TrustError) as refused:
        gate.gate.admit(METRICS, b"changed", gate.signed(METRICS, b"sent"))
    assert refused.value.reason == "COMMAND_SIGNATURE_INVALID"


def test_two_authorizations_are_as_bad_as_none(gate: Gate) -> None:
    for metadata in ([], gate.signed(METRICS) + gate.signed(METRICS)):
        with pytest.raises(TrustError) as refused:
            gate.gate.admit(METRICS, b"", metadata)
        assert refused.value.reason == "COMMAND_UNSIGNED"


def test_an_oversized_authorization_is_not_even_parsed(gate: Gate) -> None:
    with pytest.raises(TrustError, match="5000 bytes") as refused:
        gate.gate.admit(METRICS, b"", [(AUTHORIZATION_METADATA_KEY, bytes(5000))])
    assert refused.value.reason == "COMMAND_INVALID"


@pytest.mark.parametrize(
    ("principal", "method", "allowed"),
    [
        ("operator/viewer/vic", METRICS, True),
        ("operator/viewer/vic", START, False),
        ("operator/operator/ada", START, True),
        ("operator/admin/root", START, True),
        ("controller/main", START, True),
        (f"agent/{'a' * 32}", METRICS, False),
    ],
)
def test_the_role_of_the_principal_decides(gate: Gate, principal: str, method: str, *, allowed: bool) -> None:
    uri = f"spiffe://{FLEET}/{principal}"
    if allowed:
        assert gate.admit(method, principal=uri).principal == uri
    else:
        assert gate.refusal(method, principal=uri) == "ROLE_DENIED"


def test_a_principal_of_another_fleet_is_refused(gate: Gate) -> None:
    assert gate.refusal(METRICS, principal="spiffe://other.example/controller/main") == "ROLE_DENIED"


def test_a_read_is_admitted_once_while_its_lease_counts_and_stale_afterwards(gate: Gate) -> None:
    metadata = gate.signed(METRICS)
    gate.gate.admit(METRICS, b"", metadata)
    reasons = []
    for _ in range(3):
        with pytest.raises(TrustError) as refused:
            gate.gate.admit(METRICS, b"", metadata)
        reasons.append(refused.value.reason)
        gate.bench.give()
    assert reasons == ["COMMAND_REPLAYED", "COMMAND_REPLAYED", "LEASE_STALE"]


def test_commands_under_one_lease_are_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "MAX_SEEN_PER_LEASE", 2)
    gate.admit(METRICS)
    gate.admit(METRICS)
    assert gate.refusal(METRICS) == "COMMAND_LIMIT"
    gate.lease = gate.bench.give()
    gate.admit(METRICS)


def command(request_id: str = "1", payload: bytes = b"p") -> Command:
    return Command(method=START, request_id=request_id, principal="", payload_sha256=payload)


class Work:
    """Counts how often it was really done."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times = 0
        self.error = error
        self.gate = asyncio.Event()

    async def __call__(self) -> bytes:
        self.times += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return b"answer %d" % self.times


async def test_a_repeated_request_gets_the_first_answer_even_while_the_first_runs() -> None:
    cache, work = AnswerCache(FakeClock()), Work()
    callers = [asyncio.ensure_future(cache.answer(command(), work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*callers) == [b"answer 1"] * 3
    assert await cache.answer(command(), work) == b"answer 1"
    assert work.times == 1


async def test_an_error_is_an_answer_too() -> None:
    cache, work = AnswerCache(FakeClock()), Work(ValueError("no"))
    work.gate.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await cache.answer(command(), work)
    assert work.times == 1


async def test_a_caller_that_gives_up_finds_the_result_when_it_asks_again() -> None:
    cache, work = AnswerCache(FakeClock()), Work()
    first = asyncio.ensure_future(cache.answer(command(), work))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.gate.set()
    assert await cache.answer(command(), work) == b"answer 1"


async def test_the_same_id_with_another_request_is_refused() -> None:
    cache, work = AnswerCache(FakeClock()), Work()
    work.gate.set()
    await cache.answer(command(), work)
    with pytest.raises(TrustError) as refused:
        await cache.answer(command(payload=b"other"), work)
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_answers_are_kept_for_24_hours_and_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    cache, work = AnswerCache(clock), Work()
    work.gate.set()
    await cache.answer(command("old"), work)
    clock.advance(24 * 3600 - 1)
    assert await cache.answer(command("old"), work) == b"answer 1"
    clock.advance(1)
    assert await cache.answer(command("old"), work) == b"answer 2"
    monkeypatch.setattr(authorization, "MAX_ANSWERS", 3)
    for number in range(5):
        await cache.answer(command(f"new {number}"), work)
    assert len(cache._answers) == 3
