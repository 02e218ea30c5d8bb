# SPDX-License-Identifier: Apache-2.0
"""Backend xdp out of a signed module, on a veth pair in a network namespace of its own: exact counts; what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jarvis_native import PacketCaptureEngine
from jarvis_native.loader import Firmware

FRAMES = 2000
NAMESPACE = """
import json, os, signal, socket, subprocess, sys
FRAMES = int(sys.argv[1])
CAPTURE = '''
import json, sys
from jarvis_native import PacketCaptureEngine, load_firmware
load_firmware()
with PacketCaptureEngine("jarvis0", backend=sys.argv[1]) as capture:
    capture.enable_flow_metering()
    capture.start()
    print(json.dumps({"backend": capture.backend, "detail": capture.backend_detail}), flush=True)
    sys.stdin.readline()
    capture.stop()
    metrics = capture.get_metrics()
    with capture.open_flow_reader() as reader:
        records = reader.read_batch().records
    counts = ("received", "metered", "metered_octets", "filtered", "non_ip", "malformed", "dropped", "in_flight", "flows_total")
    print(json.dumps({name: getattr(metrics, name) for name in counts} | {"records": records}), flush=True)
'''

def start(backend):
    child = subprocess.Popen([sys.executable, "-c", CAPTURE, backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return child, json.loads(child.stdout.readline())

def frame(number):
    tag = b"\\x81\\x00\\x00\\x07" if number % 2 else b""
    udp = bytes([number % 10 + 1, 0, 0, 53, 0, 18, 0, 0]) + bytes(10)
    ip = bytes([0x45, 0, 0, 38, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2])
    return b"\\xff" * 6 + b"\\x02" + bytes(5) + tag + b"\\x08\\x00" + ip + udp

def attached():
    shown = subprocess.run(["ip", "link", "show", "jarvis0"], capture_output=True, text=True, check=True)
    return "prog/xdp" in shown.stdout

with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:
    file.write("1")
for command in ("link add jarvis0 type veth peer name jarvis1", "link set jarvis0 up", "link set jarvis1 up"):
    subprocess.run(["ip", *command.split()], check=True)
child, answer = start("auto")
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("jarvis1", 0))
for number in range(FRAMES):
    sender.send(frame(number))
answer["attached"] = attached()
out, _ = child.communicate("stop\\n")
answer["counts"] = json.loads(out)
answer["attached_after_stop"] = attached()
child, _ = start("xdp")
answer["attached_again"] = attached()
child.send_signal(signal.SIGKILL)
child.communicate()
answer["attached_after_kill"] = attached()
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def xdp_is_usable(firmware: Firmware) -> None:
    rows = {row.name: row for row in PacketCaptureEngine.get_available_backends(firmware=firmware)}
    if not rows["xdp"].usable:
        pytest.skip(f"backend xdp: {rows['xdp'].reason}")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and iproute2")


@pytest.mark.usefixtures("xdp_is_usable")
def test_frames_are_metered_exactly_and_a_killed_capture_leaves_no_program(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "namespace.py"
    script.write_text(NAMESPACE, encoding="utf-8")
    command = ["unshare", "--net", sys.executable, str(script), str(FRAMES)]
    done = subprocess.run(command, env=program_environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["backend"] == "xdp"
    assert " mode, copy, 1 receive queue a worker, need-wakeup, " in answer["detail"]
    assert answer["counts"] == {
        "received": FRAMES, "metered": FRAMES, "metered_octets": FRAMES * 38, "filtered": 0, "non_ip": 0, "malformed": 0,
        "dropped": 0, "in_flight": 0, "flows_total": 10, "records": 10,
    }  # fmt: skip
    attached = ("attached", "attached_after_stop", "attached_again", "attached_after_kill")
    assert [answer[name] for name in attached] == [True, False, True, False]
