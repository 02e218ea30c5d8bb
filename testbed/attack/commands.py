# SPDX-License-Identifier: Apache-2.0
"""Attacks with a stolen controller certificate, straight at an agent: commands and leases that nobody signed for it.

A command's signature covers agent, method, process, lease, request id, principal, expiry and payload; a lease names agent, keys,
process, firmware and TPM boot. Each attack takes a genuine one and changes one thing, or signs one thing with the wrong key.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import uuid
from collections.abc import Callable
from typing import Any

from jarvis.capture.v1 import agent_pb2, trust_pb2
from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis_trust.ca import spki_sha256
from jarvis_trust.commands import (
    AGENT_SERVICE,
    AUTHORIZATION_METADATA_KEY,
    LEASED_METHODS,
    CommandSigner,
    generate_command_key,
    lease_signing_bytes,
)
from jarvis_trust.tpm_structures import parse_attest_quote

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import call
from testbed.fleet import Agent

_ADMIN = "spiffe://arena/operator/admin/ada"
_START = AGENT_SERVICE + "StartCapture"
_METRICS = AGENT_SERVICE + "GetMetrics"
_PAYLOAD = agent_pb2.StartCaptureRequest(spec=CaptureSpec(files=["nosuch.pcap"])).SerializeToString()
_HOUR_NS = 3600 * 10**9


def genuine(arena: Arena, signer: CommandSigner | None = None, **changes: Any) -> trust_pb2.CommandAuthorization:
    """What the controller would sign for the victim now, with any field of it changed before it is signed."""
    fields: dict[str, Any] = {
        "agent_id": arena.victim.agent_id,
        "method": _START,
        "session_id": arena.info_of(arena.victim).session_id,
        "lease_sequence": arena.status_of(arena.victim).lease_sequence,
        "request_id": str(uuid.uuid4()),
        "principal": _ADMIN,
        "expires_ns": 12 * _HOUR_NS,
        "payload": _PAYLOAD,
    }
    return (signer or arena.signer).authorize(**{**fields, **changes})


def _send(arena: Arena, *authorizations: bytes, method: str = _START, payload: bytes = _PAYLOAD) -> str:
    with arena.to_agent(arena.controller) as channel:
        return call(channel, method, payload, [(AUTHORIZATION_METADATA_KEY, value) for value in authorizations])[0]


def _signed(**changes: Any) -> Callable[[Arena], str]:
    """Signed with the fleet's key, for something else."""
    return lambda arena: _send(arena, genuine(arena, **changes).SerializeToString())


def _altered(field: str, value: Any) -> Callable[[Arena], str]:
    """Changed after it was signed."""

    def run(arena: Arena) -> str:
        authorization = genuine(arena)
        setattr(authorization, field, value)
        return _send(arena, authorization.SerializeToString())

    return run


def _other_key(arena: Arena) -> str:
    return _send(arena, genuine(arena, CommandSigner(generate_command_key()[0])).SerializeToString())


def _for_the_puppet(arena: Arena) -> str:
    agent = arena.puppet
    fields: dict[str, Any] = {"agent_id": agent.agent_id, "session_id": arena.info_of(agent).session_id}
    return _send(arena, genuine(arena, **fields).SerializeToString())


def _other_payload(arena: Arena) -> str:
    payload = agent_pb2.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])).SerializeToString()
    return _send(arena, genuine(arena).SerializeToString(), payload=payload)


def _twice(arena: Arena) -> str:
    authorization = genuine(arena, method=_METRICS, payload=b"").SerializeToString()
    _send(arena, authorization, method=_METRICS, payload=b"")
    return _send(arena, authorization, method=_METRICS, payload=b"")


def _request_id_again(arena: Arena) -> str:
    request_id = str(uuid.uuid4())
    _send(arena, genuine(arena, request_id=request_id).SerializeToString())
    payload = agent_pb2.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])).SerializeToString()
    authorization = genuine(arena, request_id=request_id, payload=payload)
    return _send(arena, authorization.SerializeToString(), payload=payload)


def _of_an_old_lease(arena: Arena) -> str:
    return _send(arena, genuine(arena, lease_sequence=arena.status_of(arena.victim).lease_sequence + 5).SerializeToString())


def _two(arena: Arena) -> str:
    authorization = genuine(arena).SerializeToString()
    return _send(arena, authorization, authorization)


def _unsigned(method: str) -> Callable[[Arena], str]:
    return lambda arena: _send(arena, method=method)


