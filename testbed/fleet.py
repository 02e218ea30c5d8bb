# SPDX-License-Identifier: Apache-2.0
"""A whole fleet from the real programs: a controller and agents, each with a software TPM and its own copy of the firmware.

Every program is a process, in a network namespace when one is given, else on loopback. Used by the demo, the end-to-end tests
and the benchmarks; everything lives below one directory and ends with the `with` block.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed import ima
from testbed.boot import play
from testbed.netns import Namespace
from testbed.policy import PolicyText
from testbed.ports import free_port
from testbed.swtpm import Swtpm, TpmVendor

Setting = int | str | list[int] | list[str]
"""A value of a TOML file."""

UNREACHABLE = 3
"""Exit status of jarvisctl when the controller does not answer."""

FIRMWARE = Path(sys.prefix) / "lib" / "jarvis-capture"
"""Where the build put the signed library."""


class FleetError(RuntimeError):
    """A program did not do what the fleet needs; carries the end of its log."""


def program(name: str) -> str:
    """Full path of one of the installed programs."""
    return str(Path(sys.executable).with_name(name))


def wait_for(what: str, condition: Callable[[], Any], *, seconds: float = 30.0, log: Path | None = None) -> Any:
    """Polls until the condition gives something true; returns that."""
    until = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > until:
            tail = f"\n{log.read_text(errors='replace')[-3000:]}" if log and log.exists() else ""
            raise FleetError(f"waited {seconds:.0f} s for {what}{tail}")
        time.sleep(0.1)


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a program runs and how others reach it."""

    namespace: Namespace | None = None
    address: str = "127.0.0.1"

    def start(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a program here."""
        full_env = {**os.environ, **(env or {})}
        if self.namespace:
            return self.namespace.start(command, log=log, env=full_env)
        with log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=full_env)

    def command(self, *command: str) -> list[str]:
        """A command line that runs here."""
        return self.namespace.command(*command) if self.namespace else list(command)


@dataclass(slots=True, kw_only=True)
class Agent:
    """One host: a software TPM, its own firmware directory, one agent process at a time."""

    name: str
    directory: Path
    place: Place
    tpm: Swtpm
    port: int
    """Where it serves with carrier direct."""
    carrier: str = "tunnel"
    wrapper: Sequence[str] = ()
    """Command line that the agent's is put behind, e.g. testbed.confined's."""
    process: subprocess.Popen[bytes] | None = None
    agent_id: str = ""
    boot_id: str = ""
    """Of the host as the agent sees it; empty = this kernel's own."""

    @property
    def log(self) -> Path:
        """What the agent printed, over all its starts."""
        return self.directory / "agent.log"

    @property
    def own_id(self) -> str:
        """What the agent calls itself in its log; empty before it has read its TPM."""
        said = (
            re.findall(r"this agent is ([a-z2-7]{32}) of fleet", self.log.read_text(errors="replace"))
            if self.log.exists()
            else []
        )
        return said[-1] if said else ""

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.directory / "agent.toml"

    @property
    def library(self) -> Path:
        """Its own copy of the native core."""
        return self.directory / "firmware" / "libjarvis_capture.so"

    @property
    def replay_directory(self) -> Path:
        """Where it finds capture files."""
        return self.directory / "replay"

    def start(self, *, env: Mapping[str, str] | None = None) -> None:
        """Starts the agent."""
        command = [*self.wrapper, program("jarvis-agent"), "run", "--config", str(self.config)]
        if self.boot_id:
            # In a mount namespace of its own, so that /proc shows the agent another boot.
            shown = self.directory / "boot_id"
            shown.write_text(f"{self.boot_id}\n")
            script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, str(shown), *command]
        self.process = self.place.start(command, self.log, env)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of jarvis-agent with this configuration."""
        command = self.place.command(program("jarvis-agent"), *arguments, "--config", str(self.config))
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def reboot(self) -> None:
        """Ends the agent and boots its host: the TPM is reset, the boot id is another. `start` follows."""
        self.stop()
        self.tpm.reboot()
        self.boot_id = str(uuid.uuid4())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the agent: SIGTERM drains, SIGKILL is a crash."""
        if self.process:
            end(self.process, number)
            self.process = None


