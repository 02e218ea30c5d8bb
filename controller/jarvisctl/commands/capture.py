# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl capture start|stop|status`: one outcome per agent, as the agents answer (`interfaces`: capture_interfaces.py)."""

import re
import uuid
from enum import StrEnum
from typing import Annotated

import typer
from jarvis.capture.v1 import capture_pb2, fleet_pb2

from jarvisctl.client import run
from jarvisctl.commands import capture_interfaces
from jarvisctl.commands.capture_outcomes import CaptureView
from jarvisctl.commands.outcomes import print_outcomes
from jarvisctl.errors import usage_error
from jarvisctl.options import AgentOption, AllOption, SelectorOption, check_range, make_selector, parse_duration, to_duration

app = typer.Typer(no_args_is_help=True, add_completion=False)

app.add_typer(capture_interfaces.app, name="interfaces", help="Interfaces of captures that run.")


class Backend(StrEnum):
    """Where frames come from."""

    AUTO = "auto"
    FILE = "file"
    PCAP = "pcap"
    AFPACKET = "afpacket"
    XDP = "xdp"
    DPDK = "dpdk"
    PFRING = "pfring"


class TimestampSource(StrEnum):
    """Whose clock stamps live packets."""

    DEFAULT = "default"
    KERNEL = "kernel"
    HARDWARE = "hardware"
    PTP = "ptp"
    NTP = "ntp"


class Tunnel(StrEnum):
    """Which IP header of a tunnelled packet makes its flow."""

    OUTER = "outer"
    INNER = "inner"
    BOTH = "both"


_TIMESTAMP_SOURCES = {
    TimestampSource.DEFAULT: capture_pb2.TIMESTAMP_SOURCE_UNSPECIFIED,
    TimestampSource.KERNEL: capture_pb2.TIMESTAMP_SOURCE_KERNEL,
    TimestampSource.HARDWARE: capture_pb2.TIMESTAMP_SOURCE_HARDWARE,
    TimestampSource.PTP: capture_pb2.TIMESTAMP_SOURCE_PTP,
    TimestampSource.NTP: capture_pb2.TIMESTAMP_SOURCE_NTP,
}
_TUNNELS = {
    Tunnel.OUTER: capture_pb2.TUNNEL_OUTER,
    Tunnel.INNER: capture_pb2.TUNNEL_INNER,
    Tunnel.BOTH: capture_pb2.TUNNEL_BOTH,
}
_STATISTICS = {
    "tcp": capture_pb2.FLOW_STATISTICS_TCP,
    "sizes": capture_pb2.FLOW_STATISTICS_SIZES,
    "intervals": capture_pb2.FLOW_STATISTICS_INTERVALS,
    "headers": capture_pb2.FLOW_STATISTICS_HEADERS,
}


def complete_statistics(typed: str) -> list[str]:
    """Lists that go on from what is typed."""
    before, comma, _ = typed.rpartition(",")
    return [f"{before}{comma}{name}" for name in _STATISTICS if name not in before.split(",")]


def _statistics(text: str) -> list[capture_pb2.FlowStatistics.ValueType]:
    names = text.split(",") if text else []
    for name in names:
        if name not in _STATISTICS:
            raise usage_error(f"--statistics {name!r}: accepted are tcp, sizes, intervals and headers, comma-separated")
    return [_STATISTICS[name] for name in dict.fromkeys(names)]


_SAMPLINGS = {"systematic": capture_pb2.SAMPLING_SYSTEMATIC, "flow-hash": capture_pb2.SAMPLING_FLOW_HASH}