_COMMANDS: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "another-key": ("COMMAND_SIGNATURE_INVALID", "a command signed with a key of one's own", _other_key),
    "for-another-agent": ("COMMAND_SIGNATURE_INVALID", "a command that was signed for another agent", _for_the_puppet),
    "for-another-method": ("COMMAND_SIGNATURE_INVALID", "a signed GetMetrics sent as StartCapture", _signed(method=_METRICS)),
    "for-another-process": ("COMMAND_SIGNATURE_INVALID", "a command for the process before", _signed(session_id=bytes(16))),
    "for-another-payload": ("COMMAND_SIGNATURE_INVALID", "a signed command with another request under it", _other_payload),
    "another-principal": (
        "COMMAND_SIGNATURE_INVALID", "the principal changed after signing", _altered("principal", "spiffe://arena/controller/x")
    ),
    "another-request-id": (
        "COMMAND_SIGNATURE_INVALID", "the request id changed after signing", _altered("request_id", str(uuid.UUID(int=1)))
    ),
    "later-expiry": ("COMMAND_SIGNATURE_INVALID", "the expiry put off after signing", _altered("expires_ns", 23 * _HOUR_NS)),
    "another-lease": ("COMMAND_SIGNATURE_INVALID", "the lease changed after signing", _altered("lease_sequence", 99)),
    "no-signature": ("COMMAND_SIGNATURE_INVALID", "an empty signature", _altered("signature", b"")),
    "short-signature": ("COMMAND_SIGNATURE_INVALID", "a signature of 63 bytes", _altered("signature", bytes(63))),
    "lease-not-held": ("LEASE_STALE", "a command under a lease that the agent does not hold", _of_an_old_lease),
    "expired": ("COMMAND_EXPIRED", "a recorded command after its expiry", _signed(expires_ns=1)),
    "replayed": ("COMMAND_REPLAYED", "a recorded command a second time", _twice),
    "request-id-again": ("REQUEST_ID_REUSED", "another mutation under a request id that was used", _request_id_again),
    "viewer": ("ROLE_DENIED", "a mutation on behalf of a viewer", _signed(principal="spiffe://arena/operator/viewer/eve")),
    "agent": ("ROLE_DENIED", "a mutation on behalf of an agent", _signed(principal=f"spiffe://arena/agent/{'a' * 32}")),
    "another-fleet": ("ROLE_DENIED", "on behalf of an admin of another fleet", _signed(principal="spiffe://other/operator/admin/ada")),
    "garbage": ("COMMAND_INVALID", "an authorization that is none", lambda arena: _send(arena, b"\xff" * 40)),
    "oversized": ("COMMAND_INVALID", "an authorization of 4097 bytes", lambda arena: _send(arena, bytes(4097))),
    "two": ("COMMAND_UNSIGNED", "two authorizations, one of which might be looked at", _two),
    **{
        f"unsigned-{method.rpartition('/')[2]}": ("COMMAND_UNSIGNED", f"{method} without an authorization", _unsigned(method))
        for method in sorted(LEASED_METHODS)
    },
}  # fmt: skip


# -- leases


def quoted(arena: Arena, agent: Agent | None = None) -> trust_pb2.Lease:
    """The lease that an agent, the victim when none is named, would take now: for a quote that the attacker asked for itself."""
    nonce, victim = secrets.token_bytes(32), agent or arena.victim
    request = agent_pb2.AttestRequest(nonce=nonce, pcrs=[14])
    with arena.to_agent(arena.controller, victim) as channel:
        _, answer = call(channel, AGENT_SERVICE + "Attest", request.SerializeToString())
    evidence = agent_pb2.AttestResponse.FromString(answer).evidence
    held = json.loads((victim.directory / "state" / "lease.json").read_text())
    with sqlite3.connect(f"file:{arena.database}?mode=ro", uri=True) as database:
        (ak_name,) = database.execute("SELECT ak_name FROM agents WHERE agent_id = ?", (victim.agent_id,)).fetchone()
    return trust_pb2.Lease(
        agent_id=victim.agent_id,
        ak_name=ak_name,
        tls_spki_sha256=spki_sha256((victim.directory / "state" / "tls" / "agent.crt").read_bytes()),
        firmware_sha256=arena.info_of(victim).firmware.sha256,
        session_id=evidence.session_id,
        tpm_reset_count=parse_attest_quote(evidence.attest).reset_count,
        methods=sorted(LEASED_METHODS),
        sequence=held["sequence"] + 1,
        audit_head=bytes.fromhex(held["audit_head"]),
        audit_sequence=held["audit_sequence"],
        duration_ns=_HOUR_NS,
        nonce=nonce,
    )


def renew(arena: Arena, signed: trust_pb2.SignedLease) -> str:
    """Hands the victim a lease; how that ended."""
    with arena.to_agent(arena.controller) as channel:
        return call(channel, AGENT_SERVICE + "RenewLease", agent_pb2.RenewLeaseRequest(lease=signed).SerializeToString())[0]


