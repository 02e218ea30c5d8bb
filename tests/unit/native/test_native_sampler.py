# SPDX-License-Identifier: Apache-2.0
"""FrameSampler: opened before and during a capture, read by sFlow's exporter, closed by whoever closes first."""

from __future__ import annotations

import struct
import threading
from typing import Any

import pytest
from jarvis_native import FrameSampler, PacketCaptureEngine
from jarvis_native.errors import CaptureStateError, InvalidArgument
from jarvis_native.export import ExportSession, FlowExporter
from jarvis_native.loader import Firmware

from tests.support import DATA

CONNECTION = DATA / "connection.pcap"
TAGGED = DATA / "tagged.pcap"


def sflow(firmware: Firmware, *, agent_ipv6: bool = False) -> FlowExporter:
    return FlowExporter(firmware=firmware, protocol="sflow", system_init_ns=0, agent_ipv6=agent_ipv6)


def read_to_the_end(capture: PacketCaptureEngine, sampler: FrameSampler, exporter: FlowExporter) -> int:
    """Samples that left the exporter."""
    samples, end = 0, False
    while not end:
        capture.poll()
        batch = exporter.read_samples(sampler, flush=True)
        assert batch.lost == 0
        samples += batch.data.flows
        end = batch.end
    return samples


def read_for_ever(sampler: FrameSampler, exporter: FlowExporter) -> None:
    while True:
        exporter.read_samples(sampler)


def test_every_frame_is_sampled_at_rate_1(firmware: Firmware) -> None:
    with (
        PacketCaptureEngine(files=[CONNECTION, TAGGED], firmware=firmware) as capture,
        capture.open_frame_sampler(1, header_length=64, samples=256, lossless=True) as sampler,
        sflow(firmware) as exporter,
    ):
        capture.start()
        samples = read_to_the_end(capture, sampler, exporter)
        assert samples == capture.get_metrics().received > 0
        totals = exporter.totals()
        assert (totals.records, totals.flows_read, totals.unexportable_flows) == (samples, samples, 0)


def test_a_sampler_can_be_opened_and_closed_while_the_capture_runs(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware, workers=1) as capture, sflow(firmware) as exporter:
        capture.start()
        for _ in range(10):
            with capture.open_frame_sampler(2) as sampler:
                exporter.read_samples(sampler, flush=True)
        while capture.poll():
            pass


@pytest.mark.parametrize("ipv6", [False, True])
def test_datagrams_have_room_for_the_agents_address(firmware: Firmware, ipv6: bool) -> None:
    address = "2001:db8::5" if ipv6 else "192.0.2.5"
    with (
        PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture,
        capture.open_frame_sampler(1, lossless=True) as sampler,
        sflow(firmware, agent_ipv6=ipv6) as exporter,
    ):
        capture.start()
        while capture.poll():
            pass
        block = exporter.read_samples(sampler, flush=True).data
    session = ExportSession(firmware=firmware, protocol="sflow", system_init_ns=0, agent_address=address)
    session.stamp(block, 5_000_000_000)
    behind = 8 + (16 if ipv6 else 4)
    assert struct.unpack_from("!II", block.data) == (5, 2 if ipv6 else 1)
    assert block.data[8:behind].hex() == ("20010db8000000000000000000000005" if ipv6 else "c0000205")
    assert struct.unpack_from("!III", block.data, behind) == (0, 0, 5000)
    assert session.sequence == block.messages


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"sampling_rate": 1 << 24}, "sampling_rate"),
        ({"sampling_rate": 1 << 32}, "sampling_rate"),
        ({"sampling_rate": 1, "header_length": 20}, "header_length"),
        ({"sampling_rate": 1, "samples": 1000}, "samples"),
        ({"sampling_rate": 1, "seed": -1}, "seed"),
    ],
)
def test_settings_out_of_bounds_are_refused(firmware: Firmware, settings: dict[str, Any], field: str) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        with pytest.raises(InvalidArgument) as refused:
            capture.open_frame_sampler(**settings)
        assert refused.value.field == field


def test_a_fifth_sampler_is_refused_until_one_is_closed(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        samplers = [capture.open_frame_sampler(1) for _ in range(4)]
        with pytest.raises(CaptureStateError, match="4 samplers are open"):
            capture.open_frame_sampler(1)
        samplers[0].close()
        capture.open_frame_sampler(1).close()


def test_closing_the_engine_closes_its_samplers(firmware: Firmware) -> None:
    with sflow(firmware) as exporter:
        with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
            sampler = capture.open_frame_sampler(1)
        with pytest.raises(CaptureStateError, match="closed"):
            exporter.read_samples(sampler)
        sampler.close()


def test_a_sampler_may_be_closed_by_another_thread_than_reads_it(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture, sflow(firmware) as exporter:
        sampler = capture.open_frame_sampler(1)
        capture.start()
        closer = threading.Thread(target=sampler.close)
        closer.start()
        with pytest.raises(CaptureStateError, match="closed"):
            read_for_ever(sampler, exporter)
        closer.join()


def test_flows_are_nothing_that_sflow_can_say_nor_samples_ipfix(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.enable_flow_metering()
        with capture.open_flow_reader() as reader, sflow(firmware) as exporter, pytest.raises(InvalidArgument):
            exporter.read(reader)
        with (
            capture.open_frame_sampler(1) as sampler,
            FlowExporter(firmware=firmware, protocol="ipfix", system_init_ns=0) as exporter,
            pytest.raises(InvalidArgument),
        ):
            exporter.read_samples(sampler)
