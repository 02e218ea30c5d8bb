# SPDX-License-Identifier: Apache-2.0
"""Leases and commands before the native core, beside the Python that judges them first: the same verdicts, whatever is signed."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis.capture.v1.trust_pb2 import CommandAuthorization, Lease, SignedLease
from jarvis_agent.lease import LeaseKeeper, LeaseSubject
from jarvis_native import Authority, PacketCaptureEngine
from jarvis_native.errors import AuthorityRefused, CaptureStateError, InvalidArgument, LeaseOver
from jarvis_native.loader import Firmware
from jarvis_trust.commands import (
    AGENT_SERVICE,
    LEASED_METHODS,
    command_public_raw,
    command_signing_bytes,
    generate_command_key,
    lease_signing_bytes,
    verify_authorization,
)
from jarvis_trust.errors import TrustError

from tests.commander import AGENT_ID, AK_NAME, DIGEST, SESSION, SPKI, START, Commander
from tests.support import DATA

FLOWS = AGENT_SERVICE + "ListFlows"
DAY = 24 * 3600 * 10**9
FUZZED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- the façade


def test_a_captures_records_are_given_out_under_a_lease_only(firmware: Firmware) -> None:
    commander = Commander(firmware)
    with PacketCaptureEngine(files=[DATA / "connection.pcap"], firmware=firmware) as engine:
        engine.enable_flow_metering()
        reader = engine.open_flow_reader()
        engine.bind(commander.authority, b"")
        with pytest.raises(LeaseOver) as refused:
            engine.start()
        assert refused.value.reason == "AGENT_UNATTESTED"
        with pytest.raises(LeaseOver):
            reader.read_batch()
        with pytest.raises(LeaseOver):
            engine.get_flows()
        with pytest.raises(CaptureStateError):
            engine.set_deadline(0)
        with pytest.raises(CaptureStateError):
            engine.bind(commander.authority, b"")
        assert engine.get_metrics().metered == 0


def test_a_lease_that_is_ended_takes_reading_away_at_once(firmware: Firmware) -> None:
    commander = Commander(firmware)
    nonce = commander.challenge()
    terms = commander.give(nonce=nonce)
    assert terms.in_force
    assert terms.end_ns - terms.quoted_ns == 60 * 10**9
    ended = commander.give(nonce=nonce, duration_ns=1)
    assert (ended.quoted_ns, ended.end_ns) == (terms.quoted_ns, terms.quoted_ns + 1)
    assert not commander.authority.lease().in_force
    with pytest.raises(LeaseOver, match="attest again"):
        commander.authority.admit(FLOWS, b"", commander.authorization(FLOWS))


def test_a_repetition_is_told_from_a_command(firmware: Firmware) -> None:
    commander = Commander(firmware)
    commander.give()
    command = commander.authorization(FLOWS)
    assert commander.authority.admit(FLOWS, b"", command)
    assert not commander.authority.admit(FLOWS, b"", command)


def test_the_marks_of_an_earlier_process_hold(firmware: Firmware) -> None:
    commander = Commander(firmware, lease_sequence=7, audit_sequence=3, audit_head=b"h" * 32)
    for changes, reason in (
        ({"sequence": 7, "audit_sequence": 4}, "LEASE_STALE"),
        ({"audit_sequence": 2}, "AUDIT_TRUNCATED"),
        ({"audit_sequence": 3}, "AUDIT_TRUNCATED"),
    ):
        with pytest.raises(AuthorityRefused) as refused:
            commander.give(**changes)
        assert refused.value.reason == reason
    assert commander.give(audit_sequence=3, audit_head=b"h" * 32).sequence == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_id", "A" * 32),
        ("agent_id", ""),
        ("command_public_key", bytes(31)),
        ("session_id", b""),
        ("ak_name", bytes(32)),
        ("firmware_sha256", bytes(33)),
        ("audit_head", b"x"),
    ],
)
def test_an_authority_refuses_what_does_not_fit_by_name(firmware: Firmware, field: str, value: Any) -> None:
    key = command_public_raw(generate_command_key()[1])
    fields: dict[str, Any] = {"agent_id": AGENT_ID, "command_public_key": key, "session_id": SESSION}
    fields |= {"ak_name": AK_NAME, "firmware_sha256": DIGEST, field: value}
    with pytest.raises(InvalidArgument) as refused:
        Authority(firmware, **fields)
    assert refused.value.field == field


# ---- the same verdicts


RESET_COUNT = "another count of TPM resets"
"""What the agent alone knows, and judges."""


class Bench:
    """The core, Python's keeper with the same subject, and a key that signs whatever it is given."""

    def __init__(self, firmware: Firmware, state_path: Path) -> None:
        self.private_pem, self.public_pem = generate_command_key()
        key = load_pem_private_key(self.private_pem, password=None)
        assert isinstance(key, Ed25519PrivateKey)
        self.key = key
        self.core = Authority(
            firmware,
            agent_id=AGENT_ID,
            command_public_key=command_public_raw(self.public_pem),
            session_id=SESSION,
            ak_name=AK_NAME,
            firmware_sha256=DIGEST,
        )
        subject = LeaseSubject(agent_id=AGENT_ID, ak_name=AK_NAME, session_id=SESSION, firmware_sha256=DIGEST)
        state_path.unlink(missing_ok=True)
        self.keeper = LeaseKeeper(
            subject=subject,
            command_public_pem=self.public_pem,
            state_path=state_path,
            on_change=lambda _end: None,
            authority=None,
        )

    def note(self, nonce: bytes) -> None:
        quoted = self.core.note_challenge(nonce, SPKI)
        self.keeper.note_quote(nonce=nonce, boottime=quoted, reset_count=0, tls_spki_sha256=SPKI)

    def verdicts(self, data: bytes) -> tuple[str, str]:
        """Python's and the core's of these lease bytes: a reason, or the terms."""
        signature = self.key.sign(lease_signing_bytes(data))
        try:
            lease = self.keeper.accept(SignedLease(lease=data, signature=signature))
            python = f"{lease.sequence} {lease.quoted_ns} {lease.end_ns}"
        except TrustError as error:
            python = RESET_COUNT if "tpm_reset_count" in error.message else error.reason
        try:
            terms = self.core.accept_lease(data, signature)
            core = f"{terms.sequence} {terms.quoted_ns} {terms.end_ns}"
        except AuthorityRefused as refused:
            core = refused.reason
        return python, core


