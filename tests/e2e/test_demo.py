# SPDX-License-Identifier: Apache-2.0
"""`make demo` checks its own claims; here it is held to that, both ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testbed import netns

ROOT = Path(__file__).resolve().parents[2]


def run_demo(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "testbed.demo", *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_claim_of_the_demo_holds_between_namespaces() -> None:
    if reason := netns.is_available():
        pytest.skip(reason)
    printed = run_demo()
    assert "300 connections, 300 flows" in printed
    assert "Every claim held" in printed


def test_every_claim_of_the_demo_holds_by_replay() -> None:
    assert "Every claim held" in run_demo("--replay")
