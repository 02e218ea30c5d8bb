# SPDX-License-Identifier: Apache-2.0
"""Python values made into the C structures of jarvis_capture.h.

Ranges are judged by the native core; here only what C could not even hold is refused (a negative size, a NUL in a string), with a
sentence of the same form. Each function returns the structure and what it points to: keep both until the call is over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jarvis_native.errors import InvalidArgument

TIMESTAMP_SOURCES = {"default": 0, "kernel": 1, "hardware": 2, "ptp": 3, "ntp": 4}
SORT_KEYS = {"none": 0, "packets": 1, "octets": 2, "start": 3, "last": 4, "duration": 5}
TUNNELS = {"outer": 0, "inner": 1, "both": 2}
SAMPLINGS = {"none": 0, "systematic": 1, "flow-hash": 2}
STATISTICS = {"tcp": 1, "sizes": 2, "intervals": 4, "headers": 8}
READER_STARTS = {"oldest": 0, "newest": 1, "last": 2, "token": 3}

ACCEPTED = {
    "snaplen": "0 (262144) and 64 to 262144",
    "buffer_size_mb": "0 (64) and 64 to 8192",
    "workers": "0 to 64",
    "busy_poll_us": "0 (off) to 1000",
    "packet_ring_mb": "0 (off) and 1 to 8192",
    "max_flows": "0 (1048576) and 4096 to 16777216",
    "idle_timeout_s": "0 (never) and 1 to 86400",
    "active_timeout_s": "0 (never) and 1 to 86400",
    "log_records": "0 (65536) and powers of two from 1024 to 16777216",
    "fragment_slots": "0 (8192) and powers of two from 256 to 1048576",
    "sampling_interval": "1 to 1000000, and 0 without sampling",
    "limit": "1 to 100000",
}

Kept = tuple[Any, list[Any]]


def unsigned(name: str, value: int, bits: int = 32) -> int:
    """`value` if an unsigned C integer of so many bits holds it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        accepted = ACCEPTED.get(name, f"0 to {(1 << bits) - 1}")
        raise InvalidArgument(f"{name} is {value!r}: accepted are {accepted}", field=name)
    return value


def timeout_ns(name: str, value: float) -> int:
    """A metering timeout in seconds as whole nanoseconds; judged here because the caller thinks in seconds."""
    if not math.isfinite(value) or not (value == 0 or 1 <= value <= 86_400):
        raise InvalidArgument(f"{name} is {value!r}: accepted are {ACCEPTED[name]}", field=name)
    return round(value * 1e9)


def choice(name: str, value: str, of: Mapping[Any, int]) -> int:
    """The C constant of one of several names."""
    if value not in of:
        raise InvalidArgument(f"{name} is {value!r}: accepted are {', '.join(of)}", field=name)
    return of[value]


def choices(name: str, values: Sequence[str], of: dict[str, int]) -> int:
    """The C constants of any of several names, or'ed."""
    if isinstance(values, str):
        raise InvalidArgument(f"{name} is {values!r}: accepted is a list of {', '.join(of)}", field=name)
    kinds = 0
    for value in values:
        kinds |= choice(name, value, of)
    return kinds


def c_string(ffi: Any, name: str, value: str | os.PathLike[str] | None) -> Any:
    """A NUL-terminated copy, or NULL for None and for the empty string."""
    if value is None or value == "":
        return ffi.NULL
    data = os.fsencode(value)
    if b"\0" in data:
        raise InvalidArgument(f"{name} is {value!r}: a NUL character is not accepted", field=name)
    return ffi.new("char[]", data)


def _c_strings(ffi: Any, name: str, values: Sequence[str | os.PathLike[str]], accepted: str) -> tuple[Any, int, Kept]:
    """An array of strings, its length, and what must live as long as the array is in use."""
    strings = [c_string(ffi, name, value) for value in values]
    if ffi.NULL in strings:
        raise InvalidArgument(f"{name} has an empty string: accepted are {accepted}", field=name)
    array = ffi.new("char *[]", strings)
    return array, len(strings), (array, strings)


