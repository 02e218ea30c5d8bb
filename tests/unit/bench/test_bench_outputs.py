# SPDX-License-Identifier: Apache-2.0
"""Peers' outputs are read as they were printed by the versions in Debian 12 and on PyPI."""

from __future__ import annotations

import json

import pytest

from bench import outputs
from bench.outputs import Counted, Seen

NFDUMP = """Ident: none
Flows: 119015
Flows_tcp: 77121
Flows_udp: 41894
Packets: 1000000
Packets_tcp: 796761
Bytes: 503710516
Sequence failures: 0
"""
SOFTFLOWD = """softflowd v1.1.0 starting data collection
Exporting flows from /captures/ to [127.0.0.1]:29995
Shutting down after pcap EOF
Number of active flows: 0
Packets processed: 1000000
Ignored packets: 0 (0 non-IP, 0 too short)
Flows expired: 50000 (0 forced)
Flows exported: 50000 (50000 records) in 2096 packets (0 failures)
  Flow packets:                 1            20          7101
"""
PMACCTD = """SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,PACKETS,BYTES
172.26.129.131,10.54.124.75,123,57861,tcp,4,1692
2001:db8::1,2001:db8::2,14736,22,tcp,3,3064
"""
TCPDUMP = """tcpdump: listening on veth0, link-type EN10MB (Ethernet), snapshot length 262144 bytes
299990 packets captured
300000 packets received by filter
10 packets dropped by kernel
"""
NFSTREAM = """{"flows_expired": 0, "packets_processed": 16, "packets_ignored": 0, "packets_dropped_filtered_by_kernel": 0}
{"flows_expired": 7, "packets_processed": 160, "packets_ignored": 2, "packets_dropped_filtered_by_kernel": 5}
"""


def test_the_totals_of_nfpcapds_files_are_not_taken_for_those_of_a_protocol() -> None:
    assert outputs.nfdump_statistics(NFDUMP) == Counted(packets=1_000_000, flows=119_015, biflows=False)


def test_softflowds_flows_are_those_it_exported() -> None:
    assert outputs.softflowd_statistics(SOFTFLOWD) == Counted(packets=1_000_000, flows=50_000, biflows=True)


def test_pmacctds_packets_are_the_sum_of_its_rows() -> None:
    assert outputs.pmacctd_records(PMACCTD.splitlines()) == Counted(packets=7, flows=2, biflows=False)


def test_nfstreams_own_sums_are_read() -> None:
    assert outputs.nfstream_totals("flows=49707 packets=922488\n") == Counted(packets=922_488, flows=49_707, biflows=True)


def test_our_summary_is_the_first_line() -> None:
    summary = {"packets": 9, "ip_packets": 8, "flows": 3}
    assert outputs.jarvis_summary(json.dumps(summary) + "\nmore\n") == Counted(packets=9, flows=3, biflows=True)


def test_tcpdumps_captured_and_dropped_frames_are_not_those_its_filter_received() -> None:
    assert outputs.tcpdump_seen(TCPDUMP) == Seen(frames=299_990, dropped=10)


def test_of_nfstreams_reports_the_last_one_counts_and_ignored_frames_were_seen() -> None:
    assert outputs.nfstream_seen(NFSTREAM) == Seen(frames=162, dropped=5)


def test_softflowctls_answer_says_what_libpcap_dropped() -> None:
    answer = "Packets processed: 299976\nPackets dropped by libpcap: 3\n"
    assert outputs.softflowctl_seen(answer) == Seen(frames=299_976, dropped=3)


@pytest.mark.parametrize("read", [outputs.nfdump_statistics, outputs.softflowd_statistics, outputs.nfstream_totals])
def test_a_program_that_says_nothing_has_counted_an_unknown_number(read) -> None:  # type: ignore[no-untyped-def]
    counted = read("Segmentation fault\n")
    assert (counted.packets, counted.flows) == (None, None)
