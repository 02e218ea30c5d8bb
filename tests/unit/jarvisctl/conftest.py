# SPDX-License-Identifier: Apache-2.0
"""A fake controller on loopback with real certificates, and jarvisctl as a process of its own that talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role
from jarvis_trust.keyfiles import write_private

from tests.fakes.fleet_service import FakeFleetService, serve

FLEET = "test.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one run of jarvisctl ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def ca() -> FleetCA:
    return FleetCA.create(FLEET)


def write_config(
    directory: Path, ca: FleetCA, endpoint: str, *, identity: Identity | None = None, lifetime: timedelta = timedelta(hours=1)
) -> Path:
    """jarvisctl.toml with an operator's certificate beside it."""
    key = generate_key()
    identity = identity or Identity(fleet=FLEET, role=Role.ADMIN, name="alice")
    (directory / "ca.pem").write_bytes(ca.certificate_pem)
    (directory / "alice.pem").write_bytes(ca.issue(identity, public_key_of(key), lifetime))
    write_private(directory / "alice.key", key)
    config = directory / "jarvisctl.toml"
    config.write_text(
        f'endpoint = "{endpoint}"\nfleet = "{FLEET}"\nca = "ca.pem"\ncertificate = "alice.pem"\nkey = "alice.key"\n',
        encoding="utf-8",
    )
    return config


async def start_ctl(*arguments: str, config: Path | None = None, **environment: str) -> asyncio.subprocess.Process:
    """Starts jarvisctl; stdout and stderr are pipes."""
    before = ["--config", str(config)] if config else []
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jarvisctl", *before, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TZ": "UTC", "COLUMNS": "200", **environment},
    )  # fmt: skip


async def run_ctl(*arguments: str, config: Path | None = None, **environment: str) -> Result:
    """Runs jarvisctl to its end."""
    process = await start_ctl(*arguments, config=config, **environment)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return Result(code=process.returncode or 0, out=out.decode(), err=err.decode())


@dataclass(slots=True, kw_only=True)
class Controller:
    """The fake controller and the way to it."""

    service: FakeFleetService
    server: aio.Server
    port: int
    config: Path
    ca: FleetCA

    async def ctl(self, *arguments: str) -> Result:
        return await run_ctl(*arguments, config=self.config)

    async def restart(self) -> None:
        """The same service on the same port, as after a crash."""
        await self.server.stop(None)
        self.server, _ = await serve(self.service, self.ca, port=self.port)


@pytest_asyncio.fixture
async def controller(tmp_path: Path, ca: FleetCA) -> AsyncIterator[Controller]:
    service = FakeFleetService()
    server, port = await serve(service, ca)
    here = Controller(service=service, server=server, port=port, config=write_config(tmp_path, ca, f"localhost:{port}"), ca=ca)
    yield here
    await here.server.stop(None)
