# SPDX-License-Identifier: Apache-2.0
"""The commands of `jarvis-agent`: run, meter, backends, version; those below `tpm` are in tpm_commands.py.

Each imports what it needs when it is called, so that `--help` needs neither gRPC nor the TPM stack nor the native library.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jarvis_agent import __version__
from jarvis_agent.tpm_commands import tpm_app

if TYPE_CHECKING:
    from jarvis_native.engine import Statistic
    from jarvis_native.loader import Firmware
    from jarvis_native.types import BackendInfo

_CPU_DIGITS = 4
DEFAULT_EXPORT_RATE = 200_000
"""As ExportOptions has it; a test compares them."""
DEFAULT_CONFIG = Path("/etc/jarvis-capture/agent.toml")

app = typer.Typer(
    name="jarvis-agent",
    help="JARVIS Capture on one host: packet capture and flow metering.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tpm_app)


class Output(StrEnum):
    """Format of the meter's flow records."""

    NONE = "none"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    IPFIX = "ipfix"


class ExportProfile(StrEnum):
    """Which information elements exported records have."""

    MINIMAL = "minimal"
    DEFAULT = "default"
    FULL = "full"


class TimeUnit(StrEnum):
    """Of the times of exported records."""

    MS = "ms"
    US = "us"
    NS = "ns"


class Tunnel(StrEnum):
    """Which IP header of a tunnelled packet makes its flow."""

    OUTER = "outer"
    INNER = "inner"
    BOTH = "both"


_EXPORTS = ("ipfix", "ipfix/tcp", "ipfix/tls", "ipfix/sctp", "netflow9", "netflow5", "sflow")
_STATISTICS: dict[str, Statistic] = {"tcp": "tcp", "sizes": "sizes", "intervals": "intervals", "headers": "headers"}


def _complete_export(typed: str) -> list[str]:
    """Protocols with their transports, up to the collector's name."""
    return [name + ":" for name in _EXPORTS if name.startswith(typed)]


def _complete_statistics(typed: str) -> list[str]:
    """Lists that go on from what is typed."""
    before, comma, _ = typed.rpartition(",")
    return [f"{before}{comma}{name}" for name in _STATISTICS if name not in before.split(",")]


def _statistics(text: str) -> tuple[Statistic, ...]:
    names = text.split(",") if text else []
    for name in names:
        if name not in _STATISTICS:
            raise typer.BadParameter(
                f"{name!r}: accepted are tcp, sizes, intervals and headers, comma-separated", param_hint="--statistics"
            )
    return tuple(_STATISTICS[name] for name in names)


class Listing(StrEnum):
    """Format of a listing."""

    TABLE = "table"
    JSON = "json"


FirmwareDirectory = Annotated[
    Path | None,
    typer.Option(
        "--firmware-dir",
        metavar="PATH",
        help="Directory of libjarvis_capture.so and its signed manifest. [default: $JARVIS_FIRMWARE_DIR, else the installed one]",
    ),
]
ReleaseRootFile = Annotated[
    Path | None,
    typer.Option(
        "--release-root",
        metavar="PATH",
        help="Release root whose keys must have signed the firmware. [default: $JARVIS_RELEASE_ROOT, else "
        "/etc/jarvis-capture/root.json, else root.json of the installed firmware]",
    ),
]


@app.command()
def run(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="PATH", help="The agent's configuration, TOML.")
    ] = DEFAULT_CONFIG,
) -> None:
    """Serve this host to the fleet's controller until SIGTERM.

    Exit codes: 0 stopped by a signal, 1 failure, 2 bad arguments or configuration.
    """
    from jarvis_trust.errors import TrustError  # noqa: PLC0415 - only for this command

    from jarvis_agent.errors import ConfigError  # noqa: PLC0415 - only for this command

    try:
        from jarvis_agent.server import run_agent  # noqa: PLC0415 - gRPC and the TPM stack
    except ModuleNotFoundError as error:
        _fail(f"run needs the Python module {error.name}: install it with pip install 'jarvis-capture[agent]'", 1)
    try:
        run_agent(config)
    except ConfigError as error:
        _fail(str(error), 2)
    except TrustError as error:
        _fail(f"{error.reason}: {error.message}", 1)
    except OSError as error:
        _fail(str(error), 1)


def _cpu_numbers(text: str) -> tuple[int, ...]:
    """CPUs separated by commas."""
    numbers = text.split(",") if text else []
    for number in numbers:
        if not (number.isascii() and number.isdigit() and len(number) <= _CPU_DIGITS):
            raise typer.BadParameter(
                f"{text!r}: accepted are CPU numbers separated by commas, as 0,1", param_hint="--worker-cpus"
            )
    return tuple(int(number) for number in numbers)


