# SPDX-License-Identifier: Apache-2.0
"""PolicyService: the policy in force, another one in its place, and what another one would do.

Roles are checked before a handler runs (authorization.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import grpc.aio
from google.rpc import code_pb2
from jarvis.capture.v1 import policy_pb2
from jarvis_trust.errors import PolicyError
from jarvis_trust.policy_document import PolicyDocument

from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.authorization import caller_of
from jarvis_controller.policy_keeper import PolicyKeeper
from jarvis_controller.policy_simulation import Simulation
from jarvis_controller.rpc_status import bad_field, refuse, refuse_trust
from jarvis_controller.selection import read_selector, select
from jarvis_controller.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyService:
    """The handlers. One instance per controller."""

    def __init__(self, *, fleet: str, store: Store, policies: PolicyKeeper) -> None:
        self._fleet = fleet
        self._store = store
        self._policies = policies

    async def get_policy(self, _request: policy_pb2.GetPolicyRequest, _context: Context) -> policy_pb2.GetPolicyResponse:
        """GetPolicy."""
        return policy_pb2.GetPolicyResponse(policy=self._policies.applied)

    async def apply_policy(self, request: policy_pb2.ApplyPolicyRequest, context: Context) -> policy_pb2.ApplyPolicyResponse:
        """ApplyPolicy."""
        with _as_refusal():
            document = _document(request.document)
            applied = await self._policies.apply(self._store, document, principal=self._principal(context))
        answer = policy_pb2.ApplyPolicyResponse(policy=applied)
        answer.policy.ClearField("document")
        return answer

    async def simulate_policy(
        self, request: policy_pb2.SimulatePolicyRequest, context: Context
    ) -> AsyncGenerator[policy_pb2.SimulatePolicyResponse, None]:
        """SimulatePolicy."""
        selector = read_selector(request.selector)
        with _as_refusal():
            policy = await asyncio.to_thread(self._policies.judge, _document(request.document))
        agents = select(selector, await self._store.agents(), may_be_empty=selector.is_everything)
        detail = {
            "agents": len(agents),
            "name": policy.name,
            "sha256": policy.document.sha256.hex(),
            "version": policy.version,
        }
        entry = AuditEntry(principal=self._principal(context), action="policy.simulate", detail=detail)
        await self._store.audit(entry)
        simulation = await Simulation.of(
            self._store, in_force=self._policies.current, other=policy, releases=self._policies.releases.now()
        )
        async with contextlib.aclosing(simulation.run(agents)) as answers:
            async for answer in answers:
                yield answer

    def _principal(self, context: Context) -> str:
        return caller_of(context, self._fleet).uri


def _document(message: policy_pb2.PolicyDocument) -> PolicyDocument:
    if not message.text:
        raise bad_field("document.text", "it is empty: the text of a policy.toml is accepted")
    return PolicyDocument.from_message(message)


@contextlib.contextmanager
def _as_refusal() -> Iterator[None]:
    """What a policy is refused for, as the call's status."""
    try:
        yield
    except PolicyError as error:
        old = error.reason == "POLICY_VERSION_OLD"
        raise refuse_trust(code_pb2.FAILED_PRECONDITION if old else code_pb2.INVALID_ARGUMENT, error) from error
    except OSError as error:
        message = f"the policy could not be kept, the one before stays in force: {error.strerror}"
        raise refuse(code_pb2.INTERNAL, "POLICY_NOT_KEPT", message) from error
