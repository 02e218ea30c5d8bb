# SPDX-License-Identifier: Apache-2.0
"""What each service answers with: {full service name: {method: handler}}, one function per service.

server.py puts the tables of one port together; ports.py serves them, with health and, for operators, reflection. Requests come as
bytes and are parsed here, behind the authorization, so that what is no message is refused as bad input.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from jarvis.capture.v1 import certificate_pb2, enrollment_pb2, fleet_pb2, policy_pb2, release_pb2
from jarvis_trust.policy_document import MAX_DOCUMENT_BYTES

from jarvis_controller.certificate_service import CertificateService
from jarvis_controller.enrollment_service import EnrollmentService
from jarvis_controller.export_service import ExportService
from jarvis_controller.fleet_service import FleetService
from jarvis_controller.policy_service import PolicyService
from jarvis_controller.registry_service import RegistryService
from jarvis_controller.release_service import ReleaseService
from jarvis_controller.rpc_status import MAX_REQUEST_BYTES, parse_request
from jarvis_controller.tunnel_service import TunnelService

Handlers = Mapping[str, Any]
"""Method name -> grpc.RpcMethodHandler."""
Services = Mapping[str, Handlers]
"""Full service name -> its handlers: what one port serves."""

FLEET = "jarvis.capture.v1.FleetService"
POLICY = "jarvis.capture.v1.PolicyService"
RELEASE = "jarvis.capture.v1.ReleaseService"
CERTIFICATES = "jarvis.capture.v1.CertificateService"
ENROLLMENT = "jarvis.capture.v1.EnrollmentService"
TUNNEL = "jarvis.capture.v1.TunnelService"

MAX_POLICY_BYTES = MAX_DOCUMENT_BYTES + 32 * 1024
"""A policy with its files, their names and a selector."""
_MAX_ENROLL_BYTES = 96 * 1024
"""An EK certificate with its chain."""
_MAX_PART_BYTES = 528 * 1024
"""512 KiB of a release's file."""


def fleet_handlers(service: FleetService, registry: RegistryService, exports: ExportService) -> Handlers:
    """FleetService; ListFlows and WatchFlows answer with finished bytes."""
    pb = fleet_pb2
    return {
        "ListAgents": unary(registry.list_agents, pb.ListAgentsRequest, pb.ListAgentsResponse),
        "GetBootReport": unary(registry.get_boot_report, pb.GetBootReportRequest, pb.GetBootReportResponse),
        "AttestAgents": stream(service.attest_agents, pb.AttestAgentsRequest, pb.AttestAgentsResponse),
        "StartCaptures": stream(service.start_captures, pb.StartCapturesRequest, pb.CaptureOutcome),
        "StopCaptures": stream(service.stop_captures, pb.StopCapturesRequest, pb.CaptureOutcome),
        "UpdateInterfaces": stream(service.update_interfaces, pb.FleetUpdateInterfacesRequest, pb.CaptureOutcome),
        "GetCaptureStatuses": stream(service.get_capture_statuses, pb.GetCaptureStatusesRequest, pb.CaptureOutcome),
        "EnableExports": stream(exports.enable_exports, pb.EnableExportsRequest, pb.ExportOutcome),
        "DisableExports": stream(exports.disable_exports, pb.DisableExportsRequest, pb.ExportOutcome),
        "ListExports": stream(exports.list_exports, pb.FleetListExportsRequest, pb.ExportOutcome),
        "WatchMetrics": stream(service.watch_metrics, pb.WatchMetricsRequest, pb.WatchMetricsResponse),
        "ListFlows": stream(service.list_flows, pb.FleetListFlowsRequest, None),
        "WatchFlows": stream(service.watch_flows, pb.WatchFlowsRequest, None),
        "WatchEvents": stream(service.watch_events, pb.WatchEventsRequest, pb.WatchEventsResponse),
        "CreateJoinToken": unary(registry.create_join_token, pb.CreateJoinTokenRequest, pb.CreateJoinTokenResponse),
        "QuarantineAgent": unary(registry.quarantine_agent, pb.QuarantineAgentRequest, pb.QuarantineAgentResponse),
        "ReleaseAgent": unary(registry.release_agent, pb.ReleaseAgentRequest, pb.ReleaseAgentResponse),
        "RetireAgent": unary(registry.retire_agent, pb.RetireAgentRequest, pb.RetireAgentResponse),
        "ListAuditEvents": unary(registry.list_audit_events, pb.ListAuditEventsRequest, pb.ListAuditEventsResponse),
        "ListAuditCheckpoints": unary(
            registry.list_audit_checkpoints, pb.ListAuditCheckpointsRequest, pb.ListAuditCheckpointsResponse
        ),
        "GetAttestationCase": unary(registry.get_attestation_case, pb.GetAttestationCaseRequest, pb.GetAttestationCaseResponse),
    }


