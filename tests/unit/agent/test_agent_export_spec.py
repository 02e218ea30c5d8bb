# SPDX-License-Identifier: Apache-2.0
"""From an ExportSpec to an ExportPlan: defaults, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_agent.errors import RequestError
from jarvis_agent.export.export_spec import plan_export
from jarvis_agent.export.plan import Collector

IPFIX, V5, V9, SFLOW = (
    pb.EXPORT_PROTOCOL_IPFIX,
    pb.EXPORT_PROTOCOL_NETFLOW_V5,
    pb.EXPORT_PROTOCOL_NETFLOW_V9,
    pb.EXPORT_PROTOCOL_SFLOW_V5,
)
TCP, TLS, SCTP, FILE = pb.EXPORT_TRANSPORT_TCP, pb.EXPORT_TRANSPORT_TLS, pb.EXPORT_TRANSPORT_SCTP, pb.EXPORT_TRANSPORT_FILE


def spec(**changes: Any) -> pb.ExportSpec:
    fields: dict[str, Any] = {
        "export_id": "siem",
        "protocol": IPFIX,
        "collectors": [pb.ExportCollector(host="192.0.2.1")],
    }
    return pb.ExportSpec(**(fields | changes))


def violations(asked: pb.ExportSpec) -> list[str]:
    with pytest.raises(RequestError) as refused:
        plan_export(asked)
    return [field for field, _ in refused.value.violations]


def test_what_is_left_out_gets_the_documented_defaults() -> None:
    plan = plan_export(spec())
    assert plan.collectors == (Collector(host="192.0.2.1", port=4739),)
    assert (plan.protocol, plan.transport, plan.distribution, plan.profile, plan.time_unit) == (
        "ipfix",
        "udp",
        "mirror",
        "default",
        "ms",
    )
    assert (plan.interval_s, plan.template_refresh_s, plan.template_refresh_messages) == (1.0, 60.0, 4096)
    assert (plan.biflow, plan.sampling_rate, plan.file_bytes, plan.file_age_s, plan.files_kept) == (False, 0, 256 << 20, 300.0, 0)


@pytest.mark.parametrize(
    ("protocol", "transport", "port"),
    [
        (V5, 0, 2055),
        (V9, 0, 2055),
        (IPFIX, 0, 4739),
        (IPFIX, TCP, 4739),
        (IPFIX, SCTP, 4739),
        (IPFIX, TLS, 4740),
        (SFLOW, 0, 6343),
    ],
)
def test_a_port_of_zero_is_the_protocols_own(protocol: int, transport: int, port: int) -> None:
    (collector,) = plan_export(spec(protocol=protocol, transport=transport)).collectors
    assert collector.port == port


def test_sflow_samples_one_frame_in_a_thousand_and_tells_counters_every_20_seconds() -> None:
    plan = plan_export(spec(protocol=SFLOW))
    assert (plan.sampling_rate, plan.interval_s) == (1000, 20.0)


def test_a_file_has_no_collector_and_its_own_rotation() -> None:
    plan = plan_export(spec(transport=FILE, collectors=[], file_size_mb=1, file_age=Duration(seconds=90), files_kept=3))
    assert (plan.collectors, plan.file_bytes, plan.file_age_s, plan.files_kept) == ((), 1 << 20, 90.0, 3)


@pytest.mark.parametrize("protocol", [V5, V9, SFLOW])
@pytest.mark.parametrize("transport", [TCP, TLS, SCTP, FILE])
def test_only_ipfix_leaves_by_anything_but_udp(protocol: int, transport: int) -> None:
    assert "spec.transport" in violations(spec(protocol=protocol, transport=transport))


def hosts(*names: str) -> list[pb.ExportCollector]:
    return [pb.ExportCollector(host=name) for name in names]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spec.export_id", {"export_id": ""}),
        ("spec.export_id", {"export_id": "-a"}),
        ("spec.export_id", {"export_id": "a" * 33}),
        ("spec.export_id", {"export_id": "../a"}),
        ("spec.protocol", {"protocol": 0}),
        ("spec.protocol", {"protocol": 5}),
        ("spec.transport", {"transport": 6}),
        ("spec.distribution", {"distribution": 3}),
        ("spec.profile", {"profile": 4}),
        ("spec.time_unit", {"time_unit": -1}),
        ("spec.collectors", {"collectors": []}),
        ("spec.collectors", {"collectors": hosts(*(f"192.0.2.{n}" for n in range(9)))}),
        ("spec.collectors", {"collectors": hosts("192.0.2.1"), "transport": FILE}),
        ("spec.collectors[1]", {"collectors": hosts("siem.example", "SIEM.example.")}),
        ("spec.collectors[0].host", {"collectors": hosts("")}),
        ("spec.collectors[0].host", {"collectors": hosts("127.1")}),
        ("spec.collectors[0].host", {"collectors": hosts("[2001:db8::1]")}),
        ("spec.collectors[0].host", {"collectors": hosts("fe80::1%eth0")}),
        ("spec.collectors[0].port", {"collectors": [pb.ExportCollector(host="192.0.2.1", port=65536)]}),
        ("spec.collectors[0].tls_name", {"collectors": [pb.ExportCollector(host="192.0.2.1", tls_name="siem.example")]}),
        ("spec.collectors[0].tls_name", {"collectors": [pb.ExportCollector(host="192.0.2.1", tls_name="a b")], "transport": TLS}),
        ("spec.export_interval_sec", {"export_interval_sec": 3601}),
        ("spec.template_refresh", {"template_refresh": Duration(nanos=999_999_999)}),
        ("spec.template_refresh", {"template_refresh": Duration(seconds=86_401)}),
        ("spec.template_refresh_messages", {"template_refresh_messages": 1_000_001}),
        ("spec.filter", {"filter": "x" * 4097}),
        ("spec.filter", {"filter": "tcp", "protocol": SFLOW}),
        ("spec.sampling_rate", {"sampling_rate": 1}),
        ("spec.sampling_rate", {"sampling_rate": 16_777_216, "protocol": SFLOW}),
        ("spec.biflow", {"biflow": True, "protocol": V9}),
        ("spec.profile", {"profile": pb.EXPORT_PROFILE_FULL, "protocol": V5}),
        ("spec.time_unit", {"time_unit": pb.EXPORT_TIME_UNIT_NANOSECONDS, "protocol": V5}),
        ("spec.observation_domain_id", {"observation_domain_id": 65_536, "protocol": V5}),
        ("spec.distribution", {"distribution": pb.EXPORT_DISTRIBUTION_BALANCE, "protocol": SFLOW}),
        ("spec.file_size_mb", {"file_size_mb": 1}),
        ("spec.file_size_mb", {"file_size_mb": 65_537, "transport": FILE, "collectors": []}),
        ("spec.file_age", {"file_age": Duration(seconds=1)}),
        ("spec.file_age", {"file_age": Duration(seconds=0), "transport": FILE, "collectors": []}),
        ("spec.files_kept", {"files_kept": 100_001, "transport": FILE, "collectors": []}),
    ],
)
def test_what_is_not_acceptable_is_refused_and_nothing_else_with_it(field: str, changes: dict[str, Any]) -> None:
    assert violations(spec(**changes)) == [field]


def test_every_mistake_is_told_at_once() -> None:
    found = violations(spec(export_id="", export_interval_sec=4000, collectors=hosts("")))
    assert found == ["spec.export_id", "spec.export_interval_sec", "spec.collectors[0].host"]


@given(data=st.binary(max_size=200))
def test_any_specification_is_carried_out_or_refused_by_field(data: bytes) -> None:
    asked = spec()
    try:
        asked.MergeFromString(data)
        plan = plan_export(asked)
    except DecodeError:
        return
    except RequestError as error:
        refused = error.violations
        assert all(field.startswith("spec.") and text for field, text in refused)
        return
    assert 1.0 <= plan.interval_s <= 3600.0
    assert all(1 <= collector.port <= 65_535 for collector in plan.collectors)
    assert (plan.transport == "file") == (not plan.collectors)
