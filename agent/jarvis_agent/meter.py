# SPDX-License-Identifier: Apache-2.0
"""The offline meter: capture files in, flow records and one JSON summary out. It needs no controller.

Data flow: files → native core (filter, decode, flow table) → lossless readers → sink (meter_output.py), and a thread a collector
(meter_export.py). Python's part is one call per 0.1 s of metering and one per 1 MiB of text. The summary goes to stderr, and to
stdout too when the records go nowhere.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jarvis_native.engine import PacketCaptureEngine, Sampling, Statistic, Tunnel
from jarvis_native.errors import CaptureError, FilterError, InvalidArgument
from jarvis_native.loader import load_firmware, read_release_root
from jarvis_native.reader import FlowReader
from jarvis_native.types import CaptureMetrics
from jarvis_trust.errors import FirmwareError

from jarvis_agent.export.errors import ExportError
from jarvis_agent.meter_output import OutputError, OutputFormat, Sink, check_output, open_sink, write_all
from jarvis_agent.meter_terminal import Interrupt, Progress, silence_stdout

if TYPE_CHECKING:  # imported when there is something to export: the meter is started often, and on small files
    from jarvis_agent.meter_export import CollectorExports
    from jarvis_agent.meter_export_options import ExportOptions
    from jarvis_agent.meter_exporters import Exported, Metered

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNTRUSTED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

DEFAULT_IDLE_S = 30.0
DEFAULT_ACTIVE_S = 300.0
DEFAULT_MAX_FLOWS = 1_048_576
NO_SAMPLING: tuple[Sampling, int] = ("none", 0)

_SMALLEST_LOG = 1024  # records; nobody reads them when the output is none
_SHORT_S = 0.05  # a look at the files that took less was cut short
_MOST_WORKERS = 64
_MOST_INTERVAL = 1_000_000
_OPTIONS = {
    "filter": "--filter",
    "idle_timeout_s": "--idle",
    "active_timeout_s": "--active",
    "max_flows": "--max-flows",
    "sampling_interval": "--sampling",
    "mirror_timestamps": "--mirror-timestamps",
    "tunnel": "--tunnel",
    "workers": "--workers",
    "worker_cpus": "--worker-cpus",
    "worker_cpu_count": "--worker-cpus: the number of CPUs",
    "statistics": "--statistics",
    "asn_database": "--export-asn-database",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterOptions:
    """What to meter, and where the records go."""

    files: tuple[Path, ...]
    """Capture files, read in this order as one trace."""
    filter: str = ""
    """BPF expression; empty = everything."""
    idle_s: float = DEFAULT_IDLE_S
    """Seconds without a packet after which a flow ends; 0 = never."""
    active_s: float = DEFAULT_ACTIVE_S
    """Seconds after which a flow that goes on is reported; 0 = never."""
    max_flows: int = DEFAULT_MAX_FLOWS
    """Live flows, 4,096..16,777,216."""
    workers: int = 1
    """Threads that meter, 1..64; 0 = one for each CPU that this process may use. More than one take no tunnel = "both"."""
    worker_cpus: tuple[int, ...] = ()
    """CPU of each worker; empty = not pinned."""
    tunnel: Tunnel = "outer"
    """Which IP header of a tunnelled packet makes its flow."""
    sampling: tuple[Sampling, int] = NO_SAMPLING
    """Which packets are metered, and N of 1 in N."""
    mirror_timestamps: bool = False
    """Inner flows of ERSPAN III take their times from the mirror's header."""
    statistics: tuple[Statistic, ...] = ()
    """What else each flow carries."""
    output: OutputFormat = "json"
    output_path: Path | None = None
    """File for the records; None = standard output."""
    export: ExportOptions | None = None
    """Collectors that get the records besides, and the form of output "ipfix"; None: no collector, the usual form."""
    release_root: Path | None = None
    """Public key that must have signed the firmware; None = the default one."""
    firmware_directory: Path | None = None
    """Where the native library is; None = the default directory."""


