# SPDX-License-Identifier: Apache-2.0
"""Attacks on the tunnel port: tunnels that are not one's own, frames out of place, and more of them than a controller can serve.

The honest agent has a tunnel all the while. Whatever is tried in its name must not end it: its key is in its TPM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.experimental
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis.capture.v1 import tunnel_pb2
from jarvis_trust.identities import Identity, Role, controller_dns_name

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import TIMEOUT_S, Party, as_reason, call, issue

OPEN_TUNNEL = "/jarvis.capture.v1.TunnelService/OpenTunnel"
SEND_MESSAGES = "/jarvis.capture.v1.TunnelService/SendMessages"
HELLOS = 2000
_HELLO = tunnel_pb2.OpenTunnelRequest(hello=tunnel_pb2.TunnelHello(session_id=bytes(16), version="1")).SerializeToString()


def open_tunnel(arena: Arena, party: Party, *frames: bytes) -> str:
    """Opens a tunnel as somebody and sends frames: how it ended; "OK" when a welcome came."""
    outcome: list[str] = []
    with arena.to_tunnel(party) as channel, as_reason(outcome):
        stub = channel.stream_stream(OPEN_TUNNEL, request_serializer=None, response_deserializer=None)
        next(iter(stub(iter(frames), timeout=TIMEOUT_S)), None)
    return outcome[0]


def send_messages(arena: Arena, party: Party, call_ids: range) -> str:
    """Sends a forged message for each of these calls as somebody; every way that it ended."""

    def ended(call_id: int) -> str:
        outcome: list[str] = []
        with as_reason(outcome):
            forged = tunnel_pb2.SendMessagesRequest(message=b"\x12\x00").SerializeToString()
            stub = channel.stream_unary(SEND_MESSAGES, request_serializer=None, response_deserializer=None)
            stub(iter([forged]), metadata=(("jarvis-call-id", str(call_id)),), timeout=TIMEOUT_S)
        return outcome[0]

    with arena.to_tunnel(party) as channel:
        return "|".join(sorted({ended(call_id) for call_id in call_ids}))


def _agent(arena: Arena, agent_id: str) -> Party:
    """Whoever has the fleet's CA issue a certificate for an agent, with a key of his own."""
    return issue(arena.ca, Identity(fleet="arena", role=Role.AGENT, name=agent_id))


def _stranger(arena: Arena) -> Party:
    return _agent(arena, "a" * 32)


def _stolen(arena: Arena) -> str:
    """All that the honest agent's disk holds of its channel: the certificate. What it signs handshakes with is not there."""
    certificate = (arena.honest.agent.directory / "state" / "tls" / "agent.crt").read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())

    def sign(data: bytes, _algorithm: object, _on_complete: object) -> bytes:
        return key.sign(bytes(data), ec.ECDSA(hashes.SHA256()))

    credentials: grpc.ChannelCredentials = grpc.experimental.ssl_channel_credentials_with_custom_signer(
        private_key_sign_fn=sign, root_certificates=arena.ca.certificate_pem, certificate_chain=certificate
    )
    options = (("grpc.ssl_target_name_override", controller_dns_name("arena")),)
    with grpc.secure_channel(f"127.0.0.1:{arena.fleet.ports[2]}", credentials, options=options) as channel:
        return call(channel, "/grpc.health.v1.Health/Check")[0]


def _victim(arena: Arena) -> Party:
    """A dialled agent's key is in a file: here it is, with its genuine certificate."""
    tls = arena.victim.directory / "state" / "tls"
    return Party(
        root_pem=arena.ca.certificate_pem,
        certificate_pem=(tls / "agent.crt").read_bytes(),
        key_pem=(tls / "agent.key").read_bytes(),
    )


def _then_honest(run: Callable[[Arena], str]) -> Callable[[Arena], str]:
    """A refusal counts while the honest agent's own tunnel goes on."""

    def tried(arena: Arena) -> str:
        got = run(arena)
        still = arena.attest(arena.honest.agent)
        return got if still == "OK" else f"{got}, and then the honest agent was not served: {still}"

    return tried


