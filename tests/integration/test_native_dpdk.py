# SPDX-License-Identifier: Apache-2.0
"""Backend dpdk from Python, through the signed firmware: in a process of its own, for a process has one EAL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import CaptureError
from jarvis_native.loader import Firmware

from tests.support import DATA

EAL = ["--no-huge", "-m", "512", "--no-pci"]
RUN = """
import json, sys, time
from pathlib import Path
from jarvis_native import CaptureError, PacketCaptureEngine, load_firmware
where, options, frames = json.loads(sys.argv[1])
firmware = load_firmware(Path(where), release_root=Path(where, 'root.json').read_bytes())
answer = {}
try:
    with PacketCaptureEngine(firmware=firmware, **options) as capture:
        capture.enable_flow_metering()
        capture.start()
        until = time.monotonic() + 10
        while capture.get_metrics().received < frames and time.monotonic() < until and capture.poll(50):
            pass
        answer["backend"] = capture.backend
        capture.stop()
        metrics = capture.get_metrics()
        with capture.open_flow_reader() as reader:
            lines = reader.read_text("json").data.decode().splitlines()
        answer["flows"] = sorted([sorted(json.loads(line).items()) for line in lines])
        answer["counts"] = [metrics.received, metrics.metered, metrics.metered_octets, metrics.in_flight]
except CaptureError as error:
    answer["refused"] = [error.field, str(error)]
print(json.dumps(answer))
"""


@pytest.fixture(autouse=True)
def dpdk_is_here(firmware: Firmware) -> None:
    row = {row.name: row for row in PacketCaptureEngine.get_available_backends(firmware=firmware)}["dpdk"]
    if not row.usable:
        pytest.skip(f"backend dpdk: {row.reason}")


def run(directory: Path, frames: int, **options: Any) -> dict[str, Any]:
    argument = json.dumps([str(directory), options, frames])
    done = subprocess.run([sys.executable, "-c", RUN, argument], check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == "", "DPDK has not printed anything"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_capture_file_through_dpdk_gives_the_flows_of_the_file(firmware_directory: Path) -> None:
    path = DATA / "connection.pcap"
    want = run(firmware_directory, 1, files=[str(path)])
    found = run(firmware_directory, want["counts"][0], interface=f"net_pcap0,rx_pcap={path}", backend="dpdk", dpdk_eal_args=EAL)
    assert found == want | {"backend": "dpdk", "flows": found["flows"]}
    assert len(want["flows"]) == len(found["flows"]) > 0
    for was, became in zip(want["flows"], found["flows"], strict=True):
        differing = {name for (name, value), (_, other) in zip(was, became, strict=True) if value != other}
        assert differing <= {"interface_index"}, "all else is the file's, the microseconds too"


def test_a_device_that_the_arguments_make_is_captured_from_by_its_name(firmware_directory: Path) -> None:
    eal = [*EAL, f"--vdev=net_pcap7,rx_pcap={DATA / 'connection.pcap'}"]
    found = run(firmware_directory, 1, interface="dpdk:net_pcap7", dpdk_eal_args=eal)
    assert found["backend"] == "dpdk"
    assert found["counts"][0] > found["counts"][1] > 0


def test_arguments_that_dpdk_refuses_are_an_error_in_its_words(firmware_directory: Path) -> None:
    field, message = run(firmware_directory, 1, interface="net_null0", backend="dpdk", dpdk_eal_args=["-l", "x"])["refused"]
    assert field == "dpdk_eal_args"
    assert "DPDK says: " in message
    field, message = run(firmware_directory, 1, interface="net_null0", backend="dpdk", dpdk_eal_args=["--bogus"])["refused"]
    assert (field, "--bogus" in message) == ("dpdk_eal_args", True)


def test_what_is_no_device_of_dpdk_is_listed_as_not_usable_with_what_is(firmware: Firmware) -> None:
    rows = {row.name: row for row in PacketCaptureEngine.get_available_backends("lo", firmware=firmware)}
    assert not rows["dpdk"].usable
    assert "PCI address" in rows["dpdk"].reason
    rows = {row.name: row for row in PacketCaptureEngine.get_available_backends("0000:03:00.0", firmware=firmware)}
    assert rows["dpdk"].usable


@pytest.mark.parametrize("arguments", ["--no-huge", [""], ["a\0b"]])
def test_arguments_that_are_no_list_of_strings_are_refused(firmware: Firmware, arguments: Any) -> None:
    with pytest.raises(CaptureError, match="dpdk_eal_args"):
        PacketCaptureEngine("net_null0", backend="dpdk", dpdk_eal_args=arguments, firmware=firmware)
