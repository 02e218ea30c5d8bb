# SPDX-License-Identifier: Apache-2.0
"""Attacks below the rpcs: older TLS, no TLS, messages that are too large, malformed or hostile, connections that never finish."""

from __future__ import annotations

import itertools
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from jarvis.capture.v1 import agent_pb2, fleet_pb2, tunnel_pb2
from jarvis_trust.commands import AGENT_SERVICE, LEASED_METHODS
from jarvis_trust.identities import Identity, Role

from testbed.attack.arena import FLEET_SERVICE, Arena
from testbed.attack.enrollment import ENROLL
from testbed.attack.model import Attack
from testbed.attack.peers import Party, as_reason, call, issue, operator
from testbed.fleet import Agent

HALF_OPEN = 2000
_FUZZED = 12
"""Messages for each rpc."""


# -- TLS


def _tls12(
    port: Callable[[Arena], int], name: Callable[[Arena], str], party: Callable[[Arena], Party], method: str
) -> Callable[[Arena], str]:
    """The handshake succeeds: gRPC cannot be told a least version. The call must not."""

    def run(arena: Arena) -> str:
        who = party(arena)
        files = [arena.directory / "tls12.ca", arena.directory / "tls12.pem"]
        files[0].write_bytes(who.root_pem)
        context = ssl.create_default_context(cafile=str(files[0]))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if who.certificate_pem:
            files[1].write_bytes(who.key_pem + who.certificate_pem)
            files[1].chmod(0o600)
            context.load_cert_chain(str(files[1]))
        return _http2(port(arena), name(arena), context, method)

    return run


def _http2(port: int, name: str, context: ssl.SSLContext, method: str) -> str:
    """One gRPC call by hand (RFC 9113, RFC 7541 without an index): the client library would speak TLS 1.3."""

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    fields = {":method": "POST", ":scheme": "https", ":path": method, ":authority": name, "te": "trailers"}
    fields["content-type"] = "application/grpc"
    texts = [text.encode() for field in fields.items() for text in field]
    block = b"".join(mark + bytes([len(text)]) + text for mark, text in zip(itertools.cycle((b"\0", b"")), texts))
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))
    seen = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name) as secure:
                if secure.version() != "TLSv1.2":
                    return f"{secure.version()} was negotiated"
                secure.sendall(request)
                while chunk := secure.recv(65536):
                    seen += chunk
                    if b"TLSv1.3 is accepted" in seen:
                        return "TLS_VERSION"
        except ssl.SSLError as error:
            return f"TLS_HANDSHAKE: {error.reason}"
        except TimeoutError:
            pass
    return f"not told why: {seen[-200:]!r}"


def _plaintext(port: Callable[[Arena], int], method: str) -> Callable[[Arena], str]:
    def run(arena: Arena) -> str:
        with grpc.insecure_channel(f"127.0.0.1:{port(arena)}") as channel:
            return call(channel, method)[0]

    return run


def _agent_name(agent: Agent) -> str:
    return f"{agent.agent_id}.agents.arena"


_PORTS: dict[str, tuple[Callable[[Arena], int], Callable[[Arena], str], Callable[[Arena], Party], str]] = {
    "agent": (
        lambda arena: arena.victim.port, lambda arena: _agent_name(arena.victim), lambda arena: arena.controller,
        AGENT_SERVICE + "GetAgentInfo",
    ),
    "operators": (
        lambda arena: arena.fleet.ports[0], lambda _arena: "controller.arena", lambda arena: operator(arena.ca, Role.ADMIN),
        FLEET_SERVICE + "ListAgents",
    ),
    "tunnel": (
        lambda arena: arena.fleet.ports[2], lambda _arena: "controller.arena",
        lambda arena: issue(arena.ca, Identity(fleet="arena", role=Role.AGENT, name="a" * 32)),
        "/jarvis.capture.v1.TunnelService/OpenTunnel",
    ),
    "enrolment": (lambda arena: arena.fleet.ports[1], lambda _arena: "controller.arena", lambda arena: arena.nobody, ENROLL),
}  # fmt: skip


# -- messages


def _sent(dial: Callable[[Arena], grpc.Channel], method: str, payload: bytes) -> Callable[[Arena], str]:
    def run(arena: Arena) -> str:
        with dial(arena) as channel:
            return call(channel, method, payload)[0]

    return run


def _to_agent(arena: Arena) -> grpc.Channel:
    return arena.to_agent(arena.controller)


def _to_controller(arena: Arena) -> grpc.Channel:
    return arena.to_controller(operator(arena.ca, Role.ADMIN))


