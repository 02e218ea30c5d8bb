# SPDX-License-Identifier: Apache-2.0
"""FlowReader: finished records as protobuf bytes, text and Arrow columns; losses, tokens and closing."""

from __future__ import annotations

import csv
import gc
import ipaddress
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import agent_pb2
from jarvis_native import FlowReader, PacketCaptureEngine
from jarvis_native.errors import CaptureStateError, InvalidArgument, ResumeTokenError
from jarvis_native.loader import Firmware

from tests.support import DATA

PAUSES = DATA / "pauses.pcap"  # three records of one flow: 2, 15 and 7 packets
CONNECTION = DATA / "connection.pcap"


@contextmanager
def finished(firmware: Firmware, files: list[Path], **metering: Any) -> Iterator[PacketCaptureEngine]:
    """An engine that has metered its files; their records are in the log."""
    with PacketCaptureEngine(files=files, firmware=firmware) as capture:
        capture.enable_flow_metering(**metering)
        capture.start()
        while capture.poll():
            pass
        yield capture


def test_a_batch_is_one_stream_flows_response(firmware: Firmware) -> None:
    with finished(firmware, [PAUSES]) as capture, capture.open_flow_reader() as reader:
        read = reader.read_batch()
        batch = agent_pb2.StreamFlowsResponse.FromString(read.data).batch
        assert [record.fwd_packets for record in batch.records] == [2, 15, 7]
        assert [record.end_reason for record in batch.records] == [1, 2, 4]
        assert batch.base_time_unix_ns + batch.records[1].start_delta_ns == 1_700_000_060_000_000_000
        assert batch.records[0].src_addr == ipaddress.ip_address("192.0.2.1").packed
        assert (read.records, read.first_sequence, read.next_sequence, read.lost, read.more, read.end) == (
            3,
            0,
            3,
            0,
            False,
            True,
        )
        after = reader.read_batch()
        assert (after.data, after.records, after.end) == (b"", 0, True)


def test_batches_are_bounded_in_records_and_bytes(firmware: Firmware) -> None:
    with finished(firmware, [PAUSES]) as capture, capture.open_flow_reader() as reader:
        first = reader.read_batch(max_records=2)
        assert (first.records, first.more, first.end) == (2, True, False)
        assert reader.read_batch(max_bytes=4096).records == 1


def test_a_token_resumes_without_repeating_or_skipping(firmware: Firmware) -> None:
    with finished(firmware, [PAUSES]) as capture:
        with capture.open_flow_reader() as reader:
            first = agent_pb2.StreamFlowsResponse.FromString(reader.read_batch(max_records=1).data).batch
        with capture.open_flow_reader(start="token", token=first.resume_token) as reader:
            rest = agent_pb2.StreamFlowsResponse.FromString(reader.read_batch().data).batch
    assert [record.fwd_packets for record in first.records] == [2]
    assert [record.fwd_packets for record in rest.records] == [15, 7]
    assert rest.first_sequence == first.next_sequence == 1


@pytest.mark.parametrize("token", [b"", b"short", bytes(16)])
def test_a_token_that_is_not_this_captures_is_refused(firmware: Firmware, token: bytes) -> None:
    with finished(firmware, [PAUSES]) as capture, pytest.raises(ResumeTokenError) as caught:
        capture.open_flow_reader(start="token", token=token)
    assert caught.value.field == "token"


def test_readers_start_where_they_ask(firmware: Firmware) -> None:
    def packets(capture: PacketCaptureEngine, **where: Any) -> list[int]:
        with capture.open_flow_reader(**where) as reader:
            return [json.loads(line)["fwd_packets"] for line in reader.read_text("json").data.splitlines()]

    with finished(firmware, [PAUSES]) as capture:
        assert packets(capture, start="last", last_records=1) == [7]
        assert packets(capture, start="newest") == []
        assert packets(capture, min_packets=3) == [15, 7]
        assert packets(capture, filter="udp port 2000", since_ns=1_700_000_340_000_000_000) == [15, 7]
        assert packets(capture, filter="tcp") == []
        with pytest.raises(InvalidArgument, match="oldest, newest, last, token"):
            packets(capture, start="yesterday")


def test_json_and_csv_say_the_same(firmware: Firmware) -> None:
    with finished(firmware, [CONNECTION]) as capture:
        as_json = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        reader = capture.open_flow_reader()
        text = (reader.csv_header() + reader.read_text("csv").data).decode()
    as_csv = list(csv.DictReader(text.splitlines()))
    assert [{key: str(value) for key, value in row.items()} for row in as_json] == as_csv
    assert len(as_json) == 3


