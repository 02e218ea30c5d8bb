# SPDX-License-Identifier: Apache-2.0
"""The offline meter's sFlow options, and the address by which collectors know this host."""

from __future__ import annotations

import pytest
from jarvis_agent.export.agent_address import agent_address
from jarvis_agent.export.plan import Collector
from jarvis_agent.meter_export_options import ExportOptionError, ExportOptions, check_export, plans_of

SFLOW = "sflow:192.0.2.7"


def test_sflow_samples_every_frame_unless_told_otherwise() -> None:
    first, second = plans_of(ExportOptions(targets=(SFLOW, "sflow:[2001:db8::7]:7000")))
    assert (first.protocol, first.transport, first.sampling_rate) == ("sflow", "udp", 1)
    assert first.collectors == (Collector(host="192.0.2.7", port=6343),)
    assert second.collectors == (Collector(host="2001:db8::7", port=7000),)
    (plan,) = plans_of(ExportOptions(targets=(SFLOW,), sampling_rate=2048))
    assert plan.sampling_rate == 2048


def test_flow_exports_beside_sflow_have_no_sampling_rate() -> None:
    plans = plans_of(ExportOptions(targets=("ipfix:192.0.2.7", SFLOW), sampling_rate=10))
    assert [plan.sampling_rate for plan in plans] == [0, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(targets=("ipfix:192.0.2.7",), sampling_rate=10), "--sampling-rate is given and no --export samples"),
        (ExportOptions(targets=(SFLOW,), sampling_rate=1 << 24), "--sampling-rate is 16777216: accepted are"),
        (ExportOptions(targets=(SFLOW,), sampling_rate=-1), "--sampling-rate is -1: accepted are"),
        (ExportOptions(targets=("sflow/tcp:192.0.2.7",)), "'tcp' is no transport of sflow"),
        (ExportOptions(targets=(SFLOW, "ipfix:192.0.2.7"), balance=True), "--export-balance: the samples of sflow"),
        (ExportOptions(targets=(SFLOW,), biflow=True), "--biflow"),
        (ExportOptions(targets=tuple(f"{SFLOW}:{port}" for port in range(1, 6))), "sflow is given 5 times, accepted are 4"),
    ],
)
def test_what_sflow_cannot_do_is_refused_in_terms_of_the_options(options: ExportOptions, message: str) -> None:
    with pytest.raises(ExportOptionError, match=message):
        check_export(options, to_file=False)


@pytest.mark.parametrize("collector", ["127.0.0.1", "::1"])
def test_the_agents_address_is_the_one_towards_the_collector(collector: str) -> None:
    assert agent_address(collector) == collector


def test_towards_a_name_it_is_the_one_towards_far_away_or_loopbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    address = agent_address("collector.example")
    assert address == agent_address("another.example")
    monkeypatch.setattr("jarvis_agent.export.agent_address._FAR_AWAY", ())
    assert agent_address("collector.example") == "127.0.0.1"
