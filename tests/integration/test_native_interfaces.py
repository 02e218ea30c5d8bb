# SPDX-License-Identifier: Apache-2.0
"""The engine on several interfaces: two veth pairs in a namespace of our own, datagrams that we count exactly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from testbed.netns import Namespace, is_available

SCRIPT = """
import json, socket, sys, time
from pathlib import Path
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import InvalidArgument
from jarvis_native.loader import load_firmware

where = Path(sys.argv[1])
firmware = load_firmware(where, release_root=(where / "root.json").read_bytes())

def send(number, port, count):
    frame = bytes.fromhex("ffffffffffff020000000001080045000020000000004011") + b"\\0\\0"
    frame += bytes([10, 9, 0, 1, 10, 9, 0, 2]) + (1000).to_bytes(2) + port.to_bytes(2) + bytes([0, 12, 0, 0]) + b"1234"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((f"peer{number}", 0))
        for _ in range(count):
            sender.send(frame)

def await_metered(engine, count):
    until = time.monotonic() + 20
    while engine.get_metrics().metered < count and time.monotonic() < until:
        engine.poll(0.05)
    return engine.get_metrics().metered

def run(merge):
    with PacketCaptureEngine(["lan0", "lan1"], filter="udp", workers=2, firmware=firmware) as engine:
        engine.enable_flow_metering(merge_interfaces=merge)
        engine.start()
        send(0, 53, 10)
        metered = [await_metered(engine, 10)]
        send(1, 53, 5)
        metered.append(await_metered(engine, 15))
        flows = sorted((f.fwd_packets, f.interface_index, f.second_interface_index) for f in engine.get_flows())
        return {"backend": engine.backend, "metered": metered, "flows": flows}

def change():
    with PacketCaptureEngine("lan0", filter="udp", firmware=firmware) as engine:
        engine.enable_flow_metering()
        engine.start()
        engine.add_interface("lan1")
        send(1, 54, 7)
        engine.remove_interface("lan1")
        refused = ""
        try:
            engine.remove_interface("lan0")
        except InvalidArgument as error:
            refused = f"{error.field}: {error}"
        send(0, 54, 3)
        engine.stop()
        metrics = engine.get_metrics()
        left = [(row.name, row.state, row.received) for row in engine.get_interfaces()]
        return {"received": metrics.received, "in_flight": metrics.in_flight, "refused": refused, "left": left}

index = [socket.if_nametoindex("lan0"), socket.if_nametoindex("lan1")]
print(json.dumps({"index": index, "apart": run(False), "merged": run(True), "change": change()}))
"""


@pytest.fixture(scope="module")
def found(firmware_directory: Path) -> dict[str, object]:
    obstacle = is_available()
    if obstacle:
        pytest.skip(obstacle)
    with Namespace("lans") as namespace:
        namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        for number in range(2):
            namespace.run("ip", "link", "add", f"lan{number}", "type", "veth", "peer", "name", f"peer{number}")
            namespace.run("ip", "link", "set", f"lan{number}", "up")
            namespace.run("ip", "link", "set", f"peer{number}", "up")
        printed = namespace.run(sys.executable, "-c", SCRIPT, str(firmware_directory))
    result: dict[str, object] = json.loads(printed)
    return result


def test_a_flow_on_two_interfaces_is_two_records_which_name_theirs(found: dict[str, object]) -> None:
    first, second = found["index"]  # type: ignore[misc]
    assert found["apart"] == {"backend": "afpacket", "metered": [10, 15], "flows": [[5, second, 0], [10, first, 0]]}


def test_when_merged_it_is_one_record_which_names_both(found: dict[str, object]) -> None:
    first, second = found["index"]  # type: ignore[misc]
    assert found["merged"] == {"backend": "afpacket", "metered": [10, 15], "flows": [[15, first, second]]}


def test_what_a_removed_interface_received_stays_counted_and_the_last_cannot_be_removed(found: dict[str, object]) -> None:
    change = found["change"]
    assert isinstance(change, dict)
    assert (change["received"], change["in_flight"], change["left"]) == (10, 0, [["lan0", "up", 3]])
    assert change["refused"].startswith("interface: interface lan0 is the last one")
