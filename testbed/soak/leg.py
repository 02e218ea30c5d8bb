# SPDX-License-Identifier: Apache-2.0
"""One leg of a soak: a namespace pair, steady traffic with churn, the capturing process, and what must hold at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from testbed.generator import DEVICE, Link, Sent, Traffic, sent
from testbed.soak.memory import Growth, Sample, growth

FLOWS, CHURN = 4_000, 40
"""At 100,000 frames a second each flow has 25 a second, and 1,000 flows a second end and begin."""
SAMPLE_S = 2.0
_START_S = 30.0
_SETTLE_S = 10.0
FRAME_OCTETS = 46  # the IP length of the generator's frames

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """What one leg does."""

    backend: str
    seconds: float
    rate: int
    """Frames a second."""

    @property
    def traffic(self) -> Traffic:
        """All of it: bounded by its number of frames."""
        return Traffic(frames=max(1, int(self.rate * self.seconds)), flows=FLOWS, rate=self.rate, churn=CHURN)

    @property
    def warm_up_s(self) -> float:
        """After which memory must not grow: tables, logs and Python's own heap have had their pages by then."""
        return min(60.0, self.seconds / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it; `failures` is empty when everything held."""

    leg: Leg
    detail: str
    """How the backend captured."""
    sent: Sent
    dropped_by_link: int
    growth: Growth
    samples: list[dict[str, Any]]
    final: dict[str, Any]
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the summary."""
        return asdict(self) | {"warm_up_s": self.leg.warm_up_s}


def run(leg: Leg, progress: Progress) -> Outcome:
    """Runs it; a RuntimeError when it cannot be run at all."""
    with tempfile.TemporaryDirectory(prefix="jarvis-soak-") as directory, Link() as link:
        generated = Path(directory) / "generated"
        with _started(link.receiver.command(*_capture_command(leg)), Path(directory) / "errors") as capture:
            lines = _lines(capture, Path(directory) / "errors")
            detail = next(lines)["ready"]
            sender = link.start(leg.traffic, log=generated)
            try:
                samples, stopped_at = [], None
                final: dict[str, Any] = {}
                for line in lines:
                    if "final" in line:
                        final = line["final"]
                        break
                    samples.append(line)
                    progress(line)
                    if stopped_at is None and sender.poll() is not None and _settled(line, leg, link):
                        stopped_at = time.monotonic()
                        capture.send_signal(signal.SIGINT)
            finally:
                if sender.poll() is None:
                    sender.kill()
                sender.wait()
        if sender.returncode != 0:
            raise RuntimeError(f"the generator failed: {generated.read_text()}")
        did, dropped = sent(generated.read_text()), link.dropped()
    grown = growth([Sample(at_s=one["at_s"], rss_kib=one["rss_kib"]) for one in samples], warm_up_s=leg.warm_up_s)
    failures = judged(did, dropped, grown, samples, final)
    return Outcome(
        leg=leg, detail=detail, sent=did, dropped_by_link=dropped, growth=grown, samples=samples, final=final, failures=failures
    )


def _capture_command(leg: Leg) -> list[str]:
    return [sys.executable, "-m", "testbed.soak.capture", DEVICE, leg.backend, str(SAMPLE_S)]


@contextmanager
def _started(command: list[str], errors: Path) -> Iterator[subprocess.Popen[str]]:
    with errors.open("w") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _lines(process: subprocess.Popen[str], errors: Path) -> Iterator[dict[str, Any]]:
    """The process's lines; a RuntimeError with its complaints when they end without the totals."""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    for text in process.stdout:
        yield json.loads(text)
    raise RuntimeError(f"the capturing process ended too early: {errors.read_text()[-2000:]}")


def _settled(line: dict[str, Any], leg: Leg, link: Link) -> bool:
    """Everything that was sent and not dropped on the way has been received, or it will not be."""
    arrived = leg.traffic.frames - link.dropped()
    return bool(line["received"] >= arrived or line["at_s"] > leg.seconds + _START_S)


def judged(did: Sent, dropped_by_link: int, grown: Growth, samples: list[dict[str, Any]], final: dict[str, Any]) -> list[str]:
    """What did not hold, one sentence each."""
    metrics, account = final["metrics"], final["account"]
    ended = sum(metrics["flows_ended"])
    expected = {
        "frames received against frames sent": (metrics["received"], did.sent),
        "frames that the link dropped": (dropped_by_link, 0),
        "frames metered against frames received": (metrics["metered"], metrics["received"]),
        "octets metered against octets sent": (metrics["metered_octets"], did.sent * FRAME_OCTETS),
        "frames in flight after a graceful stop": (metrics["in_flight"], 0),
        "flows active after a graceful stop": (metrics["flows_active"], 0),
        "flow records ended against created": (ended, metrics["flows_total"]),
        "flow records read against ended": (account["records"], ended),
        "flow records that the reader lost": (account["lost"], 0),
        "packets in the records against metered": (account["packets"], metrics["metered"]),
        "octets in the records against metered": (account["octets"], metrics["metered_octets"]),
    }
    failures = [f"{what}: {seen:,}, not {wanted:,}" for what, (seen, wanted) in expected.items() if seen != wanted]
    if metrics["flows_total"] < did.flows:
        failures.append(f"flow records: {metrics['flows_total']:,}, fewer than the {did.flows:,} flows sent")
    if not grown.within_bound:
        failures.append(
            f"memory grew by {grown.growth_kib:,.0f} KiB in {grown.samples} samples: "
            f"accepted are at most {grown.bound_kib:,} KiB in 5 samples or more"
        )
    if samples and samples[-1]["descriptors"] > samples[0]["descriptors"] + 2:
        failures.append(f"open files rose from {samples[0]['descriptors']} to {samples[-1]['descriptors']}")
    if final["engine_error"]:
        failures.append(f"the engine noted: {final['engine_error']}")
    if final["failure_count"]:
        failures.append(f"{final['failure_count']} checks failed while it ran, the first: {final['failures'][0]}")
    return failures
