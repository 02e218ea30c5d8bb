# SPDX-License-Identifier: Apache-2.0
"""Programs are measured as whole processes, stopped at their limit, and followed into their children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.programs import cpu_seconds, pinned, process_tree, run_to_end

BUSY = "import time\nwhile time.process_time() < 0.2: pass\nprint('done')"


def test_a_run_gives_what_was_printed_and_the_time_that_was_used(tmp_path: Path) -> None:
    done = run_to_end([sys.executable, "-c", BUSY], log=tmp_path / "log", limit_s=60)
    assert done.printed == "done\n"
    assert done.wall >= 0.2
    assert done.cpu >= 0.2
    assert done.rss_mib > 1


def test_a_failure_is_an_error_with_the_programs_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exited with 3: no such table"):
        run_to_end([sys.executable, "-c", "print('no such table'); exit(3)"], log=tmp_path / "log", limit_s=60)


def test_a_run_that_takes_too_long_is_stopped_and_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped after 0 s, the limit"):
        run_to_end(["sleep", "60"], log=tmp_path / "log", limit_s=0.2)


def test_a_program_that_does_not_end_by_itself_is_told_to_once_it_is_idle(tmp_path: Path) -> None:
    waits = "import signal\ntry:\n    signal.pause()\nexcept KeyboardInterrupt:\n    print('told')"
    done = run_to_end([sys.executable, "-c", waits], log=tmp_path / "log", limit_s=60, stop_when_idle=True)
    assert done.printed == "told\n"


def test_children_belong_to_the_tree_and_their_cpu_time_is_counted() -> None:
    # The child answers with a line once it has used its CPU time, and then waits with its parent.
    child = f"{BUSY}\nimport sys; sys.stdout.flush(); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        assert len(process_tree(parent.pid)) == 2
        assert cpu_seconds(parent.pid) >= 0.2
        parent.communicate()
    assert process_tree(parent.pid) == []
    assert cpu_seconds(parent.pid) == 0


def test_cpu_numbers_past_the_last_begin_again() -> None:
    assert pinned([0, 10**6 * 64], ["true"])[:2] == ["taskset", "-c"]
    assert subprocess.run(pinned(range(64), ["true"]), check=False).returncode == 0
