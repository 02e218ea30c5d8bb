# SPDX-License-Identifier: Apache-2.0
"""SampleSource: a capture's samples as a feed reads them, on a path that becomes narrower, and to the end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jarvis_agent.captures import CaptureRun
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.sample_source import SampleSource
from jarvis_agent.export.sources import ExportTerms
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import CaptureStateError
from jarvis_native.export import MESSAGE_BYTES, ExportBlock
from jarvis_native.loader import Firmware

from tests.support import DATA

FILES = [DATA / "connection.pcap", DATA / "tagged.pcap"] * 20


@dataclass(slots=True)
class Path:
    """What the way to the collector takes."""

    message_max: int = 1400


@pytest.fixture
def engine(firmware: Firmware) -> Iterator[PacketCaptureEngine]:
    with PacketCaptureEngine(files=FILES, firmware=firmware) as capture:
        yield capture


def source_of(engine: PacketCaptureEngine, path: Path) -> SampleSource:
    plan = ExportPlan(
        export_id="samples",
        protocol="sflow",
        transport="udp",
        collectors=(Collector(host="192.0.2.7", port=6343),),
        sampling_rate=1,
        observation_domain_id=9,
    )
    terms = ExportTerms(
        plan=plan,
        firmware=engine.firmware,
        system_init_ns=0,
        share=0,
        routes=None,
        message_max=lambda: path.message_max,
    )
    run: Any = SimpleNamespace(engine=engine, plan=SimpleNamespace(is_live=False), is_abandoned=False)
    return SampleSource(terms, cast("CaptureRun", run), is_new=True, agent_ipv6=False)


def lengths(block: ExportBlock) -> list[int]:
    return [struct.unpack_from("=I", block.index, place + 4)[0] for place in range(0, len(block.index), MESSAGE_BYTES)]


def test_every_sample_is_read_though_the_path_becomes_narrower(engine: PacketCaptureEngine) -> None:
    path = Path()
    source = source_of(engine, path)
    engine.start()
    samples, reads, end = 0, 0, False
    while not end or reads < 3:  # the first read flushes nothing
        engine.poll()
        batch = source.read(flush=reads > 0)
        samples += batch.data.flows
        assert all(length <= (1400 if reads <= 1 else 600) for length in lengths(batch.data))
        path.message_max, reads, end = 600, reads + 1, batch.end
    received = engine.get_metrics().received
    assert samples == received > 100
    assert source.totals().records == received
    assert source.metering().observed_packets == received
    source.close()
    source.close()
    assert source.totals().records == received


def test_a_capture_of_files_has_no_interfaces_to_count(engine: PacketCaptureEngine) -> None:
    counters = source_of(engine, Path()).counters()
    assert counters is not None
    assert counters.messages == 0


def test_a_capture_with_all_its_samplers_taken_is_refused_and_takes_another_when_one_is_given_up(
    engine: PacketCaptureEngine,
) -> None:
    sources = [source_of(engine, Path()) for _ in range(4)]
    with pytest.raises(CaptureStateError):
        source_of(engine, Path())
    sources[0].close()
    source_of(engine, Path()).close()
