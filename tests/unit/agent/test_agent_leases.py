# SPDX-License-Identifier: Apache-2.0
"""Leases under a clock that the test holds."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1.trust_pb2 import Lease
from jarvis_agent.lease import ActiveLease, LeaseKeeper, LeaseSubject
from jarvis_trust.commands import AGENT_SERVICE, LEASED_METHODS, CommandSigner, generate_command_key
from jarvis_trust.errors import LeaseError

from tests.unit.agent.fakes import FakeClock

START = AGENT_SERVICE + "StartCapture"
SUBJECT = LeaseSubject(agent_id="a" * 32, ak_name=b"\0\x0b" + bytes(32), session_id=bytes(16), firmware_sha256=b"f" * 32)
SPKI = b"s" * 32


class Bench:
    """A keeper, its clock, and a controller's signer."""

    def __init__(self, state_path: Path) -> None:
        private_pem, self.public_pem = generate_command_key()
        self.signer = CommandSigner(private_pem)
        self.clock = FakeClock()
        self.state_path = state_path
        self.deadlines: list[int] = []
        self.sequence = 0
        self.keeper = self.new_keeper()

    def new_keeper(self, subject: LeaseSubject = SUBJECT) -> LeaseKeeper:
        return LeaseKeeper(
            subject=subject,
            command_public_pem=self.public_pem,
            state_path=self.state_path,
            on_change=self.deadlines.append,
            authority=None,
            clock=self.clock,
        )

    def quote(self) -> bytes:
        nonce = secrets.token_bytes(32)
        self.keeper.spend_nonce(nonce)
        self.keeper.note_quote(nonce=nonce, boottime=self.clock.now, reset_count=4, tls_spki_sha256=SPKI)
        return nonce

    def give(self, nonce: bytes | None = None, **changes: Any) -> ActiveLease:
        self.sequence += 1
        fields: dict[str, Any] = {
            "agent_id": SUBJECT.agent_id,
            "ak_name": SUBJECT.ak_name,
            "tls_spki_sha256": SPKI,
            "firmware_sha256": SUBJECT.firmware_sha256,
            "session_id": SUBJECT.session_id,
            "tpm_reset_count": 4,
            "methods": sorted(LEASED_METHODS),
            "sequence": self.sequence,
            "audit_head": self.sequence.to_bytes(32, "big"),
            "audit_sequence": self.sequence,
            "duration_ns": 10 * 10**9,
            "nonce": self.quote() if nonce is None else nonce,
        }
        return self.keeper.accept(self.signer.sign_lease(Lease(**(fields | changes))))

    def refusal(self, nonce: bytes | None = None, **changes: Any) -> str:
        with pytest.raises(LeaseError) as refused:
            self.give(nonce, **changes)
        return refused.value.reason


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "lease.json")


def reason_now(bench: Bench, method: str = START) -> str:
    with pytest.raises(LeaseError) as refused:
        bench.keeper.require(method)
    return refused.value.reason


def test_without_a_lease_there_is_no_right_and_work_is_paused(bench: Bench) -> None:
    assert reason_now(bench) == "AGENT_UNATTESTED"
    assert (bench.keeper.sequence, bench.keeper.remaining_ns()) == (0, 0)


def test_a_lease_counts_from_its_quote_and_not_from_its_delivery(bench: Bench) -> None:
    nonce, quoted = bench.quote(), bench.clock.now
    bench.clock.advance(4)
    bench.give(nonce)
    assert bench.keeper.remaining_ns() == 6 * 10**9
    assert bench.deadlines == [quoted + 10 * 10**9]


def test_a_lease_ends_on_the_very_nanosecond(bench: Bench) -> None:
    end = bench.give().end_ns
    bench.clock.now = end - 1
    bench.keeper.require(START)
    bench.clock.now = end
    assert reason_now(bench) == "LEASE_EXPIRED"
    assert bench.keeper.sequence == 0


def test_the_lease_in_force_says_where_flows_may_go_and_none_does_after_its_end(bench: Bench) -> None:
    assert bench.keeper.current is None
    end = bench.give(export_collectors=["192.0.2.0/24", "file"]).end_ns
    current = bench.keeper.current
    assert current is not None
    assert current.export_collectors == ("192.0.2.0/24", "file")
    bench.clock.now = end
    assert bench.keeper.current is None


def test_a_wall_clock_that_is_set_back_lengthens_no_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.give()
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: 0)
    bench.clock.advance(10)
    assert reason_now(bench) == "LEASE_EXPIRED"


def test_a_lease_that_arrives_after_its_end_is_refused_and_leaves_no_mark(bench: Bench) -> None:
    nonce = bench.quote()
    bench.clock.advance(10)
    assert bench.refusal(nonce) == "LEASE_EXPIRED"
    assert bench.deadlines == []
    assert not bench.state_path.exists()


def test_a_nonce_yields_one_lease(bench: Bench) -> None:
    nonce = bench.quote()
    bench.give(nonce)
    assert bench.refusal(nonce) == "LEASE_STALE"
    with pytest.raises(LeaseError, match="answered already"):
        bench.keeper.spend_nonce(nonce)


