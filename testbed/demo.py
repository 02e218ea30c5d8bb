# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the main job from end to end, on this machine, with real parts, checking its own claims.

A controller and two hosts, each with a software TPM and a signed native core. Both enrol and attest; capture starts on both by
selector; HTTP runs between them; flows stream in from both, and leave both as IPFIX to a collector that the policy allows. Then
one byte of the second host's library is flipped: the controller sees the measured digest and quarantines the host, whatever its
agent says, while the first one goes on.

As root the hosts are network namespaces joined by a veth pair. Without root they replay a capture file, and the demo says so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from testbed import netns, replay
from testbed.fleet import Agent, Fleet, FleetError, Place, end, wait_for
from testbed.flow_stream import FlowStream
from testbed.ipfix_collector import IpfixCollector
from testbed.policy import PolicyText

PORT = 8080
COLLECTOR_PORT = 4739
CONNECTIONS = 150
"""HTTP connections to each of the server's two addresses."""
SERVER = ("10.77.0.2", "fd77::2")
LIE = Path(__file__).with_name("lying_agent")
"""A sitecustomize.py for the second agent: it reports that all is well."""

RECEIVED = ("metered", "filtered", "non_ip", "malformed", "paused", "dropped_nic", "dropped_kernel", "dropped_user", "in_flight")
"""What every received frame is one of."""

console = Console(width=150, highlight=False)


class ClaimError(AssertionError):
    """Something that the demo claims did not hold."""


def say(text: str) -> None:
    """A step's headline."""
    console.print(f"\n[bold cyan]▶ {text}[/]")


def claim(text: str, holds: bool, detail: object = "") -> None:
    """Checks a claim, and shows that it was checked."""
    if not holds:
        raise ClaimError(f"{text}: {detail}")
    console.print(f"  [green]✓[/] {text}")


SHOWN = 4
"""Flows of each host that are shown; all are counted."""


def show_first_flows(fleet: Fleet) -> Callable[[dict[str, Any]], None]:
    """Prints the first HTTP flows of each agent as they arrive."""
    shown: Counter[str] = Counter()

    def show(flow: dict[str, Any]) -> None:
        name = next((agent.name for agent in fleet.agents.values() if agent.agent_id == flow["agent_id"]), flow["agent_id"])
        shown[name] += 1
        if shown[name] <= SHOWN:
            console.print(
                f"  [yellow]{name}[/]  {flow['src_addr']}:{flow['src_port']} → {flow['dst_addr']}:{flow['dst_port']}"
                f"  fwd {flow['fwd_packets']}/{flow['fwd_octets']} B  rev {flow['rev_packets']}/{flow['rev_octets']} B"
            )

    return show


def http_flows(stream: FlowStream, agent: Agent) -> list[dict[str, Any]]:
    """The HTTP flows that came from one agent."""
    return [flow for flow in stream.flows(agent) if PORT in (flow["src_port"], flow["dst_port"])]


class NamespaceTraffic:
    """HTTP from the first host to the second, in their namespaces."""

    description = "two network namespaces joined by a veth pair"

    def __init__(self, stack: ExitStack) -> None:
        self.places: list[Place] = []
        hosts = [stack.enter_context(netns.Namespace(label)) for label in ("one", "two")]
        control = stack.enter_context(netns.Namespace("ctl"))
        netns.join(*hosts, device="cap0", addresses=(["10.77.0.1/24", "fd77::1/64"], [f"{SERVER[0]}/24", f"{SERVER[1]}/64"]))
        for number, host in enumerate(hosts):
            address = f"10.78.{number}.2"
            netns.join(control, host, device=f"mgmt{number}", addresses=([f"10.78.{number}.1/24"], [f"{address}/24"]))
            host.run("ip", "route", "add", "10.79.0.1/32", "via", f"10.78.{number}.1")
            self.places.append(Place(namespace=host, address=address))
        control.run("ip", "address", "add", "10.79.0.1/32", "dev", "lo")
        self.control = Place(namespace=control, address="10.79.0.1")
        server = hosts[1].start([sys.executable, "-m", "testbed.http_traffic", "serve", "--port", str(PORT)])
        stack.callback(end, server)
        wait_for("the HTTP server", lambda: self._fetch(1, check=False) is not None)

    def _fetch(self, count: int, *, check: bool = True) -> dict[str, list[int]] | None:
        client = self.places[0].command(
            sys.executable, "-m", "testbed.http_traffic", "fetch", "--port", str(PORT), "--count", str(count), *SERVER
        )
        done = subprocess.run(client, capture_output=True, text=True, check=False)
        if done.returncode != 0 and check:
            raise FleetError(f"the HTTP client failed: {done.stderr}")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def prepare(self, _fleet: Fleet) -> tuple[str, ...]:
        """What `capture start` is told to capture."""
        return ("--interface", "cap0")

    def run(self, count: int) -> Counter[tuple[str, int]]:
        """Connections made: (server address, client port) → how often."""
        made = self._fetch(count) or {}
        return Counter((address, port) for address, ports in made.items() for port in ports)


