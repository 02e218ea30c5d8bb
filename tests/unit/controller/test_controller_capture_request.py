# SPDX-License-Identifier: Apache-2.0
"""What the controller takes for an interface or device before any agent is asked."""

from __future__ import annotations

import pytest
from jarvis.capture.v1 import capture_pb2
from jarvis_controller.capture_request import check_spec
from jarvis_controller.rpc_status import RpcError


@pytest.mark.parametrize(
    "name", ["eth0", "br-lan.7", "any", "eth0@2", "enp129s0f1np1@12", "zc:eth0", "zc:99@0", "pcap:dumps/a b.pcap", "xdp:eth0"]
)
def test_interfaces_and_pf_ring_devices_are_the_agents_to_judge(name: str) -> None:
    check_spec(capture_pb2.CaptureSpec(interfaces=[name], backend="pfring"))


@pytest.mark.parametrize("name", ["0000:03:00.0", "03:00.7", "net_af_packet_uplink0", "dpdk:0000:03:00.0", "dpdk:net_pcap0"])
def test_dpdk_devices_are_the_agents_to_judge(name: str) -> None:
    check_spec(capture_pb2.CaptureSpec(interfaces=[name], backend="dpdk"))


@pytest.mark.parametrize(
    "name",
    [
        "not an interface",
        "eth0/1",
        "an-interface-name-of-24-b",
        "zc:",
        "ZC:eth0",
        ":eth0",
        "pcap:a\nb",
        "pcap:" + "x" * 4001,
        "03:00.8",
        "net_Ring0_of_more_than_15",
    ],
)
def test_what_is_neither_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(RpcError) as refused:
        check_spec(capture_pb2.CaptureSpec(interfaces=[name]))
    assert str(refused.value).startswith(f"spec.interfaces[0]: {name[:40]!r}: a network interface's name of 1-15 characters")


def test_statistics_are_those_that_there_are() -> None:
    check_spec(capture_pb2.CaptureSpec(interfaces=["eth0"], statistics=[1, 2, 3, 4]))  # type: ignore[list-item]
    for unknown in (0, 5):
        with pytest.raises(RpcError) as refused:
            check_spec(capture_pb2.CaptureSpec(interfaces=["eth0"], statistics=[1, unknown]))  # type: ignore[list-item]
        assert str(refused.value).startswith(f"spec.statistics[1]: {unknown}: one of FlowStatistics' values")


@pytest.mark.parametrize(
    ("backend", "accepted"), [("xdp", True), ("dpdk", True), ("auto", False), ("", False), ("afpacket", False)]
)
def test_exclusive_needs_a_backend_that_takes_frames_away(backend: str, accepted: bool) -> None:
    spec = capture_pb2.CaptureSpec(interfaces=["eth0"], backend=backend, exclusive=True)
    if accepted:
        check_spec(spec)
        return
    with pytest.raises(RpcError, match="accepted with backends 'xdp' and 'dpdk'"):
        check_spec(spec)