NONCES = [bytes([number]) * 32 for number in range(4)]
WHOLE: dict[str, Any] = {
    "agent_id": AGENT_ID,
    "ak_name": AK_NAME,
    "tls_spki_sha256": SPKI,
    "firmware_sha256": DIGEST,
    "session_id": SESSION,
    "methods": sorted(LEASED_METHODS),
    "audit_head": bytes(32),
}
METHODS = st.lists(
    st.sampled_from([START, FLOWS, "StartCapture", "/x/", "/a.b/c", "/a/b/c", "", "/é/x", "/" + "s" * 129 + "/m"]), max_size=3
)
LONGEST = f"{'c' * 49}.{'c' * 50}"
"""An entry of 100 characters that both take: longer labels only the core would."""
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "agent_id": st.sampled_from(["b" * 32, "a" * 31, "A" * 32, "", "a" * 31 + "1"]),
        "ak_name": st.sampled_from([bytes(34), bytes(33), b""]),
        "tls_spki_sha256": st.sampled_from([bytes(32), b""]),
        "firmware_sha256": st.sampled_from([bytes(32), bytes(31)]),
        "session_id": st.sampled_from([bytes(16), bytes(17)]),
        "audit_head": st.sampled_from([b"x" * 32, b"x"]),
        "audit_sequence": st.integers(0, 2),
        "methods": METHODS,
        "export_collectors": st.lists(
            st.sampled_from(["192.0.2.0/24", "*.siem.example", "file", "", "a b", "é", LONGEST, f"c{LONGEST}", "\x7f"]),
            max_size=3,
        )
        | st.sampled_from([64, 65]).map(lambda count: [f"collector-{number}" for number in range(count)]),
    },
)
LEASES = st.fixed_dictionaries(
    {
        "nonce": st.sampled_from([*NONCES, b"", b"n" * 32]),
        "sequence": st.integers(0, 6),
        "duration_ns": st.sampled_from([0, 1, 2, DAY // 2, DAY - 1, DAY, DAY + 1, 2**64 - 1]),
    }
)


@FUZZED
@given(st.lists(st.tuples(LEASES, CHANGES | st.just({})), min_size=1, max_size=6))
def test_any_run_of_signed_leases_ends_the_same_in_python_and_in_the_core(
    firmware: Firmware, tmp_path: Path, leases: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    bench = Bench(firmware, tmp_path / "lease.json")
    for nonce in NONCES[:3]:
        bench.note(nonce)
    for fields, changes in leases:
        python, core = bench.verdicts(Lease(**(WHOLE | fields | changes)).SerializeToString())
        assert core == python


EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "append"]), st.integers(0, 600), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, material in edits:
        at = place % (len(data) + 1)
        if kind == "flip":
            data = data[:at] + bytes([material[0] ^ (data[at] if at < len(data) else 0)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + len(material) :]
        else:
            data = data[:at] + material + data[at:] if kind == "insert" else data + material
    return data


@FUZZED
@given(EDITS)
def test_the_core_takes_no_lease_bytes_that_python_does_not(
    firmware: Firmware, tmp_path: Path, edits: list[tuple[str, int, bytes]]
) -> None:
    bench = Bench(firmware, tmp_path / "lease.json")
    bench.note(NONCES[0])
    whole = Lease(**(WHOLE | {"nonce": NONCES[0], "sequence": 1, "duration_ns": DAY})).SerializeToString()
    python, core = bench.verdicts(edited(whole, edits))
    # Stricter than protobuf, see native/src/trust/wire.h: then the form is at fault, never anything else.
    assert core in (python, "LEASE_INVALID") or python == RESET_COUNT


COMMANDS = st.fixed_dictionaries(
    {
        "lease_sequence": st.integers(0, 2),
        "request_id": st.sampled_from(
            [str(uuid.UUID(int=5)), str(uuid.UUID(int=2**127)), "", "X" * 36, str(uuid.UUID(int=10**37)).upper()]
        ),
        "principal": st.sampled_from(
            [
                "spiffe://lab.example/operator/viewer/vic",
                "spiffe://lab.example/controller/main",
                f"spiffe://lab.example/agent/{AGENT_ID}",
                "spiffe://lab.example/agent/short",
                "spiffe://lab.example/operator/root/ada",
                "spiffe://lab.example/operator/admin/a_b.c-d",
                "spiffe://lab.example/operator/admin/-a",
                "spiffe://lab.example/controller/a_b",
                "spiffe://-lab/controller/main",
                "spiffe://" + "l" * 64 + "/controller/main",
                "spiffe://lab/controller/" + "m" * 64,
                "http://lab.example/controller/main",
                "",
            ]
        ),
        "expires_ns": st.sampled_from([0, 1, DAY // 2, DAY, DAY + 1, 2**64 - 1]),
    }
)


@FUZZED
@given(
    COMMANDS,
    EDITS | st.just([]),
    st.tuples(st.sampled_from([FLOWS, START, "ListFlows", "/x/y", AGENT_SERVICE]), st.binary(max_size=40)),
)
def test_the_core_admits_no_command_that_python_does_not(
    firmware: Firmware,
    tmp_path: Path,
    fields: dict[str, Any],
    edits: list[tuple[str, int, bytes]],
    call: tuple[str, bytes],
) -> None:
    method, payload = call
    bench = Bench(firmware, tmp_path / "lease.json")
    bench.note(NONCES[0])
    lease = WHOLE | {"nonce": NONCES[0], "sequence": 1, "duration_ns": DAY, "methods": [FLOWS, START, "/x/y"]}
    bench.verdicts(Lease(**lease).SerializeToString())
    authorization = CommandAuthorization(**fields)
    covered = {"agent_id": AGENT_ID, "method": method, "session_id": SESSION, "payload": payload}
    authorization.signature = bench.key.sign(command_signing_bytes(authorization, **covered))  # type: ignore[arg-type]
    data = edited(authorization.SerializeToString(), edits)
    try:
        python = _judge(bench, CommandAuthorization.FromString(data), method, payload)
    except TrustError as error:
        python = error.reason
    except Exception:  # noqa: BLE001 - DecodeError, whatever its class
        python = "COMMAND_INVALID"
    try:
        bench.core.admit(method, payload, data)
        core = "admitted"
    except (AuthorityRefused, LeaseOver) as refused:
        core = refused.reason
    if not edits:
        assert core == python
    elif python == "admitted":
        assert core in ("admitted", "COMMAND_INVALID")  # stricter than protobuf
    else:
        assert core != "admitted"


def _judge(bench: Bench, authorization: CommandAuthorization, method: str, payload: bytes) -> str:
    """In the core's order: signature and form, then the lease, then the clock."""
    verify_authorization(authorization, bench.public_pem, agent_id=AGENT_ID, method=method, session_id=SESSION, payload=payload)
    bench.keeper.require(method)
    lease = bench.keeper.covering(authorization.lease_sequence)
    # The other expiries are half a day away.
    return "COMMAND_EXPIRED" if authorization.expires_ns == 1 and lease.quoted_ns else "admitted"
