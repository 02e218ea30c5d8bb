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


@pytest.mark.parametrize(
    "name",
    ["not an interface", "eth0/1", "an-interface-name-of-24-b", "zc:", "ZC:eth0", ":eth0", "pcap:a\nb", "pcap:" + "x" * 4001],
)
def test_what_is_neither_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(RpcError) as refused:
        check_spec(capture_pb2.CaptureSpec(interfaces=[name]))
    assert str(refused.value).startswith(f"spec.interfaces[0]: {name[:40]!r}: a network interface's name of 1-15 characters")


def test_statistics_are_those_that_there_are() -> None:
    check_spec(capture_pb2.CaptureSpec(interfaces=["eth0"], statistics=[1, 2, 3]))  # type: ignore[list-item]
    for unknown in (0, 4):
        with pytest.raises(RpcError) as refused:
            check_spec(capture_pb2.CaptureSpec(interfaces=["eth0"], statistics=[1, unknown]))  # type: ignore[list-item]
        assert str(refused.value).startswith(f"spec.statistics[1]: {unknown}: one of FlowStatistics' values")
