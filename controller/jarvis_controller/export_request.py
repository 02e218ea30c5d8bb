# SPDX-License-Identifier: Apache-2.0
"""Checks operators' exports before any agent is asked: what is wrong everywhere is refused once, naming the field.

    ExportSpec -> check_export: each field, and the fields beside each other;  check_allowed: against the policy's allow-list

Whether a name resolves, a filter compiles or a certificate holds is each agent's to say; each checks the list of its lease, too.
"""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.message import Message
from google.rpc import code_pb2
from jarvis.capture.v1 import export_pb2
from jarvis_trust.collector_allow_list import AllowList, parse_host

from jarvis_controller.request_fields import S, check_duration, check_range
from jarvis_controller.rpc_status import RpcError, bad_field, refuse

MAX_COLLECTORS: Final = 8
MAX_FILTER_CHARACTERS: Final = 4096
_DAY: Final = 24 * 3600 * S
_EXPORT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_V5, _V9 = export_pb2.EXPORT_PROTOCOL_NETFLOW_V5, export_pb2.EXPORT_PROTOCOL_NETFLOW_V9
_IPFIX, _SFLOW = export_pb2.EXPORT_PROTOCOL_IPFIX, export_pb2.EXPORT_PROTOCOL_SFLOW_V5
_UDP, _TLS, _FILE = export_pb2.EXPORT_TRANSPORT_UDP, export_pb2.EXPORT_TRANSPORT_TLS, export_pb2.EXPORT_TRANSPORT_FILE
_NAMES = {_V5: "NetFlow v5", _V9: "NetFlow v9", _IPFIX: "IPFIX", _SFLOW: "sFlow"}
_PORTS = {_V5: 2055, _V9: 2055, _IPFIX: 4739, _SFLOW: 6343}
_IPFIX_TLS_PORT = 4740


def check_export(spec: export_pb2.ExportSpec) -> None:
    """An export that an agent could enable.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    check_export_id("spec.export_id", spec.export_id)
    if spec.protocol not in _NAMES:
        raise bad_field("spec.protocol", f"{spec.protocol}: one of ExportProtocol's values but UNSPECIFIED is accepted")
    for field in ("transport", "distribution", "profile", "time_unit"):
        _check_known(spec, field)
    if _transport(spec) != _UDP and spec.protocol != _IPFIX:
        name = export_pb2.ExportTransport.Name(spec.transport)
        raise bad_field("spec.transport", f"{name} with {_NAMES[spec.protocol]}: EXPORT_TRANSPORT_UDP is accepted")
    check_range("spec.export_interval_sec", spec.export_interval_sec, 1, 3600)
    _check_collectors(spec)
    _check_records(spec)
    _check_times(spec)


def check_export_id(field: str, export_id: str) -> None:
    """The name of an export.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if _EXPORT_ID.fullmatch(export_id) is None:
        raise bad_field(field, f"{export_id[:40]!r}: 1-32 of a-z 0-9 -, alphanumeric at both ends, are accepted")


def check_allowed(spec: export_pb2.ExportSpec, allowed: AllowList) -> None:
    """Every collector of an export, which was checked, is in the policy's allow-list.

    Raises:
        RpcError: FAILED_PRECONDITION, EXPORT_NOT_ALLOWED naming the collector and the policy's entries.
    """
    if _transport(spec) == _FILE and not allowed.permits_files:
        raise _not_allowed("spec.transport", "file", allowed)
    for index, collector in enumerate(spec.collectors):
        port = _port(spec, collector)
        if not allowed.permits(collector.host, port):
            host = f"[{collector.host}]" if ":" in collector.host else collector.host
            raise _not_allowed(f"spec.collectors[{index}]", f"{host}:{port}", allowed)


def _not_allowed(field: str, collector: str, allowed: AllowList) -> RpcError:
    message = f"{field} = {collector!r}: not in the policy's allow-list ([export] collectors), which admits {allowed.describe()}"
    return refuse(code_pb2.FAILED_PRECONDITION, "EXPORT_NOT_ALLOWED", message, metadata={"collector": collector})


def _check_known(spec: export_pb2.ExportSpec, field: str) -> None:
    kind, value = spec.DESCRIPTOR.fields_by_name[field].enum_type, getattr(spec, field)
    if kind is not None and value not in kind.values_by_number:
        raise bad_field(f"spec.{field}", f"{value}: one of {kind.name}'s values is accepted")


