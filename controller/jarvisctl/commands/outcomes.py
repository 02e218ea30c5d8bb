# SPDX-License-Identifier: Apache-2.0
"""What agents answered to one command, printed as they answer: a table for people, JSON for programs."""

from collections.abc import AsyncIterable
from typing import Any, Protocol, TypeVar

from jarvis.capture.v1 import fleet_pb2

from jarvisctl.client import Fleet, nothing_selected
from jarvisctl.errors import ExitCode
from jarvisctl.format.progress import progress
from jarvisctl.format.table import Table
from jarvisctl.status import failure_of

O = TypeVar("O", fleet_pb2.CaptureOutcome, fleet_pb2.ExportOutcome)  # noqa: E741 - an outcome
O_contra = TypeVar("O_contra", fleet_pb2.CaptureOutcome, fleet_pb2.ExportOutcome, contravariant=True)


class View(Protocol[O_contra]):
    """What of an outcome is shown to people; programs get all of it."""

    def table(self) -> Table:
        """Empty, with its columns."""
        ...

    def rows(self, outcome: O_contra, failure: str) -> list[list[str]]:
        """An agent's rows; `failure` is why it failed, or empty."""
        ...

    def contents(self, outcome: O_contra) -> dict[str, Any]:
        """What an agent answered, for programs."""
        ...


async def print_outcomes(fleet: Fleet, what: str, outcomes: AsyncIterable[O], view: View[O]) -> ExitCode:
    """Prints each agent's outcome."""
    answers = failures = 0
    table = view.table()
    with progress(what, fleet.output) as answered:
        async for outcome in outcomes:
            answered()
            answers += 1
            failure = failure_of(outcome.status)
            failures += failure is not None
            if fleet.output.json:
                fleet.output.line(outcome_object(outcome, view))
            else:
                for row in view.rows(outcome, failure.sentence if failure else ""):
                    table.add(*row)
    if not answers:
        raise nothing_selected()
    if not fleet.output.json:
        fleet.output.table(table)
        if failures:
            fleet.output.remark(f"{failures} of {answers} agents failed")
    return ExitCode.FAILED if failures else ExitCode.OK


def outcome_object(outcome: O, view: View[O]) -> dict[str, Any]:
    """One agent's outcome for programs."""
    failure = failure_of(outcome.status)
    return {
        "agent_id": outcome.agent_id,
        "ok": failure is None,
        "error": failure.to_object() if failure else None,
        **view.contents(outcome),
    }
