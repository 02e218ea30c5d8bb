# SPDX-License-Identifier: Apache-2.0
"""From the wire's specification to the core's counters: which packets an agent's capture selects, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jarvis.capture.v1.capture_pb2 import (
    CAPTURE_STATE_RUNNING,
    SAMPLING_FLOW_HASH,
    SAMPLING_SYSTEMATIC,
    TUNNEL_INNER,
    CaptureSpec,
    CaptureStatus,
)
from jarvis_agent.captures import CaptureManager
from jarvis_agent.event_file import EventFile
from jarvis_agent.events import EventJournal
from jarvis_native.errors import AuthorityRefused, InvalidArgument
from jarvis_native.loader import Firmware

from tests.commander import Commander
from tests.support import DATA


@pytest.fixture
def commander(firmware: Firmware) -> Commander:
    commander = Commander(firmware)
    commander.give()
    return commander


@pytest.fixture
async def captures(firmware: Firmware, commander: Commander, tmp_path: Path) -> AsyncIterator[CaptureManager]:
    manager = CaptureManager(
        firmware=firmware,
        replay_directory=DATA,
        worker_cpus=(),
        dpdk_eal_args=(),
        flow_log_records=1024,
        journal=EventJournal(EventFile(tmp_path / "events.journal"), agent_id="a" * 32),
        authority=commander.authority,
    )
    yield manager
    if manager.run is not None:
        manager.run.stop(graceful=False)


def wait_for_the_end(captures: CaptureManager) -> None:
    until = time.monotonic() + 15
    while captures.status().state == CAPTURE_STATE_RUNNING:
        assert time.monotonic() < until, "waited 15 s for the end of the file"
        time.sleep(0.01)


async def replayed(captures: CaptureManager, commander: Commander, spec: CaptureSpec) -> CaptureStatus:
    await captures.start(spec, commander.order(spec))
    await asyncio.to_thread(wait_for_the_end, captures)
    return captures.status()


async def test_a_sampled_capture_counts_what_it_leaves_out(captures: CaptureManager, commander: Commander) -> None:
    status = await replayed(
        captures, commander, CaptureSpec(files=["connection.pcap"], sampling=SAMPLING_SYSTEMATIC, sampling_interval=2)
    )
    metrics = status.metrics
    assert (metrics.received, metrics.metered, metrics.unsampled, metrics.non_ip) == (12, 6, 5, 1)
    assert status.spec.sampling_interval == 2


async def test_a_mirrors_times_are_asked_of_the_core_too(captures: CaptureManager, commander: Commander) -> None:
    status = await replayed(
        captures, commander, CaptureSpec(files=["tunnelled.pcap"], tunnel=TUNNEL_INNER, mirror_timestamps=True)
    )
    assert status.metrics.tunnelled > 0


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (CaptureSpec(sampling=SAMPLING_FLOW_HASH), "sampling_interval"),
        (CaptureSpec(sampling_interval=7), "sampling_interval"),
        (CaptureSpec(mirror_timestamps=True), "mirror_timestamps"),
        (CaptureSpec(busy_poll_us=20), "busy_poll_us"),
    ],
)
async def test_what_the_core_refuses_names_the_field(
    captures: CaptureManager, commander: Commander, spec: CaptureSpec, field: str
) -> None:
    spec.files.append("connection.pcap")
    with pytest.raises(InvalidArgument) as refused:
        await captures.start(spec, commander.order(spec))
    assert refused.value.field == field


async def test_a_command_serves_one_capture_and_no_other_filter(captures: CaptureManager, commander: Commander) -> None:
    spec = CaptureSpec(files=["connection.pcap"], filter="udp")
    with pytest.raises(AuthorityRefused, match="another filter"):
        await captures.start(CaptureSpec(files=["connection.pcap"]), commander.order(spec))
    request = commander.order(CaptureSpec(files=["connection.pcap"]))
    await captures.start(CaptureSpec(files=["connection.pcap"]), request)
    await asyncio.to_thread(wait_for_the_end, captures)
    with pytest.raises(AuthorityRefused) as refused:
        await captures.start(CaptureSpec(files=["connection.pcap"]), request)
    assert refused.value.reason == "CAPTURE_NOT_COMMANDED"
