# SPDX-License-Identifier: Apache-2.0
"""Flow records as messages of NetFlow v5, v9 and IPFIX, and sampled frames as sFlow: the native core's exporters, block by block.

    FlowReader ──FlowExporter.read──► ExportBlock ──(may wait)──► ExportSession.stamp ──► send_block, or one write of its bytes

A block holds whole messages without sequence number and export time; a session with a collector gives them when the block leaves.
No object is made per record or per message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExportProtocol = Literal["netflow5", "netflow9", "ipfix", "sflow"]
ExportProfile = Literal["minimal", "default", "full"]
TimeUnit = Literal["ms", "us", "ns"]

PROTOCOLS: dict[ExportProtocol, int] = {"netflow5": 1, "netflow9": 2, "ipfix": 3, "sflow": 4}
PROFILES: dict[ExportProfile, int] = {"minimal": 1, "default": 2, "full": 3}
TIME_UNITS: dict[TimeUnit, int] = {"ms": 1, "us": 2, "ns": 3}

MESSAGE_BYTES = 48
"""Size of one struct capture_export_message, an entry of ExportBlock.index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportBlock:
    """Messages on their way to a collector."""

    data: bytearray
    """The messages, one behind the other; stamping writes into it."""
    index: bytes
    """One struct capture_export_message a message."""
    messages: int
    records: int
    """Data records, those of options too."""
    flows: int
    """Flow records, or flow samples, among them."""
    packets: int
    """That these count."""
    octets: int
