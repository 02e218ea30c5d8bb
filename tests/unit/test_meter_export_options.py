# SPDX-License-Identifier: Apache-2.0
"""The meter's --export options: what a target means, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from jarvis_agent.commands import DEFAULT_EXPORT_RATE
from jarvis_agent.export.plan import Collector
from jarvis_agent.meter_export_options import (
    DEFAULT_RATE,
    ExportOptionError,
    ExportOptions,
    check_export,
    file_plan,
    parse_target,
    plans_of,
)


@pytest.mark.parametrize(
    ("text", "protocol", "transport", "host", "port"),
    [
        ("ipfix:192.0.2.1:9995", "ipfix", "udp", "192.0.2.1", 9995),
        ("ipfix:collector.example", "ipfix", "udp", "collector.example", 4739),
        ("ipfix/udp:collector.example:1", "ipfix", "udp", "collector.example", 1),
        ("ipfix/tcp:192.0.2.1", "ipfix", "tcp", "192.0.2.1", 4739),
        ("ipfix/tls:collector.example", "ipfix", "tls", "collector.example", 4740),
        ("ipfix/tls:[2001:db8::1]:65535", "ipfix", "tls", "2001:db8::1", 65535),
        ("netflow9:[2001:db8::1]", "netflow9", "udp", "2001:db8::1", 2055),
        ("netflow5:192.0.2.1", "netflow5", "udp", "192.0.2.1", 2055),
    ],
)
def test_a_target_names_protocol_transport_and_collector(text: str, protocol: str, transport: str, host: str, port: int) -> None:
    assert parse_target(text) == (protocol, transport, Collector(host=host, port=port))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("netflow:192.0.2.1", "'netflow' is no protocol: accepted are ipfix, netflow9, netflow5"),
        ("192.0.2.1:4739", "'192.0.2.1' is no protocol"),
        ("", "'' is no protocol"),
        ("ipfix/dtls:192.0.2.1", "'dtls' is no transport of ipfix: accepted are udp, tcp, tls, sctp"),
        ("netflow9/tcp:192.0.2.1", "'tcp' is no transport of netflow9: accepted are udp"),
        ("ipfix/:192.0.2.1", "'' is no transport of ipfix"),
        ("ipfix", "names no collector"),
        ("ipfix:", "names no collector"),
        ("ipfix::4739", "names no collector"),
        ("ipfix:[]:4739", "names no collector"),
        ("ipfix:192.0.2.1:", "'' is no port: accepted are 1 to 65535"),
        ("ipfix:192.0.2.1:0", "'0' is no port: accepted are 1 to 65535"),
        ("ipfix:192.0.2.1:65536", "'65536' is no port"),
        ("ipfix:192.0.2.1:-1", "'-1' is no port"),
        ("ipfix:192.0.2.1:http", "'http' is no port"),
        ("ipfix:2001:db8::1", "an IPv6 address goes in brackets, as ipfix:[2001:db8::1]:4739"),
        ("ipfix:[2001:db8::1", "[ADDRESS]:PORT"),
        ("ipfix:[2001:db8::1]4739", "[ADDRESS]:PORT"),
    ],
)
def test_a_target_that_cannot_be_is_refused_with_what_is_accepted(text: str, why: str) -> None:
    with pytest.raises(ExportOptionError) as refused:
        parse_target(text)
    assert str(refused.value).startswith(f"--export {text}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"profile": "big"}, "--export-profile is 'big': accepted are minimal, default, full"),
        ({"time_unit": "s"}, "--export-time is 's': accepted are ms, us, ns"),
        ({"domain": 1 << 32}, "--export-domain is 4294967296: accepted are 0 to 4294967295"),
        ({"domain": -1}, "--export-domain is -1"),
        ({"targets": ("netflow5:h",), "domain": 65_536}, "--export-domain is 65536: accepted with netflow5 are 0 to 65535"),
        ({"rate": -1}, "--export-rate is -1: accepted are 0 to 100000000"),
        ({"balance": True}, "--export-balance: flows are balanced over several --export"),
        ({"targets": ("ipfix:h", "netflow9:h"), "biflow": True}, "--biflow: netflow9:h has no records of both directions"),
        ({"targets": ("ipfix:h", "ipfix/udp:H:4739")}, "--export ipfix/udp:H:4739: ipfix:h goes there too"),
        ({"targets": ("ipfix:h", "netflow9:h:4739")}, "accepted is each collector once"),
        ({"targets": ("ipfix/tls:h",), "tls_ca": Path("ca")}, "--export-tls-certificate is not given"),
        ({"targets": ("ipfix:h",), "tls_key": Path("key")}, "--export-tls-key is given and no --export goes over TLS"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], why: str) -> None:
    given = {"targets": ("ipfix:192.0.2.1",)} | options
    with pytest.raises(ExportOptionError) as refused:
        plans_of(ExportOptions(**given))  # type: ignore[arg-type]
    assert why in str(refused.value)


def test_only_udp_is_paced() -> None:
    options = ExportOptions(targets=("ipfix:h", "ipfix/tcp:h", "netflow5:h"), rate=5)
    assert [plan.max_records_per_second for plan in plans_of(options)] == [5, 0, 5]


def test_every_plan_has_the_form_that_is_asked_for() -> None:
    options = ExportOptions(targets=("ipfix:a", "ipfix:b"), profile="full", time_unit="ns", biflow=True, domain=7, balance=True)
    for plan in (*plans_of(options), file_plan(options)):
        assert (plan.profile, plan.time_unit, plan.biflow, plan.observation_domain_id) == ("full", "ns", True, 7)
    assert {plan.distribution for plan in plans_of(options)} == {"balance"}
    assert len({plan.export_id for plan in plans_of(options)}) == 2


def test_a_form_without_anything_to_export_is_refused_but_for_a_file() -> None:
    options = ExportOptions(biflow=True)
    check_export(options, to_file=True)
    check_export(ExportOptions(), to_file=False)
    with pytest.raises(ExportOptionError, match="nothing is exported"):
        check_export(options, to_file=False)


def test_routes_are_for_profile_full_and_netflow_v5() -> None:
    for options in (
        ExportOptions(targets=("ipfix:h",), routes=True, profile="full"),
        ExportOptions(targets=("netflow5:h",), asn_database=Path("as.mmdb")),
    ):
        check_export(options, to_file=False)
    with pytest.raises(ExportOptionError, match="--export-asn-database is given and --export-profile is default"):
        check_export(ExportOptions(targets=("ipfix:h",), asn_database=Path("as.mmdb")), to_file=False)
    with pytest.raises(ExportOptionError, match="--export-routes is given"):
        check_export(ExportOptions(targets=("netflow9:h",), routes=True), to_file=False)


def test_the_default_rate_is_told_alike_by_the_command_line() -> None:
    assert DEFAULT_EXPORT_RATE == DEFAULT_RATE
