# SPDX-License-Identifier: Apache-2.0
"""How fast hosts come into a fleet: enrolments a second, and from a reboot to the first command that is accepted.

Enrolments are whole ones over mTLS, with software TPMs and the agent's own code: EK chain, credential activation, a TLS key that
is certified in the TPM, a certificate. Each host enrols again and again, several at once; what bounds a fleet is the controller,
so its processor time is told besides. A reboot is a power cut of the TPM, another boot id and the agent's end; the clock runs
from its new start.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from jarvis.capture.v1 import fleet_pb2
from jarvis_agent.enroll import Enroller
from jarvis_agent.establish import read_tpm_identity
from jarvis_agent.tls_key import TpmTlsKey
from jarvis_agent.tls_state import TlsState
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tunnel_address import TunnelAddress
from jarvis_trust.identities import Identity, Role
from jarvis_trust.joinfile import JoinFile
from rich.console import Console
from rich.table import Table

from bench.stream import open_channel
from testbed import replay
from testbed.fleet import Agent, Fleet

HOSTS = 4
ENROLMENTS = 30
"""Of each host, after its first."""
START = "/jarvis.capture.v1.FleetService/StartCaptures"
RETRY_S, PATIENCE_S = 0.01, 60.0


async def _host(fleet: Fleet, tcti: str, directory: Path) -> Enroller:
    """A host that has enrolled once, with its token."""
    join = JoinFile.load(directory / "join.json")
    worker = TpmWorker.for_tcti(tcti)
    tpm = await worker.run(TpmPriority.CREDENTIAL, read_tpm_identity)
    key = await TpmTlsKey.open(worker, directory / "tls")
    identity = Identity(fleet=fleet.name, role=Role.AGENT, name=tpm.agent_id)
    tls = TlsState(directory / "tls", identity=identity, ca_pem=join.ca_pem.encode(), key=key)
    enroller = Enroller(
        join=join, address=join.address, advertise="", tpm=tpm, worker=worker, tls=tls,
        tunnel=TunnelAddress(directory, is_wanted=True), first_retry_s=1.0,
    )  # fmt: skip
    await enroller.enroll(token=join.token)
    return enroller


async def _enrol(fleet: Fleet, hosts: list[tuple[str, Path]]) -> tuple[float, float]:
    """Seconds, and the controller's processor seconds, of all enrolments together."""
    enrollers = [await _host(fleet, tcti, directory) for tcti, directory in hosts]

    async def again(enroller: Enroller) -> None:
        for _ in range(ENROLMENTS):
            await enroller.enroll(token="")

    cpu, began = _cpu_seconds(fleet), time.perf_counter()
    await asyncio.gather(*(again(enroller) for enroller in enrollers))
    return time.perf_counter() - began, _cpu_seconds(fleet) - cpu


def _cpu_seconds(fleet: Fleet) -> float:
    assert fleet.process is not None
    fields = Path(f"/proc/{fleet.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _first_command(fleet: Fleet, agent: Agent, capture: str) -> float:
    """Seconds from the start of the agent's process until a capture was started."""
    request = fleet_pb2.StartCapturesRequest()
    request.selector.agent_ids.append(agent.agent_id)
    request.spec.files.append(capture)
    async with open_channel(fleet.controller_directory / "jarvisctl.toml") as channel:
        start = channel.unary_stream(
            START,
            request_serializer=fleet_pb2.StartCapturesRequest.SerializeToString,
            response_deserializer=fleet_pb2.CaptureOutcome.FromString,
        )
        agent.start()
        began = time.perf_counter()
        while time.perf_counter() - began < PATIENCE_S:
            request.request_id = str(uuid.uuid4())
            try:
                outcomes = [outcome async for outcome in start(request)]
            except grpc.aio.AioRpcError:
                outcomes = []
            if outcomes and outcomes[0].status.code == 0:
                return time.perf_counter() - began
            await asyncio.sleep(RETRY_S)
    raise RuntimeError(f"no command was accepted within {PATIENCE_S:.0f} s: {agent.log.read_text()[-2000:]}")


def _reboots(fleet: Fleet, rounds: int) -> list[float]:
    agent = fleet.add_agent("host")
    fleet.wait_for_state(agent, "verified")
    replay.write_http_capture(agent.replay_directory / "http.pcap", servers=("10.77.0.2",), port=80, count=10)
    seconds = []
    for _ in range(rounds):
        agent.reboot()
        seconds.append(asyncio.run(_first_command(fleet, agent, "http.pcap")))
    return seconds


def report(console: Console, *, rounds: int) -> dict[str, Any]:
    """Prints the table; returns all figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jarvis-bench-")))
        fleet = stack.enter_context(Fleet(directory=directory / "fleet"))
        fleet.start()
        hosts = []
        for number in range(HOSTS):
            tpm = stack.enter_context(fleet.vendor.make(directory / f"tpm{number}"))
            state = directory / f"host{number}"
            state.mkdir(mode=0o700)
            fleet.jarvisctl("enroll", "token", "-o", str(state / "join.json"))
            hosts.append((tpm.tcti, state))
        wall, cpu = asyncio.run(_enrol(fleet, hosts))
        reboots = _reboots(fleet, rounds)
    count = HOSTS * ENROLMENTS
    table = Table(title=f"joining: {count} enrolments of {HOSTS} hosts at once, {rounds} reboots")
    for heading in ("", "figure"):
        table.add_column(heading, justify="right")
    table.add_row("enrolments a second, TPMs and all on this machine", f"{count / wall:,.1f}")
    table.add_row("enrolments a second of a controller's core", f"{count / cpu:,.1f}")
    median, low, high = statistics.median(reboots), min(reboots), max(reboots)
    table.add_row("agent's start after a reboot to the first accepted command", f"{median:.2f} s ({low:.2f} to {high:.2f})")
    console.print(table)
    return {"enrolments": count, "wall_s": wall, "controller_cpu_s": cpu, "reboot_to_command_s": reboots}
