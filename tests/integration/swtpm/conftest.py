# SPDX-License-Identifier: Apache-2.0
"""A vendor with TPMs, a small controller, and agents as processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.support import ReleaseKey

pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: the agent extra brings it")
if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
    pytest.skip("swtpm and swtpm-tools are not installed", allow_module_level=True)

from jarvis_agent.tpm import TpmWorker

from testbed.ports import free_port
from testbed.swtpm import Swtpm, TpmVendor
from tests.integration.swtpm.small_controller import FLEET, AgentLine, SmallController


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> TpmVendor:
    """One TPM manufacturer for all tests; its TPMs are made once and copied."""
    return TpmVendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture
def tpm(vendor: TpmVendor, tmp_path: Path) -> Iterator[Swtpm]:
    """A running TPM, fresh for each test."""
    with Swtpm(vendor.copy_of("first", tmp_path / "tpm")) as machine:
        yield machine


@pytest.fixture
def worker(tpm: Swtpm) -> Iterator[TpmWorker]:
    """A worker connected to `tpm`."""
    made = TpmWorker.for_tcti(tpm.tcti)
    yield made
    made.close()


@pytest.fixture
async def controller(vendor: TpmVendor) -> AsyncIterator[SmallController]:
    """Enrolment on loopback."""
    made = SmallController([vendor.root_pem])
    await made.start()
    yield made
    await made.stop()


class AgentProcess:
    """`jarvis-agent run` as a process of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], config: dict[str, object]) -> None:
        self.directory = directory
        self.address = str(config["listen"])
        self.log_path = directory / "agent.log"
        self.state_directory = directory / "state"
        self._environment = environment
        self._config_path = directory / "agent.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._served = 0
        self._config_path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def event_log(self) -> bytes:
        """Firmware event log of the newest boot."""
        found = sorted(self.state_directory.glob("firmware-events-*.jsonl"), key=lambda path: path.stat().st_mtime)
        return found[-1].read_bytes()

    async def start(self) -> None:
        """Starts it and waits until it serves."""
        served = self.log.count("serving on")
        self.spawn()
        await self.serving(served)

    def spawn(self) -> None:
        """Starts it."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jarvis_agent", "run", "--config", str(self._config_path)],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._served = self.log.count("serving on")

    async def serving(self, served: int | None = None) -> None:
        """Waits until it serves, once more than it had."""
        assert self._process is not None
        served = self._served if served is None else served
        deadline = time.monotonic() + 30.0
        while self.log.count("serving on") <= served:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            await asyncio.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the process, which must be there."""
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return self._process.pid

    async def ended(self) -> int:
        """Waits for its end; the exit status."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 60)

    async def restarted_or_ended(self, *, seconds: float) -> bool:
        """Waits until it serves once more (True) or has ended (False)."""
        assert self._process is not None
        served, deadline = self.log.count("serving on"), time.monotonic() + seconds
        while self._process.poll() is None:
            if self.log.count("serving on") > served:
                return True
            assert time.monotonic() < deadline, self.log
            await asyncio.sleep(0.05)
        return False

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, 20)

    def clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def make_agent(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    controller: SmallController,
    tpm: Swtpm,
    firmware_directory: Path,
    release_key: ReleaseKey,
    program_environment: dict[str, str],
) -> Iterator[MakeAgent]:
    """Makes agents, not started yet; each has a copy of the firmware that the test may spoil."""
    made: list[AgentProcess] = []

    def make(name: str = "agent", **settings: object) -> AgentProcess:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "replay").mkdir()
        (directory / "root.json").write_bytes(release_key.root)
        shutil.copytree(firmware_directory, directory / "firmware")
        controller.write_join_file(directory / "join.json")
        port = free_port()
        config: dict[str, object] = {
            "fleet": FLEET,
            "join_file": "join.json",
            "carrier": "direct",
            "advertise": f"127.0.0.1:{port}",
            "listen": f"127.0.0.1:{port}",
            "release_root": "root.json",
            "firmware_directory": "firmware",
            "state_directory": "state",
            "replay_directory": "replay",
            "tcti": tpm.tcti,
            "enroll_retry_s": 0.2,
        }
        agent = AgentProcess(directory, program_environment, config | settings)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.clean_up()


@pytest.fixture
async def running(make_agent: MakeAgent, controller: SmallController) -> AsyncIterator[tuple[AgentProcess, AgentLine]]:
    """A running, enrolled agent and a controller's line to it."""
    agent = make_agent()
    await agent.start()
    line = line_to(controller, agent)
    yield agent, line
    await line.close()


def line_to(controller: SmallController, agent: AgentProcess) -> AgentLine:
    """The controller's line to the only agent that is enrolled."""
    (agent_id,) = controller.enrollments.agents
    return controller.line_to(agent_id, agent.address)
