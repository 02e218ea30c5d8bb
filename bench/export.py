# SPDX-License-Identifier: Apache-2.0
"""Flow export: a capture file metered and sent as IPFIX, whole processes beside peers; and how fast records leave without loss.

Every exporter sends to a collector of its own that counts what it gets (export_sink.py): a speed is shown beside the records,
packets and octets that arrived. nfpcapd sends nothing: it writes its records to files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.session import NO_MESSAGES, CollectorSession
from jarvis_agent.export.udp import UdpTransport
from jarvis_agent.meter_exporters import Metered, new_exporter, new_stamp
from jarvis_native.engine import PacketCaptureEngine
from jarvis_native.export import ExportBlock, FlowExporter, send_block
from jarvis_native.loader import load_firmware
from rich.console import Console
from rich.table import Table

from bench.export_sink import Collected, sink
from bench.meters import Run, run_once
from bench.outputs import Counted
from bench.peers import NFPCAPD, OURS, SOFTFLOWD, Meter
from bench.programs import beside_python
from bench.rounds import in_rounds, median_of, paired_ratio
from testbed.fleet import FIRMWARE

RATES = (500_000, 1_000_000, 0)
"""Records a second; 0: as fast as they leave."""
SUSTAINED_RECORDS = 3_000_000
_OURS = "jarvis-agent meter --export ipfix"
_LOG_RECORDS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One whole process, and what its collector got; None: it sends nothing."""

    run: Run
    collected: Collected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One meter and how it is told where to send."""

    meter: Meter
    command: Callable[[Path, Path, int], list[str]] | None
    """From capture, work directory and port; None: it writes files."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        return _OURS if self.meter.name.startswith("jarvis") else self.meter.name

    @property
    def missing(self) -> Callable[[], str]:
        """Why it cannot run here."""
        return self.meter.missing


def _ours(capture: Path, _work: Path, port: int) -> list[str]:
    target = f"ipfix:127.0.0.1:{port}"
    return [beside_python("jarvis-agent"), "meter", str(capture), "--export", target, "--export-rate", "0"]


def _softflowd(capture: Path, work: Path, port: int) -> list[str]:
    command = SOFTFLOWD.command(capture, work)
    return [f"127.0.0.1:{port}" if part.startswith("127.0.0.1:") else part for part in command]


def report(capture: Path, truth: dict[str, int], *, rounds: int, cpu: int, console: Console) -> dict[str, Any]:
    """Both tables, and their figures."""
    return {
        "processes": _processes(capture, truth, rounds=rounds, cpu=cpu, console=console),
        "sustained": _sustained(capture, cpu=cpu, console=console),
    }


# ---- whole processes


def _exporters() -> Sequence[Exporter]:
    return (
        Exporter(meter=OURS, command=_ours),
        Exporter(meter=SOFTFLOWD, command=_softflowd),
        Exporter(meter=NFPCAPD, command=None),
    )


def _run(exporter: Exporter, capture: Path, cpu: int) -> Exported:
    command = exporter.command
    if command is None:
        return Exported(run=run_once(exporter.meter, capture, cpu), collected=None)
    with sink(cpu + 1) as collected:
        meter = exporter.meter
        sending = Meter(
            name=exporter.name,
            version=meter.version,
            command=lambda path, work: command(path, work, collected.port),
            counted=meter.counted,
        )
        run = run_once(sending, capture, cpu)
    return Exported(run=run, collected=collected)


