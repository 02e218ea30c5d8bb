# SPDX-License-Identifier: Apache-2.0
"""From a CaptureSpec to engine arguments, and what executable mappings are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jarvis.capture.v1.capture_pb2 import (
    FLOW_STATISTICS_HEADERS,
    FLOW_STATISTICS_INTERVALS,
    FLOW_STATISTICS_SIZES,
    FLOW_STATISTICS_TCP,
    SAMPLING_FLOW_HASH,
    SAMPLING_SYSTEMATIC,
    TIMESTAMP_SOURCE_HARDWARE,
    TIMESTAMP_SOURCE_PTP,
    TUNNEL_BOTH,
    TUNNEL_INNER,
    TUNNEL_OUTER,
    CaptureSpec,
)
from jarvis_agent import wire
from jarvis_agent.capture_spec import plan_capture
from jarvis_agent.errors import RequestError
from jarvis_agent.firmware import executable_mappings
from jarvis_native import ClockInfo


def violation(spec: CaptureSpec, replay_directory: Path | None) -> str:
    with pytest.raises(RequestError) as refused:
        plan_capture(spec, replay_directory=replay_directory, worker_cpus=())
    ((field, _),) = refused.value.violations
    return field


def test_what_is_left_out_gets_the_documented_defaults() -> None:
    plan = plan_capture(CaptureSpec(interfaces=["eth0"]), replay_directory=None, worker_cpus=())
    assert (plan.backend, plan.buffer_size_mb, plan.max_flows) == ("auto", 64, 1_048_576)
    assert (plan.idle_timeout_s, plan.active_timeout_s, plan.workers, plan.timestamp_source) == (30.0, 300.0, 1, "default")


def test_exclusive_is_handed_on_and_is_never_the_default() -> None:
    for exclusive in (False, True):
        spec = CaptureSpec(interfaces=["eth0"], backend="xdp", exclusive=exclusive)
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).exclusive is exclusive


def test_a_timeout_of_zero_is_never_and_not_the_default() -> None:
    spec = CaptureSpec(interfaces=["eth0"], timestamp_source=TIMESTAMP_SOURCE_HARDWARE)
    spec.idle_timeout.FromSeconds(0)
    spec.active_timeout.FromMilliseconds(1500)
    plan = plan_capture(spec, replay_directory=None, worker_cpus=())
    assert (plan.idle_timeout_s, plan.active_timeout_s, plan.timestamp_source) == (0.0, 1.5, "hardware")


def test_a_capture_has_a_worker_for_each_configured_cpu_but_a_replay_of_both_headers_has_one(tmp_path: Path) -> None:
    assert plan_capture(CaptureSpec(interfaces=["eth0"]), replay_directory=None, worker_cpus=(2, 3)).workers == 2
    (tmp_path / "a.pcap").write_bytes(b"x")
    replay, both = CaptureSpec(files=["a.pcap"]), CaptureSpec(files=["a.pcap"], tunnel=TUNNEL_BOTH)
    plan = plan_capture(replay, replay_directory=tmp_path, worker_cpus=(2, 3))
    assert (plan.workers, plan.worker_cpus) == (2, (2, 3))
    plan = plan_capture(both, replay_directory=tmp_path, worker_cpus=(2, 3))
    assert (plan.workers, plan.worker_cpus) == (1, ())


def test_replay_files_stay_below_their_directory(tmp_path: Path) -> None:
    root = tmp_path / "replay"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.pcap").write_bytes(b"x")
    (tmp_path / "secret.pcap").write_bytes(b"x")
    (root / "link.pcap").symlink_to(tmp_path / "secret.pcap")
    plan = plan_capture(CaptureSpec(files=["deep/a.pcap", "deep/../deep/a.pcap"]), replay_directory=root, worker_cpus=(2,))
    assert plan.files == (root.resolve() / "deep" / "a.pcap",) * 2
    assert (plan.workers, plan.worker_cpus, plan.is_live) == (1, (2,), False)
    for name in ("../secret.pcap", str(tmp_path / "secret.pcap"), "link.pcap", "deep", "", "missing", "a\0b", "x" * 5000):
        assert violation(CaptureSpec(files=["deep/a.pcap", name]), root) == "spec.files[1]", name


def test_a_pf_ring_file_device_stays_below_the_replay_directory(tmp_path: Path) -> None:
    root = tmp_path / "replay"
    root.mkdir()
    (root / "a.pcap").write_bytes(b"x")
    (tmp_path / "secret.pcap").write_bytes(b"x")
    (root / "link.pcap").symlink_to(tmp_path / "secret.pcap")
    plan = plan_capture(CaptureSpec(interfaces=["pcap:a.pcap"], backend="pfring"), replay_directory=root, worker_cpus=(2, 3))
    assert plan.interfaces == (f"pcap:{root.resolve() / 'a.pcap'}",)
    assert (plan.workers, plan.worker_cpus, plan.backend) == (1, (), "pfring")
    for name in ("../secret.pcap", str(tmp_path / "secret.pcap"), "link.pcap", "missing", "", "a\0b", "-"):
        assert violation(CaptureSpec(interfaces=[f"pcap:{name}"]), root) == "spec.interfaces[0]", name
    assert violation(CaptureSpec(interfaces=["pcap:a.pcap"]), None) == "spec.interfaces[0]"


def test_other_devices_are_the_cores_to_judge() -> None:
    for name in ("zc:eth0", "zc:99@0", "eth0@2", "pcap:lo", "pcap:any"):
        plan = plan_capture(CaptureSpec(interfaces=[name], backend="pfring"), replay_directory=None, worker_cpus=(2, 3))
        assert plan.interfaces == (name,)
    assert plan_capture(CaptureSpec(interfaces=["zc:eth0"]), replay_directory=None, worker_cpus=(2, 3)).workers == 2


def test_an_agent_without_replay_directory_replays_nothing() -> None:
    assert violation(CaptureSpec(files=["a.pcap"]), None) == "spec.files"


def test_a_controller_cannot_bring_device_arguments() -> None:
    for name in ("net_pcap0,rx_pcap=/etc/shadow", "dpdk:net_pcap0,tx_pcap=/etc/passwd"):
        assert violation(CaptureSpec(interfaces=[name], backend="dpdk"), None) == "spec.interfaces[0]"
    assert plan_capture(CaptureSpec(interfaces=["net_pcap0"]), replay_directory=None, worker_cpus=()).interfaces == ("net_pcap0",)


def test_too_many_files_and_unknown_timestamp_sources_are_refused(tmp_path: Path) -> None:
    assert violation(CaptureSpec(files=["a"] * 257), tmp_path) == "spec.files"
    spec = CaptureSpec(interfaces=["eth0"], timestamp_source=9)  # type: ignore[arg-type]  # what a newer caller may send
    assert violation(spec, None) == "spec.timestamp_source"


def test_every_timestamp_source_of_the_wire_has_its_name_in_the_core() -> None:
    for number, name in enumerate(("default", "kernel", "hardware", "ptp", "ntp")):
        spec = CaptureSpec(interfaces=["eth0"], timestamp_source=number)  # type: ignore[arg-type]  # the wire's number
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).timestamp_source == name


def test_the_clock_of_a_live_capture_is_told_with_its_bound_only_where_that_is_known() -> None:
    known = ClockInfo(source="ptp", synchronised=False, offset_ns=-5, error_bound_ns=300, steps=2, detail="/dev/ptp0, in UTC")
    message = wire.clock_status(known)
    assert (message.source, message.offset_ns, message.error_bound_ns, message.steps) == (TIMESTAMP_SOURCE_PTP, -5, 300, 2)
    assert message.detail == "/dev/ptp0, in UTC"
    assert message.HasField("error_bound_ns")
    unknown = wire.clock_status(replace(known, source="hardware", error_bound_ns=None))
    assert not unknown.HasField("error_bound_ns")


def test_the_loss_threshold_is_handed_on_and_is_any_loss_by_default() -> None:
    for threshold in (0, 5000):
        spec = CaptureSpec(interfaces=["eth0"], loss_threshold=threshold)
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).loss_threshold == threshold


def test_the_tunnel_of_a_specification_is_outer_unless_asked_otherwise() -> None:
    wanted = {None: "outer", TUNNEL_OUTER: "outer", TUNNEL_INNER: "inner", TUNNEL_BOTH: "both"}
    for tunnel, expected in wanted.items():
        spec = CaptureSpec(interfaces=["eth0"], tunnel=tunnel)
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).tunnel == expected
    unknown = CaptureSpec(interfaces=["eth0"], tunnel=9)  # type: ignore[arg-type]  # what a newer caller may send
    assert violation(unknown, None) == "spec.tunnel"


def test_busy_polling_reaches_the_engine_as_asked() -> None:
    for us in (0, 50):
        spec = CaptureSpec(interfaces=["eth0"], busy_poll_us=us)
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).busy_poll_us == us


def test_mirrors_times_are_taken_only_when_asked() -> None:
    for asked in (False, True):
        spec = CaptureSpec(interfaces=["eth0"], tunnel=TUNNEL_INNER, mirror_timestamps=asked)
        assert plan_capture(spec, replay_directory=None, worker_cpus=()).mirror_timestamps is asked


def test_the_sampling_of_a_specification_is_none_unless_asked_otherwise() -> None:
    wanted = {None: "none", SAMPLING_SYSTEMATIC: "systematic", SAMPLING_FLOW_HASH: "flow-hash"}
    for sampling, expected in wanted.items():
        spec = CaptureSpec(interfaces=["eth0"], sampling=sampling, sampling_interval=100)
        plan = plan_capture(spec, replay_directory=None, worker_cpus=())
        assert (plan.sampling, plan.sampling_interval) == (expected, 100)
    unknown = CaptureSpec(interfaces=["eth0"], sampling=9)  # type: ignore[arg-type]  # what a newer caller may send
    assert violation(unknown, None) == "spec.sampling"


def test_the_statistics_of_a_specification_are_none_unless_asked_for() -> None:
    assert plan_capture(CaptureSpec(interfaces=["eth0"]), replay_directory=None, worker_cpus=()).statistics == ()
    kinds = [FLOW_STATISTICS_INTERVALS, FLOW_STATISTICS_TCP, FLOW_STATISTICS_HEADERS, FLOW_STATISTICS_SIZES]
    spec = CaptureSpec(interfaces=["eth0"], statistics=kinds)
    assert plan_capture(spec, replay_directory=None, worker_cpus=()).statistics == ("intervals", "tcp", "headers", "sizes")
    for unknown in (0, 9):
        spec = CaptureSpec(interfaces=["eth0"], statistics=[FLOW_STATISTICS_TCP, unknown])  # type: ignore[list-item]
        assert violation(spec, None) == "spec.statistics[1]"


def test_each_executable_file_is_found_once_and_the_firmware_itself_is_left_out() -> None:
    maps = (
        "7f00-7f10 r-xp 00000000 08:01 12 /usr/lib/libc.so.6\n"
        "7f10-7f20 r--p 00000000 08:01 12 /usr/lib/libm.so.6\n"
        "7f20-7f30 r-xp 00001000 08:01 12 /usr/lib/libc.so.6\n"
        "7f30-7f40 r-xp 00000000 00:01 99 /memfd:libjarvis_capture.so (deleted)\n"
        "7f40-7f50 r-xp 00000000 08:01 77 /opt/with a space.so\n"
        "7f50-7f60 r-xp 00000000 00:00 0 [vdso]\n"
        "7f60-7f70 rwxp 00000000 00:00 0\n"
    )
    assert list(executable_mappings(maps)) == [("7f00-7f10", "/usr/lib/libc.so.6"), ("7f40-7f50", "/opt/with a space.so")]