def test_the_tunnel_of_an_inner_flow_is_the_same_in_every_format(firmware: Firmware) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with finished(firmware, [DATA / "tunnelled.pcap"], tunnel="both") as capture:
        rows = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        arrow = capture.open_flow_reader().read_arrow(max_records=100).data
        batch = agent_pb2.StreamFlowsResponse.FromString(capture.open_flow_reader().read_batch().data).batch
    tunnels = [(row["tunnel_type"], row["tunnel_id"]) for row in rows]
    assert (5, 0xDEADBEEF) in tunnels
    assert {kind for kind, _ in tunnels} == set(range(9))
    assert list(zip(arrow.column("tunnel_type").to_pylist(), arrow.column("tunnel_id").to_pylist(), strict=True)) == tunnels
    assert [(record.tunnel_type, record.tunnel_id) for record in batch.records] == tunnels


def test_the_sampling_interval_is_the_same_in_every_format(firmware: Firmware) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with finished(firmware, [DATA / "connection.pcap"], sampling="systematic", sampling_interval=2) as capture:
        rows = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        arrow = capture.open_flow_reader().read_arrow(max_records=100).data
        batch = agent_pb2.StreamFlowsResponse.FromString(capture.open_flow_reader().read_batch().data).batch
        metrics = capture.get_metrics()
    assert {row["sampling_interval"] for row in rows} == {2}
    assert set(arrow.column("sampling_interval").to_pylist()) == {2}
    assert {record.sampling_interval for record in batch.records} == {2}
    assert (metrics.metered, metrics.unsampled, metrics.non_ip, metrics.received) == (6, 5, 1, 12)


def test_live_inner_flows_are_listed_and_found_by_their_id(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[DATA / "tunnelled.pcap"], firmware=firmware, workers=0) as capture:
        capture.enable_flow_metering(idle_timeout_s=0, active_timeout_s=0, tunnel="inner")
        capture.start()
        capture.poll(0)
        flows = capture.get_flows(limit=100)
        inner = [flow for flow in flows if (flow.src_port, flow.dst_port) == (1000, 2000)]
        assert len({flow.flow_id for flow in inner}) == len(inner) > 5
        for flow in inner:
            assert capture.lookup_flow(flow.flow_id) == [flow]


def test_arrow_columns_say_the_same_as_json(firmware: Firmware) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with finished(firmware, [CONNECTION]) as capture:
        as_json = [json.loads(line) for line in capture.open_flow_reader().read_text("json").data.splitlines()]
        read = capture.open_flow_reader().read_arrow(max_records=100)
    assert read.records == read.data.num_rows == 3
    read.data.validate(full=True)
    assert read.data.schema.field("flow_id").type == pa.uint64()
    assert read.data.schema.field("start_time_ns").type == pa.timestamp("ns", tz="UTC")
    for name in ("src_port", "dst_port", "fwd_packets", "fwd_octets", "rev_octets", "vlan_id", "end_reason", "dscp", "icmp_type"):
        assert read.data.column(name).to_pylist() == [row[name] for row in as_json], name
    times = read.data.column("start_time_ns").cast(pa.int64()).to_pylist()
    assert times == [row["start_time_unix_ns"] for row in as_json]
    addresses = [ipaddress.IPv6Address(value) for value in read.data.column("src_addr").to_pylist()]
    assert [str(address.ipv4_mapped or address) for address in addresses] == [row["src_addr"] for row in as_json]


def test_an_arrow_batch_outlives_reader_and_engine(firmware: Firmware) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with finished(firmware, [PAUSES]) as capture:
        data = capture.open_flow_reader().read_arrow(10).data
    del capture
    gc.collect()
    assert data.column("fwd_packets").to_pylist() == [2, 15, 7]


def test_overwritten_records_are_reported_once_and_exactly(firmware: Firmware, many_records: tuple[Path, int]) -> None:
    path, written = many_records
    with PacketCaptureEngine(files=[path], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, log_records=1024)
        reader = capture.open_flow_reader()
        capture.start()
        while capture.poll():
            pass
        lost, read, previous_end = 0, 0, 0
        while True:
            batch = reader.read_batch()
            if batch.lost:
                assert batch.last_lost_sequence - batch.first_lost_sequence + 1 == batch.lost
                assert batch.first_lost_sequence == previous_end
            lost, read, previous_end = lost + batch.lost, read + batch.records, batch.next_sequence
            if batch.end:
                break
        assert (lost + read, previous_end) == (written, written)
        assert lost > 0
        assert read <= 1024


