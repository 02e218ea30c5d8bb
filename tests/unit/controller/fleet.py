# SPDX-License-Identifier: Apache-2.0
"""A controller in this process on loopback, made by `init`, with fake agents that join it over real TLS."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
from jarvis.capture.v1 import fleet_pb2, fleet_pb2_grpc
from jarvis_controller.agent_record import Carrier
from jarvis_controller.authorities import CA_DIRECTORY
from jarvis_controller.bootstrap import CONFIG_FILE, InitOptions, initialise
from jarvis_controller.config import ControllerConfig, load_config
from jarvis_controller.server import Controller
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role
from jarvis_trust.joinfile import JoinFile

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent, operator_channel
from tests.unit.controller.releases import Release, make_release
from tests.unit.controller.software_tpm import Vendor

FLEET = "lab.example"


@dataclass(slots=True, kw_only=True)
class TestFleet:
    """What a test holds."""

    __test__ = False

    directory: Path
    config: ControllerConfig
    release: Release
    vendor: Vendor
    controller: Controller
    stack: AsyncExitStack
    carrier: Carrier = Carrier.DIRECT
    agents: list[FakeAgent] = field(default_factory=list)

    @property
    def ca(self) -> FleetCA:
        return FleetCA.load(self.directory / CA_DIRECTORY)

    def channel(self, role: Role = Role.ADMIN, *, name: str = "ada", ca: FleetCA | None = None) -> grpc.aio.Channel:
        """A channel to the operators' port with a certificate for this role."""
        issuer = ca or self.ca
        key = generate_key()
        certificate = issuer.issue(Identity(fleet=issuer.fleet, role=role, name=name), public_key_of(key), timedelta(hours=1))
        roots = self.controller.issuer.ca_pem
        return operator_channel(f"127.0.0.1:{self.controller.operator_port}", roots, key, certificate, FLEET)

    async def stub(self, role: Role = Role.ADMIN) -> Any:
        """FleetService as an operator of this role; closed at the test's end."""
        channel = await self.stack.enter_async_context(self.channel(role))
        return fleet_pb2_grpc.FleetServiceStub(channel)

    async def join_file(self, labels: Mapping[str, str] | None = None, *, without_tpm: bool = False) -> JoinFile:
        stub = await self.stub()
        request = fleet_pb2.CreateJoinTokenRequest(labels=labels or {}, without_tpm=without_tpm)
        answer = await stub.CreateJoinToken(request)
        parsed = JoinFile.from_json(answer.join_file)
        return dataclasses.replace(parsed, address=f"127.0.0.1:{self.controller.enroll_port}")

    async def add_agent(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str = "VERIFIED",
        kind: type[FakeAgent] = FakeAgent,
        **options: Any,
    ) -> FakeAgent:
        """A fake agent, joined, serving, and in `state`."""
        options = {"carrier": self.carrier, "tunnel_port": self.controller.tunnel_port, **options}
        agent = kind(release=self.release, vendor=self.vendor, **options)
        await agent.join(await self.join_file(labels, without_tpm=agent.software is not None))
        await agent.start()
        self.stack.push_async_callback(agent.stop)
        self.agents.append(agent)
        await self.wait_for_state(agent, state)
        return agent

    async def wait_for_state(self, agent: FakeAgent, state: str) -> None:
        async def reached() -> bool:
            record = await self.controller.store.agent(agent.agent_id)
            # An agent is VERIFIED a moment before its lease is delivered.
            leased = state != "VERIFIED" or agent.lease is not None
            return record is not None and record.state == state and leased

        await eventually(reached, f"agent is {state}")

    async def agent_row(self, agent: FakeAgent) -> fleet_pb2.Agent:
        stub = await self.stub(Role.VIEWER)
        answer = await stub.ListAgents(fleet_pb2.ListAgentsRequest(selector=fleet_pb2.AgentSelector(agent_ids=[agent.agent_id])))
        row: fleet_pb2.Agent = answer.agents[0]
        return row


async def eventually(condition: Callable[[], Any], what: str, *, seconds: float = 15.0) -> None:
    """Waits for an async condition."""
    until = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < until, f"waited {seconds} s until {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running_fleet(
    directory: Path,
    release_key: ReleaseKey,
    *,
    carrier: Carrier = Carrier.DIRECT,
    policy: PolicyText | None = None,
    **settings: Any,
) -> AsyncIterator[TestFleet]:
    """A running controller; `settings` replace fields of its configuration. Its agents use the carrier unless they say other."""
    vendor, release = Vendor(), make_release(release_key)
    roots, root = directory / "vendor.pem", directory / "root.json"
    roots.write_bytes(vendor.root_pem)
    root.write_bytes(release_key.root)
    initialise(
        InitOptions(
            directory=directory / "fleet",
            fleet=FLEET,
            name="main",
            host="127.0.0.1",
            port=7440,
            enroll_port=7441,
            tunnel_port=7442,
            ek_roots=[roots],
            release_root=root,
        )
    )
    listen = dict.fromkeys(("listen", "enroll_listen", "tunnel_listen"), "127.0.0.1:0")
    defaults = {**listen, "agent_timeout_s": 5.0}
    config = dataclasses.replace(load_config(directory / "fleet" / CONFIG_FILE), **{**defaults, **settings})
    if policy is not None:
        config.policy.write_text(policy.toml(["ek-roots/01-vendor.pem"]))
    controller = Controller(config)
    async with AsyncExitStack() as outer:
        await outer.enter_async_context(controller.running())
        stack = await outer.enter_async_context(AsyncExitStack())
        yield TestFleet(
            directory=directory / "fleet",
            config=config,
            release=release,
            vendor=vendor,
            controller=controller,
            stack=stack,
            carrier=carrier,
        )