@app.command()
def meter(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Capture files (pcap, pcapng), read in this order as one trace.")
    ],
    *,
    filter_expression: Annotated[
        str, typer.Option("--filter", metavar="BPF", help="Meter only packets that match this BPF expression.")
    ] = "",
    idle: Annotated[
        float,
        typer.Option("--idle", metavar="S", help="A flow ends after so many seconds without a packet, 1 to 86400; 0: never."),
    ] = 30.0,
    active: Annotated[
        float,
        typer.Option("--active", metavar="S", help="A flow that goes on is split after so many seconds, 1 to 86400; 0: never."),
    ] = 300.0,
    max_flows: Annotated[
        int, typer.Option("--max-flows", metavar="N", help="Flows in the table at a time, 4096 to 16777216.")
    ] = 1_048_576,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Threads that meter, 1 to 64, each some of the hosts; 0: one a CPU.")
    ] = 1,
    worker_cpus: Annotated[
        str, typer.Option("--worker-cpus", metavar="N,N", help="CPU of each worker, as 0,1. [default: as the system places them]")
    ] = "",
    tunnel: Annotated[
        Tunnel, typer.Option("--tunnel", help="IP header that makes a tunnelled packet's flow; both: it counts in two flows.")
    ] = Tunnel.OUTER,
    sampling: Annotated[
        str | None,
        typer.Option(
            "--sampling",
            metavar="METHOD:N",
            help="Meter 1 in N: systematic:N every N-th packet, flow-hash:N every packet of one flow in N, the same flows on "
            "every host. [default: every packet]",
        ),
    ] = None,
    mirror_timestamps: Annotated[
        bool,
        typer.Option(
            "--mirror-timestamps",
            help="Inner flows of ERSPAN III take their times from the mirror's header; with --tunnel inner or both.",
        ),
    ] = False,
    statistics: Annotated[
        str,
        typer.Option(
            "--statistics",
            metavar="LIST",
            help="What else each flow carries, comma-separated: tcp, sizes, intervals, headers. Each takes memory of its own.",
            autocompletion=_complete_statistics,
        ),
    ] = "",
    output: Annotated[
        Output | None,
        typer.Option(
            "--output",
            help="json: one object a line; csv; parquet (needs -o); ipfix: a file as RFC 5655 has it; none: only the summary. "
            "[default: json, with --export none]",
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "-o", metavar="PATH", help="Write the records to this file, which appears when it is complete. [default: stdout]"
        ),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="PROTOCOL[/TRANSPORT]:HOST[:PORT]",
            help="Send the records to a collector: ipfix, ipfix/tcp, ipfix/tls, ipfix/sctp, netflow9, netflow5, as "
            "ipfix:[2001:db8::1]:4739 or netflow9:collector.example; or sampled frames: sflow. Repeat it for several, which all "
            "get them. [default port: 4739, of tls 4740, of NetFlow 2055, of sflow 6343]",
            autocompletion=_complete_export,
        ),
    ] = None,
    export_profile: Annotated[
        ExportProfile, typer.Option("--export-profile", help="Information elements of a record; full: with --statistics headers.")
    ] = ExportProfile.DEFAULT,
    biflow: Annotated[
        bool,
        typer.Option("--biflow", help="IPFIX: one record a flow with both directions (RFC 5103), else a record a direction."),
    ] = False,
    export_time: Annotated[TimeUnit, typer.Option("--export-time", help="Unit of times in IPFIX and NetFlow v9.")] = TimeUnit.MS,
    export_domain: Annotated[
        int,
        typer.Option(
            "--export-domain", metavar="N", help="Observation domain id; of NetFlow v9 the source id, of v5 engine type and id."
        ),
    ] = 0,
    export_rate: Annotated[
        int,
        typer.Option(
            "--export-rate",
            metavar="N",
            help="Records a second to each collector over UDP, which loses what comes too fast; 0: all at once.",
        ),
    ] = DEFAULT_EXPORT_RATE,
    sampling_rate: Annotated[
        int,
        typer.Option(
            "--sampling-rate",
            metavar="N",
            help="sflow: take 1 in N frames, at random; of those that --filter lets pass. [default: 1]",
        ),
    ] = 0,
    export_balance: Annotated[
        bool, typer.Option("--export-balance", help="Each flow goes to one of the collectors, both its directions to the same.")
    ] = False,
    export_routes: Annotated[
        bool,
        typer.Option("--export-routes", help="Profile full, NetFlow v5: next hops and prefixes by this host's routing tables."),
    ] = False,
    export_asn_database: Annotated[
        Path | None,
        typer.Option("--export-asn-database", metavar="PATH", help="Profile full, NetFlow v5: AS numbers by this MaxMind DB."),
    ] = None,
    export_tls_ca: Annotated[
        Path | None, typer.Option("--export-tls-ca", metavar="PATH", help="CA that collectors' certificates come from, PEM.")
    ] = None,
    export_tls_certificate: Annotated[
        Path | None,
        typer.Option("--export-tls-certificate", metavar="PATH", help="This exporter's certificate with its chain, PEM."),
    ] = None,
    export_tls_key: Annotated[
        Path | None, typer.Option("--export-tls-key", metavar="PATH", help="Its private key, PEM, readable by its owner alone.")
    ] = None,
    release_root: ReleaseRootFile = None,
    firmware_directory: FirmwareDirectory = None,
) -> None:
    """Meter capture files offline: flow records and a summary, no controller needed.

    The summary, one JSON object, goes to stderr, and with --output none to stdout too, as its only line.

    Exit codes: 0 done (also when a file's tail was cut: a warning names it), 1 a file is no capture file or is damaged in the
    middle, or the output or an export failed, 2 bad arguments (a collector's name or certificate, too), 3 the firmware is not
    trusted, 130 interrupted (the summary says how far it came), 141 the reader of stdout went away.
    """
    from jarvis_agent import meter as offline  # noqa: PLC0415 - the native façade
    from jarvis_agent.meter_export_options import ExportOptions  # noqa: PLC0415 - the native façade

    try:
        sampled = offline.NO_SAMPLING if sampling is None else offline.parse_sampling(sampling)
    except ValueError as error:
        _fail(f"--sampling is {error}", 2)
    asked = ExportOptions(
        targets=tuple(export or ()),
        profile=export_profile.value,
        biflow=biflow,
        time_unit=export_time.value,
        domain=export_domain,
        rate=export_rate,
        sampling_rate=sampling_rate,
        balance=export_balance,
        routes=export_routes,
        asn_database=export_asn_database,
        tls_ca=export_tls_ca,
        tls_certificate=export_tls_certificate,
        tls_key=export_tls_key,
    )
    exporting = None if asked == ExportOptions() else asked
    options = offline.MeterOptions(
        files=tuple(files),
        filter=filter_expression,
        idle_s=idle,
        active_s=active,
        max_flows=max_flows,
        workers=workers,
        worker_cpus=_cpu_numbers(worker_cpus),
        tunnel=tunnel.value,
        sampling=sampled,
        mirror_timestamps=mirror_timestamps,
        statistics=_statistics(statistics),
        output=offline.default_output(exporting) if output is None else output.value,
        output_path=output_path,
        export=exporting,
        release_root=release_root,
        firmware_directory=firmware_directory,
    )
    raise typer.Exit(offline.meter(options))


