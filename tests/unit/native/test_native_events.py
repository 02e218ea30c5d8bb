# SPDX-License-Identifier: Apache-2.0
"""What a capture has to tell: events in their order, and the clock behind its timestamps."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from jarvis_native import CaptureEvent, CaptureEventType, PacketCaptureEngine
from jarvis_native.errors import CaptureStateError, InvalidArgument
from jarvis_native.loader import Firmware

from tests.support import DATA

FLOWS = 6000
LINK_RAW_IP = 101


def many_flows(path: Path) -> Path:
    """A capture of one UDP packet for each of FLOWS flows."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, LINK_RAW_IP))
        for flow in range(FLOWS):
            udp = struct.pack(">HHHH", 1024 + flow, 53, 8, 0)
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, flow, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
            file.write(struct.pack("<IIII", 1_700_000_000, flow, 28, 28) + ip + udp)
    return path


def metered(capture: PacketCaptureEngine) -> None:
    capture.enable_flow_metering(max_flows=4096, idle_timeout_s=0, active_timeout_s=0)
    capture.start()
    while capture.poll():
        pass
    capture.stop()


def test_records_that_a_full_table_evicts_are_an_event_that_names_the_place(firmware: Firmware, tmp_path: Path) -> None:
    with PacketCaptureEngine(files=[many_flows(tmp_path / "many.pcap")], firmware=firmware) as capture:
        metered(capture)
        events = capture.next_events()
        evicted = capture.get_metrics().flows_ended[5]
    assert evicted >= FLOWS - 4096
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {event.type for event in events} == {CaptureEventType.LOSS}
    assert sum(event.value for event in events) == evicted
    assert events[-1].message == f"lost: {events[-1].value} flow records evicted from the full table"
    assert events[-1].interface == ""
    assert events[-1].time_unix_ns > 1_700_000_000 * 10**9


def test_losses_up_to_the_threshold_are_no_event(firmware: Firmware, tmp_path: Path) -> None:
    files = [many_flows(tmp_path / "many.pcap")]
    with PacketCaptureEngine(files=files, loss_threshold=FLOWS, firmware=firmware) as capture:
        metered(capture)
        assert capture.get_metrics().flows_ended[5] > 0
        assert capture.next_events() == []


def test_events_are_read_on_from_a_sequence_number(firmware: Firmware, tmp_path: Path) -> None:
    with PacketCaptureEngine(files=[many_flows(tmp_path / "many.pcap")], firmware=firmware) as capture:
        assert capture.next_events() == []
        metered(capture)
        events: list[CaptureEvent] = capture.next_events(0)
        assert capture.next_events(events[-1].sequence) == []
        assert capture.next_events(events[-1].sequence - 1) == events[-1:]
        with pytest.raises(InvalidArgument, match="after_sequence is -1"):
            capture.next_events(-1)


def test_files_carry_their_own_times_and_have_no_clock(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[DATA / "connection.pcap"], firmware=firmware) as capture:
        metered(capture)
        clock = capture.get_clock()
        assert (clock.source, clock.steps, clock.error_bound_ns, clock.synchronised) == ("default", 0, None, False)
        assert capture.get_metrics().clock_steps == 0
    for call in (capture.next_events, capture.get_clock):
        with pytest.raises(CaptureStateError, match="closed"):
            call()