def _processes(capture: Path, truth: dict[str, int], *, rounds: int, cpu: int, console: Console) -> list[dict[str, Any]]:
    with capture.open("rb") as warm:
        while warm.read(16 << 20):
            pass
    exporters = _exporters()
    measured = in_rounds(exporters, lambda exporter: _run(exporter, capture, cpu), rounds=rounds, console=console)
    ours = measured.runs.get(_OURS)
    table = Table(
        title=f"a file of {truth['packets']:,} packets, {truth['biflows']:,} biflows metered and exported, load {_load()}"
    )
    for heading in (
        "exporter",
        "wall s",
        "CPU s",
        "records sent",
        "packets sent",
        "octets sent",
        "lost by the sink",
        "time over ours",
    ):
        table.add_column(heading, justify="left" if heading == "exporter" else "right")
    rows = []
    for exporter in exporters:
        runs = measured.runs.get(exporter.name)
        if runs is None:
            continue
        last, wall = runs[-1], median_of(runs, lambda run: run.run.wall)
        ratio = paired_ratio(runs, ours, lambda run: run.run.wall) if ours else None
        table.add_row(
            exporter.name,
            f"{wall:.2f}",
            f"{median_of(runs, lambda run: run.run.cpu):.2f}",
            *_arrived(last.collected, last.run.counted),
            "?" if ratio is None else f"{ratio:.2f}x",
        )
        rows.append({"name": exporter.name, "wall_s": wall, "time_over_ours": ratio, "rounds": [asdict(run) for run in runs]})
    console.print(table)
    return rows


def _arrived(collected: Collected | None, counted: Counted) -> list[str]:
    if collected is None:
        return [f"files: {counted.flows:,}" if counted.flows is not None else "?", f"{counted.packets:,}", "", ""]
    return [f"{number:,}" for number in (collected.records, collected.packets, collected.octets, collected.dropped)]


# ---- how fast


class _Source:
    """A session's templates; the metering is over, so there are no options to tell."""

    def __init__(self, exporter: FlowExporter) -> None:
        self._exporter = exporter

    def templates(self) -> ExportBlock:
        return self._exporter.templates()

    def options(self, _exported: object) -> ExportBlock:
        return NO_MESSAGES


def _sustained(capture: Path, *, cpu: int, console: Console) -> list[dict[str, Any]]:
    """Records that are in the log already leave again and again, so that nothing but export is measured."""
    firmware = load_firmware(FIRMWARE)
    table = Table(title=f"{SUSTAINED_RECORDS:,} records over UDP to a sink on the same machine, load {_load()}")
    for heading in ("records/s asked for", "records/s", "messages/s", "records", "arrived", "lost"):
        table.add_column(heading, justify="right")
    rows = []
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        with PacketCaptureEngine(files=[capture], firmware=firmware) as engine:
            engine.enable_flow_metering(log_records=_LOG_RECORDS)
            engine.start()
            while engine.poll():
                pass
            engine.stop(graceful=True)
            for rate in RATES:
                row = _at_rate(engine, rate, cpu)
                rows.append(row)
                table.add_row(
                    *(f"{value:,}" if value else "no limit" for value in (rate,)), *(f"{row[key]:,}" for key in _COLUMNS)
                )
    finally:
        os.sched_setaffinity(0, before)
    console.print(table)
    return rows


_COLUMNS = ("records_per_second", "messages_per_second", "records", "arrived", "lost")


def _at_rate(engine: PacketCaptureEngine, rate: int, cpu: int) -> dict[str, Any]:
    metered = Metered(firmware=engine.firmware, statistics=(), sampling="none", sampling_interval=0, started_ns=time.time_ns())
    plan = ExportPlan(export_id="bench", protocol="ipfix", transport="udp", collectors=())
    with sink(cpu + 1) as collected, new_exporter(metered, plan, message_max=1400) as exporter:
        transport = UdpTransport("127.0.0.1", collected.port, send_block=partial(send_block, engine.firmware))
        session = CollectorSession(
            transport=transport, source=_Source(exporter), new_stamp=partial(new_stamp, metered, plan), records_per_second=rate
        )
        session.open()
        began = time.perf_counter()
        while exporter.totals().records < SUSTAINED_RECORDS:
            _send_log(engine, exporter, session)
        seconds = time.perf_counter() - began
        session.finish(1.0)
        totals = exporter.totals()
    return {
        "asked": rate,
        "records_per_second": round(totals.records / seconds),
        "messages_per_second": round(totals.messages / seconds),
        "records": totals.records,
        "arrived": collected.records,
        "lost": totals.records - collected.records,
    }


def _send_log(engine: PacketCaptureEngine, exporter: FlowExporter, session: CollectorSession) -> None:
    with engine.open_flow_reader() as reader:
        while True:
            batch = exporter.read(reader, flush=True)
            if batch.data.messages:
                session.send(batch.data)
            elif batch.end or not batch.more:
                return


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"