def default_output(export: ExportOptions | None) -> OutputFormat:
    """What --output is when it is not given: who exports wants no text besides."""
    return "none" if export is not None and export.targets else "json"


def parse_sampling(text: str) -> tuple[Sampling, int]:
    """The two halves of METHOD:N.

    Raises:
        ValueError: it has another form, or N is out of range.
    """
    method, _, digits = text.partition(":")
    interval = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 10 else 0
    if method in {"systematic", "flow-hash"} and 1 <= interval <= _MOST_INTERVAL:
        return cast("Sampling", method), interval
    raise ValueError(f"{text!r}: accepted are systematic:N and flow-hash:N with N from 1 to {_MOST_INTERVAL}")


def meter(options: MeterOptions) -> int:
    """Meters the files and returns the exit code; errors and warnings are lines on stderr."""
    if contradiction := _contradiction(options):
        sys.stderr.write(f"error: {contradiction}\n")
        return EXIT_USAGE
    try:
        check_output(options.output, options.output_path)
        _check_export(options)
        return _meter(options)
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (FirmwareError, CaptureError, OutputError, ExportError, OSError) as error:
        sentence, code = _explained(error, options)
        sys.stderr.write(f"error: {sentence}\n")
        return code


def _contradiction(options: MeterOptions) -> str:
    """What is wrong in terms of the options, where the native core's sentence would be in those of its fields; else nothing."""
    if not 0 <= options.workers <= _MOST_WORKERS:
        return f"--workers is {options.workers}: accepted are 1 to {_MOST_WORKERS}, and 0 for one a CPU"
    if options.workers > 1 and options.tunnel == "both":
        return f"--tunnel is both and --workers is {options.workers}: accepted are outer and inner, or one worker"
    if options.mirror_timestamps and options.tunnel == "outer":
        return "--mirror-timestamps is given and --tunnel is outer: accepted with it are inner and both"
    return ""


def _explained(error: Exception, options: MeterOptions) -> tuple[str, int]:
    """One sentence and the exit code."""
    match error:
        case FirmwareError():
            return f"{error.reason}: {error.message}", EXIT_UNTRUSTED
        case CaptureError():
            usage = isinstance(error, InvalidArgument | FilterError) or error.field == "asn_database"
            return f"{_of_export(error)}{_about_option(error)}", EXIT_USAGE if usage else EXIT_FAILURE
        case OutputError():
            return str(error), EXIT_USAGE if error.usage else EXIT_FAILURE
        case ExportError():
            usage = error.is_permanent or error.reason == "EXPORT_UNRESOLVED"
            return f"{_of_export(error)}{error.reason}: {error.message}", EXIT_USAGE if usage else EXIT_FAILURE
        case _ if not isinstance(error, OSError):
            return f"{_of_export(error)}{type(error).__name__}: {error}", EXIT_FAILURE
        case _:
            return f"{options.output_path or 'standard output'}: {getattr(error, 'strerror', None) or error}", EXIT_FAILURE


def _meter(options: MeterOptions) -> int:
    began = time.monotonic()
    interrupt, progress = Interrupt(), Progress()
    with (
        interrupt.armed(),
        _engine(options) as engine,
        _collectors(options, engine) as collectors,
        _sink(options, engine) as sink,
    ):
        try:
            _say_memory(engine)
            if collectors is not None:
                collectors.open()
            engine.start()
            damage = _pump(engine, sink, collectors, interrupt, progress)
            exported = [] if collectors is None else collectors.finish()
        finally:
            progress.clear()
        metrics = engine.get_metrics()
    summary = json.dumps(_summary(metrics, time.monotonic() - began) | _export_summary(sink, exported))
    if sink is None:
        write_all(sys.stdout.fileno(), summary.encode() + b"\n")
    if sink is not None or not sys.stderr.isatty():  # nobody wants to see it twice
        sys.stderr.write(summary + "\n")
    if metrics.received and metrics.non_ip == metrics.received:
        sys.stderr.write(f"warning: no packet of {metrics.received} has an IP header behind a link layer that is decoded\n")
    for error in damage:
        sys.stderr.write(f"warning: {error.message}\n")
    worst = EXIT_OK if all(_only_cut(error) for error in damage) else EXIT_FAILURE
    for failure in [] if collectors is None else collectors.errors():
        sentence, worst = _explained(failure, options)
        sys.stderr.write(f"error: {sentence}\n")
    return EXIT_INTERRUPTED if interrupt.seen else worst