@app.command()
def backends(
    interface: Annotated[
        str | None, typer.Argument(metavar="[INTERFACE]", help="Judge for this network interface; without it, in general.")
    ] = None,
    output: Annotated[Listing, typer.Option("--output", help="A table for people, or JSON.")] = Listing.TABLE,
    release_root: ReleaseRootFile = None,
    firmware_directory: FirmwareDirectory = None,
) -> None:
    """List the capture backends, with the reason for each one that is not usable here.

    Exit codes: 0 listed, 1 failure, 2 bad arguments, 3 the firmware is not trusted.
    """
    from jarvis_native.engine import PacketCaptureEngine  # noqa: PLC0415 - the native façade
    from jarvis_native.errors import CaptureError  # noqa: PLC0415 - the native façade

    firmware = _firmware(firmware_directory, release_root)
    try:
        found = PacketCaptureEngine.get_available_backends(interface, firmware=firmware)
    except CaptureError as error:
        _fail(error.message, 1)
    typer.echo(_backends_json(found) if output is Listing.JSON else _backends_table(found))


@app.command()
def version(release_root: ReleaseRootFile = None, firmware_directory: FirmwareDirectory = None) -> None:
    """Print the version of the agent and of its firmware.

    Exit codes: 0 printed, 3 the firmware is not trusted (its reason is printed).
    """
    typer.echo(f"jarvis-agent {__version__}")
    firmware = _firmware(firmware_directory, release_root)
    typer.echo(f"libjarvis_capture {firmware.version} sha256:{firmware.digest.hex()} {firmware.directory}")


def _firmware(directory: Path | None, release_root: Path | None) -> Firmware:
    """The loaded firmware, or an error line and exit 3."""
    from jarvis_native.loader import load_firmware, read_release_root  # noqa: PLC0415 - the native façade
    from jarvis_trust.errors import FirmwareError  # noqa: PLC0415 - the native façade

    try:
        return load_firmware(directory, release_root=None if release_root is None else read_release_root(release_root))
    except FirmwareError as error:
        _fail(f"{error.reason}: {error.message}", 3)


def _backends_table(found: list[BackendInfo]) -> str:
    rows = [("BACKEND", "KIND", "USABLE", "REASON")]
    rows += [(row.name, "live" if row.live else "files", "yes" if row.usable else "no", row.reason) for row in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows)


def _backends_json(found: list[BackendInfo]) -> str:
    return json.dumps(
        [
            {"name": row.name, "description": row.description, "usable": row.usable, "reason": row.reason, "live": row.live}
            for row in found
        ],
        indent=2,
    )


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
