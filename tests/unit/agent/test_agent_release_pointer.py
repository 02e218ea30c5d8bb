# SPDX-License-Identifier: Apache-2.0
"""The release pointer: whatever happens when, the next start loads the old release or the new one, in the end one that works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from jarvis_agent.release_pointer import CRASHED, INTERRUPTED, MAX_STARTS, NO_LEASE, Pointer, PointerFile

OLD, NEW = "a" * 64, "b" * 64
BOOT, NEXT_BOOT = "1" * 32, "2" * 32
TRIAL_NS = 60 * 10**9


def on_trial(starts: int = 0) -> Pointer:
    pointer = Pointer(current=OLD).begin(NEW, "0.2.0", trial_ns=TRIAL_NS, boot_id=BOOT)
    for _ in range(starts):
        pointer = pointer.start(boot_id=BOOT, now_ns=0)
    return pointer


def test_without_a_file_the_configurations_firmware_is_loaded(tmp_path: Path) -> None:
    assert PointerFile(tmp_path / "pointer.json").read() == Pointer()
    assert Pointer().loads == ""


def test_a_release_with_a_lease_in_time_is_current() -> None:
    pointer = on_trial(1)
    assert pointer.loads == NEW
    assert pointer.confirm() == Pointer(current=NEW)


def test_one_that_ends_twice_before_its_lease_is_left() -> None:
    pointer = on_trial(MAX_STARTS)
    assert pointer.loads == NEW
    left = pointer.start(boot_id=BOOT, now_ns=1)
    assert (left.loads, left.trial) == (OLD, None)
    assert left.failed is not None
    assert left.failed.reason == CRASHED


def test_one_whose_time_is_over_is_left_and_a_second_start_gives_it_no_more_time() -> None:
    first = Pointer(current=OLD).begin(NEW, "0.2.0", trial_ns=TRIAL_NS, boot_id=BOOT).start(boot_id=BOOT, now_ns=100)
    second = first.start(boot_id=BOOT, now_ns=100 + TRIAL_NS - 1)
    assert first.trial is not None
    assert second.trial is not None
    assert second.trial.deadline_ns == first.trial.deadline_ns == 100 + TRIAL_NS
    left = first.start(boot_id=BOOT, now_ns=100 + TRIAL_NS)
    assert left.failed is not None
    assert (left.loads, left.failed.reason) == (OLD, NO_LEASE)


@pytest.mark.parametrize("starts", [0, 1])
def test_a_reboot_ends_a_trial(starts: int) -> None:
    left = on_trial(starts).start(boot_id=NEXT_BOOT, now_ns=0)
    assert left.failed is not None
    assert (left.loads, left.failed.reason, left.failed.sha256) == (OLD, INTERRUPTED, NEW)


def test_a_roll_back_is_told_once_and_forgotten_with_the_next_success() -> None:
    left = on_trial(1).roll_back("FIRMWARE_ALTERED", "x" * 5000)
    assert left.failed is not None
    assert not left.failed.is_told
    assert len(left.failed.message) <= 1000
    told = left.told()
    assert told.failed is not None
    assert told.failed.is_told
    assert told.begin(NEW, "0.2.1", trial_ns=1, boot_id=BOOT).start(boot_id=BOOT, now_ns=0).confirm() == Pointer(current=NEW)


names = st.sampled_from(["", OLD, NEW])
texts = st.text(max_size=30)


@given(names, texts, st.integers(0, 2**62), st.integers(0, 3), st.booleans())
def test_what_is_written_is_read_back(current: str, text: str, number: int, starts: int, rolls_back: bool) -> None:
    pointer = Pointer(current=current).begin(NEW, text, trial_ns=number, boot_id=BOOT)
    for _ in range(starts):
        pointer = pointer.start(boot_id=BOOT, now_ns=number)
    if rolls_back:
        pointer = pointer.roll_back("REASON", text)
    assert Pointer.from_bytes(pointer.to_bytes()) == pointer


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSONDecodeError and UnicodeDecodeError are some
        Pointer.from_bytes(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"format":"x"}', on_trial().to_bytes()[:-20], b"[" * 10_000])
def test_a_damaged_file_counts_as_none(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pointer.json"
    path.write_bytes(data)
    assert PointerFile(path).read() == Pointer()
    assert str(path) in caplog.text


class CrashError(BaseException):
    """The power went."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """The `at`-th call that touches the disk is the last; how many there were."""
    calls = 0

    def wrap(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= at:
                raise CrashError
            return function(*arguments, **named)

        return call

    for owner, name in ((os, "open"), (os, "fsync"), (os, "fchmod"), (Path, "hardlink_to"), (Path, "unlink"), (Path, "replace")):
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: calls


def test_a_power_cut_at_any_point_of_a_write_leaves_the_old_pointer_or_the_new_one(tmp_path: Path) -> None:
    old, new = Pointer(current=OLD), on_trial()
    seen = set()
    for at in range(1, 100):
        file = PointerFile(tmp_path / f"pointer-{at}.json")
        file.write(old)
        with pytest.MonkeyPatch.context() as patch:
            crashing(patch, at)
            try:
                file.write(new)
            except CrashError:
                pass
            else:
                break
        found = file.read()
        assert found in {old, new}
        seen.add(found)
    assert seen == {old, new}, "there are points before and after the change"
    assert file.read() == new


class Life(RuleBasedStateMachine):
    """One agent over crashes, reboots, activations and leases; what is on its disk is all that survives."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Pointer(current=OLD).to_bytes()
        self.good = {OLD}
        """Releases that had a lease."""
        self.boot = 0
        self.now = 0
        self.is_running = False
        self.starts_without_lease = 0

    def pointer(self) -> Pointer:
        return Pointer.from_bytes(self.disk)

    @precondition(lambda self: not self.is_running)
    @rule()
    def start(self) -> None:
        started = self.pointer().start(boot_id=f"{self.boot:032x}", now_ns=self.now)
        self.disk = started.to_bytes()
        self.is_running = True
        self.starts_without_lease += started.loads not in self.good

    @precondition(lambda self: self.is_running)
    @rule()
    def end(self) -> None:
        """It crashes, or is stopped."""
        self.is_running = False

    @rule()
    def power_cut(self) -> None:
        self.is_running = False
        self.boot += 1
        self.now = 0

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 10**9
        trial = self.pointer().trial
        if self.is_running and trial is not None and self.now >= trial.deadline_ns:
            self.disk = self.pointer().roll_back(NO_LEASE, "").to_bytes()
            self.is_running = False

    @precondition(lambda self: self.is_running and self.pointer().trial is None)
    @rule(release=st.sampled_from([NEW, "c" * 64]))
    def activate(self, release: str) -> None:
        self.disk = self.pointer().begin(release, "1.0.0", trial_ns=TRIAL_NS, boot_id=f"{self.boot:032x}").to_bytes()
        self.is_running = False
        self.starts_without_lease = 0

    @precondition(lambda self: self.is_running)
    @rule()
    def lease(self) -> None:
        pointer = self.pointer()
        self.good.add(pointer.loads)
        self.disk = pointer.confirm().to_bytes()
        self.starts_without_lease = 0

    @invariant()
    def what_is_current_had_a_lease(self) -> None:
        assert self.pointer().current in self.good

    @invariant()
    def a_release_without_a_lease_is_started_twice_at_most(self) -> None:
        assert self.starts_without_lease <= MAX_STARTS


TestLife = Life.TestCase
