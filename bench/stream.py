# SPDX-License-Identifier: Apache-2.0
"""Flow records from agent through controller to a subscriber, over mTLS on loopback, with the real programs.

The agent meters a capture file of many flows into its record log; then a subscriber asks for all of them, several times.
Nothing on the way parses a record, and the subscriber does so only after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from jarvis.capture.v1 import fleet_pb2
from rich.console import Console
from rich.table import Table

from bench.captures import capture_file
from testbed.fleet import Agent, Fleet, wait_for

FLOWS = 1_000_000
ROUNDS = 5
WATCH = "/jarvis.capture.v1.FleetService/WatchFlows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One subscriber's reading of everything."""

    seconds: float
    records: int
    lost: int
    octets: int
    messages: int


def open_channel(config: Path) -> grpc.aio.Channel:
    """To the controller, as the operator of this jarvisctl.toml."""
    settings = tomllib.loads(config.read_text())

    def read(key: str) -> bytes:
        return (config.parent / str(settings[key])).read_bytes()

    credentials = grpc.ssl_channel_credentials(read("ca"), read("key"), read("certificate"))
    options = [("grpc.ssl_target_name_override", f"controller.{settings['fleet']}"), ("grpc.max_receive_message_length", 8 << 20)]
    return grpc.aio.secure_channel(settings["endpoint"], credentials, options)


async def read_everything(config: Path, agent_id: str) -> Pass:
    """Reads all records that the agent keeps; counts after the clock has stopped."""
    request = fleet_pb2.WatchFlowsRequest()
    request.selector.agent_ids.append(agent_id)
    request.subscription.max_batch_records = 5000
    async with open_channel(config) as channel:
        watch = channel.unary_stream(
            WATCH, request_serializer=fleet_pb2.WatchFlowsRequest.SerializeToString, response_deserializer=None
        )
        began = time.perf_counter()
        messages = [message async for message in watch(request)]
        seconds = time.perf_counter() - began
    records = lost = 0
    for message in messages:
        event = fleet_pb2.WatchFlowsResponse.FromString(message)
        records += len(event.batch.records)
        lost += event.loss.lost
    return Pass(seconds=seconds, records=records, lost=lost, octets=sum(map(len, messages)), messages=len(messages))


def _fill(fleet: Fleet, agent: Agent, capture: Path) -> None:
    """Has the agent meter the capture to its end."""
    (agent.replay_directory / capture.name).hardlink_to(capture)
    fleet.jarvisctl("capture", "start", "--agent", agent.agent_id, "--file", capture.name, "--max-flows", "4194304")

    def finished() -> bool:
        (row,) = fleet.rows("capture", "status", "--agent", agent.agent_id)
        return bool(row["capture"]["state"] == "stopped")

    wait_for("the agent to meter the file", finished, seconds=120, log=agent.log)


def report(console: Console) -> dict[str, Any]:
    """Prints the table; returns everything for JSON."""
    capture, truth = capture_file(2 * FLOWS, FLOWS, console)
    with (
        # Beside the capture, so that the agent's replay directory can hold a hard link to it.
        tempfile.TemporaryDirectory(prefix="fleet-", dir=capture.parent) as directory,
        Fleet(directory=Path(directory)) as fleet,
    ):
        fleet.start()
        agent = fleet.add_agent("host", flow_log_records=2 << 20)
        fleet.wait_for_state(agent, "verified")
        _fill(fleet, agent, capture)
        config = fleet.controller_directory / "jarvisctl.toml"
        passes = []
        for _ in range(ROUNDS):
            command = [sys.executable, "-m", "bench.stream", str(config), agent.agent_id]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            passes.append(Pass(**json.loads(done.stdout)))
    result = Table(title=f"agent → controller → subscriber, mTLS on loopback, {truth['biflows']:,} flow records, {ROUNDS} passes")
    for heading in ("", "records/s", "MB/s", "seconds", "records", "lost", "messages"):
        result.add_column(heading, justify="right")
    for name, pick in (("min", min), ("median", statistics.median), ("max", max)):
        seconds = pick([each.seconds for each in passes])
        one = passes[0]
        result.add_row(
            name, f"{one.records / seconds:,.0f}", f"{one.octets / seconds / 1e6:.0f}", f"{seconds:.2f}",
            f"{one.records:,}", f"{one.lost:,}", f"{one.messages:,}",
        )  # fmt: skip
    console.print(result)
    return {"flow_records": truth["biflows"], "passes": [asdict(each) for each in passes]}


if __name__ == "__main__":
    done = asyncio.run(read_everything(Path(sys.argv[1]), sys.argv[2]))
    print(json.dumps(asdict(done)))
