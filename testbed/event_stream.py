# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl events --follow` read by a program: every object of the stream is kept."""

from __future__ import annotations

import json
import subprocess
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Self, cast

from testbed.fleet import Fleet, FleetError, end


class EventStream:
    """The stream of the agents that the options select, from a jarvisctl process of its own."""

    def __init__(self, fleet: Fleet, *options: str, last: int = 0) -> None:
        """From now on; with `last` so many kept events come first, which tells that the stream is connected."""
        self._objects: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []
        # By the clock that the controller's is too: what happens from here on is seen, however long the connection takes.
        start = ("--last", str(last)) if last else ("--since", datetime.now(UTC).isoformat())
        command = fleet.ctl_command("--output", "json", "events", "--follow", *start, *options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines = cast("IO[str]", self._process.stdout)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        end(self._process)
        self._thread.join(5)

    def _read(self) -> None:
        for line in self._lines:
            if line.startswith("{"):
                found = json.loads(line)
                (self._objects if "event" in found else self._errors).append(found)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Events, of one type or of all.

        Raises:
            FleetError: jarvisctl has ended with an error.
        """
        if self._errors:
            raise FleetError(f"jarvisctl events ended: {self._errors}")
        found = [item for item in list(self._objects) if item["event"] == "event"]
        return [event for event in found if not kind or event["type"] == kind]

    def losses(self) -> list[dict[str, Any]]:
        """Every loss message."""
        return [item for item in list(self._objects) if item["event"] == "loss"]