def _to_tunnel(arena: Arena) -> grpc.Channel:
    return arena.to_tunnel(issue(arena.ca, Identity(fleet="arena", role=Role.AGENT, name="a" * 32)))


def _malformed_for_agent(rpc: MethodDescriptor) -> Attack:
    # What needs a signature is not even parsed without one.
    expected = "COMMAND_UNSIGNED" if AGENT_SERVICE + rpc.name in LEASED_METHODS else "INVALID_ARGUMENT"
    method = AGENT_SERVICE + rpc.name
    return Attack(
        name=f"messages/malformed-agent-{rpc.name}",
        tries=f"bytes that are no message to {method}",
        expected=expected,
        run=_sent(_to_agent, method, b"\xff" * 64),
    )


def _malformed_for_controller(rpc: MethodDescriptor) -> Attack:
    method = FLEET_SERVICE + rpc.name
    return Attack(
        name=f"messages/malformed-controller-{rpc.name}",
        tries=f"bytes that are no message to {method}",
        expected="INVALID_ARGUMENT",
        run=_sent(_to_controller, method, b"\xff" * 64),
    )


_HOSTILE_TEXT = (
    "",
    "\0",
    "../../../../etc/passwd",
    "%s%n",
    "a\nb",
    "\u202e",
    "'; DROP TABLE agents; --",
    "=" * 5000,
    "\x1b[2J",
    "🦊" * 300,
)
_SIGNED = (0, -1, -(2**31), 2**31 - 1)
_UNSIGNED = (0, 1, 2**31 - 1, 2**32 - 1)
_REAL = (0.0, -1.0, float("nan"), float("inf"))
_HOSTILE: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: _HOSTILE_TEXT,
    FieldDescriptor.CPPTYPE_INT32: _SIGNED,
    FieldDescriptor.CPPTYPE_INT64: _SIGNED,
    FieldDescriptor.CPPTYPE_UINT32: _UNSIGNED,
    FieldDescriptor.CPPTYPE_UINT64: _UNSIGNED,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 99),
    FieldDescriptor.CPPTYPE_DOUBLE: _REAL,
    FieldDescriptor.CPPTYPE_FLOAT: _REAL,
}
_DEPTH = 4