class ReplayTraffic:
    """The same connections as a capture file that both hosts replay."""

    description = "both hosts replay a capture file instead of capturing between namespaces"

    def __init__(self, _stack: ExitStack) -> None:
        self.places = [Place(), Place()]
        self.control = Place()
        self._made: Counter[tuple[str, int]] = Counter()

    def prepare(self, fleet: Fleet) -> tuple[str, ...]:
        """Writes the capture into each host's replay directory."""
        for agent in fleet.agents.values():
            capture = agent.replay_directory / "http.pcap"
            self._made = replay.write_http_capture(capture, servers=SERVER, port=PORT, count=CONNECTIONS)
        return ("--file", "http.pcap")

    def run(self, _count: int) -> Counter[tuple[str, int]]:
        """The connections in the file."""
        return self._made


def check_flows(stream: FlowStream, agent: Agent, made: Counter[tuple[str, int]]) -> None:
    """Each connection is exactly one flow, forward from the client."""

    def seen() -> Counter[tuple[str, int]]:
        return Counter((flow["dst_addr"], flow["src_port"]) for flow in http_flows(stream, agent))

    with contextlib.suppress(FleetError):  # the claim below says what is missing
        wait_for("the flows", lambda: seen() == made, seconds=15)
    missing, extra = made - seen(), seen() - made
    claim(
        f"{agent.name}: {sum(made.values())} connections, {sum(seen().values())} flows, each connection exactly once",
        seen() == made,
        f"missing {list(missing.items())[:5]}, extra {list(extra.items())[:5]}",
    )


def check_loss(fleet: Fleet, stream: FlowStream) -> None:
    """Nothing was lost anywhere, and every counter adds up."""
    for answer in fleet.rows("metrics", "--all"):
        row = answer["metrics"]
        lost = sum(row[kind] for kind in ("dropped_nic", "dropped_kernel", "dropped_user"))
        name = next(agent.name for agent in fleet.agents.values() if agent.agent_id == answer["agent_id"])
        claim(
            f"{name}: received {row['received']} = metered {row['metered']} + non-IP {row['non_ip']} + ..., lost {lost}",
            lost == 0 and row["received"] == sum(row[part] for part in RECEIVED),
            row,
        )
    claim("no loss message in the stream", not stream.losses(), stream.losses())


def show_agents(fleet: Fleet) -> None:
    """The fleet as an operator sees it."""
    console.print(fleet.jarvisctl("agents", "list", check=False).rstrip(), markup=False)


