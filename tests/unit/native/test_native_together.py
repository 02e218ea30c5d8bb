# SPDX-License-Identifier: Apache-2.0
"""What each has tests of its own, together: statistics, workers, resume tokens, pauses by the deadline and sampling."""

from __future__ import annotations

import json
import runpy
import time
from pathlib import Path

import pytest
from jarvis.capture.v1 import agent_pb2
from jarvis_native import PacketCaptureEngine
from jarvis_native.loader import Firmware

from tests.support import DATA

HOSTS, ROUNDS = 200, 3


@pytest.fixture(scope="module")
def many_hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flows of 200 pairs of hosts, so that every worker has some; each host's payload has a size of its own."""
    make = runpy.run_path(str(DATA / "make_captures.py"))
    packets = [
        (
            (turn * HOSTS + host) * 1_000_000,
            make["ethernet"](0x0800, make["ip4"](f"192.0.2.{host + 1}", "198.51.100.1", 17, make["udp"](1000, 53, host))),
        )
        for turn in range(ROUNDS)
        for host in range(HOSTS)
    ]
    path = tmp_path_factory.mktemp("captures") / "hosts.pcap"
    path.write_bytes(make["pcap"](packets))
    return path


def test_a_token_of_two_workers_with_statistics_neither_repeats_nor_skips(firmware: Firmware, many_hosts: Path) -> None:
    with PacketCaptureEngine(files=[many_hosts], workers=2, firmware=firmware) as capture:
        capture.enable_flow_metering(statistics=("tcp", "sizes", "intervals", "headers"))
        capture.start()
        while capture.poll():
            pass
        found, shards, token = [], set(), b""
        while True:
            where = {"start": "token", "token": token} if token else {}
            with capture.open_flow_reader(**where) as reader:
                read = reader.read_batch(max_records=7)
            assert read.lost == 0
            if not read.records:
                break
            batch = agent_pb2.StreamFlowsResponse.FromString(read.data).batch
            found += batch.records
            shards.add(read.shard)
            token = batch.resume_token
    assert shards == {0, 1}
    assert sorted(record.src_addr for record in found) == sorted(bytes([192, 0, 2, host + 1]) for host in range(HOSTS))
    for record in found:
        host = record.src_addr[3] - 1
        assert (record.fwd_packets, record.fwd_payload_min, record.fwd_payload_mean) == (ROUNDS, host, host)
        assert (record.fwd_interval_min_ns, record.fwd_interval_stddev_ns) == (HOSTS * 1_000_000, 0)


def test_lossless_readers_of_two_workers_get_every_record_with_its_statistics_out_of_the_smallest_log(
    firmware: Firmware, many_hosts: Path
) -> None:
    with PacketCaptureEngine(files=[many_hosts] * 40, workers=2, firmware=firmware) as capture:
        capture.enable_flow_metering(log_records=1024, idle_timeout_s=1, active_timeout_s=1, statistics=("sizes",))
        lines: list[list[bytes]] = [[], []]
        with capture.open_flow_reader(lossless=True) as one, capture.open_flow_reader(lossless=True) as two:
            capture.start()
            ended = [False, False]
            while not all(ended):
                capture.poll()
                for number, reader in enumerate((one, two)):
                    while not ended[number]:
                        read = reader.read_text("json", 65_536)
                        assert read.lost == 0
                        lines[number] += read.data.splitlines()
                        ended[number] = read.end
                        if not read.more:
                            break
        metrics = capture.get_metrics()
    assert sorted(lines[0]) == sorted(lines[1])
    records = [json.loads(line) for line in lines[0]]
    assert len(records) == metrics.flow_records_ended
    assert sum(record["fwd_packets"] for record in records) == metrics.metered == 40 * HOSTS * ROUNDS
    assert all(record["fwd_payload_mean"] == int(record["src_addr"].split(".")[3]) - 1 for record in records)


@pytest.mark.parametrize("workers", [0, 2])
def test_after_the_deadline_every_frame_is_paused_once_sampled_or_not(firmware: Firmware, many_hosts: Path, workers: int) -> None:
    with PacketCaptureEngine(files=[many_hosts], workers=workers, firmware=firmware) as capture:
        capture.enable_flow_metering(sampling="flow-hash", sampling_interval=4, tunnel="inner", statistics=("sizes",))
        capture.set_deadline(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1)
        capture.start()
        while capture.poll():
            pass
        capture.stop()
        metrics = capture.get_metrics()
    assert (metrics.received, metrics.paused) == (HOSTS * ROUNDS, HOSTS * ROUNDS)
    assert (metrics.metered, metrics.unsampled, metrics.flows_active, metrics.in_flight) == (0, 0, 0, 0)
