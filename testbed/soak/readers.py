# SPDX-License-Identifier: Apache-2.0
"""What goes on beside the capture in a soak: each a thread that works until told to stop and keeps what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
from jarvis_native import PacketCaptureEngine
from jarvis_native.errors import CaptureError

_KEPT_FAILURES = 20


@dataclass(slots=True, kw_only=True)
class Failures:
    """Sentences about what did not hold; the first ones, and how many there were."""

    first: list[str] = field(default_factory=list)
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, sentence: str) -> None:
        """From any thread."""
        with self._lock:
            self.count += 1
            if len(self.first) < _KEPT_FAILURES:
                self.first.append(sentence)


@dataclass(slots=True, kw_only=True)
class Account:
    """Sums over every flow record that left the table."""

    records: int = 0
    packets: int = 0
    octets: int = 0
    lost: int = 0
    by_reason: dict[int, int] = field(default_factory=dict)


class Accountant:
    """One reader from the first record to the last, its records summed column by column."""

    def __init__(self, engine: PacketCaptureEngine) -> None:
        self.account = Account()
        self._reader = engine.open_flow_reader(start="oldest")

    def read(self) -> bool:
        """Takes what there is; True once the capture has stopped and every record was read."""
        while True:
            batch = self._reader.read_arrow(16_384)
            self.account.lost += batch.lost
            if batch.records:
                self._add(batch.data)
            if batch.end or not batch.records:
                return batch.end

    def _add(self, data: Any) -> None:
        account = self.account
        account.records += data.num_rows
        account.packets += pc.sum(data["fwd_packets"]).as_py() + pc.sum(data["rev_packets"]).as_py()
        account.octets += pc.sum(data["fwd_octets"]).as_py() + pc.sum(data["rev_octets"]).as_py()
        for entry in pc.value_counts(data["end_reason"]).to_pylist():
            reason = entry["values"]
            account.by_reason[reason] = account.by_reason.get(reason, 0) + entry["counts"]

    def close(self) -> None:
        """Gives the reader up."""
        self._reader.close()


class Repeated:
    """Does one thing again and again in a thread of its own."""

    def __init__(self, name: str, work: Callable[[int], None], *, every_s: float, failures: Failures) -> None:
        self.name = name
        self.times = 0
        self._work, self._every_s, self._failures = work, every_s, failures
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the repetition under way."""
        self._done.set()
        self._thread.join(timeout=30)
        if self._thread.is_alive():
            self._failures.add(f"{self.name}: does not end")

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                self._work(self.times)
            except CaptureError as error:
                self._failures.add(f"{self.name}: {error.message}")
            self.times += 1


def visitor(engine: PacketCaptureEngine) -> Callable[[int], None]:
    """Opens a reader (each time another kind), reads a little of each form, closes it."""
    kinds: tuple[dict[str, Any], ...] = (
        {"start": "oldest"},
        {"start": "newest"},
        {"start": "last", "last_records": 100},
        {"start": "oldest", "filter": "udp and host 10.0.0.1"},
    )

    def visit(number: int) -> None:
        with engine.open_flow_reader(**kinds[number % len(kinds)]) as reader:
            reader.read_batch(max_records=500)
            reader.read_text("json" if number % 2 else "csv", max_bytes=65_536)
            reader.read_arrow(1024)

    return visit


def inquirer(engine: PacketCaptureEngine, failures: Failures) -> Callable[[int], None]:
    """Asks for the top flows and for single ones; each answer must be consistent in itself."""
    keys = ("octets", "packets", "start", "last", "duration", "none")

    def ask(number: int) -> None:
        flows = engine.get_flows(limit=50, sort_by=keys[number % len(keys)])  # type: ignore[arg-type]
        for flow in flows:
            if flow.packets == 0 or flow.octets != 46 * flow.packets or flow.end_time_ns < flow.start_time_ns:
                failures.add(f"inconsistent flow in a list: {flow}")
        if flows:
            engine.lookup_flow(flows[0].flow_id)
        engine.encode_flows(limit=1000, sort_by="none", filter="port 53")

    return ask
