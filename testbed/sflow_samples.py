# SPDX-License-Identifier: Apache-2.0
"""sFlow datagrams of whole captures, and what tshark's sflow dissector makes of them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jarvis_native import Firmware, PacketCaptureEngine
from jarvis_native.export import ExportBlock, ExportSession, FlowExporter, send_block

HOST = "127.0.0.1"
BURST = 32  # datagrams sent before a pause, so that no collector's buffer overflows
PAUSE_S = 0.001


def sampled_blocks(files: Iterable[Path], firmware: Firmware, *, sampling_rate: int = 1, seed: int = 0) -> Iterator[ExportBlock]:
    """The frames of captures as flow samples, each capture with an exporter of its own; not stamped yet."""
    for file in files:
        with (
            PacketCaptureEngine(files=[file], firmware=firmware) as capture,
            capture.open_frame_sampler(sampling_rate, seed=seed, lossless=True) as sampler,
            FlowExporter(firmware=firmware, protocol="sflow", system_init_ns=time.time_ns()) as exporter,
        ):
            capture.start()
            end = False
            while not end:
                running = capture.poll()
                batch = exporter.read_samples(sampler, flush=not running)
                if batch.data.messages:
                    yield batch.data
                end = batch.end


def send_samples(port: int, blocks: Iterable[ExportBlock], firmware: Firmware) -> ExportSession:
    """Sends blocks to a collector on loopback as one session, slowly enough for it."""
    session = ExportSession(
        firmware=firmware, protocol="sflow", system_init_ns=time.time_ns() - 60_000_000_000, agent_address=HOST
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((HOST, port))
        for block in blocks:
            session.stamp(block, time.time_ns())
            sent = 0
            while sent < block.messages:
                sent += send_block(firmware, sender.fileno(), block, sent)
                if sent % BURST == 0 or sent == block.messages:
                    time.sleep(PAUSE_S)
    return session


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDissection:
    """What tshark's sflow dissector sees."""

    datagrams: int
    frame_lengths: list[int]
    """Of each sampled_header, in their order."""
    counted_interfaces: list[int]
    """The ifIndex of each if_counters."""
    complaints: list[str]
    """Datagrams that are malformed, or that tshark warns of."""


_FIELDS = [
    "sflow_245.numsamples",
    "sflow_245.header.frame_length",
    "sflow_245.ifindex",
    "_ws.malformed",
    "_ws.expert.message",
]
_WITHIN = ["eth", "ipv6", "wlan", "mpls", "ppp", "tcp", "icmp", "gre"]


def dissect_samples(capture: Path, *, port: int) -> SampleDissection:
    """Runs the sflow dissector alone over what was sent to `port`: what is within the sampled headers is not looked into."""
    command = ["tshark", "-r", str(capture), "-d", f"udp.port=={port},sflow"]
    command += [part for protocol in _WITHIN for part in ("--disable-protocol", protocol)]
    command += ["-Y", "sflow", "-T", "fields", "-E", "occurrence=a", "-E", "separator=/t", "-E", "aggregator=,"]
    command += [part for field in _FIELDS for part in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [dict(zip(_FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]
    return SampleDissection(
        datagrams=len(rows),
        frame_lengths=[length for row in rows for length in _numbers(row["sflow_245.header.frame_length"])],
        counted_interfaces=[index for row in rows for index in _numbers(row["sflow_245.ifindex"])],
        complaints=[
            f"datagram {number}: {row['_ws.malformed']} {row['_ws.expert.message']}"
            for number, row in enumerate(rows, 1)
            if row["_ws.malformed"] or row["_ws.expert.message"]
        ],
    )


def _numbers(field: str) -> list[int]:
    return [int(number, 0) for number in field.split(",") if number]