@app.command()
def start(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    interface: Annotated[
        list[str] | None,
        typer.Option(
            "--interface",
            "-i",
            metavar="NAME",
            help="Network interface on the agents, or a device of backend dpdk or pfring; repeat for several.",
        ),
    ] = None,
    merge_interfaces: Annotated[
        bool, typer.Option("--merge-interfaces", help="A flow seen on two interfaces is one record, which names both.")
    ] = False,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file", metavar="FILE", help="Capture file below the agents' replay directory; repeat for one trace of several."
        ),
    ] = None,
    backend: Annotated[Backend, typer.Option("--backend", help="auto takes the best that works there.")] = Backend.AUTO,
    filter_: Annotated[str, typer.Option("--filter", "-f", metavar="BPF", help="Only packets that match.")] = "",
    snaplen: Annotated[
        int, typer.Option("--snaplen", metavar="BYTES", help="Kept of each frame: 64 to 262,144; 0: 262,144.")
    ] = 0,
    buffer_size_mb: Annotated[int, typer.Option("--buffer-size-mb", metavar="MIB", help="Kernel ring: 64 to 8,192.")] = 64,
    timestamp_source: Annotated[
        TimestampSource,
        typer.Option(
            "--timestamp-source",
            help="default: file, what it holds; live, kernel. ptp: the kernel's, carried over to the card's PTP clock; "
            "ntp: the kernel's, refused while it is not synchronised.",
        ),
    ] = TimestampSource.DEFAULT,
    promiscuous: Annotated[bool, typer.Option("--promiscuous", help="Also frames for other hosts.")] = False,
    exclusive: Annotated[
        bool,
        typer.Option(
            "--exclusive", help="Let backend xdp or dpdk take an interface's frames away from a host that uses it itself."
        ),
    ] = False,
    busy_poll_us: Annotated[
        int,
        typer.Option(
            "--busy-poll-us",
            metavar="US",
            help="With afpacket and xdp the kernel polls the driver for so long before it sleeps: 0 (off) to 1,000.",
        ),
    ] = 0,
    max_flows: Annotated[int, typer.Option("--max-flows", metavar="N", help="Live flows: 4,096 to 16,777,216.")] = 1_048_576,
    idle_timeout: Annotated[
        str, typer.Option("--idle-timeout", metavar="TIME", help="Ends a flow without packets: 30s, 5m, seconds; 0: never.")
    ] = "30s",
    active_timeout: Annotated[
        str, typer.Option("--active-timeout", metavar="TIME", help="Reports a long flow; 0: never.")
    ] = "300s",
    tunnel: Annotated[
        Tunnel, typer.Option("--tunnel", help="IP header that makes a tunnelled packet's flow; both: it counts in two flows.")
    ] = Tunnel.OUTER,
    loss_threshold: Annotated[
        int, typer.Option("--loss-threshold", metavar="FRAMES", help="More lost than this within a second is an event; 0: any.")
    ] = 0,
    sampling: Annotated[
        str,
        typer.Option(
            "--sampling",
            metavar="METHOD:N",
            help="Meter 1 in N: systematic:N every N-th packet, flow-hash:N every packet of one flow in N, the same flows on "
            "every agent. [default: every packet]",
            autocompletion=lambda: ["systematic:", "flow-hash:"],
        ),
    ] = "",
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
            autocompletion=complete_statistics,
        ),
    ] = "",
) -> None:
    """Starts a capture on every agent addressed. Needs role operator."""
    wanted = make_selector(agent, selector, everybody, changes=True)
    sampled, interval = _parse_sampling(sampling)
    spec = capture_pb2.CaptureSpec(
        interfaces=interface or (),
        merge_interfaces=merge_interfaces,
        files=file or (),
        backend=backend.value,
        filter=filter_,
        snaplen=check_range("--snaplen", snaplen, 64, 262_144, "bytes", zero="262,144"),
        buffer_size_mb=check_range("--buffer-size-mb", buffer_size_mb, 64, 8192, "MiB"),
        timestamp_source=_TIMESTAMP_SOURCES[timestamp_source],
        promiscuous=promiscuous,
        exclusive=exclusive,
        busy_poll_us=check_range("--busy-poll-us", busy_poll_us, 0, 1000, "us"),
        max_flows=check_range("--max-flows", max_flows, 4096, 16_777_216, "flows"),
        idle_timeout=to_duration(parse_duration("--idle-timeout", idle_timeout)),
        active_timeout=to_duration(parse_duration("--active-timeout", active_timeout)),
        tunnel=_TUNNELS[tunnel],
        loss_threshold=check_range("--loss-threshold", loss_threshold, 0, (1 << 64) - 1, "frames"),
        sampling=sampled,
        sampling_interval=interval,
        mirror_timestamps=mirror_timestamps,
        statistics=_statistics(statistics),
    )
    _check_source(spec)
    request = fleet_pb2.StartCapturesRequest(selector=wanted, spec=spec, request_id=str(uuid.uuid4()))
    run(
        context,
        lambda fleet: print_outcomes(
            fleet, "starting", fleet.stub.StartCaptures(request, timeout=fleet.timeout_s), CaptureView()
        ),
    )