def test_a_lossless_reader_loses_nothing_however_small_the_log(firmware: Firmware, many_records: tuple[Path, int]) -> None:
    path, written = many_records
    with PacketCaptureEngine(files=[path], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, log_records=1024)
        reader, read, more = capture.open_flow_reader(lossless=True), 0, True
        capture.start()
        while more:
            more = capture.poll()
            batch = reader.read_batch(max_records=100)
            assert batch.lost == 0
            read += batch.records
        while not (batch := reader.read_batch()).end or batch.records:
            assert batch.lost == 0
            read += batch.records
        assert read == written


def test_stopping_in_mid_trace_still_hands_every_record_to_a_lossless_reader(
    firmware: Firmware, many_records: tuple[Path, int]
) -> None:
    path, _written = many_records
    with PacketCaptureEngine(files=[path], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, log_records=1024)
        reader, read = capture.open_flow_reader(lossless=True), 0
        capture.start()
        capture.poll(0)
        capture.stop()
        while True:
            batch = reader.read_batch()
            assert batch.lost == 0
            read += batch.records
            if batch.end:
                break
        metrics = capture.get_metrics()
        assert read == metrics.flow_records_ended == metrics.flows_total > 0


def test_flow_batches_give_every_record_of_the_files_once(firmware: Firmware, many_records: tuple[Path, int]) -> None:
    path, written = many_records
    with PacketCaptureEngine(files=[path], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, log_records=1024)
        ports = [port for batch in capture.flow_batches(max_records=100) for port in batch.data["src_port"].to_pylist()]
    assert sorted(ports) == list(range(1000, 1000 + written))


def test_flow_batches_end_when_another_thread_stops_the_capture(firmware: Firmware) -> None:
    if not any(
        backend.usable and backend.live for backend in PacketCaptureEngine.get_available_backends("lo", firmware=firmware)
    ):
        pytest.skip("no live backend is usable here")
    with PacketCaptureEngine("lo", firmware=firmware) as capture:
        capture.enable_flow_metering()
        stopper = threading.Timer(0.3, capture.stop)
        stopper.start()
        assert [batch.lost for batch in capture.flow_batches() if batch.lost] == []
        stopper.join()


@pytest.fixture(scope="module")
def many_records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A capture of 3,000 one-packet flows 1 ms apart."""
    import runpy  # noqa: PLC0415 - the generator is a script

    make = runpy.run_path(str(DATA / "make_captures.py"))
    count = 3000
    packets = [
        (index * 1_000_000, make["ethernet"](0x0800, make["ip4"]("192.0.2.1", "192.0.2.2", 17, make["udp"](1000 + index, 53))))
        for index in range(count)
    ]
    path = tmp_path_factory.mktemp("captures") / "many.pcap"
    path.write_bytes(make["pcap"](packets))
    return path, count


def test_a_closed_reader_says_so_and_closing_the_engine_closes_its_readers(firmware: Firmware) -> None:
    with finished(firmware, [PAUSES]) as capture:
        first, second = capture.open_flow_reader(), capture.open_flow_reader()
        first.close()
        first.close()
        with pytest.raises(CaptureStateError, match="reader is closed"):
            first.read_batch()
        assert second.read_batch().records == 3
    with pytest.raises(CaptureStateError, match="reader is closed"):
        second.read_text("json")


def test_a_reader_that_is_forgotten_after_its_engine_does_no_harm(firmware: Firmware) -> None:
    capture = PacketCaptureEngine(files=[PAUSES], firmware=firmware)
    capture.enable_flow_metering()
    reader: FlowReader | None = capture.open_flow_reader()
    del capture
    gc.collect()
    assert reader is not None
    assert reader.read_batch().records == 0
    reader = None
    gc.collect()


def test_a_reader_without_metering_is_refused(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[PAUSES], firmware=firmware) as capture, pytest.raises(CaptureStateError, match="metering"):
        capture.open_flow_reader()


@pytest.mark.parametrize("arguments", [{"max_records": 0}, {"max_bytes": 4095}, {"max_records": -1}])
def test_bad_batch_sizes_are_refused(firmware: Firmware, arguments: dict[str, int]) -> None:
    with finished(firmware, [PAUSES]) as capture, pytest.raises(InvalidArgument, match="accepted are"):
        capture.open_flow_reader().read_batch(**arguments)


def test_an_unknown_text_format_is_refused(firmware: Firmware) -> None:
    with finished(firmware, [PAUSES]) as capture, pytest.raises(InvalidArgument, match="json and csv"):
        capture.open_flow_reader().read_text("xml")  # type: ignore[arg-type]
