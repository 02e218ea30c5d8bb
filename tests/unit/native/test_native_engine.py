# SPDX-License-Identifier: Apache-2.0
"""PacketCaptureEngine: life cycle, counters, live flows, bad input."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import agent_pb2
from jarvis_native import FlowStats, PacketCaptureEngine, check_filter
from jarvis_native.errors import (
    BackendUnavailable,
    CaptureFileError,
    CaptureStateError,
    FilterError,
    InterfaceNotFound,
    InvalidArgument,
)
from jarvis_native.loader import Firmware
from jarvis_trust.errors import FirmwareError

from tests.metering import meter_files
from tests.support import DATA

CONNECTION = DATA / "connection.pcap"


def test_the_counters_of_a_file_add_up(firmware: Firmware) -> None:
    metrics = meter_files(firmware, [DATA / "damaged.pcap", CONNECTION], filter="not icmp").metrics
    parts = (
        metrics.metered
        + metrics.filtered
        + metrics.unsampled
        + metrics.non_ip
        + metrics.malformed
        + metrics.paused
        + metrics.dropped
    )
    assert metrics.received == parts + metrics.in_flight
    assert (metrics.received, metrics.in_flight) == (18, 0)
    assert metrics.filtered == 2  # the echo
    assert metrics.flow_records_ended == metrics.log_records_written == metrics.flows_total
    assert metrics.flows_active == 0
    assert metrics.flow_table_bytes > 0


def test_several_files_are_one_trace_in_the_order_given(firmware: Firmware) -> None:
    both = meter_files(firmware, [CONNECTION, DATA / "connection-be-ns.pcap"])
    assert both.metrics.received == 24
    assert both.totals()["0|1|192.0.2.1,0|198.51.100.3,0"] == (4, 336)


def live_flows(firmware: Firmware, take: Callable[[PacketCaptureEngine], Any]) -> Any:
    """Looks at the live table in the middle of a trace: a lossless reader that does not read holds the end of it back."""
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, idle_timeout_s=0, active_timeout_s=0, log_records=1024)
        capture.start()
        capture.poll(0)
        return take(capture)


def test_live_flows_are_listed_sorted_and_limited(firmware: Firmware) -> None:
    flows: list[FlowStats] = live_flows(firmware, lambda capture: capture.get_flows(limit=2, sort_by="octets"))
    assert [flow.octets for flow in flows] == [1380, 192]
    first = flows[0]
    assert (first.src_addr, first.src_port, first.dst_addr, first.dst_port) == ("192.0.2.1", 40000, "192.0.2.2", 80)
    assert (first.fwd_packets, first.fwd_octets, first.rev_packets, first.rev_octets) == (4, 260, 3, 1120)
    assert (first.dscp, first.vlan_id, first.ip_version, first.end_reason) == (10, 0, 4, 0)
    assert first.start_time_ns == 1_700_000_000_100_000_000
    assert first.duration_s == pytest.approx(0.6)
    assert flows[1].src_addr == "2001:db8::1"


def test_live_flows_are_filtered_by_expression_and_packets(firmware: Firmware) -> None:
    def take(capture: PacketCaptureEngine) -> tuple[list[FlowStats], list[FlowStats]]:
        return capture.get_flows(filter="udp port 53"), capture.get_flows(min_packets=3)

    by_filter, by_packets = live_flows(firmware, take)
    assert [flow.dst_port for flow in by_filter] == [53]
    assert [flow.packets for flow in by_packets] == [7]


def udp_packets(path: Path, count: int) -> Path:
    """A capture of that many packets, each of a flow of its own."""
    frames = [
        bytes.fromhex("020000000001020000000002080045000020000000004011000000000000000000000fa0003500080000")[:26]
        + bytes([10, 0, number >> 8, number & 0xFF, 172, 16, 0, 1])
        + bytes.fromhex("0fa00035000c000000000000")
        for number in range(count)
    ]
    records = b"".join(struct.pack("<IIII", 1_700_000_000, 0, len(frame), len(frame)) + frame for frame in frames)
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1) + records)
    return path


def test_any_number_of_live_flows_can_be_encoded(firmware: Firmware, tmp_path: Path) -> None:
    with PacketCaptureEngine(files=[udp_packets(tmp_path / "many.pcap", 64)], firmware=firmware) as capture:
        capture.enable_flow_metering(max_flows=4096, idle_timeout_s=0, active_timeout_s=0, log_records=1024)
        capture.start()
        capture.poll(0)
        for limit in (1, 17, 60):
            response = agent_pb2.ListFlowsResponse.FromString(capture.encode_flows(limit=limit))
            assert len(response.batch.records) == limit


def test_encoded_live_flows_are_a_list_flows_response(firmware: Firmware) -> None:
    response = agent_pb2.ListFlowsResponse.FromString(live_flows(firmware, lambda capture: capture.encode_flows(limit=3)))
    assert [record.fwd_packets + record.rev_packets for record in response.batch.records] == [7, 2, 2]
    empty = agent_pb2.ListFlowsResponse.FromString(
        live_flows(firmware, lambda capture: capture.encode_flows(filter="host 203.0.113.9"))
    )
    assert empty.HasField("batch")
    assert not empty.batch.records


def test_a_live_flow_is_found_by_its_id(firmware: Firmware) -> None:
    def take(capture: PacketCaptureEngine) -> tuple[FlowStats, list[FlowStats], list[FlowStats]]:
        (listed,) = capture.get_flows(limit=1)
        return listed, capture.lookup_flow(listed.flow_id), capture.lookup_flow(1)

    listed, found, absent = live_flows(firmware, take)
    assert found == [listed]
    assert absent == []


def test_a_passed_deadline_pauses_metering(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.enable_flow_metering()
        capture.set_deadline(1)  # a nanosecond after boot
        capture.start()
        while capture.poll():
            pass
        metrics = capture.get_metrics()
        assert (metrics.received, metrics.paused, metrics.metered) == (12, 12, 0)


def test_backends_are_listed_with_reasons(firmware: Firmware) -> None:
    backends = {row.name: row for row in PacketCaptureEngine.get_available_backends("no-such-if0", firmware=firmware)}
    assert {"file", "pcap", "afpacket"} <= set(backends)
    assert not backends["afpacket"].usable
    assert "no-such-if0" in backends["afpacket"].reason
    assert not backends["file"].live


@pytest.mark.parametrize(
    ("arguments", "error", "field", "shown"),
    [
        ({"busy_poll_us": 1001}, InvalidArgument, "busy_poll_us", "1001"),
        ({"busy_poll_us": 5}, InvalidArgument, "busy_poll_us", "files have no driver to poll"),
        ({"snaplen": 12}, InvalidArgument, "snaplen", "12"),
        ({"snaplen": -1}, InvalidArgument, "snaplen", "-1"),
        ({"buffer_size_mb": 9000}, InvalidArgument, "buffer_size_mb", "9000"),
        ({"buffer_size_mb": 1 << 40}, InvalidArgument, "buffer_size_mb", "64 to 8192"),
        ({"workers": 65}, InvalidArgument, "workers", "65"),
        ({"packet_ring_mb": 8193}, InvalidArgument, "packet_ring_mb", "8193"),
        ({"timestamp_source": "atomic"}, InvalidArgument, "timestamp_source", "default, kernel, hardware, ptp, ntp"),
        ({"timestamp_source": "ptp"}, InvalidArgument, "timestamp_source", "files carry their own"),
        ({"loss_threshold": -1}, InvalidArgument, "loss_threshold", "-1"),
        ({"backend": "magic"}, BackendUnavailable, "backend", "magic"),
        ({"filter": "port port"}, FilterError, "filter", "syntax"),
        ({"filter": "tcp\0udp"}, InvalidArgument, "filter", "NUL"),
        ({"interface": "lo"}, InvalidArgument, "interface", "exactly one"),
        ({"files": []}, InvalidArgument, "interface", "exactly one"),
        ({"files": [""]}, InvalidArgument, "files", "empty"),
        ({"files": "trace.pcap"}, InvalidArgument, "files", "list"),
        ({"files": [], "interface": "no-such-if0"}, InterfaceNotFound, "interface", "no-such-if0"),
    ],
)
def test_bad_input_names_the_field_and_what_would_be_accepted(
    firmware: Firmware, arguments: dict[str, Any], error: type[Exception], field: str, shown: str
) -> None:
    wanted: dict[str, Any] = {"files": [CONNECTION], "firmware": firmware} | arguments
    with pytest.raises(error) as caught:
        PacketCaptureEngine(**wanted).start()
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_flows": 4095}, "max_flows"),
        ({"max_flows": 1 << 33}, "max_flows"),
        ({"idle_timeout_s": 0.5}, "idle_timeout"),
        ({"idle_timeout_s": float("nan")}, "idle_timeout"),
        ({"active_timeout_s": -1}, "active_timeout"),
        ({"active_timeout_s": 86_401}, "active_timeout"),
        ({"log_records": 1000}, "log_records"),
        ({"fragment_slots": 3}, "fragment_slots"),
        ({"tunnel": "middle"}, "tunnel"),
        ({"mirror_timestamps": True}, "mirror_timestamps"),
        ({"sampling": "random", "sampling_interval": 2}, "sampling"),
        ({"sampling": "systematic"}, "sampling_interval"),
        ({"sampling": "flow-hash", "sampling_interval": 1_000_001}, "sampling_interval"),
        ({"sampling": "flow-hash", "sampling_interval": -1}, "sampling_interval"),
        ({"sampling_interval": 2}, "sampling_interval"),
    ],
)
def test_bad_metering_settings_name_the_field(firmware: Firmware, arguments: dict[str, Any], field: str) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        with pytest.raises(InvalidArgument) as caught:
            capture.enable_flow_metering(**arguments)
        assert caught.value.field.startswith(field)
        assert "accepted" in caught.value.message


@pytest.mark.parametrize("limit", [0, 100_001, -1])
def test_a_bad_limit_is_refused(firmware: Firmware, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="accepted are 1 to 100000"):
        live_flows(firmware, lambda capture: capture.get_flows(limit=limit))


def test_what_is_no_capture_file_is_refused_by_name(firmware: Firmware, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pcap"
    garbage.write_bytes(b"GIF89a" * 20)
    with pytest.raises(CaptureFileError, match=r"garbage\.pcap is not a capture file") as caught:
        PacketCaptureEngine(files=[CONNECTION, garbage], firmware=firmware).start()
    assert caught.value.field == "files"


def test_a_cut_file_is_metered_as_far_as_it_goes_and_reported(firmware: Firmware) -> None:
    cut = meter_files(firmware, [DATA / "cut.pcap"])
    assert cut.metrics.metered == 10
    assert cut.metrics.malformed == 1
    assert isinstance(cut.error, CaptureFileError)
    assert "cut.pcap" in cut.error.message


def test_starting_twice_is_refused(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        capture.start()
        with pytest.raises(CaptureStateError):
            capture.start()
        with pytest.raises(CaptureStateError):
            capture.enable_flow_metering()


def test_polling_before_the_start_is_refused(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture, pytest.raises(CaptureStateError):
        capture.poll()


def test_a_closed_engine_says_so(firmware: Firmware) -> None:
    capture = PacketCaptureEngine(files=[CONNECTION], firmware=firmware)
    capture.close()
    capture.close()
    for call in (capture.start, capture.get_metrics, capture.get_flows, capture.stop, capture.last_error):
        with pytest.raises(CaptureStateError, match="closed"):
            call()


def test_stop_reaches_a_thread_that_polls(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION] * 2000, firmware=firmware) as capture:
        capture.enable_flow_metering()
        reader = capture.open_flow_reader(lossless=True)
        capture.start()

        def run() -> None:
            while capture.poll():
                reader.read_batch()

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.01)
        capture.stop()
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_closing_while_other_threads_use_the_engine_harms_none_of_them(firmware: Firmware) -> None:
    capture = PacketCaptureEngine(files=[CONNECTION] * 5000, firmware=firmware, workers=1)
    capture.enable_flow_metering(log_records=1024)
    capture.start()
    reader = capture.open_flow_reader()
    calls: list[Callable[[], Any]] = [
        capture.poll,
        capture.get_metrics,
        capture.get_flows,
        capture.get_clock,
        capture.next_events,
        capture.open_flow_reader,
        reader.read_batch,
        lambda: reader.read_text("json"),
    ]
    done: list[str] = []

    def use(call: Callable[[], Any]) -> None:
        try:
            for _ in range(100_000):
                if call() is False:
                    break
        except CaptureStateError:  # closed
            pass
        done.append("ended well")

    threads = [threading.Thread(target=use, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    capture.close()
    for thread in threads:
        thread.join(timeout=10)
    assert done == ["ended well"] * len(calls)


def test_checking_a_filter_gives_libpcaps_message(firmware: Firmware) -> None:
    check_filter("tcp port 80 or ip6", firmware=firmware)
    with pytest.raises(FilterError) as caught:
        check_filter("tcp prot 80", firmware=firmware)
    assert caught.value.field == "filter"
    assert "syntax error" in caught.value.message


def test_the_firmware_is_verified_anew_from_its_file(firmware: Firmware) -> None:
    with PacketCaptureEngine(files=[CONNECTION], firmware=firmware) as capture:
        root = (firmware.directory / "root.json").read_bytes()
        assert capture.verify_firmware(release_root=root) is firmware
        with pytest.raises(FirmwareError) as caught:
            capture.verify_firmware(release_root=root, floor=99)
        assert caught.value.reason == "FIRMWARE_BELOW_FLOOR"
