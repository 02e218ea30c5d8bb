# SPDX-License-Identifier: Apache-2.0
"""From an ExportSpec, as an operator asked for it, to the ExportPlan that is carried out: defaults filled in, rules held.

What can be judged without looking at the host is judged here, all of it at once; names, certificates, directories and the
filter's syntax are judged by those who use them.
"""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.duration_pb2 import Duration
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_native.export import ExportProfile, ExportProtocol, TimeUnit
from jarvis_trust.collector_allow_list import parse_host

from jarvis_agent.errors import RequestError
from jarvis_agent.export.plan import DEFAULT_PORTS, IPFIX_TLS_PORT, Collector, Distribution, ExportPlan, ExportTransport

MAX_COLLECTORS: Final = 8
MAX_INTERVAL_S: Final = 3600
MAX_FILTER_CHARACTERS: Final = 4096
MAX_SAMPLING_RATE: Final = 16_777_215
MAX_REFRESH_MESSAGES: Final = 1_000_000
MAX_DURATION_S: Final = 86_400.0
MAX_FILE_MB: Final = 65_536
MAX_FILES: Final = 100_000
DEFAULT_INTERVAL_S, DEFAULT_SFLOW_INTERVAL_S = 1.0, 20.0
DEFAULT_SAMPLING_RATE: Final = 1_000

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_PROTOCOLS: dict[int, ExportProtocol] = {
    pb.EXPORT_PROTOCOL_NETFLOW_V5: "netflow5",
    pb.EXPORT_PROTOCOL_NETFLOW_V9: "netflow9",
    pb.EXPORT_PROTOCOL_IPFIX: "ipfix",
    pb.EXPORT_PROTOCOL_SFLOW_V5: "sflow",
}
_TRANSPORTS: dict[int, ExportTransport] = {
    pb.EXPORT_TRANSPORT_UNSPECIFIED: "udp",
    pb.EXPORT_TRANSPORT_UDP: "udp",
    pb.EXPORT_TRANSPORT_TCP: "tcp",
    pb.EXPORT_TRANSPORT_TLS: "tls",
    pb.EXPORT_TRANSPORT_SCTP: "sctp",
    pb.EXPORT_TRANSPORT_FILE: "file",
}
_PROFILES: dict[int, ExportProfile] = {
    pb.EXPORT_PROFILE_UNSPECIFIED: "default",
    pb.EXPORT_PROFILE_MINIMAL: "minimal",
    pb.EXPORT_PROFILE_DEFAULT: "default",
    pb.EXPORT_PROFILE_FULL: "full",
}
_TIME_UNITS: dict[int, TimeUnit] = {
    pb.EXPORT_TIME_UNIT_UNSPECIFIED: "ms",
    pb.EXPORT_TIME_UNIT_MILLISECONDS: "ms",
    pb.EXPORT_TIME_UNIT_MICROSECONDS: "us",
    pb.EXPORT_TIME_UNIT_NANOSECONDS: "ns",
}
_DISTRIBUTIONS: dict[int, Distribution] = {
    pb.EXPORT_DISTRIBUTION_UNSPECIFIED: "mirror",
    pb.EXPORT_DISTRIBUTION_MIRROR: "mirror",
    pb.EXPORT_DISTRIBUTION_BALANCE: "balance",
}
Violations = list[tuple[str, str]]


def plan_export(spec: pb.ExportSpec) -> ExportPlan:
    """What the agent carries out.

    Raises:
        RequestError: every field that is not acceptable, below "spec".
    """
    found: Violations = []
    _check_choices(spec, found)
    protocol, transport = _PROTOCOLS.get(spec.protocol, "ipfix"), _TRANSPORTS.get(spec.transport, "udp")
    _check_transport(protocol, transport, found)
    _check_protocol(spec, protocol, found)
    _check_ranges(spec, found)
    _check_files(spec, transport, found)
    collectors = _collectors(spec, protocol, transport, found)
    if found:
        raise RequestError(*found)
    is_sflow = protocol == "sflow"
    return ExportPlan(
        export_id=spec.export_id,
        protocol=protocol,
        transport=transport,
        collectors=collectors,
        distribution=_DISTRIBUTIONS[spec.distribution],
        interval_s=float(spec.export_interval_sec) or (DEFAULT_SFLOW_INTERVAL_S if is_sflow else DEFAULT_INTERVAL_S),
        profile=_PROFILES[spec.profile],
        biflow=spec.biflow,
        time_unit=_TIME_UNITS[spec.time_unit],
        observation_domain_id=spec.observation_domain_id,
        template_refresh_s=_seconds(spec.template_refresh) if spec.HasField("template_refresh") else 60.0,
        template_refresh_messages=spec.template_refresh_messages or 4096,
        max_records_per_second=spec.max_records_per_second,
        filter=spec.filter,
        sampling_rate=(spec.sampling_rate or DEFAULT_SAMPLING_RATE) if is_sflow else 0,
        file_bytes=(spec.file_size_mb or 256) << 20,
        file_age_s=_seconds(spec.file_age) if spec.HasField("file_age") else 300.0,
        files_kept=spec.files_kept,
    )