def hostile(descriptor: Descriptor, draw: random.Random, agent_id: str, depth: int = 0) -> Message:
    """A message of this type, each field absent or of a value that somebody did not think of."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.name == "AgentSelector":
            # Whatever it asks for, it asks it of the victim: the honest agent is to be left alone.
            getattr(message, field.name).agent_ids.append(agent_id)
        elif draw.random() < 0.6:
            _fill(message, field, draw, agent_id, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, draw: random.Random, agent_id: str, depth: int) -> None:
    repeated = field.is_repeated
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[draw.choice(_HOSTILE_TEXT)] = draw.choice(_HOSTILE_TEXT)
        return
    if field.message_type is not None:
        if depth < _DEPTH:
            nested = hostile(field.message_type, draw, agent_id, depth + 1)
            if repeated:
                getattr(message, field.name).append(nested)
            else:
                getattr(message, field.name).CopyFrom(nested)
        return
    value = _value(field, draw)
    if repeated:
        getattr(message, field.name).extend([value] * draw.choice((1, 3, 200)))
    else:
        setattr(message, field.name, value)


def _value(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.randbytes(draw.choice((0, 1, 32, 33, 4000)))
    return draw.choice(_HOSTILE[field.cpp_type])


def _fuzz(dial: Callable[[Arena], grpc.Channel], method: str, rpc: MethodDescriptor) -> Callable[[Arena], str]:
    """Every answer must be a decision: never INTERNAL or UNKNOWN, which would be an exception that nobody foresaw."""

    def run(arena: Arena) -> str:
        draw = random.Random(f"{method} 1")  # noqa: S311 - the same messages each time
        seen: set[str] = set()
        with dial(arena) as channel:
            for _ in range(_FUZZED):
                payload = hostile(rpc.input_type, draw, arena.victim.agent_id).SerializeToString()
                ended: list[str] = []
                with as_reason(ended):
                    stub = channel.unary_stream(method, request_serializer=None, response_deserializer=None)
                    next(iter(stub(payload, timeout=1.5)), None)
                seen.add(ended[0])
        unforeseen = seen & {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "CANCELLED"}
        return "|".join(sorted(unforeseen)) if unforeseen else "ANSWERED"

    return run


# -- connections


def _half_open(port: Callable[[Arena], int], still_serves: Callable[[Arena], str], count: int) -> Callable[[Arena], str]:
    """CVE-2023-38200: connections that say nothing, a part of them in the middle of a handshake; everybody else is served."""

    def run(arena: Arena) -> str:
        held: list[socket.socket] = []
        try:
            for number in range(count):
                connection = socket.create_connection(("127.0.0.1", port(arena)), timeout=5)
                held.append(connection)
                if number % 2:
                    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # a ClientHello that does not go on
            time.sleep(0.5)
            return still_serves(arena)
        finally:
            for connection in held:
                connection.close()

    return run


def _operators_served(arena: Arena) -> str:
    with arena.to_controller(operator(arena.ca, Role.VIEWER)) as channel:
        ended, _ = call(channel, FLEET_SERVICE + "ListAgents")
    return "SERVED" if ended == "OK" else ended


def _enrolment_served(arena: Arena) -> str:
    with arena.to_enrollment() as channel:
        ended, _ = call(channel, "/grpc.health.v1.Health/Check")
    return "SERVED" if ended == "OK" else ended


def _agent_served(arena: Arena) -> str:
    ended = arena.attest(arena.victim)
    return "SERVED" if ended == "OK" else ended


def _tunnel_served(arena: Arena) -> str:
    """The tunnel that is there goes on, and a new one is judged."""
    ended = arena.attest(arena.honest.agent)
    with arena.to_tunnel(_PORTS["tunnel"][2](arena)) as channel:
        judged, _ = call(channel, "/grpc.health.v1.Health/Check")
    return "SERVED" if (ended, judged) == ("OK", "OK") else f"{ended} {judged}"


_SERVED = {"tunnel": _tunnel_served, "agent": _agent_served, "operators": _operators_served, "enrolment": _enrolment_served}
_AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
_TUNNEL = tunnel_pb2.DESCRIPTOR.services_by_name["TunnelService"]
_FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"]
_EXHAUSTED = "RESOURCE_EXHAUSTED"

ATTACKS = (
    *(
        Attack(
            name=f"tls/version-1.2-{name}",
            tries=f"TLS 1.2 at the {name} port, with a certificate that is good",
            expected="TLS_VERSION",
            run=_tls12(*row),
            is_fast=name == "agent",
        )
        for name, row in _PORTS.items()
    ),
    *(
        Attack(
            name=f"tls/none-{name}", tries=f"no TLS at the {name} port", expected="UNAVAILABLE", run=_plaintext(row[0], row[3])
        )
        for name, row in _PORTS.items()
    ),
    *(_malformed_for_agent(rpc) for rpc in _AGENT.methods),
    *(_malformed_for_controller(rpc) for rpc in _FLEET.methods),
    Attack(
        name="messages/oversized-agent-request",
        tries="a request of 64 KiB and a byte to an agent",
        expected="INVALID_ARGUMENT",
        run=_sent(_to_agent, AGENT_SERVICE + "GetStatus", bytes(64 * 1024 + 1)),
    ),
    Attack(
        name="messages/oversized-agent-message",
        tries="a message of 300 KiB to an agent",
        expected=_EXHAUSTED,
        run=_sent(_to_agent, AGENT_SERVICE + "GetStatus", bytes(300 * 1024)),
    ),
    Attack(
        name="messages/oversized-controller-message",
        tries="a message of 2 MiB to the controller",
        expected=_EXHAUSTED,
        run=_sent(_to_controller, FLEET_SERVICE + "ListAgents", bytes(2 << 20)),
    ),
    *(
        Attack(
            name=f"messages/fuzzed-{side}-{rpc.name}",
            tries=f"{_FUZZED} messages of {rpc.input_type.name} with hostile values, made from the descriptor",
            expected="ANSWERED",
            run=_fuzz(dial, f"/{service.full_name}/{rpc.name}", rpc),
            is_fast=rpc.name == "StartCaptures",
        )
        for side, dial, service in (
            ("agent", _to_agent, _AGENT),
            ("controller", _to_controller, _FLEET),
            ("tunnel", _to_tunnel, _TUNNEL),
        )
        for rpc in service.methods
    ),
    *(
        Attack(
            name=f"connections/half-open-{name}",
            tries=f"CVE-2023-38200: {HALF_OPEN:,} connections to the {name} port that never finish",
            expected="SERVED",
            run=_half_open(row[0], _SERVED[name], HALF_OPEN),
        )
        for name, row in _PORTS.items()
    ),
    Attack(
        name="connections/half-open-operators-200",
        tries="the same with 200 connections, as the tests can afford it",
        expected="SERVED",
        run=_half_open(_PORTS["operators"][0], _operators_served, 200),
        is_fast=True,
    ),
)
