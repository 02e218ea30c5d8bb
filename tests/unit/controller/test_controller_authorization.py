# SPDX-License-Identifier: Apache-2.0
"""The role table: every method that is served has a row, and no row opens more than it should."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from jarvis.capture.v1 import certificate_pb2, enrollment_pb2, fleet_pb2, policy_pb2, release_pb2
from jarvis_controller.authorization import ENROLLMENT_METHODS, OPERATOR_METHODS, caller_of, enrollment_check, require_role
from jarvis_controller.export_service import ExportService
from jarvis_controller.fleet_service import FleetService
from jarvis_controller.handlers import fleet_handlers, policy_handlers
from jarvis_controller.policy_service import PolicyService
from jarvis_controller.registry_service import RegistryService
from jarvis_controller.rpc_status import RpcError
from jarvis_trust.identities import Identity, Role
from jarvis_trust.status import reason_of

AGENT_ID = "a" * 32
PROTO = Path(__file__).parents[3] / "proto"
ROLES = [
    Identity(fleet="lab", role=Role.AGENT, name=AGENT_ID),
    Identity(fleet="lab", role=Role.CONTROLLER, name="main"),
    Identity(fleet="lab", role=Role.VIEWER, name="vera"),
    Identity(fleet="lab", role=Role.OPERATOR, name="otto"),
    Identity(fleet="lab", role=Role.ADMIN, name="ada"),
]


def methods_of(service: ServiceDescriptor) -> list[str]:
    return [f"/{service.full_name}/{method.name}" for method in service.methods]


FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"]
POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
RELEASE = release_pb2.DESCRIPTOR.services_by_name["ReleaseService"]
CERTIFICATE = certificate_pb2.DESCRIPTOR.services_by_name["CertificateService"]
OWN_SERVICES = [FLEET, POLICY, RELEASE, CERTIFICATE]
"""Of this package, on the operators' port."""
OPERATOR_SERVICES = [
    *OWN_SERVICES,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
]


def allowed(identity: Identity, method: str) -> bool:
    try:
        require_role(identity, method)
    except RpcError as error:
        if reason_of(error.status) != "ROLE_DENIED":
            raise
        return False
    return True


@pytest.mark.parametrize("method", [method for service in OPERATOR_SERVICES for method in methods_of(service)])
def test_every_method_of_the_operators_port_has_a_row(method: str) -> None:
    assert method in OPERATOR_METHODS


@pytest.mark.parametrize("method", [method for service in OPERATOR_SERVICES for method in methods_of(service)])
def test_the_roles_that_may_call_are_those_that_the_table_names(method: str) -> None:
    least = OPERATOR_METHODS[method]
    callers = {identity.role for identity in ROLES if allowed(identity, method)}
    rank = [Role.VIEWER, Role.OPERATOR, Role.ADMIN]
    assert callers == set(rank[rank.index(least) :])


@pytest.mark.parametrize("service", OWN_SERVICES, ids=lambda service: service.name)
def test_the_table_agrees_with_what_the_proto_says_at_each_method(service: ServiceDescriptor) -> None:
    """The comment before each rpc begins with the least role."""
    text = (PROTO / service.file.name).read_text(encoding="utf-8")
    said = {name: role for role, name in re.findall(r"^  // (\w+)\. (?:.*\n  // )*.*\n  rpc (\w+)\(", text, re.MULTILINE)}
    assert {method.rsplit("/", 1)[1]: str(OPERATOR_METHODS[method]) for method in methods_of(service)} == said


def test_the_enrolment_port_opens_enrolment_and_health_only() -> None:
    open_methods = methods_of(enrollment_pb2.DESCRIPTOR.services_by_name["EnrollmentService"])
    open_methods += methods_of(health_pb2.DESCRIPTOR.services_by_name["Health"])
    assert set(ENROLLMENT_METHODS) == set(open_methods)


@pytest.mark.parametrize("identity", ROLES, ids=lambda identity: str(identity.role))
def test_a_method_without_a_row_is_denied_to_everybody(identity: Identity) -> None:
    assert not allowed(identity, "/jarvis.capture.v1.FleetService/Forgotten")


class Connection:
    """What gRPC says of a peer."""

    def __init__(self, *ids: str, tls: str = "TLSv1.3", **more: list[bytes]) -> None:
        self.facts = {"ssl_tls_version": [tls.encode()], "peer_spiffe_id": [name.encode() for name in ids], **more}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.facts


ADA = "spiffe://lab/operator/admin/ada"


def test_the_caller_is_whom_the_spiffe_id_names() -> None:
    caller = caller_of(Connection(ADA), "lab")  # type: ignore[arg-type]
    assert (caller.role, caller.name) == (Role.ADMIN, "ada")


@pytest.mark.parametrize(
    ("connection", "reason"),
    [
        (Connection(ADA, tls="TLSv1.2"), "TLS_VERSION"),
        (Connection(ADA, ssl_tls_version=[]), "TLS_VERSION"),
        (Connection(), "IDENTITY_MISSING"),
        (Connection(ADA, "spiffe://lab/operator/viewer/vera"), "IDENTITY_MISSING"),
        (Connection(x509_subject_alternative_name=[ADA.encode()], x509_common_name=[b"admin"]), "IDENTITY_MISSING"),
        (Connection("spiffe://other/operator/admin/ada"), "IDENTITY_INVALID"),
        (Connection("spiffe://lab/operator/admin/ada/more"), "IDENTITY_INVALID"),
        (Connection("spiffe://lab/operator/root/ada"), "IDENTITY_INVALID"),
    ],
)
def test_anybody_else_is_unauthenticated(connection: Connection, reason: str) -> None:
    with pytest.raises(RpcError) as refused:
        caller_of(connection, "lab")  # type: ignore[arg-type]
    assert (refused.value.status.code, reason_of(refused.value.status)) == (code_pb2.UNAUTHENTICATED, reason)


def test_without_tls_13_nothing_is_served_on_the_enrolment_port_either() -> None:
    with pytest.raises(RpcError):
        enrollment_check(Connection(tls="TLSv1.2"), next(iter(ENROLLMENT_METHODS)))  # type: ignore[arg-type]


def test_every_service_of_the_package_is_known_to_this_test() -> None:
    """A new service must be given rows, or be left to the agent."""
    pool = descriptor_pool.Default()
    files = [str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto")]
    for name in files:
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    services = {service for name in files for service in pool.FindFileByName(name).services_by_name}
    elsewhere = {"AgentService", "EnrollmentService", "TunnelService"}
    assert services - elsewhere == {service.name for service in OWN_SERVICES}


def test_every_method_of_policy_service_has_a_handler() -> None:
    handlers = policy_handlers(PolicyService)  # type: ignore[arg-type]  # as above
    assert set(handlers) == {method.name for method in POLICY.methods}


def test_every_method_of_fleet_service_has_a_handler() -> None:
    handlers = fleet_handlers(FleetService, RegistryService, ExportService)  # type: ignore[arg-type]  # the classes have the methods' names
    assert set(handlers) == {method.name for method in FLEET.methods}