def end(process: subprocess.Popen[Any], number: signal.Signals = signal.SIGTERM) -> None:
    """Signals a process and waits; one that does not end in time is killed."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(slots=True, kw_only=True)
class Fleet:
    """The controller and its agents."""

    directory: Path
    place: Place = field(default_factory=Place)
    name: str = "demo"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """Lines of controller.toml to set, e.g. agent_timeout_s."""
    policy: PolicyText = field(default_factory=PolicyText)
    firmware: Path = FIRMWARE
    """What agents get a copy of: signed with the same release key as what was built."""
    release_root: Path = FIRMWARE / "root.json"
    """Pinned by the controller, and by each agent as a file of its own."""
    wrapper: Sequence[str] = ()
    """Command line that the controller's is put behind."""
    carrier: str = "tunnel"
    """How agents and controller reach each other, unless an agent is given another."""

    agents: dict[str, Agent] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    vendor: TpmVendor = field(init=False)
    ports: tuple[int, int, int] = field(init=False)
    """For operators, enrolment, tunnels."""

    def __enter__(self) -> Self:
        self.directory = self.directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.vendor = TpmVendor(self.directory / "tpm-vendor")
        self.ports = (free_port(), free_port(), free_port())
        self._init_controller()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for agent in self.agents.values():
            agent.stop()
            agent.tpm.stop()
        self.stop()

    @property
    def log(self) -> Path:
        """What the controller printed."""
        return self.directory / "controller.log"

    @property
    def controller_directory(self) -> Path:
        """Configuration, keys and database of the controller."""
        return self.directory / "controller"

    def _init_controller(self) -> None:
        command = [
            program("jarvis-controller"), "init", str(self.controller_directory), "--fleet", self.name,
            "--host", self.place.address, "--ek-root", str(self.vendor.roots), "--release-root", str(self.release_root),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise FleetError(f"`{' '.join(command)}` failed: {done.stdout}{done.stderr}")
        operators, enrolment, tunnels = self.ports
        set_toml(
            self.controller_directory / "controller.toml",
            listen=f"{self.place.address}:{operators}",
            enroll_listen=f"{self.place.address}:{enrolment}",
            advertise_enroll=f"{self.place.address}:{enrolment}",
            tunnel_listen=f"{self.place.address}:{tunnels}",
            advertise_tunnel=f"{self.place.address}:{tunnels}",
            **self.settings,
        )
        self.set_policy(self.policy)
        set_toml(self.controller_directory / "jarvisctl.toml", endpoint=f"{self.place.address}:{operators}")

    def set_policy(self, policy: PolicyText) -> Path:
        """Writes policy.toml. A controller that runs goes by it after a restart, or when it is applied; the version must rise."""
        self.policy = policy
        path = self.controller_directory / "policy.toml"
        path.write_text(policy.toml(sorted(f"ek-roots/{root.name}" for root in (path.parent / "ek-roots").iterdir())))
        return path

    def start(self) -> None:
        """Starts the controller and waits until it answers."""
        config = self.controller_directory / "controller.toml"
        command = [*self.wrapper, program("jarvis-controller"), "run", "--config", str(config)]
        self.process = self.place.start(command, self.log)
        wait_for("the controller to answer", lambda: self.run("agents", "list").returncode != UNREACHABLE, log=self.log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the controller."""
        if self.process:
            end(self.process, number)
            self.process = None

    def add_agent(
        self,
        name: str,
        *,
        place: Place | None = None,
        labels: Mapping[str, str] | None = None,
        join_file: Path | None = None,
        boot_log: bytes = b"",
        shown_boot_log: bytes | None = None,
        uid: int | None = None,
        wrapper: Sequence[str] = (),
        carrier: str = "",
        ima_log: bytes = b"",
        shown_ima_log: bytes | None = None,
        without_tpm: bool = False,
        **settings: Setting,
    ) -> Agent:
        """Makes a host (TPM, firmware copy, join file unless given, configuration) and starts its agent. Does not wait.

        With a boot log the TPM is extended by it first, as firmware would have done; not possible in a namespace. The agent finds
        that log on its host, or another one where one is to be shown. Likewise IMA's list, which extends PCR 10. With a uid its
        files are that user's. Without a TPM its identity is a key in its state directory.
        """
        place = place or Place()
        directory = self.directory / name
        (directory / "replay").mkdir(parents=True)
        shutil.copytree(self.firmware, directory / "firmware", ignore=shutil.ignore_patterns("root.json"))
        shutil.copyfile(self.release_root, directory / "root.json")
        if join_file is None:
            join_file = directory / "join.json"
            label_options = [option for key, value in (labels or {}).items() for option in ("--label", f"{key}={value}")]
            if without_tpm:
                label_options.append("--without-tpm")
            self.jarvisctl("enroll", "token", *label_options, "-o", str(join_file))
        if without_tpm:
            tpm = Swtpm(directory / "tpm")  # it never runs
        else:
            tpm = self.vendor.make(directory / "tpm", namespace=place.namespace)
            tpm.start()
        if boot_log:
            play(tpm.tcti, boot_log)
        if boot_log or shown_boot_log is not None:
            (directory / "boot.log").write_bytes(boot_log if shown_boot_log is None else shown_boot_log)
            settings["boot_log"] = str(directory / "boot.log")
        if ima_log:
            ima.play(tpm.tcti, ima_log)
        if ima_log or shown_ima_log is not None:
            (directory / "ima.log").write_bytes(ima_log if shown_ima_log is None else shown_ima_log)
            settings["ima_log"] = str(directory / "ima.log")
        agent = Agent(
            name=name,
            directory=directory,
            place=place,
            tpm=tpm,
            port=free_port(),
            carrier=carrier or self.carrier,
            wrapper=wrapper,
        )
        if agent.carrier == "direct":
            settings |= dict.fromkeys(("listen", "advertise"), f"{place.address}:{agent.port}")
        set_toml(
            agent.config,
            fleet=self.name,
            state_directory=str(directory / "state"),
            firmware_directory=str(directory / "firmware"),
            release_root=str(directory / "root.json"),
            tcti="none" if without_tpm else tpm.tcti,
            join_file=str(join_file),
            carrier=agent.carrier,
            replay_directory=str(agent.replay_directory),
            **settings,
        )
        self.agents[name] = agent
        if uid is not None:
            give(directory, uid)
        agent.start()
        return agent

    def wait_for_state(self, agent: Agent, state: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """Waits until the controller has the agent in this state; returns its row."""

        def row() -> dict[str, Any] | None:
            agent.agent_id = agent.own_id
            rows = self.rows("agents", "list", check=False) if agent.agent_id else []
            found = [row for row in rows if row["agent_id"] == agent.agent_id]
            return found[0] if found and found[0]["state"] == state else None

        result: dict[str, Any] = wait_for(f"{agent.name} to be {state}", row, seconds=seconds, log=agent.log)
        return result

    def ctl_command(self, *arguments: str, config: Path | None = None) -> list[str]:
        """The command line of jarvisctl, as the fleet's first admin unless another configuration is given."""
        config = config or self.controller_directory / "jarvisctl.toml"
        return self.place.command(program("jarvisctl"), "--config", str(config), *arguments)

    def run(self, *arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs jarvisctl, as another operator when another configuration is given; says nothing of its exit status."""
        command = self.ctl_command(*arguments, config=config)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def jarvisctl(self, *arguments: str, check: bool = True) -> str:
        """Runs jarvisctl; returns what it printed."""
        done = self.run(*arguments)
        if check and done.returncode != 0:
            raise FleetError(f"`jarvisctl {' '.join(arguments)}` exited with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def rows(self, *arguments: str, check: bool = True) -> list[dict[str, Any]]:
        """Runs jarvisctl with JSON output; returns its objects."""
        printed = self.jarvisctl("--output", "json", *arguments, check=check)
        return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def give(directory: Path, uid: int) -> None:
    """Makes a user the owner of a directory and of all that is in it but the software TPM's state."""
    for path in (directory, *directory.rglob("*")):
        if "tpm" not in path.relative_to(directory).parts:
            os.chown(path, uid, uid)


def set_toml(path: Path, **values: Setting) -> None:
    """Sets top-level keys of a TOML file, which need not exist; other lines stay as they are."""
    lines = path.read_text().splitlines() if path.exists() else []
    for key, value in values.items():
        line = f"{key} = {json.dumps(value)}"
        found = [number for number, old in enumerate(lines) if old.lstrip("# ").startswith(f"{key} =")]
        if found:
            lines[found[0]] = line
        else:
            lines.insert(0, line)
    path.write_text("\n".join(lines) + "\n")