@app.command()
def stop(
    context: typer.Context,
    *,
    agent: AgentOption = None,
    selector: SelectorOption = "",
    everybody: AllOption = False,
    discard: Annotated[bool, typer.Option("--discard", help="Do not meter what is still in the ring.")] = False,
) -> None:
    """Stops the capture on every agent addressed; its flows end and are sent. Needs role operator."""
    wanted = make_selector(agent, selector, everybody, changes=True)
    request = fleet_pb2.StopCapturesRequest(selector=wanted, discard=discard, request_id=str(uuid.uuid4()))
    run(
        context,
        lambda fleet: print_outcomes(fleet, "stopping", fleet.stub.StopCaptures(request, timeout=fleet.timeout_s), CaptureView()),
    )


@app.command()
def status(
    context: typer.Context, agent: AgentOption = None, selector: SelectorOption = "", everybody: AllOption = False
) -> None:
    """Shows the state and the counters of captures."""
    request = fleet_pb2.GetCaptureStatusesRequest(selector=make_selector(agent, selector, everybody))
    run(
        context,
        lambda fleet: print_outcomes(
            fleet, "asking", fleet.stub.GetCaptureStatuses(request, timeout=fleet.timeout_s), CaptureView()
        ),
    )


def _parse_sampling(text: str) -> tuple[capture_pb2.Sampling.ValueType, int]:
    """The method and N of METHOD:N; nothing: every packet."""
    if not text:
        return capture_pb2.SAMPLING_UNSPECIFIED, 0
    method, _, number = text.partition(":")
    if method not in _SAMPLINGS or re.fullmatch(r"[0-9]{1,9}", number) is None:
        raise usage_error(f"--sampling is {text!r}: accepted are systematic:N and flow-hash:N with N from 1 to 1,000,000")
    return _SAMPLINGS[method], check_range("--sampling", int(number), 1, 1_000_000)


def _check_source(spec: capture_pb2.CaptureSpec) -> None:
    if spec.interfaces and spec.files:
        raise usage_error(
            f"--interface is {spec.interfaces[0]!r} and --file is {spec.files[0]!r}: exactly one of the two is accepted"
        )
    if not spec.interfaces and not spec.files:
        raise usage_error("nothing to capture from: give --interface NAME, or --file FILE for each file of a trace")
    if spec.interfaces and spec.backend == Backend.FILE:
        raise usage_error(
            f"--backend is 'file' and --interface is {spec.interfaces[0]!r}: accepted for an interface are auto, pcap, afpacket, "
            "xdp, dpdk and pfring"
        )
    if spec.exclusive and spec.backend not in {Backend.XDP, Backend.DPDK}:
        raise usage_error(f"--exclusive is given and --backend is {spec.backend!r}: accepted with it are xdp and dpdk")
    if spec.files and spec.busy_poll_us:
        raise usage_error(f"--busy-poll-us is {spec.busy_poll_us} and --file is {spec.files[0]!r}: accepted for files is 0")
    if spec.files and spec.backend not in {Backend.AUTO, Backend.FILE}:
        raise usage_error(f"--backend is {spec.backend!r} and --file is {spec.files[0]!r}: accepted for files are auto and file")