def check_export_id(export_id: str, field: str) -> None:
    """Raises RequestError when it cannot be the id of an export."""
    if _ID.fullmatch(export_id) is None:
        raise RequestError((field, _bad_id(export_id)))


def _bad_id(export_id: str) -> str:
    return f"{export_id[:60]!r}; 1 to 32 of a-z, 0-9 and - are accepted, alphanumeric at both ends"


def _check_choices(spec: pb.ExportSpec, found: Violations) -> None:
    if _ID.fullmatch(spec.export_id) is None:
        found.append(("spec.export_id", _bad_id(spec.export_id)))
    if spec.protocol not in _PROTOCOLS:
        accepted = "NetFlow v5 (1), v9 (2), IPFIX (3) and sFlow v5 (4) are accepted"
        found.append(("spec.protocol", f"{spec.protocol}; {accepted}"))
    for field, value, last in (
        ("transport", spec.transport, max(_TRANSPORTS)),
        ("distribution", spec.distribution, max(_DISTRIBUTIONS)),
        ("profile", spec.profile, max(_PROFILES)),
        ("time_unit", spec.time_unit, max(_TIME_UNITS)),
    ):
        if not 0 <= value <= last:
            found.append((f"spec.{field}", f"{value}; 0 to {last} are accepted"))


def _check_transport(protocol: ExportProtocol, transport: ExportTransport, found: Violations) -> None:
    if transport != "udp" and protocol != "ipfix":
        found.append(("spec.transport", f"{transport} with {protocol}; only ipfix has it, udp is accepted"))


def _check_protocol(spec: pb.ExportSpec, protocol: ExportProtocol, found: Violations) -> None:
    """Fields that only some protocols have."""
    is_sflow, has_templates = protocol == "sflow", protocol in {"netflow9", "ipfix"}
    if spec.biflow and protocol != "ipfix":
        found.append(("spec.biflow", f"true with {protocol}; only ipfix has it, false is accepted"))
    if not has_templates and _PROFILES.get(spec.profile) not in {"default", None}:
        found.append(("spec.profile", f"{_PROFILES[spec.profile]} with {protocol}, which has one form only; default is accepted"))
    if not has_templates and _TIME_UNITS.get(spec.time_unit) not in {"ms", None}:
        found.append(("spec.time_unit", f"{_TIME_UNITS[spec.time_unit]} with {protocol}; ms is accepted"))
    if is_sflow and _DISTRIBUTIONS.get(spec.distribution) == "balance":
        found.append(("spec.distribution", "balance with sflow, whose samples belong to no flow; mirror is accepted"))
    if is_sflow and spec.filter:
        found.append(("spec.filter", f"{spec.filter[:80]!r} with sflow; an empty one is accepted"))
    if spec.sampling_rate and not is_sflow:
        found.append(("spec.sampling_rate", f"{spec.sampling_rate} with {protocol}; 0 is accepted (the capture has its own)"))
    if protocol == "netflow5" and spec.observation_domain_id > 0xFFFF:
        found.append(("spec.observation_domain_id", f"{spec.observation_domain_id} with netflow5; 0 to 65535 are accepted"))


