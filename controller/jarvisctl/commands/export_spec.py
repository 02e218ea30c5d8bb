# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl export enable`'s options as an ExportSpec; what contradicts itself is refused in the operator's terms.

The controller checks again and decides; what only an agent can know (a name that does not resolve, a filter that does not
compile) is its answer.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from jarvis.capture.v1 import export_pb2
from jarvis_trust.collector_allow_list import parse_host

from jarvisctl.errors import usage_error
from jarvisctl.options import check_range

MAX_COLLECTORS = 8
_EXPORT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_COLLECTOR_FORMS = "HOST, HOST:PORT, an IPv6 address or [IPv6]:PORT, the host an address or a DNS name, the port 1 to 65535"


class ExportProtocol(StrEnum):
    """What collectors are spoken to in."""

    IPFIX = "ipfix"
    NETFLOW9 = "netflow9"
    NETFLOW5 = "netflow5"
    SFLOW = "sflow"


class Transport(StrEnum):
    """How messages get there."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    SCTP = "sctp"
    FILE = "file"


class Profile(StrEnum):
    """Which information elements records have."""

    MINIMAL = "minimal"
    DEFAULT = "default"
    FULL = "full"


class TimeUnit(StrEnum):
    """Resolution of flow times."""

    MS = "ms"
    US = "us"
    NS = "ns"


PROTOCOLS = {
    ExportProtocol.IPFIX: export_pb2.EXPORT_PROTOCOL_IPFIX,
    ExportProtocol.NETFLOW9: export_pb2.EXPORT_PROTOCOL_NETFLOW_V9,
    ExportProtocol.NETFLOW5: export_pb2.EXPORT_PROTOCOL_NETFLOW_V5,
    ExportProtocol.SFLOW: export_pb2.EXPORT_PROTOCOL_SFLOW_V5,
}
TRANSPORTS = {
    Transport.UDP: export_pb2.EXPORT_TRANSPORT_UDP,
    Transport.TCP: export_pb2.EXPORT_TRANSPORT_TCP,
    Transport.TLS: export_pb2.EXPORT_TRANSPORT_TLS,
    Transport.SCTP: export_pb2.EXPORT_TRANSPORT_SCTP,
    Transport.FILE: export_pb2.EXPORT_TRANSPORT_FILE,
}
# What is not asked for is not said, so that it is refused nowhere.
PROFILES = {
    Profile.MINIMAL: export_pb2.EXPORT_PROFILE_MINIMAL,
    Profile.DEFAULT: export_pb2.EXPORT_PROFILE_UNSPECIFIED,
    Profile.FULL: export_pb2.EXPORT_PROFILE_FULL,
}
TIME_UNITS = {
    TimeUnit.MS: export_pb2.EXPORT_TIME_UNIT_UNSPECIFIED,
    TimeUnit.US: export_pb2.EXPORT_TIME_UNIT_MICROSECONDS,
    TimeUnit.NS: export_pb2.EXPORT_TIME_UNIT_NANOSECONDS,
}


def check_id(option: str, export_id: str) -> str:
    """The name of an export."""
    if _EXPORT_ID.fullmatch(export_id) is None:
        raise usage_error(f"{option} is {export_id!r}: accepted are 1 to 32 of a-z 0-9 -, alphanumeric at both ends")
    return export_id


def parse_collectors(texts: Sequence[str], tls_names: Sequence[str]) -> list[export_pb2.ExportCollector]:
    """Collectors of `--collector`, each with its `--tls-name`: none, one for all, or one for each in their order."""
    if len(texts) > MAX_COLLECTORS:
        raise usage_error(f"--collector is given {len(texts)} times: accepted are 1 to {MAX_COLLECTORS}")
    if len(tls_names) > 1 and len(tls_names) != len(texts):
        raise usage_error(
            f"--tls-name is given {len(tls_names)} times and --collector {len(texts)} times: accepted is one name for all, "
            "or one for each in their order"
        )
    names = [*tls_names] * (len(texts) if len(tls_names) == 1 else 1) or [""] * len(texts)
    collectors = [_collector(text, name) for text, name in zip(texts, names, strict=True)]
    for index, collector in enumerate(collectors):
        if any((other.host, other.port) == (collector.host, collector.port) for other in collectors[:index]):
            raise usage_error(f"--collector {texts[index]!r} is given twice: accepted is each collector once")
    return collectors


def check_fields(spec: export_pb2.ExportSpec, protocol: ExportProtocol, transport: Transport) -> None:
    """Options beside each other."""
    if transport is not Transport.UDP and protocol is not ExportProtocol.IPFIX:
        raise usage_error(f"--transport is {transport.value!r} and --protocol {protocol.value!r}: accepted with it is 'udp'")
    if transport is Transport.FILE and spec.collectors:
        raise usage_error("--collector is given and --transport is 'file': files have no collector, give one or the other")
    if transport is not Transport.FILE and not spec.collectors:
        raise usage_error("nobody to export to: give --collector HOST[:PORT], or --transport file for files on the agents")
    is_ipfix, is_sflow = protocol is ExportProtocol.IPFIX, protocol is ExportProtocol.SFLOW
    has_templates = protocol in {ExportProtocol.IPFIX, ExportProtocol.NETFLOW9}
    is_udp, is_file = transport is Transport.UDP, transport is Transport.FILE
    for option, is_given, fits, accepted in (
        ("--tls-name", any(one.tls_name for one in spec.collectors), transport is Transport.TLS, "--transport tls"),
        ("--balance", spec.distribution, not is_file, "--collector"),
        ("--balance", spec.distribution, not is_sflow, "--protocol ipfix, netflow9 and netflow5"),
        ("--biflow", spec.biflow, is_ipfix, "--protocol ipfix"),
        ("--profile", spec.profile, has_templates, "--protocol ipfix and netflow9"),
        ("--time", spec.time_unit, has_templates, "--protocol ipfix and netflow9"),
        ("--template-refresh", spec.HasField("template_refresh"), has_templates, "--protocol ipfix and netflow9"),
        ("--template-messages", spec.template_refresh_messages, has_templates, "--protocol ipfix and netflow9"),
        ("--template-messages", spec.template_refresh_messages, is_udp, "--transport udp"),
        ("--filter", spec.filter, not is_sflow, "--protocol ipfix, netflow9 and netflow5"),
        ("--sampling-rate", spec.sampling_rate, is_sflow, "--protocol sflow"),
        ("--file-size", spec.file_size_mb, is_file, "--transport file"),
        ("--file-age", spec.HasField("file_age"), is_file, "--transport file"),
        ("--files-kept", spec.files_kept, is_file, "--transport file"),
    ):
        if is_given and not fits:
            raise usage_error(f"{option} is given with --protocol {protocol} --transport {transport}: accepted with {accepted}")
    if protocol is ExportProtocol.NETFLOW5:
        check_range("--domain", spec.observation_domain_id, 0, 65535)


def _collector(text: str, tls_name: str) -> export_pb2.ExportCollector:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text)
    if bracketed is not None:
        host, port = bracketed.groups()
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    is_host = parse_host(host) is not None and (bracketed is None or ":" in host)
    if not is_host or (port is not None and (_PORT.fullmatch(port) is None or not 1 <= int(port) <= 65535)):
        raise usage_error(f"--collector is {text!r}: accepted are {_COLLECTOR_FORMS}")
    if tls_name and parse_host(tls_name) is None:
        raise usage_error(f"--tls-name is {tls_name!r}: accepted are DNS names and addresses")
    return export_pb2.ExportCollector(host=host, port=int(port or 0), tls_name=tls_name)
