# SPDX-License-Identifier: Apache-2.0
"""PF_RING as the engine and the agent see it, over a fake libpfring.so that the test compiles.

Each case runs in a process of its own: the library is looked for once in a process, in the library path that it began with.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import DATA, ROOT

CONNECTION = DATA / "connection.pcap"

METER = """
import json, sys
from jarvis_native import load_firmware
from jarvis_native.engine import PacketCaptureEngine

def meter(**source):
    with PacketCaptureEngine(firmware=load_firmware(), filter="not icmp", **source) as capture:
        capture.enable_flow_metering()
        capture.start()
        while capture.poll():
            pass
        capture.stop(graceful=True)
        metrics = capture.get_metrics()
        names = ("received", "metered", "metered_octets", "filtered", "non_ip", "flows_total", "in_flight")
        return {"backend": capture.backend} | {name: getattr(metrics, name) for name in names}

print(json.dumps([meter(files=[sys.argv[1]]), meter(interface="pcap:" + sys.argv[1])]))
"""

MEASURE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from jarvis_agent import firmware

mapped = {}

def record_mapping(path, digest):
    mapped[path] = digest.hex()

context = SimpleNamespace(record_load_attempt=lambda found: None, record_mapping=record_mapping)
directory = Path(sys.argv[1])
state = Path(sys.argv[2])
root = directory / "root.json"
config = SimpleNamespace(firmware_directory=directory, release_root=root, state_directory=state, revocations=None)
loaded = firmware.load(config, context, lambda: (0, "")).firmware is not None
print(json.dumps({"loaded": loaded, "mapped": mapped}))
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fake-pfring") / "libpfring.so"
    source = str(ROOT / "native" / "tests" / "fake_pfring.c")
    command = ["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", str(target), source, "-lpcap", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def run(program_environment: dict[str, str], library: Path) -> Run:
    """Runs a program with the fake in its library path; the JSON that it prints."""

    def start(*arguments: str) -> Any:
        environment = program_environment | {"LD_LIBRARY_PATH": str(library.parent)}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return start


def backends(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_a_file_device_is_metered_to_its_end_like_the_file_itself(run: Run) -> None:
    reference, device = run("-c", METER, str(CONNECTION))
    assert (reference.pop("backend"), device.pop("backend")) == ("file", "pfring")
    assert device == reference
    assert device["metered"] > 0


def test_the_list_of_backends_has_it_where_the_library_is(run: Run) -> None:
    rows = backends(run("-m", "jarvis_agent", "backends", "zc:eth0", "--output", "json"))
    assert rows["pfring"]["usable"]
    assert not rows["afpacket"]["usable"]
    rows = backends(run("-m", "jarvis_agent", "backends", "xpcap:/etc/hostname", "--output", "json"))
    assert not rows["pfring"]["usable"]
    assert "accepted are eth0" in rows["pfring"]["reason"]


def test_the_list_of_backends_says_that_the_library_is_not_there(program_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "jarvis_agent", "backends", "--output", "json"]
    done = subprocess.run(command, env=program_environment, capture_output=True, text=True, check=True)
    row = backends(json.loads(done.stdout))["pfring"]
    if row["usable"]:
        pytest.skip("libpfring.so is installed here")
    assert row["reason"].startswith("libpfring.so: cannot open shared object file")
    assert row["live"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the mapped file is found by /proc/self/map_files, root's")
def test_the_agent_measures_the_library_before_anything_is_captured(
    run: Run, library: Path, firmware_directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tpm2_pytss", reason="the agent's extra is not installed")
    answer = run("-c", MEASURE, str(firmware_directory), str(tmp_path))
    assert answer["loaded"]
    assert answer["mapped"][str(library)] == hashlib.sha256(library.read_bytes()).hexdigest()
