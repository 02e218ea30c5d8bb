# SPDX-License-Identifier: Apache-2.0
"""The agents that a request means, or the refusal that it gets."""

from __future__ import annotations

from collections.abc import Sequence

from google.rpc import code_pb2
from jarvis.capture.v1 import fleet_pb2

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.rpc_status import RpcError, bad_field, refuse
from jarvis_controller.selectors import Selector, SelectorError


def read_selector(message: fleet_pb2.AgentSelector) -> Selector:
    """The selector of a request.

    Raises:
        RpcError: INVALID_ARGUMENT, it is malformed.
    """
    try:
        return Selector(message)
    except SelectorError as error:
        raise bad_field(error.field, error.message) from error


def select(
    selector: Selector, agents: Sequence[AgentRecord], *, may_be_empty: bool, with_retired: bool = False
) -> list[AgentRecord]:
    """The agents that it means.

    Raises:
        RpcError: INVALID_ARGUMENT for an ambiguous prefix; NOT_FOUND when nobody is meant, unless that `may_be_empty`.
    """
    try:
        selected = selector.select(agents, with_retired=with_retired)
    except SelectorError as error:
        raise bad_field(error.field, error.message) from error
    if not selected and not may_be_empty:
        raise refuse(code_pb2.NOT_FOUND, "AGENT_NOT_FOUND", f"the selector matches none of {len(agents)} agents")
    return selected


def gone(agent: AgentRecord) -> RpcError:
    """The refusal for an agent that was there when it was selected."""
    return refuse(code_pb2.NOT_FOUND, "AGENT_NOT_FOUND", f"agent {agent.agent_id} is not enrolled")
