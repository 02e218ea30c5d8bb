# SPDX-License-Identifier: Apache-2.0
"""An agent without a TPM: its key in a file of its own, its log without a PCR, and both chosen by name only."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from jarvis.capture.v1.agent_pb2 import STORE_KEY_STATE_ABSENT, TPM_STATE_ABSENT
from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_agent.config import AgentConfig
from jarvis_agent.errors import TpmError
from jarvis_agent.software_identity import (
    NO_TPM,
    AbsentStoreKey,
    AbsentTpm,
    ConfiguredFloor,
    NoTpm,
    SoftwareEventLog,
    SoftwareWorker,
    load_identity,
)
from jarvis_agent.tpm import TpmPriority
from jarvis_trust.errors import IdentityError, StoreKeyError
from jarvis_trust.eventlog import load_attempt, parse_log
from jarvis_trust.software_identity import check_software_enrollment, software_evidence_holds

BOOT, OTHER_BOOT = bytes(range(16)), bytes(range(16, 32))
BINDING = {
    "nonce": bytes(32),
    "agent_spki_sha256": bytes(32),
    "controller_spki_sha256": bytes(32),
    "agent_id": "a" * 32,
    "boot_id": BOOT,
    "session_id": BOOT,
    "manifest": b"manifest",
    "event_log": b"log",
}


def attempt(digest: bytes) -> dict[str, str]:
    return load_attempt(object_name="libjarvis_capture.so", sha256=digest, time=datetime.now(UTC), boot_id=BOOT, session_id=BOOT)


def test_the_identity_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = load_identity(state)
    assert load_identity(state).agent_id == first.agent_id
    assert (state / "identity.key").stat().st_mode & 0o777 == 0o600
    assert load_identity(tmp_path / "another").agent_id != first.agent_id
    assert len(first.ak_name) == 34


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_identity(tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    with pytest.raises(IdentityError, match="0644") as refused:
        load_identity(tmp_path)
    assert refused.value.reason == "KEY_FILE_EXPOSED"


def test_what_it_signs_at_enrolment_is_no_evidence_and_the_other_way_round(tmp_path: Path) -> None:
    signer = load_identity(tmp_path)
    signature = signer.sign_evidence(**BINDING)
    assert software_evidence_holds(signer.spki_der, signature, **BINDING)
    assert not software_evidence_holds(signer.spki_der, signature, **{**BINDING, "event_log": b"other"})
    assert not software_evidence_holds(signer.spki_der, b"", **BINDING)
    assert not software_evidence_holds(signer.spki_der, signature, **{**BINDING, "boot_id": b""})
    proof = signer.sign_enrollment(b"params", b"challenge")
    check_software_enrollment(signer.spki_der, b"params", b"challenge", proof)
    assert not software_evidence_holds(signer.spki_der, proof, **BINDING)


async def test_measurements_are_logged_in_their_order_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    worker = SoftwareWorker()
    log = SoftwareEventLog(tmp_path, 14, boot_id=BOOT)
    await worker.run(TpmPriority.MEASUREMENT, log.open)
    for digest in (b"\1" * 32, b"\2" * 32):
        await worker.run(TpmPriority.MEASUREMENT, lambda device, digest=digest: log.record(device, attempt(digest)))
    worker.close()
    with log.path.open("ab") as file:
        file.write(b'{"torn')
    again = SoftwareEventLog(tmp_path, 14, boot_id=BOOT)
    again.open()
    again.record(NoTpm(), attempt(b"\3" * 32))
    assert [event.sha256 for event in parse_log(again.read())] == [b"\1" * 32, b"\2" * 32, b"\3" * 32]


def test_another_boot_of_the_kernel_starts_another_log(tmp_path: Path) -> None:
    log = SoftwareEventLog(tmp_path, 14, boot_id=BOOT)
    log.open()
    log.record(NoTpm(), attempt(b"\1" * 32))
    other = SoftwareEventLog(tmp_path, 14, boot_id=OTHER_BOOT)
    other.open()
    assert other.read() == b""


def test_a_log_that_is_none_is_served_as_it_is_for_the_controller_to_judge(tmp_path: Path) -> None:
    (tmp_path / f"firmware-events-{BOOT.hex()}.jsonl").write_bytes(b"nonsense\n")
    log = SoftwareEventLog(tmp_path, 14, boot_id=BOOT)
    log.open()
    assert log.read() == b"nonsense\n"


def test_no_tpm_is_a_choice_and_never_the_default(tmp_path: Path) -> None:
    fields = {
        "fleet": "lab.example",
        "join_file": "join.json",
        "advertise": "host:7443",
        "release_root": "root.json",
        "firmware_directory": "firmware",
    }
    assert AgentConfig.from_mapping(fields, base=tmp_path).tcti == "device:/dev/tpmrm0"
    assert AgentConfig.from_mapping({**fields, "tcti": "none"}, base=tmp_path).tcti == NO_TPM


async def test_what_takes_the_tpms_places_says_that_there_is_none() -> None:
    assert AbsentTpm().status()[0] == TPM_STATE_ABSENT
    with pytest.raises(TpmError, match="without a TPM"):
        await AbsentTpm().run(TpmPriority.QUOTE, lambda device: device)
    assert ConfiguredFloor(7).in_force() == (7, "of firmware_floor")
    key = AbsentStoreKey()
    await key.open()
    key.offer(StoreApproval(pcrs=[7]))
    assert key.status()[0] == STORE_KEY_STATE_ABSENT
    with pytest.raises(StoreKeyError) as refused:
        key.master()
    assert refused.value.reason == "STORE_KEY_ABSENT"