def flip_one_byte(agent: Agent) -> None:
    """Alters one byte in the middle of the agent's library."""
    library = bytearray(agent.library.read_bytes())
    library[len(library) // 2] ^= 1
    agent.library.write_bytes(library)


def act_export(fleet: Fleet, collector: IpfixCollector) -> None:
    """Both hosts are told to export to the collector that the policy names, and to none else."""
    say("both hosts are to export to a SIEM's IPFIX collector, over TCP")
    elsewhere = fleet.rows(
        "export", "enable", "--id", "leak", "--collector", "203.0.113.9", "--selector", "site=demo", check=False
    )
    claim("a collector that the policy does not list is refused", not any(outcome.get("ok") for outcome in elsewhere), elsewhere)
    outcomes = fleet.rows(
        "export", "enable", "--id", "siem", "--transport", "tcp", "--collector", collector.target, "--selector", "site=demo"
    )
    claim(f"the one that it lists is accepted: {collector.target}", [row["ok"] for row in outcomes] == [True, True], outcomes)


def check_export(collector: IpfixCollector, made: Counter[tuple[str, int]], hosts: int) -> None:
    """The collector has each connection once from each host: a record a direction."""

    def seen() -> Counter[tuple[str, int]]:
        flows = collector.flows()
        return Counter((destination, source_port) for _, destination, source_port, port, *_ in flows if port == PORT)

    wanted = Counter({connection: count * hosts for connection, count in made.items()})
    with contextlib.suppress(FleetError):  # the claim below says what is missing
        wait_for("the exported flows", lambda: seen() == wanted, seconds=15)
    packets = sum(flow[4] for flow in collector.flows())
    claim(
        f"the collector has {sum(seen().values())} of {sum(wanted.values())} connections, {packets} packets in all",
        seen() == wanted,
        f"missing {list((wanted - seen()).items())[:5]}, extra {list((seen() - wanted).items())[:5]}",
    )


def act_capture(fleet: Fleet, traffic: NamespaceTraffic | ReplayTraffic, collector: IpfixCollector) -> FlowStream:
    """Capture on both hosts, traffic between them, flows from both."""
    say("capture starts on both by selector, and their flows stream in as one")
    stream = FlowStream(fleet, on_flow=show_first_flows(fleet))
    for agent in fleet.agents.values():
        wait_for("the stream", functools.partial(stream.is_streaming, agent))
    source = traffic.prepare(fleet)
    outcomes = fleet.rows("capture", "start", "--selector", "site=demo", *source)
    claim("both accepted the command", [outcome["ok"] for outcome in outcomes] == [True, True], outcomes)
    made = traffic.run(CONNECTIONS)
    for agent in fleet.agents.values():
        check_flows(stream, agent, made)
    check_export(collector, made, len(fleet.agents))
    check_loss(fleet, stream)
    console.print(fleet.jarvisctl("export", "status").rstrip(), markup=False)
    return stream


def act_altered(fleet: Fleet, agent: Agent) -> None:
    """One byte of the library is flipped: the agent restarts, the controller sees it."""
    say(f"one byte of {agent.name}'s library is flipped, and its agent restarts")
    agent.stop()
    flip_one_byte(agent)
    agent.start()
    row = fleet.wait_for_state(agent, "quarantined")
    show_agents(fleet)
    console.print(f"  reason: {row['reason']}", markup=False)
    claim("QUARANTINED because of the measured digest", "FIRMWARE_UNTRUSTED_MEASUREMENT" in row["reason"], row)
    refused = fleet.rows("capture", "start", "--agent", agent.agent_id, "--interface", "lo", check=False)
    claim(f"it gets no command: {refused[0]['error']['reason']}", not refused[0]["ok"], refused)


def act_lying(fleet: Fleet, agent: Agent) -> None:
    """The same altered library under an agent that is patched to say that all is well."""
    say(f"an operator believes {agent.name} and releases it; its agent now swears that the genuine library is loaded")
    agent.stop()
    agent.start(env={"PYTHONPATH": str(LIE)})
    fleet.jarvisctl("agents", "release", agent.agent_id, "--reason", "the agent says that all is well")
    wait_for("the lie", lambda: "reporting genuine firmware" in agent.log.read_text(errors="replace"))
    row = fleet.wait_for_state(agent, "quarantined")
    console.print(f"  reason: {row['reason']}", markup=False)
    claim("QUARANTINED again: the TPM's quote contradicts the agent's log", "EVENT_LOG_MISMATCH" in row["reason"], row)


def act_goes_on(fleet: Fleet, stream: FlowStream, traffic: NamespaceTraffic | ReplayTraffic, agent: Agent) -> None:
    """The first host was not disturbed."""
    say(f"{agent.name} went on all the while")
    state = fleet.wait_for_state(agent, "verified")
    claim("still VERIFIED", state["state"] == "verified")
    if isinstance(traffic, NamespaceTraffic):
        before = len(http_flows(stream, agent))
        made = traffic.run(10)
        with contextlib.suppress(FleetError):
            wait_for("its flows", lambda: len(http_flows(stream, agent)) - before == sum(made.values()), seconds=15)
        now = len(http_flows(stream, agent)) - before
        claim(f"{sum(made.values())} more connections, {now} more flows", now == sum(made.values()))
    claim("no loss message in the stream", not stream.losses(), stream.losses())
    console.print("  " + fleet.jarvisctl("audit", "verify").strip().replace("\n", "\n  "), markup=False)


@contextlib.contextmanager
def fleet_of_two(stack: ExitStack, directory: Path, reason: str) -> Iterator[tuple[Fleet, NamespaceTraffic | ReplayTraffic]]:
    """Controller and two agents that were started and will enrol."""
    traffic = ReplayTraffic(stack) if reason else NamespaceTraffic(stack)
    console.print(f"  {reason + ': ' if reason else ''}{traffic.description}")
    policy = PolicyText(interval_s=2, collectors=[f"{traffic.control.address}:{COLLECTOR_PORT}"])
    with Fleet(directory=directory, place=traffic.control, policy=policy) as fleet:
        fleet.start()
        for name, place in zip(("host-one", "host-two"), traffic.places, strict=True):
            fleet.add_agent(name, place=place, labels={"site": "demo"})
        yield fleet, traffic


def run(reason: str) -> None:
    """The whole demonstration; with a reason, by replay."""
    began = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jarvis-demo-")))
        say("a controller and two hosts, each with its own TPM: they enrol and attest")
        fleet, traffic = stack.enter_context(fleet_of_two(stack, directory, reason))
        one, two = fleet.agents.values()
        for agent in (one, two):
            fleet.wait_for_state(agent, "verified")
        show_agents(fleet)
        claim("both enrolled by their TPM and attested", True)
        collector = stack.enter_context(IpfixCollector(traffic.control, COLLECTOR_PORT))
        act_export(fleet, collector)
        stream = act_capture(fleet, traffic, collector)
        stack.callback(stream.close)
        act_altered(fleet, two)
        act_lying(fleet, two)
        act_goes_on(fleet, stream, traffic, one)
    console.print(f"\n[bold green]Every claim held.[/] {time.monotonic() - began:.0f} s after set-up.")


def main() -> None:
    """Exit status 1 when a claim failed."""
    parser = argparse.ArgumentParser(prog="testbed.demo")
    parser.add_argument("--replay", action="store_true", help="replay a capture file even where namespaces could be made")
    arguments = parser.parse_args()
    try:
        run("asked for" if arguments.replay else netns.is_available())
    except (ClaimError, FleetError) as error:
        console.print(f"\n[bold red]FAILED:[/] {error}", markup=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