def _sign_raw(arena: Arena, data: bytes) -> trust_pb2.SignedLease:
    """With the fleet's key, whatever it is."""
    return trust_pb2.SignedLease(lease=data, signature=arena.signer._key.sign(lease_signing_bytes(data)))  # noqa: SLF001 - for its form


def _lease(change: Callable[[trust_pb2.Lease], None]) -> Callable[[Arena], str]:
    """A lease that the fleet's key signed, wrong in one field."""

    def run(arena: Arena) -> str:
        lease = quoted(arena)
        change(lease)
        return renew(arena, _sign_raw(arena, lease.SerializeToString(deterministic=True)))

    return run


def _set(field: str, value: Any) -> Callable[[Arena], str]:
    return _lease(lambda lease: setattr(lease, field, value))


def _forged(arena: Arena) -> str:
    return renew(arena, CommandSigner(generate_command_key()[0]).sign_lease(quoted(arena)))


def _of_the_honest(arena: Arena) -> str:
    lease = quoted(arena)
    lease.agent_id = arena.honest.agent.agent_id
    return renew(arena, arena.signer.sign_lease(lease))


def _altered_lease(arena: Arena) -> str:
    signed = arena.signer.sign_lease(quoted(arena))
    return renew(arena, trust_pb2.SignedLease(lease=signed.lease + b"\x40\x7f", signature=signed.signature))


def _back(field: str) -> Callable[[Arena], str]:
    return _lease(lambda lease: setattr(lease, field, getattr(lease, field) - 1))


def _nonce_again(arena: Arena) -> str:
    request = agent_pb2.AttestRequest(nonce=secrets.token_bytes(32), pcrs=[14]).SerializeToString()
    with arena.to_agent(arena.controller) as channel:
        call(channel, AGENT_SERVICE + "Attest", request)
        return call(channel, AGENT_SERVICE + "Attest", request)[0]


_NOT_OURS = "LEASE_NOT_OURS"
_LEASES: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "forged": ("LEASE_SIGNATURE_INVALID", "a lease signed with a key of one's own", _forged),
    "altered": ("LEASE_SIGNATURE_INVALID", "a lease with a higher sequence appended after signing", _altered_lease),
    "empty": ("LEASE_SIGNATURE_INVALID", "no lease", lambda arena: renew(arena, trust_pb2.SignedLease())),
    "of-another-agent": (_NOT_OURS, "a lease that was signed for another agent", _of_the_honest),
    "of-another-ak": (_NOT_OURS, "a lease for another attestation key", _set("ak_name", b"\0\x0b" + bytes(32))),
    "of-another-tls-key": (_NOT_OURS, "a lease for another TLS key", _set("tls_spki_sha256", bytes(32))),
    "of-another-firmware": (_NOT_OURS, "a lease for other firmware", _set("firmware_sha256", bytes(32))),
    "of-another-process": (_NOT_OURS, "a lease of the process before", _set("session_id", bytes(16))),
    "of-another-boot": (_NOT_OURS, "a lease from before the TPM's reset", _set("tpm_reset_count", 10_000)),
    "of-another-quote": ("LEASE_STALE", "a lease for a quote that was never made", _set("nonce", bytes(32))),
    "stale": ("LEASE_STALE", "a lease whose sequence was used", _back("sequence")),
    "over": ("LEASE_EXPIRED", "a lease that is over", _set("duration_ns", 1)),
    "too-long": ("LEASE_INVALID", "a lease of more than 24 hours", _set("duration_ns", 25 * _HOUR_NS)),
    "without-methods": ("LEASE_INVALID", "a lease without methods", _lease(lambda lease: lease.ClearField("methods"))),
    "garbage": ("LEASE_INVALID", "signed bytes that are no lease", lambda arena: renew(arena, _sign_raw(arena, b"\xff" * 50))),
    "audit-cut": ("AUDIT_TRUNCATED", "a lease whose audit chain is shorter than one seen before", _back("audit_sequence")),
    "audit-rewritten": ("AUDIT_TRUNCATED", "a lease with another audit head at the same sequence", _set("audit_head", bytes(32))),
    "nonce-again": ("NONCE_REUSED", "the same nonce to an agent twice", _nonce_again),
}

_FAST = {"for-another-agent", "replayed", "of-another-agent", "audit-cut"}

ATTACKS = tuple(
    Attack(name=f"{family}/{name}", tries=tries, expected=expected, run=run, is_fast=name in _FAST)
    for family, table in (("commands", _COMMANDS), ("leases", _LEASES))
    for name, (expected, tries, run) in table.items()
)
