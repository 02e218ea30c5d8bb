# SPDX-License-Identifier: Apache-2.0
"""From the wire's CaptureSpec to the engine's arguments: defaults filled in, files kept below the replay directory.

Ranges are the native core's to judge; here is only what it cannot know: the agent's directories and the wire's enums.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from jarvis.capture.v1.capture_pb2 import (
    FLOW_STATISTICS_HEADERS,
    FLOW_STATISTICS_INTERVALS,
    FLOW_STATISTICS_SIZES,
    FLOW_STATISTICS_TCP,
    SAMPLING_FLOW_HASH,
    SAMPLING_SYSTEMATIC,
    SAMPLING_UNSPECIFIED,
    TIMESTAMP_SOURCE_HARDWARE,
    TIMESTAMP_SOURCE_KERNEL,
    TIMESTAMP_SOURCE_NTP,
    TIMESTAMP_SOURCE_PTP,
    TIMESTAMP_SOURCE_UNSPECIFIED,
    TUNNEL_BOTH,
    TUNNEL_INNER,
    TUNNEL_OUTER,
    TUNNEL_UNSPECIFIED,
    CaptureSpec,
)
from jarvis_native.engine import Sampling, Statistic, TimestampSource, Tunnel

from jarvis_agent.errors import RequestError

MAX_FILES = 256
_PCAP_DEVICE = "pcap:"
DEFAULT_BUFFER_MB = 64
DEFAULT_MAX_FLOWS = 1_048_576
DEFAULT_IDLE_S = 30.0
DEFAULT_ACTIVE_S = 300.0

_TIMESTAMP_SOURCES: dict[int, TimestampSource] = {
    TIMESTAMP_SOURCE_UNSPECIFIED: "default",
    TIMESTAMP_SOURCE_KERNEL: "kernel",
    TIMESTAMP_SOURCE_HARDWARE: "hardware",
    TIMESTAMP_SOURCE_PTP: "ptp",
    TIMESTAMP_SOURCE_NTP: "ntp",
}
_TUNNELS: dict[int, Tunnel] = {TUNNEL_UNSPECIFIED: "outer", TUNNEL_OUTER: "outer", TUNNEL_INNER: "inner", TUNNEL_BOTH: "both"}
_STATISTICS: dict[int, Statistic] = {
    FLOW_STATISTICS_TCP: "tcp",
    FLOW_STATISTICS_SIZES: "sizes",
    FLOW_STATISTICS_INTERVALS: "intervals",
    FLOW_STATISTICS_HEADERS: "headers",
}

_SAMPLINGS: dict[int, Sampling] = {
    SAMPLING_UNSPECIFIED: "none",
    SAMPLING_SYSTEMATIC: "systematic",
    SAMPLING_FLOW_HASH: "flow-hash",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """Arguments of one engine, and the specification they came from."""

    spec: CaptureSpec
    interfaces: tuple[str, ...]
    files: tuple[Path, ...]
    """Resolved, below the replay directory."""
    backend: str
    filter: str
    snaplen: int
    buffer_size_mb: int
    timestamp_source: TimestampSource
    promiscuous: bool
    exclusive: bool
    busy_poll_us: int
    max_flows: int
    idle_timeout_s: float
    active_timeout_s: float
    tunnel: Tunnel
    loss_threshold: int
    sampling: Sampling
    sampling_interval: int
    mirror_timestamps: bool
    statistics: tuple[Statistic, ...]
    merge_interfaces: bool
    workers: int
    """Always threads: the event loop never moves a capture itself."""
    worker_cpus: tuple[int, ...]

    @property
    def is_live(self) -> bool:
        """From interfaces; else from files."""
        return bool(self.interfaces)


def plan_capture(spec: CaptureSpec, *, replay_directory: Path | None, worker_cpus: tuple[int, ...]) -> CapturePlan:
    """The engine's arguments for this specification.

    Raises:
        RequestError: interfaces and files both or neither, a device with arguments, a file (also of a device pcap:FILE) outside
            the replay directory, an unknown timestamp source, tunnel, sampling or statistic.
    """
    if bool(spec.interfaces) == bool(spec.files):
        found = f"{len(spec.interfaces)} interfaces and {len(spec.files)} files"
        raise RequestError(("spec.interfaces", f"{found}; exactly one of interfaces and files is accepted"))
    if spec.timestamp_source not in _TIMESTAMP_SOURCES:
        accepted = "unspecified (0), kernel (1), hardware (2), ptp (3) and ntp (4) are accepted"
        raise RequestError(("spec.timestamp_source", f"{spec.timestamp_source}; {accepted}"))
    if spec.tunnel not in _TUNNELS:
        raise RequestError(("spec.tunnel", f"{spec.tunnel}; unspecified (0), outer (1), inner (2) and both (3) are accepted"))
    if spec.sampling not in _SAMPLINGS:
        raise RequestError(("spec.sampling", f"{spec.sampling}; unspecified (0), systematic (1) and flow hash (2) are accepted"))
    for index, kind in enumerate(spec.statistics):
        if kind not in _STATISTICS:
            raise RequestError(
                (f"spec.statistics[{index}]", f"{kind}; tcp (1), sizes (2), intervals (3) and headers (4) are accepted")
            )
    # What goes through libpcap has one worker; and a replayed packet can only be in two flows where one worker meets them all.
    through_libpcap = any(name.startswith(_PCAP_DEVICE) for name in spec.interfaces)
    many = not through_libpcap if spec.interfaces else _TUNNELS[spec.tunnel] != "both"
    return CapturePlan(
        spec=spec,
        interfaces=tuple(
            plan_interface(f"spec.interfaces[{index}]", name, replay_directory) for index, name in enumerate(spec.interfaces)
        ),
        files=_replay_files(spec.files, replay_directory),
        backend=spec.backend or "auto",
        filter=spec.filter,
        snaplen=spec.snaplen,
        buffer_size_mb=spec.buffer_size_mb or DEFAULT_BUFFER_MB,
        timestamp_source=_TIMESTAMP_SOURCES[spec.timestamp_source],
        promiscuous=spec.promiscuous,
        exclusive=spec.exclusive,
        busy_poll_us=spec.busy_poll_us,
        max_flows=spec.max_flows or DEFAULT_MAX_FLOWS,
        idle_timeout_s=_seconds(spec.idle_timeout) if spec.HasField("idle_timeout") else DEFAULT_IDLE_S,
        active_timeout_s=_seconds(spec.active_timeout) if spec.HasField("active_timeout") else DEFAULT_ACTIVE_S,
        tunnel=_TUNNELS[spec.tunnel],
        loss_threshold=spec.loss_threshold,
        sampling=_SAMPLINGS[spec.sampling],
        sampling_interval=spec.sampling_interval,
        mirror_timestamps=spec.mirror_timestamps,
        statistics=tuple(_STATISTICS[kind] for kind in spec.statistics),
        merge_interfaces=spec.merge_interfaces,
        workers=len(worker_cpus) or 1 if many else 1,
        worker_cpus=worker_cpus if many else (),
    )


def plan_interface(field: str, name: str, replay_directory: Path | None) -> str:
    """The interface or device with the file of a PF_RING device pcap:FILE resolved; the core lets no other name hold a path.

    Raises:
        RequestError: naming `field`: a device with arguments, or a file outside the replay directory.
    """
    if not name:
        raise RequestError((field, "an empty name; a network interface or a device is accepted"))
    if "," in name:
        found = f"{name[:200]!r} carries device arguments, which can name files of this host"
        accepted = "accepted is the name alone of a device that this agent's dpdk_eal_args make (--vdev)"
        raise RequestError((field, f"{found}; {accepted}"))
    rest = name.removeprefix(_PCAP_DEVICE)
    if not name.startswith(_PCAP_DEVICE) or rest == "any" or _is_interface(rest):
        return name
    if replay_directory is None:
        raise RequestError((field, f"{name[:200]!r}; this agent has no replay_directory, only interfaces are accepted"))
    return _PCAP_DEVICE + str(_replay_file(field, rest, replay_directory.resolve()))


def _is_interface(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):
        return False
    return True


def _replay_files(names: object, replay_directory: Path | None) -> tuple[Path, ...]:
    wanted = [str(name) for name in names]  # type: ignore[attr-defined]
    if not wanted:
        return ()
    if replay_directory is None:
        raise RequestError(
            ("spec.files", f"{wanted[0][:200]!r}; this agent has no replay_directory, only interfaces are accepted")
        )
    if len(wanted) > MAX_FILES:
        raise RequestError(("spec.files", f"{len(wanted)} files; at most {MAX_FILES} are accepted"))
    root = replay_directory.resolve()
    return tuple(_replay_file(f"spec.files[{index}]", name, root) for index, name in enumerate(wanted))


def _replay_file(field: str, name: str, root: Path) -> Path:
    shown = repr(name[:200])
    if not name or "\0" in name or len(name) > 4096:
        raise RequestError((field, f"{shown}; a path of 1 to 4096 characters below the replay directory is accepted"))
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise RequestError((field, f"{shown} is not there; a file below the replay directory is accepted")) from error
    if not path.is_relative_to(root) or not path.is_file():
        raise RequestError((field, f"{shown}; a regular file below the replay directory is accepted"))
    return path


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