def policy_handlers(service: PolicyService) -> Handlers:
    """PolicyService."""
    pb = policy_pb2
    return {
        "GetPolicy": unary(service.get_policy, pb.GetPolicyRequest, pb.GetPolicyResponse),
        "ApplyPolicy": unary(service.apply_policy, pb.ApplyPolicyRequest, pb.ApplyPolicyResponse, most=MAX_POLICY_BYTES),
        "SimulatePolicy": stream(
            service.simulate_policy, pb.SimulatePolicyRequest, pb.SimulatePolicyResponse, most=MAX_POLICY_BYTES
        ),
    }


def release_handlers(service: ReleaseService) -> Handlers:
    """ReleaseService."""
    pb = release_pb2
    return {
        "AddRelease": unary(service.add_release, pb.AddReleaseRequest, pb.AddReleaseResponse, most=_MAX_PART_BYTES),
        "ListReleases": unary(service.list_releases, pb.ListReleasesRequest, pb.ListReleasesResponse),
        "RemoveRelease": unary(service.remove_release, pb.RemoveReleaseRequest, pb.RemoveReleaseResponse),
        "RollOutRelease": stream(service.roll_out_release, pb.RollOutReleaseRequest, pb.RollOutReleaseResponse),
    }


def certificate_handlers(service: CertificateService) -> Handlers:
    """CertificateService."""
    pb = certificate_pb2
    return {
        "ListCertificates": unary(service.list_certificates, pb.ListCertificatesRequest, pb.ListCertificatesResponse),
        "RevokeCertificate": unary(service.revoke_certificate, pb.RevokeCertificateRequest, pb.RevokeCertificateResponse),
        "IssueOperatorCertificate": unary(
            service.issue_operator_certificate, pb.IssueOperatorCertificateRequest, pb.IssueOperatorCertificateResponse
        ),
        "RenewOperatorCertificate": unary(
            service.renew_operator_certificate, pb.RenewOperatorCertificateRequest, pb.RenewOperatorCertificateResponse
        ),
        "GetAuthorities": unary(service.get_authorities, pb.GetAuthoritiesRequest, pb.GetAuthoritiesResponse),
        "RotateAuthority": unary(service.rotate_authority, pb.RotateAuthorityRequest, pb.RotateAuthorityResponse),
    }


def enrollment_handlers(service: EnrollmentService) -> Handlers:
    """EnrollmentService."""

    async def parsed(payloads: AsyncIterator[bytes]) -> AsyncGenerator[enrollment_pb2.EnrollRequest, None]:
        async for payload in payloads:
            yield parse_request(enrollment_pb2.EnrollRequest, payload, most=_MAX_ENROLL_BYTES)

    async def enroll(payloads: AsyncIterator[bytes], context: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(service.enroll(parsed(payloads), context)) as answers:
            async for answer in answers:
                yield answer

    handler = grpc.stream_stream_rpc_method_handler(
        enroll, request_deserializer=None, response_serializer=enrollment_pb2.EnrollResponse.SerializeToString
    )
    return {"Enroll": handler}


def tunnel_handlers(service: TunnelService) -> Handlers:
    """TunnelService: bytes in, bytes out; what is bulk is not parsed twice."""
    return {
        "OpenTunnel": grpc.stream_stream_rpc_method_handler(service.open_tunnel),
        "SendMessages": grpc.stream_unary_rpc_method_handler(service.send_messages),
    }


def unary(behaviour: Callable[[Any, Any], Any], request: Any, response: Any, *, most: int = MAX_REQUEST_BYTES) -> Any:
    """A handler for one request and one answer.

    Args:
        behaviour: a coroutine function of (request, context).
        request: the message class of the request.
        response: that of the answer.
        most: bytes that a request may have.
    """

    async def single(payload: bytes, context: Any) -> Any:
        return await behaviour(parse_request(request, payload, most=most), context)

    return grpc.unary_unary_rpc_method_handler(single, request_deserializer=None, response_serializer=response.SerializeToString)


def stream(behaviour: Callable[[Any, Any], Any], request: Any, response: Any, *, most: int = MAX_REQUEST_BYTES) -> Any:
    """A handler for one request and a stream of answers.

    Args:
        behaviour: an asynchronous generator function of (request, context).
        request: the message class of the request.
        response: that of the answers; None: they are finished bytes.
        most: bytes that a request may have.
    """

    async def streaming(payload: bytes, context: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(behaviour(parse_request(request, payload, most=most), context)) as answers:
            async for answer in answers:
                yield answer

    serializer = None if response is None else response.SerializeToString
    return grpc.unary_stream_rpc_method_handler(streaming, request_deserializer=None, response_serializer=serializer)
