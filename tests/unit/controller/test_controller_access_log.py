# SPDX-License-Identifier: Apache-2.0
"""Accesses and refusals are audited; a flood of them is counted, not stored."""

from __future__ import annotations

import pytest
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.access_log import AccessLog
from jarvis_controller.audit_log import CONTROLLER, AuditEntry

VERA = "spiffe://lab/operator/viewer/vera"
WATCH = fleet_pb2.WatchFlowsRequest()


class Entries(list[AuditEntry]):
    """What was stored; a test can let the store fail."""

    fails = False

    async def append_entry(self, entry: AuditEntry) -> None:
        if self.fails:
            raise OSError("disk full")
        self.append(entry)


async def test_the_first_access_is_an_entry_and_its_repeats_are_one_more() -> None:
    entries = Entries()
    log = AccessLog(entries.append_entry)
    for _ in range(1000):
        await log.read(VERA, "WatchFlows", ["b", "a"], WATCH)
    assert [dict(entry.detail) for entry in entries] == [{"agents": ["a", "b"], "count": 2, "method": "WatchFlows"}]
    await log.flush()
    assert [entry.detail.get("repeats") for entry in entries] == [None, 999]
    await log.flush()
    assert len(entries) == 2
    await log.read(VERA, "WatchFlows", ["b", "a"], WATCH)
    assert len(entries) == 3, "a new minute says it anew"


async def test_other_people_methods_and_requests_are_told_apart() -> None:
    entries = Entries()
    log = AccessLog(entries.append_entry)
    await log.read(VERA, "WatchFlows", ["a"], WATCH)
    await log.read(VERA, "ListFlows", ["a"], WATCH)
    await log.read("spiffe://lab/operator/viewer/otto", "WatchFlows", ["a"], WATCH)
    await log.read(VERA, "WatchFlows", ["a"], fleet_pb2.WatchFlowsRequest(slow_consumer_policy=2))
    assert len(entries) == 4
    assert {entry.agent_id for entry in entries} == {"a"}


async def test_no_flood_stores_more_than_its_bound() -> None:
    entries = Entries()
    log = AccessLog(entries.append_entry)
    for number in range(5000):
        await log.refused(f"spiffe://lab/operator/viewer/v{number}", "CreateJoinToken", "ROLE_DENIED", "no", "ipv4:1.2.3.4:5")
        await log.read(f"spiffe://lab/operator/viewer/v{number}", "WatchFlows", ["a"], WATCH)
    await log.flush()
    assert len(entries) <= 516
    counted = sum(int(str(entry.detail.get("repeats", 0))) for entry in entries)
    first = sum("repeats" not in entry.detail for entry in entries)
    assert counted + first == 10_000, "every one of them is counted"


async def test_strangers_are_told_apart_by_their_host_not_by_their_port() -> None:
    entries = Entries()
    log = AccessLog(entries.append_entry)
    for port in range(100):
        await log.refused("", "Enroll", "TLS_VERSION", "no TLS 1.3", f"ipv4:10.0.0.1:{port}")
    await log.refused("", "Enroll", "TLS_VERSION", "no TLS 1.3", "ipv6:[::1]:7")
    assert [entry.detail["peer"] for entry in entries] == ["ipv4:10.0.0.1", "ipv6:[::1]"]
    assert {entry.principal for entry in entries} == {CONTROLLER}


async def test_data_whose_entry_cannot_be_stored_is_not_given_out() -> None:
    entries = Entries()
    log = AccessLog(entries.append_entry)
    entries.fails = True
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            await log.read(VERA, "WatchFlows", ["a"], WATCH)
    entries.fails = False
    await log.read(VERA, "WatchFlows", ["a"], WATCH)
    assert len(entries) == 1
