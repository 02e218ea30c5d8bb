# SPDX-License-Identifier: Apache-2.0
"""Selectors: which agents an operator means, and which ones are refused."""

from __future__ import annotations

import dataclasses

import pytest
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.models import AgentRecord
from jarvis_controller.selectors import Selector, SelectorError, check_labels
from jarvis_controller.states import State

from tests.unit.controller.evidence_bench import record_of
from tests.unit.controller.software_tpm import SoftwareTpm

_ANY = record_of(SoftwareTpm())


def agent(prefix: str, state: State = State.VERIFIED, **labels: str) -> AgentRecord:
    return dataclasses.replace(_ANY, agent_id=prefix.ljust(32, "a"), state=state, labels=labels)


WEB = agent("webx", role="web", site="lab")
GPU = agent("gpux", role="db", gpu="a100")
OLD = agent("oldx", State.STALE, role="web", old="")
GONE = agent("gone", State.RETIRED, role="web", old="")
FLEET = [WEB, GPU, OLD, GONE]


def selected(label_selector: str = "", *agent_ids: str) -> list[AgentRecord]:
    return Selector(fleet_pb2.AgentSelector(agent_ids=agent_ids, label_selector=label_selector)).select(FLEET)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [WEB, GPU, OLD]),
        ("role=web", [WEB, OLD]),
        ("role==db", [GPU]),
        ("role!=web", [GPU]),
        ("gpu", [GPU]),
        ("!gpu", [WEB, OLD]),
        ("role=web,!old", [WEB]),
        ("old=", [OLD]),
        (" role=web , site=lab ", [WEB]),
        ("site!=lab,role=web", [OLD]),
        ("role=nobody", []),
    ],
)
def test_a_label_selector_means_these_agents(text: str, expected: list[AgentRecord]) -> None:
    assert selected(text) == expected


def test_ids_and_labels_are_joined_by_and() -> None:
    assert selected("role=web", "webx", "gpux") == [WEB]


def test_a_retired_agent_is_meant_by_its_id_only() -> None:
    assert selected("", "gone") == [GONE]
    assert GONE not in [*selected("role=web"), *selected("")]


@pytest.mark.parametrize("labels", ["", "old"])
def test_retired_agents_are_listed_when_they_are_asked_for(labels: str) -> None:
    selector = Selector(fleet_pb2.AgentSelector(label_selector=labels))
    assert GONE in selector.select(FLEET, with_retired=True)
    assert GONE not in selector.select(FLEET)


def test_a_prefix_that_fits_several_agents_is_refused_and_they_are_named() -> None:
    twins = [agent("webxa"), agent("webxb")]
    with pytest.raises(SelectorError, match=r"'webx' fits 2 agents \(webxa") as refused:
        Selector(fleet_pb2.AgentSelector(agent_ids=["webx"])).select(twins)
    assert refused.value.field == "selector.agent_ids[0]"


@pytest.mark.parametrize("prefix", ["", "web", "WEBX", "web1", "a" * 33, "web\n"])
def test_a_malformed_id_is_refused(prefix: str) -> None:
    with pytest.raises(SelectorError):
        selected("", prefix)


@pytest.mark.parametrize(
    "text", ["role=", "=web", "role=web,", "!role=web", "role in (web)", "rôle=web", "a=b=c", ",", "role~web"]
)
def test_a_malformed_term_is_refused_or_means_an_empty_value(text: str) -> None:
    if text == "role=":
        assert selected(text) == []
        return
    with pytest.raises(SelectorError) as refused:
        selected(text)
    assert refused.value.field == "selector.label_selector"


def test_an_agent_that_joins_later_is_covered_by_its_labels() -> None:
    selector = Selector(fleet_pb2.AgentSelector(label_selector="role=web"))
    assert selector.covers(agent("newx", role="web"))
    assert not selector.covers(agent("newx", role="db"))


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"a b": "x"}, {"a": "x,y"}, {"a": "-x"}, {f"k{number}": "v" for number in range(65)}]
)
def test_labels_that_no_selector_could_name_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(SelectorError):
        check_labels(labels)