def capture_config(
    ffi: Any,
    *,
    interface: str | Sequence[str] | None,
    files: Sequence[str | os.PathLike[str]],
    backend: str,
    filter: str,  # noqa: A002 - the field's name
    snaplen: int,
    buffer_size_mb: int,
    workers: int,
    worker_cpus: Sequence[int],
    promiscuous: bool,
    timestamp_source: str,
    packet_ring_mb: int,
    exclusive: bool,
    dpdk_eal_args: Sequence[str],
    loss_threshold: int,
    busy_poll_us: int,
) -> Kept:
    """`struct capture_config`."""
    config = ffi.new("struct capture_config *")
    config.struct_size = ffi.sizeof("struct capture_config")
    single = interface if isinstance(interface, str) else None
    kept: list[Any] = [c_string(ffi, "interface", single), c_string(ffi, "backend", backend), c_string(ffi, "filter", filter)]
    config.interface, config.backend, config.filter = kept
    if interface is not None and single is None:
        config.interfaces, config.interface_count, strings = _c_strings(ffi, "interface", interface, "names of interfaces")
        kept.append(strings)
    if files:
        config.files, config.file_count, strings = _c_strings(ffi, "files", files, "paths of capture files")
        kept.append(strings)
    if dpdk_eal_args:
        config.dpdk_eal_args, config.dpdk_eal_arg_count, strings = _c_strings(
            ffi, "dpdk_eal_args", dpdk_eal_args, "arguments of DPDK's EAL"
        )
        kept.append(strings)
    config.snaplen = unsigned("snaplen", snaplen)
    config.buffer_size_mb = unsigned("buffer_size_mb", buffer_size_mb)
    config.workers = unsigned("workers", workers)
    if worker_cpus:
        cpus = ffi.new("int32_t[]", [unsigned("worker_cpus", cpu, 31) for cpu in worker_cpus])
        config.worker_cpus, config.worker_cpu_count = cpus, len(worker_cpus)
        kept.append(cpus)
    config.promiscuous = bool(promiscuous)
    config.timestamp_source = choice("timestamp_source", timestamp_source, TIMESTAMP_SOURCES)
    config.packet_ring_mb = unsigned("packet_ring_mb", packet_ring_mb)
    config.exclusive = bool(exclusive)
    config.loss_threshold = unsigned("loss_threshold", loss_threshold, 64)
    config.busy_poll_us = unsigned("busy_poll_us", busy_poll_us)
    return config, kept


def flow_config(
    ffi: Any,
    *,
    max_flows: int,
    idle_timeout_s: float,
    active_timeout_s: float,
    log_records: int,
    fragment_slots: int,
    hash_seed: int,
    tunnel: str,
    sampling: str,
    sampling_interval: int,
    mirror_timestamps: bool,
    statistics: Sequence[str],
    merge_interfaces: bool,
) -> Any:
    """`struct capture_flow_config`."""
    config = ffi.new("struct capture_flow_config *")
    config.struct_size = ffi.sizeof("struct capture_flow_config")
    config.max_flows = unsigned("max_flows", max_flows)
    config.idle_timeout_ns = timeout_ns("idle_timeout_s", idle_timeout_s)
    config.active_timeout_ns = timeout_ns("active_timeout_s", active_timeout_s)
    config.log_records = unsigned("log_records", log_records)
    config.fragment_slots = unsigned("fragment_slots", fragment_slots)
    config.hash_seed = unsigned("hash_seed", hash_seed, 64)
    config.tunnel = choice("tunnel", tunnel, TUNNELS)
    config.sampling = choice("sampling", sampling, SAMPLINGS)
    config.sampling_interval = unsigned("sampling_interval", sampling_interval)
    config.mirror_timestamps = bool(mirror_timestamps)
    config.statistics = choices("statistics", statistics, STATISTICS)
    config.merge_interfaces = bool(merge_interfaces)
    return config


def flow_query(ffi: Any, *, filter: str, min_packets: int, sort_by: str, limit: int) -> Kept:  # noqa: A002 - the field's name
    """`struct capture_flow_query`."""
    query = ffi.new("struct capture_flow_query *")
    text = c_string(ffi, "filter", filter)
    query.filter = text
    query.min_packets = unsigned("min_packets", min_packets, 64)
    query.sort_by = choice("sort_by", sort_by, SORT_KEYS)
    query.limit = unsigned("limit", limit)
    if not 1 <= limit <= 100_000:  # also bounds the buffer that is made for the answer
        raise InvalidArgument(f"limit is {limit}: accepted are {ACCEPTED['limit']}", field="limit")
    return query, [text]


def reader_config(
    ffi: Any,
    *,
    filter: str,  # noqa: A002 - the field's name
    min_packets: int,
    since_ns: int,
    start: str,
    last_records: int,
    token: bytes,
    lossless: bool,
) -> Kept:
    """`struct capture_reader_config`."""
    config = ffi.new("struct capture_reader_config *")
    config.struct_size = ffi.sizeof("struct capture_reader_config")
    text = c_string(ffi, "filter", filter)
    config.filter = text
    config.min_packets = unsigned("min_packets", min_packets, 64)
    config.since_ns = unsigned("since_ns", since_ns, 64)
    config.start = choice("start", start, READER_STARTS)
    config.last_records = unsigned("last_records", last_records)
    kept = [text]
    if token:
        kept.append(ffi.new("uint8_t[]", token))
        config.token, config.token_length = kept[-1], len(token)
    config.lossless = bool(lossless)
    return config, kept