def _check_ranges(spec: pb.ExportSpec, found: Violations) -> None:
    if spec.export_interval_sec > MAX_INTERVAL_S:
        accepted = f"1 to {MAX_INTERVAL_S} s are accepted, 0 = 1 (sFlow: 20)"
        found.append(("spec.export_interval_sec", f"{spec.export_interval_sec}; {accepted}"))
    if spec.sampling_rate > MAX_SAMPLING_RATE:
        accepted = f"1 to {MAX_SAMPLING_RATE} are accepted, 0 = {DEFAULT_SAMPLING_RATE}"
        found.append(("spec.sampling_rate", f"{spec.sampling_rate}; {accepted}"))
    if spec.template_refresh_messages > MAX_REFRESH_MESSAGES:
        accepted = f"1 to {MAX_REFRESH_MESSAGES} are accepted, 0 = 4096"
        found.append(("spec.template_refresh_messages", f"{spec.template_refresh_messages}; {accepted}"))
    if len(spec.filter) > MAX_FILTER_CHARACTERS:
        found.append(("spec.filter", f"{len(spec.filter)} characters; at most {MAX_FILTER_CHARACTERS} are accepted"))
    if spec.HasField("template_refresh"):
        _check_duration("spec.template_refresh", spec.template_refresh, found)


def _check_files(spec: pb.ExportSpec, transport: ExportTransport, found: Violations) -> None:
    given = (
        ("file_size_mb", spec.file_size_mb, MAX_FILE_MB, "1 to 65536 MiB are accepted, 0 = 256"),
        ("files_kept", spec.files_kept, MAX_FILES, "1 to 100000 are accepted, 0 = all"),
    )
    for field, value, most, accepted in given:
        if value and transport != "file":
            found.append((f"spec.{field}", f"{value} with transport {transport}; 0 is accepted"))
        elif value > most:
            found.append((f"spec.{field}", f"{value}; {accepted}"))
    if spec.HasField("file_age"):
        if transport != "file":
            found.append(("spec.file_age", f"{_seconds(spec.file_age):g} s with transport {transport}; unset is accepted"))
        else:
            _check_duration("spec.file_age", spec.file_age, found)


def _check_duration(field: str, duration: Duration, found: Violations) -> None:
    seconds = _seconds(duration)
    if not 1.0 <= seconds <= MAX_DURATION_S:
        found.append((field, f"{seconds:g} s; 1 s to 24 h are accepted"))


def _collectors(
    spec: pb.ExportSpec, protocol: ExportProtocol, transport: ExportTransport, found: Violations
) -> tuple[Collector, ...]:
    if transport == "file":
        if spec.collectors:
            found.append(("spec.collectors", f"{len(spec.collectors)} with transport file; none is accepted"))
        return ()
    if not 1 <= len(spec.collectors) <= MAX_COLLECTORS:
        found.append(("spec.collectors", f"{len(spec.collectors)}; 1 to {MAX_COLLECTORS} are accepted"))
    default_port = IPFIX_TLS_PORT if transport == "tls" else DEFAULT_PORTS[protocol]
    collectors: list[Collector] = []
    places: dict[tuple[str, int], int] = {}
    for index, asked in enumerate(spec.collectors[: MAX_COLLECTORS + 1]):
        collector = _collector(f"spec.collectors[{index}]", asked, default_port, transport, found)
        if collector is None:
            continue
        first = places.setdefault((collector.host, collector.port), index)
        if first != index:
            found.append((f"spec.collectors[{index}]", f"{collector.host} port {collector.port} is collectors[{first}] too"))
        collectors.append(collector)
    return tuple(collectors)


def _collector(
    field: str, asked: pb.ExportCollector, default_port: int, transport: ExportTransport, found: Violations
) -> Collector | None:
    host = parse_host(asked.host)
    if host is None:
        accepted = "an IPv4 or IPv6 address without brackets, or a DNS name, is accepted"
        found.append((f"{field}.host", f"{asked.host[:80]!r}; {accepted}"))
    if asked.port > 0xFFFF:
        found.append((f"{field}.port", f"{asked.port}; 1 to 65535 are accepted, 0 = {default_port}"))
    if asked.tls_name and transport != "tls":
        found.append((f"{field}.tls_name", f"{asked.tls_name[:80]!r} with transport {transport}; an empty one is accepted"))
    elif asked.tls_name and parse_host(asked.tls_name) is None:
        found.append((f"{field}.tls_name", f"{asked.tls_name[:80]!r}; a DNS name or an address is accepted"))
    if host is None:
        return None
    return Collector(host=str(host), port=asked.port or default_port, tls_name=asked.tls_name)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
