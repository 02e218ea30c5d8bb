# SPDX-License-Identifier: Apache-2.0
"""The Python façade over the native core: load its firmware, run captures, read flows and packets.

    from jarvis_native import PacketCaptureEngine
    with PacketCaptureEngine(files=["trace.pcap"]) as engine: ...

Importing it needs neither the library nor pyarrow; the library is loaded by `load_firmware`, which the engine calls by itself.
"""

from jarvis_native.authority import Authority, LeaseTerms
from jarvis_native.engine import PacketCaptureEngine, check_filter
from jarvis_native.errors import CaptureError
from jarvis_native.loader import Firmware, MeasuredObject, load_firmware
from jarvis_native.packets import PACKET_DTYPE, PacketBatch
from jarvis_native.reader import FlowBatch, FlowBatchBytes, FlowReader, arrow_schema
from jarvis_native.sampler import FrameSampler
from jarvis_native.types import (
    BackendInfo,
    CaptureEvent,
    CaptureEventType,
    CaptureMetrics,
    ClockInfo,
    FlowStatistics,
    FlowStats,
    HeaderFields,
    InterfaceInfo,
    PacketInfo,
    Spread,
)

__all__ = [
    "PACKET_DTYPE",
    "Authority",
    "BackendInfo",
    "CaptureError",
    "CaptureEvent",
    "CaptureEventType",
    "CaptureMetrics",
    "ClockInfo",
    "Firmware",
    "FlowBatch",
    "FlowBatchBytes",
    "FlowReader",
    "FlowStatistics",
    "FlowStats",
    "FrameSampler",
    "HeaderFields",
    "InterfaceInfo",
    "LeaseTerms",
    "MeasuredObject",
    "PacketBatch",
    "PacketCaptureEngine",
    "PacketInfo",
    "Spread",
    "arrow_schema",
    "check_filter",
    "load_firmware",
]
