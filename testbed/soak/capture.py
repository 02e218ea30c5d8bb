# SPDX-License-Identifier: Apache-2.0
"""The capturing process of a soak: one engine, its memory sampled, its every snapshot checked, its records accounted.

python -m testbed.soak.capture INTERFACE BACKEND SECONDS_BETWEEN_SAMPLES

Runs until SIGINT. Prints one JSON line as soon as it captures ({"ready": detail}), one a sample, and one at the end with the
totals ({"final": ...}). Memory is read from inside the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from jarvis_native import PacketCaptureEngine
from jarvis_native.types import CaptureMetrics

from testbed.soak.memory import resident_kib
from testbed.soak.readers import Accountant, Failures, Repeated, inquirer, visitor

IDLE_S, ACTIVE_S = 2.0, 5.0
MAX_FLOWS, LOG_RECORDS = 65_536, 16_384
_MONOTONIC = ("received", "metered", "metered_octets", "flows_total", "log_records_written", "elapsed_ns")


def check_snapshot(now: CaptureMetrics, before: CaptureMetrics | None, failures: Failures) -> None:
    """What must hold in every snapshot (docs/flow-semantics.md), and between two."""
    parts = now.metered + now.filtered + now.non_ip + now.malformed + now.paused + now.dropped + now.in_flight
    if now.received != parts:
        failures.add(f"received is {now.received}, its parts are {parts}: {now}")
    if now.flows_total != now.flows_active + now.flow_records_ended:
        failures.add(f"flows_total is {now.flows_total}, active and ended are {now.flows_active} + {now.flow_records_ended}")
    for name in _MONOTONIC:
        if before is not None and getattr(now, name) < getattr(before, name):
            failures.add(f"{name} went back from {getattr(before, name)} to {getattr(now, name)}")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the number is wanted


class _Soak:
    def __init__(self, engine: PacketCaptureEngine, *, sample_s: float) -> None:
        self.engine, self.failures = engine, Failures()
        self.accountant = Accountant(engine)
        self.repeated = (
            Repeated("visitor", visitor(engine), every_s=0.05, failures=self.failures),
            Repeated("inquirer", inquirer(engine, self.failures), every_s=0.1, failures=self.failures),
        )
        self._sample_s = sample_s
        self._snapshots = 0
        self._before: CaptureMetrics | None = None

    def run(self, stopping: list[bool]) -> None:
        """Until told to stop."""
        began = due = time.monotonic()
        for one in self.repeated:
            one.start()
        while not stopping:
            self.engine.poll(0.1)
            self.accountant.read()
            metrics = self.snapshot()
            if time.monotonic() >= due:
                due += self._sample_s
                self._sample(time.monotonic() - began, metrics)
        for one in self.repeated:
            one.stop()

    def snapshot(self) -> CaptureMetrics:
        """One more checked snapshot."""
        metrics = self.engine.get_metrics()
        check_snapshot(metrics, self._before, self.failures)
        self._before = metrics
        self._snapshots += 1
        return metrics

    def _sample(self, at_s: float, metrics: CaptureMetrics) -> None:
        sample = {
            "at_s": round(at_s, 3),
            "rss_kib": resident_kib(),
            "descriptors": _descriptors(),
            "received": metrics.received,
            "dropped": metrics.dropped,
            "flows_active": metrics.flows_active,
            "flows_ended": metrics.flow_records_ended,
            "failures": self.failures.count,
        }
        print(json.dumps(sample), flush=True)

    def finish(self) -> dict[str, Any]:
        """Stops gracefully, reads to the last record, returns the totals."""
        self.engine.stop()
        deadline = time.monotonic() + 30
        while not self.accountant.read():
            if time.monotonic() > deadline:
                self.failures.add("the accountant's reader comes to no end")
                break
        metrics = self.snapshot()
        self.accountant.close()
        noted = self.engine.last_error()
        return {
            "metrics": asdict(metrics),
            "account": asdict(self.accountant.account),
            "times": {one.name: one.times for one in self.repeated} | {"snapshot": self._snapshots},
            "engine_error": noted.message if noted else "",
            "failure_count": self.failures.count,
            "failures": self.failures.first,
        }


def main() -> None:
    """Command line."""
    interface, backend, sample_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    stopping: list[bool] = []
    signal.signal(signal.SIGINT, lambda _number, _frame: stopping.append(True))
    with PacketCaptureEngine(interface, backend=backend, buffer_size_mb=64, workers=1) as engine:
        engine.enable_flow_metering(
            max_flows=MAX_FLOWS, idle_timeout_s=IDLE_S, active_timeout_s=ACTIVE_S, log_records=LOG_RECORDS
        )
        engine.start()
        soak = _Soak(engine, sample_s=sample_s)
        print(json.dumps({"ready": engine.backend_detail or engine.backend}), flush=True)
        soak.run(stopping)
        final = soak.finish()
    print(json.dumps({"final": final}), flush=True)


if __name__ == "__main__":
    main()
