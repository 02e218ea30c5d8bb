# SPDX-License-Identifier: Apache-2.0
"""A controller's verdicts, reached again by jarvisctl as a process of its own from what the controller kept of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest_asyncio
from jarvis_controller.models import EvidenceRow
from jarvis_trust.ca import generate_key, public_key_of
from jarvis_trust.identities import Identity, Role
from jarvis_trust.keyfiles import write_private
from sqlalchemy import delete, select, update

from tests.support import ReleaseKey
from tests.unit.controller.fleet import FLEET, TestFleet, running_fleet
from tests.unit.jarvisctl.conftest import Result, run_ctl


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key) as made:
        yield made


async def ctl(fleet: TestFleet, directory: Path, *arguments: str) -> Result:
    """As a viewer."""
    config = directory / "jarvisctl.toml"
    if not config.exists():
        key = generate_key()
        viewer = Identity(fleet=FLEET, role=Role.VIEWER, name="vera")
        (directory / "ca.pem").write_bytes(fleet.ca.certificate_pem)
        (directory / "vera.pem").write_bytes(fleet.ca.issue(viewer, public_key_of(key), timedelta(hours=1)))
        write_private(directory / "vera.key", key)
        config.write_text(
            f'endpoint = "127.0.0.1:{fleet.controller.operator_port}"\nfleet = "{FLEET}"\n'
            'ca = "ca.pem"\ncertificate = "vera.pem"\nkey = "vera.key"\n'
        )
    return await run_ctl("--output", "json", *arguments, config=config)


async def cases(fleet: TestFleet) -> list[tuple[int, dict[str, Any]]]:
    """Entries that name a case: sequence, detail."""
    events = await fleet.controller.store.audit_page(0, 1000)
    details = [(event.sequence, json.loads(event.detail)) for event in events]
    return [(sequence, detail) for sequence, detail in details if "case_sha256" in detail]


async def test_every_verdict_that_changed_something_is_kept_and_repeats_are_not(fleet: TestFleet, tmp_path: Path) -> None:
    agent = await fleet.add_agent()
    for _ in range(3):
        await fleet.controller.attester.attest(agent.agent_id)
    assert [detail["verdict"] for _, detail in await cases(fleet)] == ["passed"]
    agent.tpm.measure(b"\x13" * 32)
    await fleet.controller.attester.attest(agent.agent_id)
    assert [detail["verdict"] for _, detail in await cases(fleet)] == ["passed", "failed"]
    result = await ctl(fleet, tmp_path, "audit", "replay", "--all")
    assert result.code == 0, result.err
    assert [(one["found"], one["same"], one["agent_id"]) for one in result.objects] == [
        ("passed", True, agent.agent_id),
        ("failed", True, agent.agent_id),
    ]
    verified = await ctl(fleet, tmp_path, "audit", "verify")
    assert verified.code == 0, verified.err
    assert verified.objects[0]["checkpoints"] >= 0


async def test_one_verdict_is_replayed_by_its_entry(fleet: TestFleet, tmp_path: Path) -> None:
    await fleet.add_agent()
    ((sequence, _),) = await cases(fleet)
    result = await ctl(fleet, tmp_path, "audit", "replay", "--sequence", str(sequence))
    assert (result.code, result.objects[0]["sequence"]) == (0, sequence)
    assert all(check["recorded"] == check["found"] == "" for check in result.objects[0]["checks"])
    other = await ctl(fleet, tmp_path, "audit", "replay", "--sequence", "1")
    assert other.code == 2
    assert "an entry of the chain that names a case" in other.err


async def test_evidence_that_was_edited_is_found(fleet: TestFleet, tmp_path: Path) -> None:
    await fleet.add_agent()
    (data,) = await fleet.controller.store.run(lambda session: list(session.scalars(select(EvidenceRow.data))))
    edited = data + b"\x72\x00"  # an empty field that the message does not have: it can still be read
    await fleet.controller.store.run(lambda session: session.execute(update(EvidenceRow).values(data=edited)))
    result = await ctl(fleet, tmp_path, "audit", "replay", "--all")
    assert (result.code, result.objects[0]["reason"]) == (4, "CASE_ALTERED")


async def test_evidence_that_is_not_kept_any_more_is_said(fleet: TestFleet, tmp_path: Path) -> None:
    await fleet.add_agent()
    await fleet.controller.store.run(lambda session: session.execute(delete(EvidenceRow)))
    result = await ctl(fleet, tmp_path, "audit", "replay", "--all")
    assert (result.code, result.objects[0]["reason"]) == (1, "CASE_NOT_KEPT")