def _check_export(options: MeterOptions) -> None:
    if options.export is not None:
        from jarvis_agent.meter_export_options import check_export  # noqa: PLC0415 - see above

        check_export(options.export, to_file=options.output == "ipfix")


def _engine(options: MeterOptions) -> PacketCaptureEngine:
    """An engine on the files with metering on."""
    root = None if options.release_root is None else read_release_root(options.release_root)
    firmware = load_firmware(options.firmware_directory, release_root=root)
    engine = PacketCaptureEngine(
        files=options.files,
        backend="file",
        filter=options.filter,
        workers=_threads(options),
        worker_cpus=options.worker_cpus,
        firmware=firmware,
    )
    engine.enable_flow_metering(
        max_flows=options.max_flows,
        idle_timeout_s=options.idle_s,
        active_timeout_s=options.active_s,
        log_records=_SMALLEST_LOG if options.output == "none" and options.export is None else 0,
        tunnel=options.tunnel,
        sampling=options.sampling[0],
        sampling_interval=options.sampling[1],
        mirror_timestamps=options.mirror_timestamps,
        statistics=_statistics(options),
    )
    return engine


def _statistics(options: MeterOptions) -> tuple[Statistic, ...]:
    """Those that are asked for, and those that the exports' profile has."""
    if options.export is None:
        return options.statistics
    from jarvis_agent.meter_export_options import statistics_of_profile  # noqa: PLC0415 - see above

    return tuple(dict.fromkeys(options.statistics + statistics_of_profile(options.export)))


def _threads(options: MeterOptions) -> int:
    """Capture threads. One worker that is not pinned needs none: this thread does its work."""
    workers = options.workers
    if workers == 0:
        workers = 1 if options.tunnel == "both" else min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return 0 if workers == 1 and not options.worker_cpus else workers


def _sink(options: MeterOptions, engine: PacketCaptureEngine) -> AbstractContextManager[Sink | None]:
    def ipfix(descriptor: int) -> Sink:
        from jarvis_agent.meter_export_options import ExportOptions  # noqa: PLC0415 - see above
        from jarvis_agent.meter_ipfix import IpfixSink  # noqa: PLC0415 - see above

        return IpfixSink(descriptor, engine, _metered(options, engine), options.export or ExportOptions())

    return open_sink(options.output, options.output_path, _statistics(options), ipfix=ipfix)


def _collectors(options: MeterOptions, engine: PacketCaptureEngine) -> AbstractContextManager[CollectorExports | None]:
    if options.export is None or not options.export.targets:
        return nullcontext()
    from jarvis_agent.meter_export import prepare_exports  # noqa: PLC0415 - see above

    return prepare_exports(engine, _metered(options, engine), options.export)


def _metered(options: MeterOptions, engine: PacketCaptureEngine) -> Metered:
    from jarvis_agent.meter_exporters import Metered, open_routes  # noqa: PLC0415 - see above

    return Metered(
        firmware=engine.firmware,
        statistics=_statistics(options),
        sampling=options.sampling[0],
        sampling_interval=options.sampling[1],
        started_ns=time.time_ns(),
        routes=None if options.export is None else open_routes(options.export, engine.firmware),
    )


