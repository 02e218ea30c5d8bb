# SPDX-License-Identifier: Apache-2.0
"""Role escalation on every rpc of every service, walked over the descriptors: a new rpc is attacked without being listed here.

too low    a certificate of the fleet whose role may not call this rpc: refused by name
outsiders  no certificate, another CA's, an expired one (CVE-2026-1709): refused by TLS, before any rpc
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from jarvis.capture.v1 import (  # noqa: F401 - the services of OPERATOR_METHODS are found by name
    agent_pb2,
    certificate_pb2,
    fleet_pb2,
    policy_pb2,
    release_pb2,
    tunnel_pb2,
)
from jarvis_controller.authorization import OPERATOR_METHODS
from jarvis_trust.ca import generate_key, public_key_of
from jarvis_trust.identities import Identity, Role

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import Party, call, issue

_AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
_OPERATOR = [
    descriptor_pool.Default().FindServiceByName(name)
    for name in dict.fromkeys(method.split("/")[1] for method in OPERATOR_METHODS)
    if name.startswith("jarvis.")
]
"""The controller's own services for operators."""
_TUNNEL = tunnel_pb2.DESCRIPTOR.services_by_name["TunnelService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

_RANK = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
_NAMES = {Role.AGENT: "a" * 32, Role.CONTROLLER: "thief"}


def _methods(service: ServiceDescriptor) -> list[str]:
    return [f"/{service.full_name}/{method.name}" for method in service.methods]


def _party(arena: Arena, role: Role) -> Party:
    return issue(arena.ca, Identity(fleet="arena", role=role, name=_NAMES.get(role, "mallory")))


def _outsiders(arena: Arena, role: Role) -> list[Party]:
    """Who is not of the fleet, each with the best role that there is."""
    identity = Identity(fleet="arena", role=role, name=_NAMES.get(role, "mallory"))
    root = arena.ca.certificate_pem
    key = generate_key()
    # Within the CA's own life, which began minutes ago, and over already.
    expired = arena.ca.issue(identity, public_key_of(key), timedelta(seconds=1), now=datetime.now(UTC) - timedelta(seconds=60))
    return [
        arena.nobody,
        issue(arena.foreign_ca, identity, root_pem=root),
        Party(root_pem=root, certificate_pem=expired, key_pem=key),
    ]


def _all(parties: Iterable[Party], dial: Callable[[Party], grpc.Channel], method: str) -> str:
    found = set()
    for party in parties:
        with dial(party) as channel:
            found.add(call(channel, method)[0])
    return "|".join(sorted(found))


def _still_serves(arena: Arena, got: str) -> str:
    """A refusal by TLS has no words: it counts only while the same port answers those who may call."""
    agent_ok = arena.status_of(arena.victim).lease_sequence
    ended, _ = call(arena.admin, "/jarvis.capture.v1.FleetService/ListAgents")
    return got if agent_ok and ended == "OK" else f"{got}, and then the port did not serve: {ended}"


def _agent_attacks(method: str) -> list[Attack]:
    short = method.rpartition("/")[2]
    lower = (Role.AGENT, *_RANK)
    return [
        Attack(
            name=f"roles/agent-{short}",
            tries=f"{method} at an agent with the certificate of another agent, a viewer, an operator, an admin",
            expected="PEER_DENIED",
            run=lambda arena: _all((_party(arena, role) for role in lower), arena.to_agent, method),
            is_fast=short == "StartCapture",
        ),
        Attack(
            name=f"roles/agent-{short}-outsiders",
            tries=f"CVE-2026-1709: {method} at an agent without a certificate, with one of another CA, with an expired one",
            expected="UNAVAILABLE",
            run=lambda arena: _still_serves(arena, _all(_outsiders(arena, Role.CONTROLLER), arena.to_agent, method)),
        ),
    ]


def _controller_attacks(method: str) -> list[Attack]:
    short = method.rpartition("/")[2]
    least = OPERATOR_METHODS[method]
    lower = (Role.AGENT, Role.CONTROLLER, *_RANK[: _RANK.index(least)])
    return [
        Attack(
            name=f"roles/controller-{short}",
            tries=f"{method} at the controller with the certificate of {', '.join(lower)}",
            expected="ROLE_DENIED",
            run=lambda arena: _all((_party(arena, role) for role in lower), arena.to_controller, method),
            is_fast=short in {"ReleaseAgent", "EnableExports"},
        ),
        Attack(
            name=f"roles/controller-{short}-outsiders",
            tries=f"CVE-2026-1709: {method} at the controller without a certificate, with one of another CA, with an expired one",
            expected="UNAVAILABLE",
            run=lambda arena: _still_serves(arena, _all(_outsiders(arena, Role.ADMIN), arena.to_controller, method)),
        ),
    ]


def _tunnel_attacks(method: str) -> list[Attack]:
    short = method.rpartition("/")[2]
    others = (Role.CONTROLLER, *_RANK)
    return [
        Attack(
            name=f"roles/tunnel-{short}",
            tries=f"{method} at the tunnel port with the certificate of {', '.join(others)}",
            expected="ROLE_DENIED",
            run=lambda arena: _all((_party(arena, role) for role in others), arena.to_tunnel, method),
            is_fast=short == "OpenTunnel",
        ),
        Attack(
            name=f"roles/tunnel-{short}-outsiders",
            tries=f"CVE-2026-1709: {method} at the tunnel port without a certificate, with another CA's, with an expired one",
            expected="UNAVAILABLE",
            run=lambda arena: _still_serves(arena, _all(_outsiders(arena, Role.AGENT), arena.to_tunnel, method)),
        ),
    ]


def _enrollment_attack(method: str) -> Attack:
    parties = (Role.AGENT, Role.CONTROLLER, *_RANK)

    def run(arena: Arena) -> str:
        return _all([arena.nobody, *(_party(arena, role) for role in parties)], arena.to_enrollment, method)

    name = method.rpartition("/")[2]
    # A method that is not served there is unknown there: nobody is told more.
    return Attack(
        name=f"roles/enrolment-port-{name}",
        tries=f"{method} at the enrolment port, whoever calls",
        expected="UNIMPLEMENTED",
        run=run,
    )


METHODS = tuple(method for service in _OPERATOR for method in _methods(service))
"""Every method of the controller's own services for operators."""

ATTACKS = (
    *(attack for service in (_AGENT, _HEALTH, _REFLECTION) for method in _methods(service) for attack in _agent_attacks(method)),
    *(
        attack
        for service in (*_OPERATOR, _HEALTH, _REFLECTION)
        for method in _methods(service)
        if method in OPERATOR_METHODS
        for attack in _controller_attacks(method)
    ),
    *(attack for method in _methods(_TUNNEL) for attack in _tunnel_attacks(method)),
    *(_enrollment_attack(method) for service in _OPERATOR for method in _methods(service)),
)
