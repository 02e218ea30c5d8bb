# SPDX-License-Identifier: Apache-2.0
"""A second opinion on TCP statistics: the totals of tshark's tcp.analysis flags, within the differences that we document.

docs/flow-semantics.md, "TCP statistics", says where ours differ. Each difference is taken out of tshark's count here by its own
rule, seen on tshark's own fields, so that what is left must be equal:

 - a segment that brings sequence numbers never seen before is no retransmission, whatever old ones it repeats; tshark flags every
   segment that does not begin where the last one ended;
 - whether old numbers come for the second time (retransmission) or the first (out of order) is known to us from the gaps, while
   tshark guesses by the time that has passed: the sum of both is compared;
 - a SYN or FIN that announces a window of 0 counts with us, not with tshark.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jarvis_native.engine import Tunnel
from jarvis_native.loader import Firmware

from tests.integration.test_meter_truth import PCAPS
from tests.metering import meter_files

TSHARK = shutil.which("tshark")
TUNNELLED = ("6in4tunnel.pcap", "ja3_lots_of_cipher_suites_2_anon.pcap", "rtmp.pcap")
"""tshark always looks inside: so must we here."""
PLAIN = (
    "alicloud.pcap", "android.pcap", "ethereum.pcap", "google_ssl.pcap", "googledns_android10.pcap",
    "heuristic_tcp_ack_payload.pcap", "jabber.pcap", "kafka.pcapng", "no_sni.pcap", "pop3.pcap", "quickplay.pcap",
    "sccp_hw_conf_register.pcapng", "synscan.pcap", "tls_port_80.pcapng", "waze.pcap", "git.pcap", "smtp.pcap",
)  # fmt: skip
CASES: list[tuple[str, Tunnel]] = [*((name, "outer") for name in PLAIN), *((name, "inner") for name in TUNNELLED)]

_FLAGS = ("retransmission", "fast_retransmission", "spurious_retransmission", "out_of_order")
_FIELDS = (
    "tcp.stream", "tcp.srcport", "ip.src", "ipv6.src", "tcp.seq_raw", "tcp.len", "tcp.flags.syn", "tcp.flags.fin",
    "tcp.flags.reset", "tcp.window_size_value", "tcp.analysis.zero_window", *(f"tcp.analysis.{flag}" for flag in _FLAGS),
)  # fmt: skip

pytestmark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What tshark says of one segment."""

    side: tuple[str, ...]
    """Stream and sender."""
    sequence: int
    length: int
    """Of sequence numbers: data, SYN and FIN."""
    opens_or_closes: bool
    reset: bool
    window: int
    zero_window: bool
    repeats: bool
    """Flagged as a retransmission of any kind, or as out of order."""


def segments(capture: Path) -> Iterator[Segment]:
    """Every TCP segment of the file that tshark can read, fragments apart."""
    whole = ("-o", "ip.defragment:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE")
    options = (*whole, "-Y", "tcp.len && !icmp && !icmpv6", "-E", "occurrence=f")
    done = subprocess.run(
        [str(TSHARK), "-n", "-r", str(capture), *options, "-T", "fields", *(f"-e{field}" for field in _FIELDS)],
        check=True,
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        stream, port, source, source6, sequence, length, syn, fin, reset, window, zero_window, *flags = line.split("\t")
        yield Segment(
            side=(stream, port, source, source6),
            sequence=int(sequence),
            length=int(length) + int(syn) + int(fin),
            opens_or_closes=bool(int(syn) or int(fin)),
            reset=bool(int(reset)),
            window=int(window),
            zero_window=bool(zero_window),
            repeats=any(flags),
        )


def expected(capture: Path) -> tuple[int, int]:
    """Segments that repeat or fill, and zero windows, as tshark counts them but for the differences above."""
    highest: dict[tuple[str, ...], int] = {}
    repeated = zero_windows = 0
    for segment in segments(capture):
        if segment.reset:
            continue
        zero_windows += segment.zero_window or (segment.opens_or_closes and segment.window == 0)
        end = segment.sequence + segment.length
        known = highest.setdefault(segment.side, end)
        beyond = (end - known) % 2**32
        brings_new = 0 < beyond < 2**31
        repeated += segment.repeats and not brings_new
        if brings_new and segment.length:
            highest[segment.side] = end % 2**32
    return repeated, zero_windows


@pytest.mark.parametrize(("name", "tunnel"), CASES, ids=[name for name, _ in CASES])
def test_repeated_segments_and_zero_windows_are_those_of_tshark(firmware: Firmware, name: str, tunnel: Tunnel) -> None:
    capture = PCAPS / name
    if not capture.is_file():
        pytest.skip(f"{capture} is not there: name its folder with JARVIS_SHARED")
    records = meter_files(firmware, [capture], tunnel=tunnel, statistics=("tcp",)).records

    def total(*names: str) -> int:
        return sum(record[f"{way}_{kind}"] for record in records for kind in names for way in ("fwd", "rev"))

    assert (total("retransmissions", "out_of_order"), total("zero_windows")) == expected(capture)


def test_round_trip_times_are_those_of_tshark(firmware: Firmware) -> None:
    """Where the handshake is seen once and whole, tshark's initial round-trip time is the sum of our two parts."""
    capture = PCAPS / "kafka.pcapng"
    if not capture.is_file():
        pytest.skip(f"{capture} is not there: name its folder with JARVIS_SHARED")
    records = meter_files(firmware, [capture], statistics=("tcp",)).records
    ours = {
        record["src_port"]: record["syn_to_synack_ns"] + record["synack_to_ack_ns"]
        for record in records
        if record["synack_to_ack_ns"]
    }
    wanted = [f"-e{field}" for field in ("tcp.srcport", "tcp.dstport", "tcp.analysis.initial_rtt")]
    done = subprocess.run(
        [str(TSHARK), "-n", "-r", str(capture), "-Y", "tcp.analysis.initial_rtt", "-T", "fields", *wanted],
        check=True,
        capture_output=True,
        text=True,
    )
    theirs = {}
    for line in done.stdout.splitlines():
        source, destination, seconds = line.split("\t")
        theirs[int(source) if int(source) in ours else int(destination)] = round(float(seconds) * 1e9)
    assert ours
    assert ours == theirs
