# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl flows --follow` read by a program: every object of the merged stream is kept."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self, cast

from testbed.fleet import Agent, Fleet, end


class FlowStream:
    """The stream of all agents of a fleet, from a jarvisctl process of its own."""

    def __init__(self, fleet: Fleet, *options: str, on_flow: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.other_output: list[str] = []
        self._on_flow = on_flow
        command = fleet.ctl_command("--output", "json", "flows", "--follow", "--all", *options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines = cast("IO[str]", self._process.stdout)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        for line in self._lines:
            if not line.startswith("{"):
                self.other_output.append(line)
                continue
            event = json.loads(line)
            self.events.append(event)
            if self._on_flow and event.get("event", "flow") == "flow":
                self._on_flow(event)

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event.get("event", "flow") == kind]

    def flows(self, agent: Agent | None = None) -> list[dict[str, Any]]:
        """Flow records, of one agent or of all."""
        return [flow for flow in self._of_kind("flow") if agent is None or flow["agent_id"] == agent.agent_id]

    def losses(self) -> list[dict[str, Any]]:
        """Every loss message."""
        return self._of_kind("loss")

    def statuses(self, agent: Agent) -> list[dict[str, Any]]:
        """Messages that say that the agent joined, left or changed state."""
        return [event for event in self._of_kind("status") if event["agent_id"] == agent.agent_id]

    def is_streaming(self, agent: Agent) -> bool:
        """Whether the agent's flows are arriving, as the stream said last; not while its own connection is lost."""
        streaming = False
        for event in list(self.events):
            if event.get("event") == "connection" and event["state"] == "lost":
                streaming = False
            elif event.get("event") == "status" and event["agent_id"] == agent.agent_id:
                streaming = event["streaming"]
        return streaming

    def close(self) -> None:
        """Ends the stream."""
        end(self._process)
        self._thread.join(5)
