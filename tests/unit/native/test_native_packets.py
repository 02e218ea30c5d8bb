# SPDX-License-Identifier: Apache-2.0
"""Packets come as batches of views into the ring."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from jarvis_native import PacketBatch, PacketCaptureEngine, PacketInfo
from jarvis_native.errors import CaptureError
from jarvis_native.loader import Firmware

from tests.support import DATA

CONNECTION = DATA / "connection.pcap"


def frames_of(path: Path, firmware: Firmware, **engine: object) -> list[tuple[PacketInfo, bytes]]:
    found: list[tuple[PacketInfo, bytes]] = []
    with PacketCaptureEngine(files=[path], packet_ring_mb=1, firmware=firmware, **engine) as capture:  # type: ignore[arg-type]
        capture.start()
        for batch in capture.packets():
            found += [(batch.info(index), bytes(batch.frame(index))) for index in range(batch.count)]
    return found


def test_every_frame_of_a_file_is_delivered_with_its_bytes_and_time(firmware: Firmware) -> None:
    found = frames_of(CONNECTION, firmware)
    raw = CONNECTION.read_bytes()
    assert [info.packet_id for info, _ in found] == list(range(1, 13))
    assert found[0][1] == raw[40 : 40 + 42]  # behind file header (24) and record header (16)
    assert found[1][0].timestamp_ns == 1_700_000_000_100_000_000
    assert all(len(frame) == info.captured_length == info.wire_length for info, frame in found)
    assert {info.link_type for info, _ in found} == {1}


def test_frames_that_do_not_match_the_filter_are_not_delivered(firmware: Firmware) -> None:
    assert [info.packet_id for info, _ in frames_of(CONNECTION, firmware, filter="icmp")] == [9, 10]


def test_columns_are_views_without_an_object_per_packet(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], packet_ring_mb=1, firmware=firmware) as capture:
        capture.start()
        batch = next(iter(capture.packets()))
        lengths = batch.column("captured_length")
        assert isinstance(lengths, memoryview)
        assert list(lengths) == [len(batch.frame(index)) for index in range(len(batch))]
        assert batch.records.nbytes == 40 * batch.count
        assert batch.records.readonly
        with pytest.raises(KeyError, match="no column 'length'"):
            batch.column("length")
        with pytest.raises(IndexError):
            batch.frame(batch.count)
        assert bytes(batch.frame(-1)) == bytes(batch.frame(batch.count - 1))


def test_a_view_outlives_its_engine(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], packet_ring_mb=1, firmware=firmware) as capture:
        capture.start()
        batch: PacketBatch = next(iter(capture.packets()))
        frame, kept = batch.frame(1), bytes(batch.frame(1))
    del capture, batch
    gc.collect()
    assert bytes(frame) == kept


def test_packets_without_a_ring_are_refused(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.start()
        with pytest.raises(CaptureError):
            next(iter(capture.packets()))