def _export_summary(sink: Sink | None, exported: list[Exported]) -> dict[str, Any]:
    """Keys of exports, where there are any."""
    if not exported and sink is None:
        return {}
    from jarvis_agent.meter_exporters import summary_of  # noqa: PLC0415 - see above
    from jarvis_agent.meter_ipfix import IpfixSink  # noqa: PLC0415 - see above

    if isinstance(sink, IpfixSink):
        exported = [*exported, sink.result()]
    return summary_of(exported) if exported else {}


def _say_memory(engine: PacketCaptureEngine) -> None:
    """What the optional statistics take of the flow table, before anything is metered; nothing when there are none."""
    metrics = engine.get_metrics()
    if metrics.statistics_bytes:
        share = f"{metrics.statistics_bytes / 2**20:.1f} MiB of the flow table's {metrics.flow_table_bytes / 2**20:.1f} MiB"
        sys.stderr.write(f"statistics take {share}\n")


def _pump(
    engine: PacketCaptureEngine,
    sink: Sink | None,
    collectors: CollectorExports | None,
    interrupt: Interrupt,
    progress: Progress,
) -> list[CaptureError]:
    """Meters until the end of the files or an interrupt, the records into the sink. Returns what was damaged on the way."""
    reader = engine.open_flow_reader(lossless=True) if sink is not None else None
    if collectors is not None:
        collectors.start()
    more = True
    while more and not interrupt.seen:
        began = time.monotonic()
        try:
            more = engine.poll()
        except CaptureError:  # reading failed: what was metered so far is kept, and the error is among engine.errors()
            more = False
        if reader is not None and sink is not None:
            _drain(reader, sink, to_the_end=False)
        if collectors is not None and time.monotonic() - began < _SHORT_S:
            collectors.wait_progress(_SHORT_S)  # the log is full, and waits for them
        progress.show(engine)
    engine.stop(graceful=False)
    if reader is not None and sink is not None:
        _drain(reader, sink, to_the_end=True)
    return engine.errors()


def _drain(reader: FlowReader, sink: Sink, *, to_the_end: bool) -> None:
    """Moves the finished records that there are into the sink."""
    while True:
        batch = sink.take(reader)
        if batch.lost:
            raise OutputError(f"{batch.lost} flow records were overwritten before they were written out")
        if batch.end or not (batch.more or (to_the_end and batch.records)):
            return


def _summary(metrics: CaptureMetrics, seconds: float) -> dict[str, int | float]:
    """The summary's keys in their order: packets are those received, flows the records that left, others as in CaptureMetrics."""
    return {
        "packets": metrics.received,
        "ip_packets": metrics.metered,
        "octets": metrics.metered_octets,
        "flows": metrics.flow_records_ended,
        "malformed": metrics.malformed,
        "dropped": metrics.dropped,
        "seconds": round(seconds, 6),
        "packets_per_second": round(metrics.received / seconds) if seconds > 0 else 0,
        "filtered": metrics.filtered,
        "non_ip": metrics.non_ip,
        "evicted": metrics.flows_ended[5],
        "truncated": metrics.truncated,
        "fragments_matched": metrics.fragments_matched,
        "fragments_unmatched": metrics.fragments_unmatched,
        "time_regressions": metrics.time_regressions,
        "tunnelled": metrics.tunnelled,
        "tunnelled_octets": metrics.tunnelled_octets,
        "unsampled": metrics.unsampled,
        "flow_table_bytes": metrics.flow_table_bytes,
        "statistics_bytes": metrics.statistics_bytes,
    }


def _only_cut(error: CaptureError) -> bool:
    """The file was cut short: what it still holds is whole."""
    return ": the file ends inside " in error.message


def _about_option(error: CaptureError) -> str:
    """The message with the option's name in place of the field's."""
    option = _OPTIONS.get(error.field)
    if option is None:
        return error.message
    rest = error.message.removeprefix(f"{error.field} ")
    return f"{option}: {rest}" if rest == error.message else f"{option} {rest}"


def _of_export(error: Exception) -> str:
    """The option whose export it is about."""
    notes = getattr(error, "__notes__", [])
    return f"--export {notes[0]}: " if notes else ""
