# SPDX-License-Identifier: Apache-2.0
"""One export as it will be carried out: an ExportSpec, or the meter's options, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from jarvis_native.export import ExportProfile, ExportProtocol, TimeUnit

ExportTransport = Literal["udp", "tcp", "tls", "sctp", "file"]
Distribution = Literal["mirror", "balance"]

DEFAULT_PORTS: Final[dict[ExportProtocol, int]] = {"netflow5": 2055, "netflow9": 2055, "ipfix": 4739, "sflow": 6343}
IPFIX_TLS_PORT: Final = 4740


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Where messages go."""

    host: str
    """An address without brackets, or a DNS name."""
    port: int
    tls_name: str = ""
    """TLS: the name that its certificate must have; empty = host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What leaves, in which form, and where to."""

    export_id: str
    protocol: ExportProtocol
    transport: ExportTransport
    collectors: tuple[Collector, ...]
    """Empty for files."""
    distribution: Distribution = "mirror"
    interval_s: float = 1.0
    """How long a record may wait for its message to fill; sFlow: between counters."""
    profile: ExportProfile = "default"
    biflow: bool = False
    time_unit: TimeUnit = "ms"
    observation_domain_id: int = 0
    template_refresh_s: float = 60.0
    template_refresh_messages: int = 4096
    max_records_per_second: int = 0
    """0 = as fast as they come."""
    filter: str = ""
    sampling_rate: int = 0
    """sFlow: N of 1 in N frames."""
    file_bytes: int = 256 << 20
    file_age_s: float = 300.0
    files_kept: int = 0
    """0 = all."""