def _flood(arena: Arena) -> str:
    """Hellos as fast as eight connections send them; those beyond the rate are sent away, and nobody else waits for them."""

    def hellos(_worker: int) -> Iterator[str]:
        party = _stranger(arena)
        with arena.to_tunnel(party) as channel:
            for _ in range(HELLOS // 8):
                outcome: list[str] = []
                with as_reason(outcome):
                    stub = channel.stream_stream(OPEN_TUNNEL, request_serializer=None, response_deserializer=None)
                    next(iter(stub(iter([_HELLO]), timeout=TIMEOUT_S)), None)
                yield outcome[0]

    with ThreadPoolExecutor(max_workers=8) as pool:
        served = pool.submit(arena.attest, arena.honest.agent)
        seen = set().union(*pool.map(lambda worker: set(hellos(worker)), range(8)))
    if served.result() != "OK":
        return f"the honest agent was not served: {served.result()}"
    return "|".join(sorted(seen - {"AGENT_NOT_FOUND"}))


def _attack(name: str, tries: str, expected: str, run: Callable[[Arena], str], *, is_fast: bool = False) -> Attack:
    return Attack(name=f"tunnel/{name}", tries=tries, expected=expected, run=_then_honest(run), is_fast=is_fast)


def _frame(name: str, tries: str, expected: str, frame: bytes) -> Attack:
    return _attack(name, tries, expected, lambda arena: open_tunnel(arena, _stranger(arena), frame))


ATTACKS = (
    _attack(
        "stolen-certificate",
        "the honest agent's certificate from its disk, with another key: its own is in the TPM",
        "UNAVAILABLE",
        _stolen,
        is_fast=True,
    ),
    _attack(
        "another-key",
        "a certificate of the fleet's CA in the honest agent's name, for a key that it was not given one for",
        "CERTIFICATE_NOT_ON_RECORD",
        lambda arena: open_tunnel(arena, _agent(arena, arena.honest.agent.agent_id), _HELLO),
        is_fast=True,
    ),
    _attack(
        "unknown-agent",
        "a certificate of the fleet for an agent that is not enrolled",
        "AGENT_NOT_FOUND",
        lambda arena: open_tunnel(arena, _stranger(arena), _HELLO),
    ),
    _attack(
        "key-from-a-file",
        "certificate and key of an agent that is dialled, stolen together: its carrier is on record",
        "CARRIER_MISMATCH",
        lambda arena: open_tunnel(arena, _victim(arena), _HELLO),
    ),
    _attack(
        "forged-messages",
        "messages for the honest agent's calls 1 to 200 in its name, with another key",
        "TUNNEL_MISSING",
        lambda arena: send_messages(arena, _agent(arena, arena.honest.agent.agent_id), range(1, 200)),
        is_fast=True,
    ),
    _attack(
        "messages-of-another-agent",
        "messages for the honest agent's calls 1 to 200 with the certificate and key of another agent",
        "TUNNEL_MISSING",
        lambda arena: send_messages(arena, _victim(arena), range(1, 200)),
    ),
    _frame("malformed-frame", "bytes that are no frame", "INVALID_ARGUMENT", b"\xff" * 64),
    _frame(
        "answer-before-hello",
        "an answer to a call before anything was said",
        "INVALID_ARGUMENT",
        tunnel_pb2.OpenTunnelRequest(answer=tunnel_pb2.CallAnswer(call_id=1)).SerializeToString(),
    ),
    _frame(
        "oversized-frame",
        "an answer of 10 MiB",
        "RESOURCE_EXHAUSTED",
        tunnel_pb2.OpenTunnelRequest(answer=tunnel_pb2.CallAnswer(payload=bytes(10 << 20))).SerializeToString(),
    ),
    _attack("flood-of-hellos", f"{HELLOS:,} tunnels as fast as they can be asked for", "TUNNEL_BUSY", _flood),
)
