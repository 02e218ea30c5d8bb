# SPDX-License-Identifier: Apache-2.0
"""The store: tokens, states with their audit entries, idempotent requests, the chain."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.models import AgentRecord, TpmMoment
from jarvis_controller.records import EnrolledAgent, PassedAttestation, RequestConflictError
from jarvis_controller.states import Event, IllegalTransitionError, State
from jarvis_controller.store import Store
from jarvis_trust.errors import AuditError, EnrollmentError

AGENT = "a" * 32
ADMIN = "spiffe://lab/operator/admin/ada"
HOUR_NS = 3600 * 10**9


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        return self.now_ns


def enrolled(**changes: Any) -> EnrolledAgent:
    fields: dict[str, Any] = {
        "agent_id": AGENT,
        "ek_certificate": b"ek certificate",
        "ek_public": b"ek",
        "ak_public": b"ak",
        "ak_name": b"ak name",
        "tls_spki": b"\x01" * 32,
        "certificate_expire_ns": 1,
        "address": "127.0.0.1:7443",
        "hostname": "host",
        "version": "1.0.0",
    }
    return EnrolledAgent(**{**fields, **changes})


def passed(**changes: Any) -> PassedAttestation:
    fields: dict[str, Any] = {
        "ak_name": b"ak name",
        "tpm": TpmMoment(clock=2**64 - 1, reset_count=1, restart_count=2, firmware_version=2**63 + 5),
        "boot_id": b"\x02" * 16,
        "session_id": b"\x03" * 16,
        "tls_spki": b"\x01" * 32,
        "firmware_sha256": b"\x04" * 32,
        "firmware_version": "1.0.0",
        "security_version": 5,
        "objects": {"libjarvis_capture.so": "04" * 32},
        "assurance": "L1",
        "lease_ns": 600 * 10**9,
    }
    return PassedAttestation(**{**fields, **changes})


async def enrol(store: Store, **changes: Any) -> AgentRecord:
    await store.create_token("token", {"role": "web"}, HOUR_NS, principal=ADMIN)
    return await store.enroll(enrolled(**changes), "token")


async def events(store: Store) -> Sequence[fleet_pb2.AuditEvent]:
    return await store.audit_page(0, 1000)


def database_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.glob("controller.db*"))


async def refusal(store: Store, token: str) -> str:
    with pytest.raises(EnrollmentError) as refused:
        await store.check_token(token)
    return refused.value.reason


async def test_a_token_enrols_one_agent_and_gives_it_its_labels(store: Store) -> None:
    record = await enrol(store)
    assert (record.state, record.labels) == (State.ENROLLED, {"role": "web"})
    assert await refusal(store, "token") == "TOKEN_REUSED"


async def test_a_used_token_enrols_nobody_else(store: Store) -> None:
    await enrol(store)
    with pytest.raises(EnrollmentError) as refused:
        await store.enroll(enrolled(agent_id="b" * 32), "token")
    assert refused.value.reason == "TOKEN_REUSED"
    assert [agent.agent_id for agent in await store.agents()] == [AGENT]


async def test_one_token_used_by_many_at_once_enrols_one(store: Store) -> None:
    await store.create_token("token", {}, HOUR_NS, principal=ADMIN)
    attempts = [store.enroll(enrolled(agent_id=letter * 32), "token") for letter in "abcdefgh"]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(result, AgentRecord) for result in results) == 1
    assert len(await store.agents()) == 1


async def test_an_unknown_token_is_refused(store: Store) -> None:
    assert await refusal(store, "never made") == "TOKEN_UNKNOWN"


async def test_a_token_ends_with_its_lifetime(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(f"sqlite:///{tmp_path / 'db'}", wall_clock_ns=clock)
    await store.open()
    await store.create_token("token", {}, HOUR_NS, principal=ADMIN)
    clock.now_ns += HOUR_NS - 1
    await store.check_token("token")
    clock.now_ns += 1
    assert await refusal(store, "token") == "TOKEN_EXPIRED"
    await store.close()


async def test_no_token_is_found_in_the_database(store: Store, tmp_path: Path) -> None:
    await store.create_token("a-token-that-is-secret", {}, HOUR_NS, principal=ADMIN)
    assert b"a-token-that-is-secret" not in database_bytes(tmp_path)


async def test_an_unknown_agent_cannot_enrol_without_a_token(store: Store) -> None:
    with pytest.raises(EnrollmentError) as refused:
        await store.enroll(enrolled(), None)
    assert refused.value.reason == "TOKEN_REQUIRED"


async def test_enrolling_again_keeps_state_labels_and_the_key_before(store: Store) -> None:
    await enrol(store)
    await store.change_state(AGENT, Event.QUARANTINE_ORDERED, "because", principal=ADMIN)
    await store.create_token("another", {"role": "db"}, HOUR_NS, principal=ADMIN)
    record = await store.enroll(enrolled(tls_spki=b"\x09" * 32, address="10.0.0.9:7443"), "another")
    assert (record.state, record.reason, record.labels) == (State.QUARANTINED, "because", {"role": "web"})
    assert record.tls_spkis == (b"\x09" * 32, b"\x01" * 32)
    assert record.address == "10.0.0.9:7443"


async def test_another_ak_for_a_known_ek_is_refused(store: Store) -> None:
    await enrol(store)
    with pytest.raises(EnrollmentError) as refused:
        await store.enroll(enrolled(ak_name=b"another"), None)
    assert refused.value.reason == "AK_CHANGED"


async def test_a_passed_attestation_verifies_and_takes_the_next_lease_sequence(store: Store) -> None:
    await enrol(store)
    first, _ = await store.record_passed(AGENT, passed())
    second, _ = await store.record_passed(AGENT, passed())
    assert (first.state, first.lease_sequence, second.lease_sequence) == (State.VERIFIED, 1, 2)
    assert second.tpm == passed().tpm
    assert await store.known_firmware(5) == {("libjarvis_capture.so", "04" * 32)}
    assert await store.known_firmware(6) == frozenset()


async def test_an_agent_quarantined_while_it_proved_its_tpm_needs_a_token(store: Store) -> None:
    """The handler looked a minute earlier; the transaction decides."""
    before = await enrol(store)
    await store.change_state(AGENT, Event.ATTESTATION_FAILED, "FIRMWARE_UNTRUSTED_MEASUREMENT: ...")
    with pytest.raises(EnrollmentError, match="QUARANTINED and needs a join token") as refused:
        await store.enroll(enrolled(tls_spki=b"\x09" * 32, address="10.0.0.9:7443"), None)
    assert refused.value.reason == "TOKEN_REQUIRED"
    after = await store.agent(AGENT)
    assert after is not None
    assert (after.address, after.tls_spkis) == (before.address, before.tls_spkis)


async def test_a_pass_changes_nothing_for_an_agent_quarantined_meanwhile(store: Store) -> None:
    await enrol(store)
    await store.change_state(AGENT, Event.QUARANTINE_ORDERED, "because", principal=ADMIN)
    record, _ = await store.record_passed(AGENT, passed())
    assert (record.state, record.lease_sequence, record.tpm) == (State.QUARANTINED, 0, None)


async def test_a_pass_for_another_ak_than_the_one_of_record_changes_nothing(store: Store) -> None:
    await enrol(store)
    record, _ = await store.record_passed(AGENT, passed(ak_name=b"exchanged between check and use"))
    assert (record.state, record.lease_sequence) == (State.ENROLLED, 0)


async def test_the_reason_of_a_quarantine_outlives_a_second_failure(store: Store) -> None:
    await enrol(store)
    await store.change_state(AGENT, Event.ATTESTATION_FAILED, "first")
    record = await store.change_state(AGENT, Event.ATTESTATION_FAILED, "second")
    assert record.reason == "first"


async def test_a_release_makes_stale_and_forgets_the_tpms_clock(store: Store) -> None:
    await enrol(store)
    await store.record_passed(AGENT, passed())
    await store.change_state(AGENT, Event.QUARANTINE_ORDERED, "because", principal=ADMIN)
    record = await store.change_state(AGENT, Event.RELEASE_ORDERED, "released", principal=ADMIN)
    assert (record.state, record.tpm) == (State.STALE, None)


async def test_every_change_of_state_has_its_audit_entry(store: Store) -> None:
    await enrol(store)
    await store.record_passed(AGENT, passed())
    await store.change_state(AGENT, Event.CONTACT_LOST, "timeout")
    await store.change_state(AGENT, Event.CONTACT_LOST, "timeout again")
    await store.change_state(AGENT, Event.QUARANTINE_ORDERED, "because", principal=ADMIN)
    found = [(event.action, event.principal, json.loads(event.detail)) for event in await events(store)]
    states = [(detail["from"], detail["to"], principal) for action, principal, detail in found if action == "agent.state"]
    assert states == [
        ("ENROLLED", "VERIFIED", "controller"),
        ("VERIFIED", "STALE", "controller"),
        ("STALE", "QUARANTINED", ADMIN),
    ]
    assert [action for action, _, _ in found][:2] == ["enroll.token", "enroll.certificate"]


async def test_a_refused_change_leaves_no_entry(store: Store) -> None:
    await enrol(store)
    before = len(await events(store))
    with pytest.raises(IllegalTransitionError):
        await store.change_state(AGENT, Event.RELEASE_ORDERED, "not quarantined", principal=ADMIN)
    assert len(await events(store)) == before


async def test_a_change_whose_audit_entry_cannot_be_written_does_not_happen(store: Store, tmp_path: Path) -> None:
    await enrol(store)
    with sqlite3.connect(tmp_path / "controller.db") as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no space'); END")
    with pytest.raises(Exception, match="no space"):
        await store.change_state(AGENT, Event.QUARANTINE_ORDERED, "because", principal=ADMIN)
    agent = await store.agent(AGENT)
    assert agent is not None
    assert agent.state is State.ENROLLED


@pytest.mark.parametrize(
    ("statement", "sequence"),
    [
        ("UPDATE audit SET detail = '{}' WHERE sequence = 2", 2),
        ("UPDATE audit SET principal = 'somebody' WHERE sequence = 1", 1),
        ("UPDATE audit SET time_ns = time_ns + 1 WHERE sequence = 3", 3),
        ("DELETE FROM audit WHERE sequence = 2", 2),
        ("UPDATE audit SET hash = zeroblob(32) WHERE sequence = 3", 3),
        ("UPDATE audit SET sequence = 99 WHERE sequence = 4", 4),
    ],
)
async def test_an_edited_audit_log_is_found_with_the_first_bad_entry(
    store: Store, tmp_path: Path, statement: str, sequence: int
) -> None:
    for number in range(4):
        await store.audit(AuditEntry(principal=ADMIN, action="test", detail={"number": number}))
    await store.verify_audit()
    with sqlite3.connect(tmp_path / "controller.db") as database:
        database.execute(statement)
    with pytest.raises(AuditError) as found:
        await store.verify_audit()
    assert found.value.sequence == sequence


async def test_the_chain_is_whole_after_many_writers_at_once(store: Store) -> None:
    await asyncio.gather(*(store.audit(AuditEntry(principal=ADMIN, action="test", detail={"n": n})) for n in range(200)))
    await store.verify_audit()
    assert [event.sequence for event in await events(store)] == list(range(1, 201))


async def test_a_repeated_request_is_given_the_outcomes_that_succeeded(store: Store) -> None:
    request = {"principal": ADMIN, "method": "StartCapture", "payload": b"spec"}
    assert await store.begin_request("id", **request) == {}
    good = fleet_pb2.CaptureOutcome(agent_id=AGENT)
    bad = fleet_pb2.CaptureOutcome(agent_id="b" * 32)
    bad.status.code = 14
    for outcome in (good, bad):
        entry = AuditEntry(principal=ADMIN, action="capture.start", agent_id=outcome.agent_id, detail={}, request_id="id")
        await store.record_outcome(entry, outcome)
    assert await store.begin_request("id", **request) == {AGENT: good.SerializeToString()}


@pytest.mark.parametrize(
    "change", [{"principal": "spiffe://lab/operator/admin/eve"}, {"method": "StopCapture"}, {"payload": b"other"}]
)
async def test_a_request_id_used_for_something_else_is_refused(store: Store, change: dict[str, Any]) -> None:
    request: dict[str, Any] = {"principal": ADMIN, "method": "StartCapture", "payload": b"spec"}
    await store.begin_request("id", **request)
    with pytest.raises(RequestConflictError):
        await store.begin_request("id", **{**request, **change})


async def test_a_request_id_is_forgotten_after_24_hours(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(f"sqlite:///{tmp_path / 'db'}", wall_clock_ns=clock)
    await store.open()
    await store.begin_request("id", principal=ADMIN, method="StartCapture", payload=b"spec")
    clock.now_ns += 24 * HOUR_NS + 1
    assert await store.begin_request("id", principal=ADMIN, method="StopCapture", payload=b"other") == {}
    await store.close()


async def test_what_was_stored_survives_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    first = Store(url)
    await first.open()
    await enrol(first)
    await first.record_passed(AGENT, passed())
    await first.close()
    second = Store(url)
    await second.open()
    record, _ = await second.record_passed(AGENT, passed())
    assert record.lease_sequence == 2
    await second.verify_audit()
    await second.close()
