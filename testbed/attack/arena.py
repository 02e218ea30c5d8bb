# SPDX-License-Identifier: Apache-2.0
"""The fleet under attack: a controller, an honest agent whose flows are watched to the last record, and a puppet that lies.

    honest: replays a capture again and again under commands, all of its flows go to one subscriber over the whole run
    puppet: a genuine agent and TPM; what it says of itself is chosen, attack by attack, through a file (lies.py)

At the end every connection that the honest agent replayed must have arrived, once a replay, and no loss must have been told.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from jarvis.capture.v1 import agent_pb2, fleet_pb2
from jarvis.capture.v1.capture_pb2 import CAPTURE_STATE_STOPPED, CaptureSpec
from jarvis_trust.ca import FleetCA
from jarvis_trust.commands import AGENT_SERVICE, CommandSigner
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, sign_manifest
from jarvis_trust.identities import Identity, Role, controller_dns_name

from testbed import replay
from testbed.attack.peers import Party, call, issue, operator
from testbed.fleet import FIRMWARE, Agent, Fleet, FleetError, wait_for
from testbed.flow_stream import FlowStream
from testbed.policy import PolicyText
from testbed.swtpm import Swtpm, TpmVendor

FLEET_SERVICE = "/jarvis.capture.v1.FleetService/"
SERVERS = ("10.77.0.2", "fd77::2")
CONNECTIONS = 40
"""To each server, a replay."""
FLOOR = 1
"""Least security version that the fleet accepts."""
_REPOSITORY = Path(__file__).resolve().parents[2]
RELEASE_KEY = _REPOSITORY / "build" / "release-key" / "release.pem"
"""Of the developer who built this."""
# Attacks attest by themselves: the loop is not to meet a lie first. Leases outlast the run's pauses.
_POLICY = PolicyText(interval_s=900, lease_s=3600, floor=FLOOR, collectors=["127.0.0.1:4739", "siem.example"])


@dataclass(slots=True, kw_only=True)
class Honest:
    """Keeps an agent busy and counts what its flows should be."""

    fleet: Fleet
    agent: Agent
    admin: grpc.Channel
    expected: Counter[tuple[str, int]] = field(default_factory=Counter)
    replays: int = 0
    trouble: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Replays until it is stopped."""
        self._thread = threading.Thread(target=self._run, name="honest agent")
        self._thread.start()

    def stop(self) -> None:
        """Lets the replay under way end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        made = replay.write_http_capture(
            self.agent.replay_directory / "honest.pcap", servers=SERVERS, port=8080, count=CONNECTIONS
        )
        try:
            while not self._stop.is_set():
                self._replay()
                self.expected.update(made)
                self.replays += 1
                self._stop.wait(0.2)
        except FleetError as error:
            self.trouble.append(str(error))

    def _replay(self) -> None:
        selector = fleet_pb2.AgentSelector(agent_ids=[self.agent.agent_id])
        request = fleet_pb2.StartCapturesRequest(selector=selector, spec=CaptureSpec(files=["honest.pcap"]))
        self._command("StartCaptures", request.SerializeToString())
        status = fleet_pb2.GetCaptureStatusesRequest(selector=selector).SerializeToString()
        until = time.monotonic() + 60.0
        while self._command("GetCaptureStatuses", status).capture.state != CAPTURE_STATE_STOPPED:
            if time.monotonic() > until:
                raise FleetError("a replay of the honest agent did not end in 60 s")
            time.sleep(0.05)

    def _command(self, rpc: str, payload: bytes) -> fleet_pb2.CaptureOutcome:
        ended, answer = call(self.admin, FLEET_SERVICE + rpc, payload)
        outcome = fleet_pb2.CaptureOutcome.FromString(answer)
        if ended != "OK" or outcome.status.code:
            raise FleetError(f"the honest agent was not served: {rpc}: {ended} {outcome.status.message}")
        return outcome


def release(directory: Path) -> Path:
    """What was built, as a release of security version 1: there must be one below it."""
    shutil.copytree(FIRMWARE, directory, ignore=shutil.ignore_patterns("root.json"))
    built = Manifest.from_bytes((FIRMWARE / MANIFEST_FILE).read_bytes())
    data, signature = sign_manifest(dataclasses.replace(built, security_version=FLOOR), RELEASE_KEY.read_bytes())
    (directory / MANIFEST_FILE).write_bytes(data)
    (directory / SIGNATURE_FILE).write_bytes(signature)
    return directory


class Arena:
    """Everything that an attack can reach. Use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        # TPMs refuse what attackers ask of them; that is no news.
        os.environ.setdefault("TSS2_LOG", "all+none")
        firmware = release(self.directory / "firmware")
        self.fleet = Fleet(directory=self.directory / "fleet", name="arena", policy=_POLICY, firmware=firmware)
        self._tpms: list[Swtpm] = []
        self.other_fleets: dict[str, Fleet] = {}
        """Beside this one, for attacks that need another policy; they end with the arena."""
        self.notes: dict[str, bytes] = {}
        """What attacks leave for one another, such as spent tokens."""

    def __enter__(self) -> Self:
        self.fleet.__enter__()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _start(self) -> None:
        self.fleet.start()
        # Those who are called by whoever must not are dialled; the honest one dials.
        carriers = {"honest": "tunnel", "victim": "direct", "puppet": "direct"}
        agents = [self.fleet.add_agent(name, carrier=carrier) for name, carrier in carriers.items()]
        for agent in agents:
            self.fleet.wait_for_state(agent, "verified", seconds=60)
        self.puppet.stop()
        self.puppet.start(env=self._puppet_environment())
        wait_for("the puppet to be verified", lambda: self.attest(self.puppet) == "OK", log=self.puppet.log)
        self.honest = Honest(fleet=self.fleet, agent=self.fleet.agents["honest"], admin=self.admin)
        self.stream = FlowStream(self.fleet)
        wait_for("the stream", lambda: self.stream.is_streaming(self.honest.agent))
        self.honest.start()

    def _stop(self) -> None:
        if hasattr(self, "honest"):
            self.honest.stop()
            self.stream.close()
        for fleet in self.other_fleets.values():
            fleet.__exit__(None, None, None)
        for tpm in self._tpms:
            tpm.stop()
        self.fleet.__exit__(None, None, None)

    def verdict(self) -> list[str]:
        """Stops the honest agent's work; what was lost of it, in words; empty when nothing was."""
        self.honest.stop()
        failures = list(self.honest.trouble)

        def found() -> Counter[tuple[str, int]]:
            return Counter((flow["dst_addr"], flow["src_port"]) for flow in self.stream.flows(self.honest.agent))

        try:
            wait_for("the honest agent's flows", lambda: found() == self.honest.expected, seconds=20)
        except FleetError:
            missing, extra = self.honest.expected - found(), found() - self.honest.expected
            failures.append(f"{missing.total()} records of the honest agent are missing, {extra.total()} came twice")
        failures += [f"loss: {loss}" for loss in self.stream.losses() if loss["agent_id"] == self.honest.agent.agent_id]
        if not self.honest.replays:
            failures.append("the honest agent replayed nothing")
        if not self.stream.is_streaming(self.honest.agent):
            failures.append("the honest agent's stream ended")
        return failures

    # -- who is there

    @property
    def victim(self) -> Agent:
        """A genuine agent that is called by those who must not."""
        return self.fleet.agents["victim"]

    @property
    def puppet(self) -> Agent:
        """A genuine agent that says what it is told."""
        return self.fleet.agents["puppet"]

    @property
    def database(self) -> Path:
        """The controller's."""
        (found,) = self.fleet.controller_directory.glob("*.db")
        return found

    @property
    def lie_file(self) -> Path:
        """Holds the name of the puppet's lie."""
        return self.directory / "lie"

    def _puppet_environment(self) -> dict[str, str]:
        self.lie_file.write_text("")
        path = [str(Path(__file__).parent / "puppet"), str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, path)), "JARVIS_LIE": str(self.lie_file)}

    @cached_property
    def ca(self) -> FleetCA:
        """The fleet's own CA: attackers hold certificates that it issued to somebody."""
        return FleetCA.load(self.fleet.controller_directory / "ca")

    @cached_property
    def foreign_ca(self) -> FleetCA:
        """A CA of a fleet of the same name that is not ours."""
        return FleetCA.create("arena")

    @cached_property
    def nobody(self) -> Party:
        """No client certificate."""
        return Party(root_pem=self.ca.certificate_pem)

    @cached_property
    def controller(self) -> Party:
        """Whoever stole a controller's certificate, but not its command key."""
        return issue(self.ca, Identity(fleet="arena", role=Role.CONTROLLER, name="thief"))

    @cached_property
    def signer(self) -> CommandSigner:
        """The fleet's command key, to make what a genuine controller made for somebody else or for another time."""
        return CommandSigner((self.fleet.controller_directory / "command.key").read_bytes())

    def to_agent(self, party: Party, agent: Agent | None = None) -> grpc.Channel:
        """Dials an agent, the victim when none is named."""
        agent = agent or self.victim
        return party.channel(f"127.0.0.1:{agent.port}", f"{agent.agent_id}.agents.arena")

    def to_controller(self, party: Party) -> grpc.Channel:
        """Dials the operators' port."""
        return party.channel(f"127.0.0.1:{self.fleet.ports[0]}", controller_dns_name("arena"))

    def to_tunnel(self, party: Party) -> grpc.Channel:
        """Dials the port of agents that dial."""
        return party.channel(f"127.0.0.1:{self.fleet.ports[2]}", controller_dns_name("arena"))

    def to_enrollment(self, party: Party | None = None) -> grpc.Channel:
        """Dials the enrolment port."""
        return (party or self.nobody).channel(f"127.0.0.1:{self.fleet.ports[1]}", controller_dns_name("arena"))

    @cached_property
    def admin(self) -> grpc.Channel:
        """The fleet's own administrator."""
        return self.to_controller(operator(self.ca, Role.ADMIN, "ada"))

    # -- what they do

    def attest(self, agent: Agent) -> str:
        """Has an agent attested; "OK", or every reason that a check gave (+ between them), or why it was not attested."""
        request = fleet_pb2.AttestAgentsRequest(selector=fleet_pb2.AgentSelector(agent_ids=[agent.agent_id]))
        ended, answer = call(self.admin, FLEET_SERVICE + "AttestAgents", request.SerializeToString())
        response = fleet_pb2.AttestAgentsResponse.FromString(answer)
        if ended != "OK" or not response.status.code:
            return ended
        reasons = {check.reason for check in response.checks} - {"", "NOT_EVALUATED"}
        return "+".join(sorted(reasons)) or response.status.message

    def release(self, agent: Agent) -> None:
        """Lets an agent that was caught attest again, honestly."""
        request = fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="next attack")
        call(self.admin, FLEET_SERVICE + "ReleaseAgent", request.SerializeToString())
        wait_for(f"{agent.name} to be verified again", lambda: self.attest(agent) == "OK", log=agent.log)

    def status_of(self, agent: Agent) -> agent_pb2.GetStatusResponse:
        """As a controller sees it."""
        with self.to_agent(self.controller, agent) as channel:
            _, answer = call(channel, AGENT_SERVICE + "GetStatus")
        return agent_pb2.GetStatusResponse.FromString(answer)

    def info_of(self, agent: Agent) -> agent_pb2.GetAgentInfoResponse:
        """As a controller sees it."""
        with self.to_agent(self.controller, agent) as channel:
            _, answer = call(channel, AGENT_SERVICE + "GetAgentInfo")
        return agent_pb2.GetAgentInfoResponse.FromString(answer)

    @cached_property
    def other_tpm(self) -> Swtpm:
        """A genuine TPM of the same vendor that is of no agent."""
        tpm = self.fleet.vendor.make(self.directory / "other-tpm")
        tpm.start()
        self._tpms.append(tpm)
        return tpm

    @cached_property
    def foreign_tpm(self) -> Swtpm:
        """A genuine TPM of a vendor whose root the fleet does not trust."""
        tpm = TpmVendor(self.directory / "foreign-vendor").make(self.directory / "foreign-tpm")
        tpm.start()
        self._tpms.append(tpm)
        return tpm

    def new_token(self, name: str) -> str:
        """A join token that nobody used."""
        path = self.directory / f"join-{name}.json"
        self.fleet.jarvisctl("enroll", "token", "-o", str(path))
        return str(json.loads(path.read_text())["token"])