def _check_collectors(spec: export_pb2.ExportSpec) -> None:
    """So many, each of the right form, and each once."""
    if _transport(spec) == _FILE:
        if spec.collectors or spec.distribution:
            field = "collectors" if spec.collectors else "distribution"
            raise bad_field(f"spec.{field}", "given with EXPORT_TRANSPORT_FILE: only other transports have collectors")
        return
    if not 1 <= len(spec.collectors) <= MAX_COLLECTORS:
        raise bad_field("spec.collectors", f"{len(spec.collectors)} of them: 1..{MAX_COLLECTORS} are accepted")
    seen = set()
    for index, collector in enumerate(spec.collectors):
        field = f"spec.collectors[{index}]"
        host = parse_host(collector.host)
        if host is None:
            accepted = "an IPv4 address, an IPv6 address without brackets and zone, or a DNS name is accepted"
            raise bad_field(f"{field}.host", f"{collector.host[:80]!r}: {accepted}")
        check_range(f"{field}.port", collector.port, 1, 65535)
        if collector.tls_name and _transport(spec) != _TLS:
            raise bad_field(f"{field}.tls_name", f"{collector.tls_name[:80]!r}: accepted with EXPORT_TRANSPORT_TLS")
        if collector.tls_name and parse_host(collector.tls_name) is None:
            raise bad_field(f"{field}.tls_name", f"{collector.tls_name[:80]!r}: a DNS name or an address is accepted")
        where = (host, _port(spec, collector))
        if where in seen:
            raise bad_field(field, f"{collector.host!r} with port {where[1]} again: each collector is accepted once")
        seen.add(where)


def _check_records(spec: export_pb2.ExportSpec) -> None:
    """What records are made of, for protocols that have a choice."""
    name = _NAMES[spec.protocol]
    has_templates = spec.protocol in {_V9, _IPFIX}
    if spec.biflow and spec.protocol != _IPFIX:
        raise bad_field("spec.biflow", f"true with {name}: accepted with IPFIX")
    if spec.profile not in {export_pb2.EXPORT_PROFILE_UNSPECIFIED, export_pb2.EXPORT_PROFILE_DEFAULT} and not has_templates:
        raise bad_field("spec.profile", f"{export_pb2.ExportProfile.Name(spec.profile)} with {name}, whose records have one form")
    if spec.time_unit > export_pb2.EXPORT_TIME_UNIT_MILLISECONDS and not has_templates:
        unit = export_pb2.ExportTimeUnit.Name(spec.time_unit)
        raise bad_field("spec.time_unit", f"{unit} with {name}: EXPORT_TIME_UNIT_MILLISECONDS is accepted")
    if spec.protocol == _V5:
        check_range("spec.observation_domain_id", spec.observation_domain_id, 0, 65535)
    if spec.distribution == export_pb2.EXPORT_DISTRIBUTION_BALANCE and spec.protocol == _SFLOW:
        raise bad_field("spec.distribution", "BALANCE with sFlow, whose samples are of no flow: MIRROR is accepted")
    if len(spec.filter) > MAX_FILTER_CHARACTERS:
        raise bad_field("spec.filter", f"{len(spec.filter)} characters: at most {MAX_FILTER_CHARACTERS} are accepted")
    if spec.filter and spec.protocol == _SFLOW:
        raise bad_field("spec.filter", f"{spec.filter[:80]!r} with sFlow, whose samples are of frames: none is accepted")
    if spec.sampling_rate and spec.protocol != _SFLOW:
        raise bad_field("spec.sampling_rate", f"{spec.sampling_rate} with {name}: 0 is accepted, sFlow alone samples here")
    check_range("spec.sampling_rate", spec.sampling_rate, 1, 16_777_215)


def _check_times(spec: export_pb2.ExportSpec) -> None:
    """When templates are sent again, and when files are finished."""
    for field in ("template_refresh", "template_refresh_messages"):
        if _is_given(spec, field) and spec.protocol not in {_V9, _IPFIX}:
            raise bad_field(f"spec.{field}", f"given with {_NAMES[spec.protocol]}, which has no templates: none is accepted")
    if spec.HasField("template_refresh"):
        check_duration("spec.template_refresh", spec.template_refresh, S, _DAY)
    if spec.template_refresh_messages and _transport(spec) != _UDP:
        raise bad_field("spec.template_refresh_messages", f"{spec.template_refresh_messages}: accepted with EXPORT_TRANSPORT_UDP")
    check_range("spec.template_refresh_messages", spec.template_refresh_messages, 1, 1_000_000)
    for field in ("file_size_mb", "file_age", "files_kept"):
        if _is_given(spec, field) and _transport(spec) != _FILE:
            raise bad_field(f"spec.{field}", "given without files: accepted with EXPORT_TRANSPORT_FILE")
    check_range("spec.file_size_mb", spec.file_size_mb, 1, 65536)
    if spec.HasField("file_age"):
        check_duration("spec.file_age", spec.file_age, S, _DAY)
    check_range("spec.files_kept", spec.files_kept, 1, 100_000)


def _is_given(message: Message, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in message.ListFields())


def _transport(spec: export_pb2.ExportSpec) -> export_pb2.ExportTransport.ValueType:
    return spec.transport or _UDP


def _port(spec: export_pb2.ExportSpec, collector: export_pb2.ExportCollector) -> int:
    """The port that will be used."""
    return collector.port or (_IPFIX_TLS_PORT if spec.transport == _TLS else _PORTS[spec.protocol])
