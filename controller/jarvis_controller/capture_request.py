# SPDX-License-Identifier: Apache-2.0
"""Checks operators' requests before any agent is asked: what is wrong everywhere is refused once, naming the field.

Whether an interface exists, a backend works or a filter compiles is each agent's to say.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from jarvis.capture.v1 import capture_pb2

from jarvis_controller.request_fields import MS, S, check_duration, check_range
from jarvis_controller.rpc_status import bad_field

MAX_INTERFACES = 32
_INTERFACE = re.compile(
    r"[^\s/:]{1,15}"
    r"|[^\s/:@]{1,15}@\d{1,3}"
    r"|[a-z][a-z0-9_]{0,14}:[^\x00-\x1f\x7f]{1,4000}"
    r"|([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
    r"|net_[a-z0-9_]{1,59}"
)
"""A network interface, one of its queues as PF_RING names them (eth0@2), a device MODULE:DEVICE (zc:eth0, dpdk:NAME), or for
DPDK a PCI address or a virtual device."""


def check_spec(spec: capture_pb2.CaptureSpec) -> None:
    """A capture that an agent could start.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if bool(spec.interfaces) == bool(spec.files):
        raise bad_field(
            "spec.interfaces",
            f"{len(spec.interfaces)} interfaces with {len(spec.files)} files: exactly one of interfaces and files is accepted",
        )
    _check_interfaces("spec.interfaces", spec.interfaces)
    if spec.exclusive and spec.backend not in {"xdp", "dpdk"}:
        raise bad_field("spec.exclusive", f"true with backend {spec.backend[:40]!r}: accepted with backends 'xdp' and 'dpdk'")
    check_range("spec.snaplen", spec.snaplen, 64, 262_144)
    check_range("spec.buffer_size_mb", spec.buffer_size_mb, 64, 8192)
    check_range("spec.max_flows", spec.max_flows, 4096, 16_777_216)
    _check_selection(spec)
    for field in ("idle_timeout", "active_timeout"):
        if spec.HasField(field):
            check_duration(f"spec.{field}", getattr(spec, field), 0, 24 * 3600 * S)


def _check_selection(spec: capture_pb2.CaptureSpec) -> None:
    """Which packets make which flows, and how they are waited for."""
    check_range("spec.busy_poll_us", spec.busy_poll_us, 0, 1000)
    if spec.busy_poll_us and spec.files:
        raise bad_field("spec.busy_poll_us", f"{spec.busy_poll_us} with files: they have no driver to poll, 0 is accepted")
    if spec.tunnel not in capture_pb2.Tunnel.values():
        raise bad_field("spec.tunnel", f"{spec.tunnel}: one of Tunnel's values is accepted")
    if spec.mirror_timestamps and spec.tunnel not in {capture_pb2.TUNNEL_INNER, capture_pb2.TUNNEL_BOTH}:
        raise bad_field("spec.mirror_timestamps", "true without inner flows: accepted with tunnel inner (2) and both (3)")
    for index, kind in enumerate(spec.statistics):
        if not kind or kind not in capture_pb2.FlowStatistics.values():
            raise bad_field(f"spec.statistics[{index}]", f"{kind}: one of FlowStatistics' values but UNSPECIFIED is accepted")
    if spec.sampling not in capture_pb2.Sampling.values():
        raise bad_field("spec.sampling", f"{spec.sampling}: one of Sampling's values is accepted")
    if bool(spec.sampling) != bool(spec.sampling_interval):
        accepted = "1..1000000 is accepted with sampling, 0 without"
        raise bad_field("spec.sampling_interval", f"{spec.sampling_interval} with sampling {spec.sampling}: {accepted}")
    check_range("spec.sampling_interval", spec.sampling_interval, 1, 1_000_000)


def check_interface_changes(add: Sequence[str], remove: Sequence[str]) -> None:
    """Interfaces to add to a capture and to remove from it.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if not add and not remove:
        raise bad_field("add", "empty, and remove too: at least one interface is accepted")
    _check_interfaces("add", add)
    _check_interfaces("remove", remove)
    both = set(add) & set(remove)
    if both:
        raise bad_field("remove", f"{min(both)[:40]!r} is to be added, too: each interface is accepted once")


def _check_interfaces(field: str, names: Sequence[str]) -> None:
    if len(names) > MAX_INTERFACES:
        raise bad_field(field, f"{len(names)} interfaces: 1..{MAX_INTERFACES} are accepted")
    for index, name in enumerate(names):
        if _INTERFACE.fullmatch(name) is None:
            raise bad_field(
                f"{field}[{index}]",
                f"{name[:40]!r}: a network interface's name of 1-15 characters, a PF_RING device (zc:eth0, pcap:FILE) or a DPDK "
                "device (0000:03:00.0, net_af_packet0, dpdk:NAME) is accepted",
            )
        if name in names[:index]:
            raise bad_field(f"{field}[{index}]", f"{name[:40]!r} again: each interface is accepted once")


def check_query(query: capture_pb2.FlowQuery) -> None:
    """A query of live flows.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    check_range("query.limit", query.limit, 1, 100_000)
    if query.sort_by not in capture_pb2.FlowSort.values():
        raise bad_field("query.sort_by", f"{query.sort_by}: one of FlowSort's values is accepted")


def check_subscription(subscription: capture_pb2.FlowSubscription, *, agents: int) -> None:
    """A subscription of finished flows of so many agents.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if subscription.WhichOneof("start") == "resume_token" and agents != 1:
        raise bad_field(
            "subscription.resume_token", f"{agents} agents are selected: a token is of one agent, exactly one is accepted"
        )
    if subscription.WhichOneof("start") == "last_records":
        check_range("subscription.last_records", subscription.last_records or -1, 1, 2**32 - 1)
    check_range("subscription.max_batch_records", subscription.max_batch_records, 1, 10_000)
    if subscription.HasField("max_batch_delay"):
        check_duration("subscription.max_batch_delay", subscription.max_batch_delay, 10 * MS, 10 * S)


def check_interval(interval: Duration) -> None:
    """The interval of metrics.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    check_duration("interval", interval, 100 * MS, 3600 * S)


def check_lifetime_ns(lifetime: Duration) -> int:
    """The lifetime of a join token in ns.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    return check_duration("lifetime", lifetime, 60 * S, 7 * 24 * 3600 * S)


def check_request_id(request_id: str) -> str:
    """The id in its one spelling; a new one when it is empty.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if not request_id:
        return str(uuid.uuid4())
    if re.fullmatch(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", request_id) is None:
        raise bad_field("request_id", f"{request_id[:60]!r}: a UUID is accepted")
    return request_id.lower()


def check_reason(reason: str) -> str:
    """Why an operator does something: it is shown and audited.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    text = reason.strip()
    if not text or len(text) > 500 or not text.isprintable():
        raise bad_field("reason", f"{reason[:60]!r}: 1-500 printable characters are accepted")
    return text


def check_page_size(size: int) -> int:
    """The page size in force.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    check_range("page_size", size, 1, 1000)
    return size or 100
