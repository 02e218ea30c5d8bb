# SPDX-License-Identifier: Apache-2.0
"""The controller signs its audit chain, and signs nothing that was rewritten under it."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jarvis_controller.audit_checkpoints import CHECKPOINT_FILE, Checkpointer, audit_signer
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.store import Store
from jarvis_trust.audit import GENESIS, entry_hash, verify_chain
from jarvis_trust.audit_checkpoint import CheckpointVerifier
from jarvis_trust.ca import FleetCA
from jarvis_trust.errors import AuditError
from sqlalchemy.orm import Session

CA = FleetCA.create("lab")
ENTRY = AuditEntry(principal=CONTROLLER, action="test", detail={})


async def opened(directory: Path, *, every: int = 3) -> Store:
    signer = audit_signer(directory, CA, "main")
    checkpointer = Checkpointer(signer=signer, ca_pem=CA.certificate_pem, directory=directory, every_entries=every)
    store = Store(f"sqlite:///{directory / 'controller.db'}", checkpointer=checkpointer)
    await store.open()
    return store


async def running(directory: Path) -> Store:
    store = await opened(directory)
    await store.verify_audit()
    return store


async def signed(store: Store) -> list[int]:
    """The sequences that checkpoints cover; all of it verifies as an operator would."""
    answer = await store.audit_checkpoints(0, 1000)
    verifier = CheckpointVerifier(CA.certificate_pem)
    for certificate in answer.signer_certificates:
        verifier.trust(certificate)
    for checkpoint in answer.checkpoints:
        verifier.add(checkpoint)
    head = GENESIS
    for event in await store.audit_page(0, 1000):
        head = verify_chain((event,), after=head)
        verifier.entry(head, event.time.ToNanoseconds())
    return [checkpoint.sequence for checkpoint in answer.checkpoints]


def rewrite(directory: Path, *, also: str = "") -> None:
    """Another detail in entry 2, and every hash after it computed anew: a chain that holds."""
    with sqlite3.connect(directory / "controller.db") as database:
        database.execute("UPDATE audit SET detail = '{\"forged\":true}' WHERE sequence = 2")
        previous = bytes(32)
        columns = "sequence, time_ns, principal, action, agent_id, detail, request_id"
        for row in database.execute(f"SELECT {columns} FROM audit ORDER BY sequence").fetchall():  # noqa: S608
            digest = entry_hash(previous, *row)
            database.execute("UPDATE audit SET previous_hash = ?, hash = ? WHERE sequence = ?", (previous, digest, row[0]))
            previous = digest
        if also:
            database.execute(also)


async def filled(directory: Path, entries: int = 7) -> None:
    store = await running(directory)
    for _ in range(entries):
        await store.audit(ENTRY)
    await store.close()


async def reason_at_start(directory: Path) -> str:
    store = await opened(directory)
    try:
        with pytest.raises(AuditError) as refused:
            await store.verify_audit()
        before = len((await store.audit_checkpoints(0, 1000)).checkpoints)
        for _ in range(9):
            await store.audit(ENTRY)
        await store.checkpoint()
        assert len((await store.audit_checkpoints(0, 1000)).checkpoints) == before, "a rewritten chain was signed"
    finally:
        await store.close()
    return refused.value.reason


async def test_every_so_many_entries_are_signed_and_the_rest_on_demand(tmp_path: Path) -> None:
    store = await running(tmp_path)
    for _ in range(7):
        await store.audit(ENTRY)
    assert await signed(store) == [3, 6]
    await store.checkpoint()
    await store.checkpoint()
    assert await signed(store) == [3, 6, 7], "and what is signed is not signed again"
    await store.close()


async def test_an_entry_that_is_rolled_back_takes_its_checkpoint_with_it(tmp_path: Path) -> None:
    store = await running(tmp_path)
    await store.audit(ENTRY)
    await store.audit(ENTRY)

    def then_fail(session: Session) -> None:
        store._checkpointer.advance(session, GENESIS, 0, at_once=True)  # type: ignore[union-attr]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await store.run(then_fail)
    await store.audit(ENTRY)
    assert await signed(store) == [3]
    await store.close()


async def test_a_restart_goes_on_where_the_last_process_was(tmp_path: Path) -> None:
    await filled(tmp_path)
    store = await running(tmp_path)
    await store.audit(ENTRY)
    await store.audit(ENTRY)
    assert await signed(store) == [3, 6, 9]
    await store.close()


async def test_a_chain_from_before_there_were_checkpoints_is_signed_as_it_is(tmp_path: Path) -> None:
    plain = Store(f"sqlite:///{tmp_path / 'controller.db'}")
    await plain.open()
    for _ in range(5):
        await plain.audit(ENTRY)
    await plain.close()
    store = await running(tmp_path)
    await store.checkpoint()
    assert await signed(store) == [5]
    await store.close()


async def test_a_database_rewritten_between_two_runs_is_not_signed(tmp_path: Path) -> None:
    await filled(tmp_path)
    rewrite(tmp_path)
    assert await reason_at_start(tmp_path) == "AUDIT_CHECKPOINT_MISMATCH"


async def test_a_database_rewritten_with_its_checkpoints_taken_away_is_not_signed(tmp_path: Path) -> None:
    await filled(tmp_path)
    rewrite(tmp_path, also="DELETE FROM audit_checkpoints")
    assert await reason_at_start(tmp_path) == "AUDIT_CHECKPOINT_MISSING"


async def test_a_database_cut_back_to_an_earlier_checkpoint_is_not_signed(tmp_path: Path) -> None:
    await filled(tmp_path)
    with sqlite3.connect(tmp_path / "controller.db") as database:
        database.execute("DELETE FROM audit WHERE sequence > 3")
        database.execute("DELETE FROM audit_checkpoints WHERE number > 1")
    assert await reason_at_start(tmp_path) == "AUDIT_CHECKPOINT_MISSING"


async def test_a_chain_cut_after_its_last_checkpoints_entry_is_not_signed(tmp_path: Path) -> None:
    await filled(tmp_path, entries=6)
    with sqlite3.connect(tmp_path / "controller.db") as database:
        database.execute("DELETE FROM audit WHERE sequence > 5")
    assert await reason_at_start(tmp_path) == "AUDIT_TRUNCATED"


async def test_a_database_rewritten_under_the_running_controller_is_signed_no_more(tmp_path: Path) -> None:
    store = await running(tmp_path)
    for _ in range(4):
        await store.audit(ENTRY)
    rewrite(tmp_path)
    for _ in range(4):
        await store.audit(ENTRY)
    await store.checkpoint()
    answer = await store.audit_checkpoints(0, 1000)
    assert [checkpoint.sequence for checkpoint in answer.checkpoints] == [3]
    assert len(await store.audit_page(0, 1000)) == 8, "the entries go on all the same"
    await store.close()


async def test_two_processes_over_one_database_go_on_from_each_others_checkpoints(tmp_path: Path) -> None:
    first = await running(tmp_path)
    await first.audit(ENTRY)
    second = await running(tmp_path)
    for _ in range(2):
        for store in (first, second):
            for _ in range(3):
                await store.audit(ENTRY)
    await first.checkpoint()
    await second.checkpoint()
    sequences = await signed(first)
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == 13
    await first.close()
    await second.close()


async def test_a_checkpoint_that_nobody_signed_ends_signing_and_not_the_entries(tmp_path: Path) -> None:
    store = await running(tmp_path)
    for _ in range(3):
        await store.audit(ENTRY)
    with sqlite3.connect(tmp_path / "controller.db") as database:
        database.execute(
            "INSERT INTO audit_checkpoints SELECT number + 1, sequence + 1, hash, time_ns, signer_sha256, signature"
            " FROM audit_checkpoints"
        )
    for _ in range(4):
        await store.audit(ENTRY)
    assert len(await store.audit_page(0, 100)) == 7
    assert len((await store.audit_checkpoints(0, 100)).checkpoints) == 2
    await store.close()


async def test_what_is_remembered_is_the_last_checkpoint(tmp_path: Path) -> None:
    await filled(tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"\xff")
    assert await reason_at_start(tmp_path) == "AUDIT_CHECKPOINT_INVALID"


def test_the_audit_key_is_made_once_and_anew_before_it_ends(tmp_path: Path) -> None:
    first = audit_signer(tmp_path, CA, "main")
    assert audit_signer(tmp_path, CA, "main").signer_sha256 == first.signer_sha256
    later = audit_signer(tmp_path, CA, "main", now=datetime.now(UTC) + timedelta(days=370))
    assert later.signer_sha256 != first.signer_sha256
