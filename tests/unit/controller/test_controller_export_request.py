# SPDX-License-Identifier: Apache-2.0
"""What the controller takes for an export before any agent is asked, and to where it may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis.capture.v1.export_pb2 import ExportCollector, ExportProtocol, ExportSpec, ExportTransport
from jarvis_agent.errors import RequestError
from jarvis_agent.export.export_spec import plan_export
from jarvis_controller.export_request import check_allowed, check_export
from jarvis_controller.rpc_status import RpcError
from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.status import reason_of

SIEM = ExportCollector(host="siem.example")
V5, V9, IPFIX, SFLOW = (
    ExportProtocol.Value(f"EXPORT_PROTOCOL_{name}") for name in ("NETFLOW_V5", "NETFLOW_V9", "IPFIX", "SFLOW_V5")
)
UDP, TCP, TLS, SCTP, FILE = (ExportTransport.Value(f"EXPORT_TRANSPORT_{name}") for name in ("UDP", "TCP", "TLS", "SCTP", "FILE"))


def spec(**changes: Any) -> ExportSpec:
    return ExportSpec(**{"export_id": "siem", "protocol": IPFIX, "collectors": [SIEM], **changes})


def file_spec(**changes: Any) -> ExportSpec:
    return spec(**{"transport": FILE, "collectors": [], **changes})


def violation(export: ExportSpec) -> error_details_pb2.BadRequest.FieldViolation:
    with pytest.raises(RpcError) as refused:
        check_export(export)
    assert refused.value.status.code == code_pb2.INVALID_ARGUMENT
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in refused.value.status.details)
    (only,) = found.field_violations
    return only


@pytest.mark.parametrize(
    "export",
    [
        spec(),
        *(spec(protocol=protocol) for protocol in (V5, V9, SFLOW)),
        *(spec(transport=transport) for transport in (UDP, TCP, TLS, SCTP)),
        file_spec(),
        file_spec(file_size_mb=65536, file_age=Duration(seconds=86400), files_kept=100_000),
        spec(transport=TLS, collectors=[ExportCollector(host="192.0.2.1", port=4740, tls_name="siem.example")]),
        spec(collectors=[ExportCollector(host=f"192.0.2.{number}") for number in range(8)], distribution=2),
        spec(collectors=[ExportCollector(host="2001:db8::1", port=port) for port in (1, 65535)]),
        spec(biflow=True, profile=3, time_unit=3, observation_domain_id=2**32 - 1, max_records_per_second=2**32 - 1),
        spec(protocol=V9, profile=1, time_unit=2, filter="tcp port 443"),
        spec(protocol=V5, profile=2, time_unit=1, observation_domain_id=65535),
        spec(protocol=SFLOW, sampling_rate=16_777_215, export_interval_sec=3600),
        spec(template_refresh=Duration(seconds=1), template_refresh_messages=1_000_000),
        spec(transport=TCP, template_refresh=Duration(seconds=86400)),
        *(spec(export_id=name) for name in ("a", "0", "a-b", "a" * 32)),
    ],
)
def test_an_export_that_agents_can_enable_is_accepted(export: ExportSpec) -> None:
    check_export(export)


@pytest.mark.parametrize(
    ("export", "field", "said"),
    [
        *((spec(export_id=name), "export_id", "1-32 of a-z 0-9") for name in ("", "-a", "a-", "A", "a_b", "a" * 33, "ä", "a\n")),
        (spec(protocol=0), "protocol", "one of ExportProtocol's values but UNSPECIFIED"),
        (spec(protocol=9), "protocol", "one of ExportProtocol's values"),
        (spec(transport=9), "transport", "one of ExportTransport's values"),
        (spec(distribution=9), "distribution", "one of ExportDistribution's values"),
        (spec(profile=9), "profile", "one of ExportProfile's values"),
        (spec(time_unit=9), "time_unit", "one of ExportTimeUnit's values"),
        *((spec(protocol=V9, transport=other), "transport", "NetFlow v9: EXPORT_TRANSPORT_UDP") for other in (TCP, TLS, SCTP)),
        (spec(protocol=V5, transport=FILE, collectors=[]), "transport", "EXPORT_TRANSPORT_FILE with NetFlow v5"),
        (spec(export_interval_sec=3601), "export_interval_sec", "3601: 1..3600 is accepted"),
        (spec(collectors=[]), "collectors", "0 of them: 1..8 are accepted"),
        (spec(collectors=[ExportCollector(host=f"c{n}.example") for n in range(9)]), "collectors", "9 of them: 1..8"),
        (spec(collectors=[SIEM, ExportCollector(host="SIEM.example.", port=4739)]), "collectors[1]", "again: each collector"),
        (
            spec(collectors=[ExportCollector(host="192.0.2.1"), ExportCollector(host="::ffff:192.0.2.1")]),
            "collectors[1]",
            "with port 4739 again",
        ),
        *(
            (spec(collectors=[SIEM, ExportCollector(host=host)]), "collectors[1].host", "an IPv4 address, an IPv6 address")
            for host in ("", " ", "[2001:db8::1]", "fe80::1%eth0", "127.1", "0x7f.1", "siem..example", "a.example:1", "bücher.de")
        ),
        (spec(collectors=[ExportCollector(host="a.example", port=65536)]), "collectors[0].port", "65536: 1..65535 is accepted"),
        (spec(collectors=[ExportCollector(host="a.example", tls_name="b")]), "collectors[0].tls_name", "EXPORT_TRANSPORT_TLS"),
        (
            spec(transport=TLS, collectors=[ExportCollector(host="a.example", tls_name="*.example")]),
            "collectors[0].tls_name",
            "a DNS name or an address",
        ),
        (file_spec(collectors=[SIEM]), "collectors", "only other transports have collectors"),
        (file_spec(distribution=2), "distribution", "only other transports have collectors"),
        *((spec(protocol=protocol, biflow=True), "biflow", "accepted with IPFIX") for protocol in (V5, V9, SFLOW)),
        *((spec(protocol=protocol, profile=3), "profile", "EXPORT_PROFILE_FULL with") for protocol in (V5, SFLOW)),
        *((spec(protocol=protocol, time_unit=3), "time_unit", "NANOSECONDS with") for protocol in (V5, SFLOW)),
        (spec(protocol=V5, observation_domain_id=65536), "observation_domain_id", "65536: 0..65535 is accepted"),
        (spec(protocol=SFLOW, filter="tcp"), "filter", "'tcp' with sFlow"),
        (spec(filter="x" * 4097), "filter", "4097 characters: at most 4096"),
        (spec(protocol=SFLOW, distribution=2), "distribution", "BALANCE with sFlow"),
        (spec(sampling_rate=1), "sampling_rate", "1 with IPFIX: 0 is accepted"),
        (spec(protocol=SFLOW, sampling_rate=16_777_216), "sampling_rate", "1..16777215 is accepted"),
        (spec(template_refresh=Duration()), "template_refresh", "0 s: 1 s to 86400 s"),
        (spec(template_refresh=Duration(seconds=86401)), "template_refresh", "86401 s: 1 s to 86400 s"),
        (spec(template_refresh_messages=1_000_001), "template_refresh_messages", "1..1000000 is accepted"),
        (spec(transport=TCP, template_refresh_messages=1), "template_refresh_messages", "accepted with EXPORT_TRANSPORT_UDP"),
        *((spec(protocol=other, template_refresh=Duration(seconds=9)), "template_refresh", "no temp") for other in (V5, SFLOW)),
        (spec(protocol=V5, template_refresh_messages=9), "template_refresh_messages", "no templates"),
        (spec(file_size_mb=1), "file_size_mb", "accepted with EXPORT_TRANSPORT_FILE"),
        (spec(file_age=Duration(seconds=60)), "file_age", "accepted with EXPORT_TRANSPORT_FILE"),
        (spec(files_kept=1), "files_kept", "accepted with EXPORT_TRANSPORT_FILE"),
        (file_spec(file_size_mb=65537), "file_size_mb", "1..65536"),
        (file_spec(file_age=Duration(nanos=999_999_999)), "file_age", "1 s to 86400 s"),
        (file_spec(files_kept=100_001), "files_kept", "1..100000"),
    ],
)  # fmt: skip
def test_what_is_wrong_everywhere_is_refused_with_its_field_and_what_is_accepted(
    export: ExportSpec, field: str, said: str
) -> None:
    found = violation(export)
    assert found.field == f"spec.{field}"
    assert said in found.description


EDGES = st.sampled_from([0, 1, 3600, 3601, 65535, 65536, 65537, 100_001, 1_000_001, 16_777_215, 16_777_216, 2**32 - 1])
COLLECTORS = st.builds(
    ExportCollector,
    host=st.sampled_from(["siem.example", "SIEM.example.", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "127.1", "", "[::1]"]),
    port=EDGES,
    tls_name=st.sampled_from(["", "", "", "a.example", "*.x"]),
)
DURATIONS = st.builds(Duration, seconds=st.sampled_from([0, 1, 86_400, 86_401]))
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "export_id": st.sampled_from(["a", "-", "A", "x" * 33]),
    "collectors": st.lists(COLLECTORS, max_size=3) | st.lists(COLLECTORS, min_size=8, max_size=9),
    "distribution": st.integers(0, 3),
    "export_interval_sec": EDGES,
    "profile": st.integers(0, 4),
    "biflow": st.booleans(),
    "time_unit": st.integers(0, 4),
    "observation_domain_id": EDGES,
    "template_refresh": DURATIONS,
    "template_refresh_messages": EDGES,
    "max_records_per_second": EDGES,
    "filter": st.sampled_from(["tcp", "x" * 4096, "x" * 4097]),
    "sampling_rate": EDGES,
    "file_size_mb": EDGES,
    "file_age": DURATIONS,
    "files_kept": EDGES,
}


@st.composite
def specs(draw: st.DrawFn) -> ExportSpec:
    """An export of any protocol and transport, plain but for up to three fields."""
    transport = draw(st.sampled_from([UDP, UDP, TCP, TLS, FILE, 0, 6]))
    protocol = draw(st.sampled_from([V5, V9, IPFIX, SFLOW, 0, 5] if transport in {0, UDP} else [IPFIX, IPFIX, V9]))
    changed = draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=3, unique=True))
    fields = {"protocol": protocol, "transport": transport, "collectors": [] if transport == FILE else [SIEM]}
    return spec(**{**fields, **{name: draw(CHANGES[name]) for name in changed}})


def accepts(check: Callable[[ExportSpec], object], refusal: type[Exception], export: ExportSpec) -> bool:
    try:
        check(export)
    except refusal:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(export=specs())
def test_what_the_controller_accepts_is_no_agents_to_refuse(export: ExportSpec) -> None:
    """Or every agent of a fleet would refuse, each for itself, what was wrong everywhere."""
    if accepts(check_export, RpcError, export):
        plan_export(export)


@pytest.mark.parametrize("protocol", [V5, V9, IPFIX, SFLOW])
@pytest.mark.parametrize("transport", [UDP, TCP, TLS, SCTP, FILE])
@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"distribution": 1}, {"distribution": 2}, {"profile": 1}, {"profile": 2}, {"time_unit": 1}, {"time_unit": 2}),
        *({"biflow": True}, {"filter": "tcp"}, {"sampling_rate": 9}, {"observation_domain_id": 65536}, {"file_size_mb": 9}),
        *({"file_age": Duration(seconds=9)}, {"files_kept": 9}, {"export_interval_sec": 9}, {"max_records_per_second": 9}),
    ],
    ids=str,
)
def test_controller_and_agent_agree_on_what_goes_with_what(protocol: int, transport: int, changes: dict[str, Any]) -> None:
    collectors = [] if transport == FILE else [SIEM]
    export = spec(protocol=protocol, transport=transport, collectors=collectors, **changes)
    if transport == FILE and "distribution" in changes:
        assert not accepts(check_export, RpcError, export)
        return
    assert accepts(check_export, RpcError, export) is accepts(plan_export, RequestError, export)


def test_every_field_of_an_export_has_a_check_or_takes_every_value() -> None:
    """A field that is added to the proto is judged, or said here to need no judgement."""
    judged = {
        "export_id", "protocol", "transport", "collectors", "distribution", "export_interval_sec", "profile", "biflow",
        "time_unit", "observation_domain_id", "template_refresh", "template_refresh_messages", "filter", "sampling_rate",
        "file_size_mb", "file_age", "files_kept",
    }  # fmt: skip
    assert {field.name for field in ExportSpec.DESCRIPTOR.fields} == judged | {"max_records_per_second"}
    assert {field.name for field in ExportCollector.DESCRIPTOR.fields} == {"host", "port", "tls_name"}


@pytest.mark.parametrize(
    ("export", "entries"),
    [
        (spec(), ["siem.example:4739"]),
        (spec(transport=TLS), ["siem.example:4740"]),
        (spec(protocol=V5), ["siem.example:2055"]),
        (spec(protocol=V9), ["siem.example:2055"]),
        (spec(protocol=SFLOW), ["siem.example:6343"]),
        (spec(collectors=[SIEM, ExportCollector(host="192.0.2.1", port=9)]), ["*.other", "siem.example", "192.0.2.0/24:9"]),
        (file_spec(), ["file"]),
    ],
)
def test_a_collector_of_the_allow_list_may_be_exported_to(export: ExportSpec, entries: list[str]) -> None:
    check_allowed(export, AllowList.parse(entries))


@pytest.mark.parametrize(
    ("export", "entries", "collector", "said"),
    [
        (spec(), [], "siem.example:4739", "which admits nothing"),
        (spec(), ["siem.example:2055"], "siem.example:4739", "which admits siem.example:2055"),
        (
            spec(collectors=[SIEM, ExportCollector(host="2001:db8::1")]),
            ["siem.example"],
            "[2001:db8::1]:4739",
            "spec.collectors[1]",
        ),
        (spec(), ["file", "0.0.0.0/0", "::/0"], "siem.example:4739", "which admits file, 0.0.0.0/0, ::/0"),
        (file_spec(), ["siem.example"], "file", "spec.transport = 'file'"),
        (spec(), [f"{'a' * 60}{n:02}.{'b' * 29}.example" for n in range(64)], "siem.example:4739", "and 54 more"),
    ],
)  # fmt: skip
def test_another_collector_is_refused_with_its_name_and_the_policys_entries(
    export: ExportSpec, entries: list[str], collector: str, said: str
) -> None:
    check_export(export)
    with pytest.raises(RpcError) as refused:
        check_allowed(export, AllowList.parse(entries))
    status = refused.value.status
    assert (status.code, reason_of(status)) == (code_pb2.FAILED_PRECONDITION, "EXPORT_NOT_ALLOWED")
    assert f"{collector!r}: not in the policy's allow-list" in status.message
    assert said in status.message
    # Trailers of more than 8 KiB end a call in an error of the transport.
    assert len(status.SerializeToString()) < 4096
