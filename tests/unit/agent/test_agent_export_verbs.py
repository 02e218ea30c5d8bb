# SPDX-License-Identifier: Apache-2.0
"""The export verbs as bytes, and their refusals as statuses."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1 import export_pb2
from jarvis_agent.errors import RequestError
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.store import ExportStore
from jarvis_agent.export_service import ExportVerbs
from jarvis_agent.rpc_errors import status_of
from jarvis_native.loader import Firmware
from jarvis_trust.commands import AUTHORIZATION_METADATA_KEY
from jarvis_trust.errors import CommandError

from tests.unit.agent.export_commands import AGENT_ID, PUBLIC_PEM, SESSION, command, spec
from tests.unit.agent.test_agent_exports import Bench


class Call:
    """A call's context as far as the verbs look at it."""

    def __init__(self, *metadata: tuple[str, Any]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata


@pytest.fixture
def bench(firmware: Firmware, tmp_path: Path) -> Bench:
    return Bench(firmware, tmp_path)


async def ask(bench: Bench, verb: str, payload: bytes, *metadata: tuple[str, Any]) -> bytes:
    perform, _ = ExportVerbs(manager=bench.manager, session_id=SESSION).handlers()[verb]
    return await perform(payload, Call(*metadata))  # type: ignore[arg-type]


async def test_what_is_kept_is_the_very_command_that_was_admitted(bench: Bench, tmp_path: Path) -> None:
    sent = command()
    answer = await ask(bench, "EnableExport", sent.payload, ("other", "x"), (AUTHORIZATION_METADATA_KEY, sent.authorization))
    assert pb.EnableExportResponse.FromString(answer).status.spec == spec()
    kept, refused = ExportStore(tmp_path / "exports", agent_id=AGENT_ID, command_public_pem=PUBLIC_PEM).load()
    assert [(one.payload, one.authorization, one.session_id) for one in kept] == [(sent.payload, sent.authorization, SESSION)]
    assert refused == []
    listed = pb.ListExportsResponse.FromString(await ask(bench, "ListExports", b""))
    assert [export.spec.export_id for export in listed.exports] == ["siem"]
    ending = pb.DisableExportRequest(export_id="siem", discard=True).SerializeToString()
    assert pb.DisableExportResponse.FromString(await ask(bench, "DisableExport", ending)).status.spec == spec()


@pytest.mark.parametrize("verb", ["EnableExport", "DisableExport", "ListExports"])
async def test_bytes_that_are_no_request_are_refused(bench: Bench, verb: str) -> None:
    with pytest.raises(RequestError):
        await ask(bench, verb, b"\xff")


async def test_a_command_without_its_authorization_is_not_kept(bench: Bench) -> None:
    with pytest.raises(CommandError):
        await ask(bench, "EnableExport", command().payload)
    assert bench.manager.list() == []


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("EXPORT_EXISTS", Code.ALREADY_EXISTS),
        ("EXPORT_NOT_FOUND", Code.NOT_FOUND),
        ("EXPORT_LIMIT", Code.RESOURCE_EXHAUSTED),
        ("EXPORT_NOT_ALLOWED", Code.PERMISSION_DENIED),
        ("EXPORT_UNRESOLVED", Code.FAILED_PRECONDITION),
        ("EXPORT_TLS_NAME_MISMATCH", Code.FAILED_PRECONDITION),
    ],
)
def test_a_refusal_has_its_reason_and_code(reason: str, code: int) -> None:
    status = status_of(ExportError(reason, "words", is_permanent=True))
    assert status is not None
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message, info.reason) == (code, "words", reason)


async def test_a_spool_that_waits_for_its_disk_holds_up_nothing_but_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers, was_answered = threading.Event(), []

    def list_late() -> list[export_pb2.ExportStatus]:
        was_answered.append(disk_answers.wait(10))
        return []

    monkeypatch.setattr(bench.manager, "list", list_late)
    asked = asyncio.create_task(ask(bench, "ListExports", b""))
    await asyncio.sleep(0)
    disk_answers.set()
    await asked
    assert was_answered == [True]
