# SPDX-License-Identifier: Apache-2.0
"""The states of an agent: what must hold whatever happens, in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from jarvis_controller.states import Event, IllegalTransitionError, State, transition


class AnAgentsLife(RuleBasedStateMachine):
    """Every event in every order; the model remembers only what trust follows from."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.UNKNOWN
        self.quarantined = False
        self.retired = False
        self.proved = False
        """The last evidence passed, and nothing was lost or held against the agent since."""

    def happen(self, event: Event) -> None:
        try:
            self.state = transition(self.state, event)
        except IllegalTransitionError:
            return

    @rule()
    def enrol(self) -> None:
        before = self.state
        self.happen(Event.ENROLLED)
        assert self.state is (State.ENROLLED if before in {State.UNKNOWN, State.RETIRED} else before)
        if before is State.RETIRED:
            self.retired = self.proved = False

    @rule()
    def pass_attestation(self) -> None:
        if self.state is not State.UNKNOWN:
            self.proved = True
        self.happen(Event.ATTESTATION_PASSED)

    @rule()
    def fail_attestation(self) -> None:
        self.proved = False
        if self.state not in {State.UNKNOWN, State.RETIRED}:
            self.quarantined = True
        self.happen(Event.ATTESTATION_FAILED)

    @rule()
    def lose_contact(self) -> None:
        self.proved = False
        self.happen(Event.CONTACT_LOST)

    @rule()
    def order_quarantine(self) -> None:
        self.proved = False
        if self.state not in {State.UNKNOWN, State.RETIRED}:
            self.quarantined = True
        self.happen(Event.QUARANTINE_ORDERED)

    @rule()
    def order_release(self) -> None:
        if self.state is State.QUARANTINED:
            self.quarantined = False
        self.proved = False if self.state is State.QUARANTINED else self.proved
        self.happen(Event.RELEASE_ORDERED)

    @precondition(lambda self: self.state is not State.UNKNOWN)
    @rule(draw=st.integers(0, 20))
    def order_retirement(self, draw: int) -> None:
        if draw == 0:  # seldom: it is the end
            self.retired, self.quarantined = True, False
            self.happen(Event.RETIRE_ORDERED)

    @invariant()
    def only_a_proved_agent_is_verified(self) -> None:
        assert self.state is not State.VERIFIED or self.proved

    @invariant()
    def a_quarantine_ends_by_release_or_retirement_only(self) -> None:
        assert (self.state is State.QUARANTINED) == (self.quarantined and not self.retired)

    @invariant()
    def a_retired_agent_stays_retired_until_it_enrols_anew(self) -> None:
        assert (self.state is State.RETIRED) == self.retired


TestAnAgentsLife = AnAgentsLife.TestCase
TestAnAgentsLife.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.ENROLLED])
def test_an_unknown_agent_can_only_enrol(event: Event) -> None:
    with pytest.raises(IllegalTransitionError):
        transition(State.UNKNOWN, event)


@given(state=st.sampled_from([state for state in State if state not in {State.UNKNOWN, State.RETIRED}]))
def test_enrolling_again_never_changes_the_state(state: State) -> None:
    assert transition(state, Event.ENROLLED) is state


@pytest.mark.parametrize("state", [State.ENROLLED, State.VERIFIED, State.STALE])
def test_losing_contact_makes_an_agent_stale_and_never_quarantined(state: State) -> None:
    assert transition(state, Event.CONTACT_LOST) is State.STALE


def test_a_released_agent_has_to_be_attested_first() -> None:
    assert transition(State.QUARANTINED, Event.RELEASE_ORDERED) is State.STALE


@pytest.mark.parametrize("state", [State.ENROLLED, State.VERIFIED, State.STALE, State.RETIRED])
def test_only_a_quarantined_agent_can_be_released(state: State) -> None:
    with pytest.raises(IllegalTransitionError):
        transition(state, Event.RELEASE_ORDERED)