def test_a_second_lease_for_a_nonce_may_only_end_it_earlier(bench: Bench) -> None:
    nonce, quoted = bench.quote(), bench.clock.now
    bench.give(nonce)
    assert bench.refusal(nonce, duration_ns=10 * 10**9) == "LEASE_STALE"
    assert bench.refusal(nonce, duration_ns=11 * 10**9) == "LEASE_STALE"
    assert bench.deadlines == [quoted + 10 * 10**9]
    bench.give(nonce, duration_ns=9 * 10**9)
    assert bench.deadlines == [quoted + 10 * 10**9, quoted + 9 * 10**9]
    assert bench.refusal(nonce, duration_ns=10 * 10**9) == "LEASE_STALE"


def test_a_second_lease_that_is_over_ends_the_one_in_force_at_once_until_a_new_quote(bench: Bench) -> None:
    nonce, quoted = bench.quote(), bench.clock.now
    bench.give(nonce)
    bench.clock.advance(1)
    ended = bench.give(nonce, duration_ns=1)
    assert bench.deadlines[-1] == ended.end_ns == quoted + 1
    assert reason_now(bench) == "LEASE_EXPIRED"
    assert bench.keeper.sequence == 0
    bench.give()
    bench.keeper.require(START)


def test_a_lease_that_was_ended_is_not_brought_back_by_an_older_one_that_comes_late(bench: Bench) -> None:
    nonce, other = bench.quote(), bench.quote()
    bench.give(nonce)
    bench.clock.advance(1)
    bench.give(nonce, duration_ns=1, sequence=9)
    assert bench.refusal(other, sequence=8) == "LEASE_STALE"
    assert reason_now(bench) == "LEASE_EXPIRED"


@pytest.mark.parametrize(("changes", "reason"), [({"session_id": b"x" * 16}, "LEASE_NOT_OURS"), ({"sequence": 1}, "LEASE_STALE")])
def test_a_lease_is_ended_by_a_fitting_one_only(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    nonce = bench.quote()
    bench.give(nonce)
    assert bench.refusal(nonce, **{"duration_ns": 1, **changes}) == reason
    bench.keeper.require(START)


def test_only_the_newest_quotes_may_still_get_a_lease(bench: Bench) -> None:
    oldest = bench.quote()
    for _ in range(32):
        bench.quote()
    assert bench.refusal(oldest) == "LEASE_STALE"


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_id": "b" * 32},
        {"ak_name": b"\0\x0b" + b"x" * 32},
        {"tls_spki_sha256": b"x" * 32},
        {"firmware_sha256": b"x" * 32},
        {"session_id": b"x" * 16},
        {"tpm_reset_count": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_lease_for_something_else_names_the_field_that_differs(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(LeaseError, match=f"the lease's {next(iter(changes))} is ") as refused:
        bench.give(**changes)
    assert refused.value.reason == "LEASE_NOT_OURS"
    assert reason_now(bench) == "AGENT_UNATTESTED"


def test_refused_firmware_fits_no_lease(bench: Bench) -> None:
    subject = LeaseSubject(agent_id="a" * 32, ak_name=SUBJECT.ak_name, session_id=bytes(16), firmware_sha256=b"")
    bench.keeper = bench.new_keeper(subject)
    assert bench.refusal() == "LEASE_NOT_OURS"


def test_a_method_that_the_lease_leaves_out_is_denied(bench: Bench) -> None:
    bench.give(methods=[AGENT_SERVICE + "GetMetrics"])
    assert reason_now(bench) == "LEASE_METHOD_DENIED"
    bench.keeper.require(AGENT_SERVICE + "GetMetrics")


def test_sequence_and_audit_head_never_go_back_not_even_over_a_restart(bench: Bench) -> None:
    bench.give(sequence=7, audit_sequence=9, audit_head=b"h" * 32)
    for keeper in (bench.keeper, bench.new_keeper()):
        bench.keeper = keeper
        assert bench.refusal(sequence=7, audit_sequence=10) == "LEASE_STALE"
        assert bench.refusal(sequence=8, audit_sequence=8) == "AUDIT_TRUNCATED"
        assert bench.refusal(sequence=8, audit_sequence=9, audit_head=b"x" * 32) == "AUDIT_TRUNCATED"
    bench.give(sequence=8, audit_sequence=9, audit_head=b"h" * 32)


def test_damaged_lease_state_is_an_error_and_not_a_fresh_start(bench: Bench) -> None:
    bench.state_path.write_text("{}")
    with pytest.raises(LeaseError) as refused:
        bench.new_keeper()
    assert refused.value.reason == "LEASE_STATE_DAMAGED"


def test_a_command_under_the_lease_before_still_counts_and_older_ones_do_not(bench: Bench) -> None:
    first, second, third = bench.give(), bench.give(), bench.give()
    assert bench.keeper.covering(second.sequence) == second
    assert bench.keeper.covering(third.sequence) == third
    with pytest.raises(LeaseError) as refused:
        bench.keeper.covering(first.sequence)
    assert refused.value.reason == "LEASE_STALE"
