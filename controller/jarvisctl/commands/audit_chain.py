# SPDX-License-Identifier: Apache-2.0
"""The audit chain as the controller gives it, every entry verified here on its way."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.audit import GENESIS, AuditHead, verify_chain
from jarvis_trust.audit_checkpoint import CheckpointVerifier
from jarvis_trust.errors import AuditError

from jarvisctl.client import Fleet
from jarvisctl.config import read_public, retired_cas
from jarvisctl.errors import CtlError, ExitCode

_PAGE_SIZE = 1000


async def each_page(fleet: Fleet, *, after: int = 0) -> AsyncIterator[Sequence[fleet_pb2.AuditEvent]]:
    """The entries with a higher sequence than `after`, oldest first."""
    token = str(after) if after else ""
    while True:
        request = fleet_pb2.ListAuditEventsRequest(page_size=_PAGE_SIZE, page_token=token)
        answer = await fleet.stub.ListAuditEvents(request, timeout=fleet.timeout_s)
        yield answer.events
        token = answer.next_page_token
        if not token:
            return


class VerifiedChain:
    """One pass over the whole chain. One use."""

    def __init__(self, fleet: Fleet, verifier: CheckpointVerifier, expected: AuditHead | None) -> None:
        self._fleet = fleet
        self._verifier = verifier
        self._expected = expected
        self.head = GENESIS
        """Of what was verified so far."""
        self.uncovered = 0
        """Entries after the last checkpoint; known when the pass is through."""

    @classmethod
    async def of(cls, fleet: Fleet, expected: AuditHead | None = None) -> Self:
        """Fetches the checkpoints, before the entries that they cover, and checks them with the fleet CA.

        Raises:
            CtlError: one is missing, or not signed by the fleet's controller; exit code 4.
        """
        verifier = CheckpointVerifier(read_public(fleet.config.ca, "the fleet CA") + retired_cas(fleet.config))
        token = ""
        while True:
            request = fleet_pb2.ListAuditCheckpointsRequest(page_size=_PAGE_SIZE, page_token=token)
            answer = await fleet.stub.ListAuditCheckpoints(request, timeout=fleet.timeout_s)
            with _as_ctl_error():
                for certificate in answer.signer_certificates:
                    verifier.trust(certificate)
                for checkpoint in answer.checkpoints:
                    verifier.add(checkpoint)
            token = answer.next_page_token
            if not token:
                return cls(fleet, verifier, expected)

    @property
    def checkpoints(self) -> int:
        """How many there are."""
        return self._verifier.count

    async def events(self) -> AsyncIterator[fleet_pb2.AuditEvent]:
        """Every entry, oldest first, each given out only once it holds; the chain holds when all were given out.

        Raises:
            CtlError: the chain or its checkpoints do not hold; exit code 4, naming the first bad entry.
        """
        wanted = 0 if self._expected is None else self._expected.sequence
        async for page in each_page(self._fleet):
            for event in page:
                with _as_ctl_error():
                    expected = self._expected if event.sequence == wanted else None
                    self.head = verify_chain((event,), after=self.head, expected=expected)
                    self._verifier.entry(self.head, event.time.ToNanoseconds())
                yield event
        with _as_ctl_error():
            # The pages are through: an expected entry beyond the head was cut away.
            verify_chain((), after=self.head, expected=self._expected if wanted > self.head.sequence else None)
            self.uncovered = self._verifier.finish(self.head, time.time_ns())


@contextmanager
def _as_ctl_error() -> Iterator[None]:
    try:
        yield
    except AuditError as error:
        raise CtlError(
            f"the audit chain does not hold: {error.message}",
            ExitCode.UNVERIFIED,
            reason=error.reason,
            metadata={"sequence": str(error.sequence)},
        ) from error
