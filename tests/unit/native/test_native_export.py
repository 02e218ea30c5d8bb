# SPDX-License-Identifier: Apache-2.0
"""Exporters, sessions, send_block and blocks: what blocks say, stamping by each protocol's rule, exact counts, refusals."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import CaptureStateError, InvalidArgument
from jarvis_native.export import (
    MESSAGE_BYTES,
    ExportBlock,
    ExportInterface,
    ExportSession,
    ExportStatistics,
    FlowExporter,
    export_block,
    send_block,
)
from jarvis_native.loader import Firmware
from jarvis_native.reader import FlowReader

from testbed.exported_flows import FLOW_ID, flows_in, messages_in, totals_of
from tests.support import DATA

NOW_NS = 1_700_000_000_123_456_789


def messages_of(*lengths: int, records: int = 3, header: bytes = b"\0\x0a") -> ExportBlock:
    """A block of so many messages, each of these records with 10 packets and 1,000 octets, and its number as last byte."""
    data, index = bytearray(), b""
    for number, length in enumerate(lengths):
        index += struct.pack("=4I4Q", len(data), length, records, records - 1, 10, 1000, 0, 0)
        data += header + bytes(length - len(header) - 1) + bytes([number])
    return export_block(data, index)


def pair() -> tuple[socket.socket, socket.socket]:
    """A sink on loopback and a socket connected to it."""
    sink, source = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    sink.bind(("127.0.0.1", 0))
    sink.settimeout(10)
    source.connect(sink.getsockname())
    return sink, source


def test_a_blocks_sums_are_those_of_its_messages() -> None:
    block = messages_of(100, 200, 300)
    assert (block.messages, block.records, block.flows, block.packets, block.octets) == (3, 9, 6, 30, 3000)
    empty = export_block(bytearray(), b"")
    assert (empty.messages, empty.records, empty.octets) == (0, 0, 0)


@pytest.mark.parametrize("index", [b"\0" * (MESSAGE_BYTES - 1), struct.pack("=4I4Q", 50, 51, 1, 1, 1, 1, 0, 0)])
def test_an_index_that_is_not_of_the_data_is_refused(index: bytes) -> None:
    with pytest.raises(InvalidArgument, match="index") as refused:
        export_block(bytearray(100), index)
    assert refused.value.field == "index"


def test_ipfix_counts_records_and_goes_on_over_blocks(firmware: Firmware) -> None:
    session = ExportSession(firmware=firmware, protocol="ipfix", system_init_ns=0)
    first, second = messages_of(100, 100), messages_of(100)
    session.stamp(first, NOW_NS)
    assert session.sequence == 6
    session.skip(second)
    session.stamp(second, NOW_NS)
    assert struct.unpack_from("!II", first.data, 4) == (1_700_000_000, 0)
    assert struct.unpack_from("!II", first.data, 104) == (1_700_000_000, 3)
    assert struct.unpack_from("!II", second.data, 4) == (1_700_000_000, 9)
    assert session.sequence == 12


def test_a_session_goes_on_where_its_sequence_is_set(firmware: Firmware) -> None:
    session = ExportSession(firmware=firmware, protocol="netflow9", system_init_ns=NOW_NS - 5_000_000)
    session.sequence = 0xFFFF_FFFF
    block = messages_of(60, 60)
    session.stamp(block, NOW_NS)
    assert struct.unpack_from("!III", block.data, 4) == (5, 1_700_000_000, 0xFFFF_FFFF)
    assert struct.unpack_from("!I", block.data, 60 + 12) == (0,)
    assert session.sequence == 1


def test_sflow_needs_an_address_that_fits(firmware: Firmware) -> None:
    header = struct.pack("!II", 5, 1)
    session = ExportSession(firmware=firmware, protocol="sflow", system_init_ns=0, agent_address="192.0.2.9")
    block = messages_of(60, header=header)
    session.stamp(block, NOW_NS)
    assert block.data[8:12] == bytes([192, 0, 2, 9])
    without = ExportSession(firmware=firmware, protocol="sflow", system_init_ns=0)
    with pytest.raises(InvalidArgument):
        without.stamp(block, NOW_NS)
    with pytest.raises(InvalidArgument, match="agent_address is 'host'"):
        ExportSession(firmware=firmware, protocol="sflow", system_init_ns=0, agent_address="host")


def test_messages_arrive_one_a_datagram_in_their_order(firmware: Firmware) -> None:
    sink, source = pair()
    with sink, source:
        lengths = [100] * 20 + [60] + [200] * 3
        assert send_block(firmware, source.fileno(), messages_of(*lengths), 2) == 22
        got = [sink.recv(2000) for _ in range(22)]
        assert [len(data) for data in got] == lengths[2:]
        assert [data[-1] for data in got] == list(range(2, 24))


def test_a_collector_that_refuses_is_an_error_and_nothing_is_counted_twice(firmware: Firmware) -> None:
    sink, source = pair()
    sink.close()
    with source:
        block = messages_of(100)
        assert send_block(firmware, source.fileno(), block, 0) == 1  # it left; the answer comes behind
        with pytest.raises(OSError, match=r".") as refused:
            send_block(firmware, source.fileno(), block, 0)
        assert refused.value.errno == errno.ECONNREFUSED


def test_first_beyond_the_block_is_refused(firmware: Firmware) -> None:
    with pytest.raises(InvalidArgument, match="first is 2"):
        send_block(firmware, 0, messages_of(100), 2)
    assert send_block(firmware, 0, messages_of(100), 1) == 0


CONNECTION = DATA / "connection.pcap"  # 3 biflows, one of IPv6; 11 packets, 1,740 octets


@contextmanager
def finished(firmware: Firmware) -> Iterator[FlowReader]:
    """A reader of a capture that has ended."""
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as engine:
        engine.enable_flow_metering()
        engine.start()
        while engine.poll():
            pass
        engine.stop()
        with engine.open_flow_reader() as reader:
            yield reader


def exporter(firmware: Firmware, **changes: Any) -> FlowExporter:
    return FlowExporter(**({"firmware": firmware, "protocol": "ipfix", "system_init_ns": NOW_NS} | changes))


def decoded(exporting: FlowExporter, reader: FlowReader) -> list[Any]:
    """Flow records of everything that the reader has."""
    stream = bytes(exporting.templates().data) + bytes(exporting.read(reader, flush=True).data.data)
    return flows_in(messages_in(stream))


def test_an_exporter_gives_every_record_and_says_how_many(firmware: Firmware) -> None:
    with finished(firmware) as reader, exporter(firmware) as exporting:
        batch = exporting.read(reader, flush=True)
        block, totals = batch.data, exporting.totals()
        assert (batch.records, batch.lost, batch.end) == (3, 0, True)
        assert (block.records, block.flows, block.packets, block.octets) == (6, 6, 11, 1740)
        assert (totals.flows_read, totals.records, totals.packets, totals.octets) == (3, 6, 11, 1740)
        assert totals.messages == block.messages
        assert exporting.read(reader, flush=True).data.messages == 0


def test_a_message_that_is_not_full_waits_for_the_flush(firmware: Firmware) -> None:
    with finished(firmware) as reader, exporter(firmware) as exporting:
        assert exporting.read(reader).data.messages == 0
        assert exporting.totals().flows_read == 3
        assert exporting.read(reader, flush=True).data.flows == 6


def test_netflow_v5_counts_what_it_cannot_say(firmware: Firmware) -> None:
    with finished(firmware) as reader, exporter(firmware, protocol="netflow5") as exporting:
        assert exporting.templates().messages == 0
        assert exporting.options(ExportStatistics(), []).messages == 0
        assert exporting.read(reader, flush=True).data.flows == 4
        totals = exporting.totals()
        assert (totals.unexportable_flows, totals.unexportable_packets, totals.unexportable_octets) == (1, 2, 192)


def test_shares_hold_every_flow_once(firmware: Firmware) -> None:
    found: list[Any] = []
    for share in range(3):
        with finished(firmware) as reader, exporter(firmware, share=share, share_count=3) as exporting:
            found += decoded(exporting, reader)
    assert totals_of(found) == (6, 11, 1740)
    assert len({flow[FLOW_ID] for flow in found}) == 3


def test_options_name_interfaces_with_as_much_as_there_is_room_for(firmware: Firmware) -> None:
    with exporter(firmware) as exporting:
        plain = exporting.options(ExportStatistics(observed_packets=7), [])
        named = exporting.options(ExportStatistics(), [ExportInterface(index=3, name="eth0", description="é" * 300)])
        assert plain.flows == named.flows == 0
        assert named.records == plain.records + 1
        assert b"eth0" in named.data


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"protocol": "netflow7"}, "protocol"),
        ({"profile": "huge"}, "profile"),
        ({"time_unit": "s"}, "time_unit"),
        ({"message_max": 511}, "message_max"),
        ({"message_max": -1}, "message_max"),
        ({"observation_domain_id": 1 << 32}, "observation_domain_id"),
        ({"statistics": ["dns"]}, "statistics"),
        ({"sampling": "systematic"}, "sampling_interval"),
        ({"share": 2, "share_count": 2}, "share"),
        ({"protocol": "netflow5", "biflow": True}, "biflow"),
        ({"protocol": "netflow5", "sampling": "systematic", "sampling_interval": 16_384}, "sampling_interval"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_its_field(firmware: Firmware, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        exporter(firmware, **changes)
    assert refused.value.field == field


def test_a_closed_exporter_or_reader_is_refused(firmware: Firmware) -> None:
    with finished(firmware) as reader, exporter(firmware) as exporting:
        with pytest.raises(InvalidArgument, match="max_bytes is 65534"):
            exporting.read(reader, max_bytes=65_534)
        reader.close()
        with pytest.raises(CaptureStateError, match="the reader is closed"):
            exporting.read(reader)
        exporting.close()
        exporting.close()
        with pytest.raises(CaptureStateError, match="the exporter is closed"):
            exporting.templates()
