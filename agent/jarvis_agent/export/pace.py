# SPDX-License-Identifier: Apache-2.0
"""So many records a second, evenly: a token bucket that holds little more than a burst of messages.

A collector's receive buffer may be the kernel's default, which holds about 90 messages: what was not sent in time is not made up
for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jarvis_agent.export.transport import Interrupt, never

_BUCKET_S = 0.002
"""As late as a sleep may end on a busy machine without slowing the export down."""
_BUCKET_RECORDS = 512.0
"""At least: as many as 32 messages of 1,400 bytes hold, about."""
_SLICE_S = 0.2
_SHORTEST_S = 0.001


class Pace:
    """One collector's.

    Args:
        records_per_second: 0 = no limit.
        interrupt: ends waits early; the records leave then.
        clock: monotonic seconds.
        sleep: seconds.
    """

    def __init__(
        self,
        records_per_second: int,
        *,
        interrupt: Interrupt = never,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = float(records_per_second)
        self._interrupt = interrupt
        self._clock, self._sleep = clock, sleep
        self._bucket = max(self._rate * _BUCKET_S, _BUCKET_RECORDS) if self._rate else 0.0
        self._tokens = self._bucket
        self._filled_at = clock()

    @property
    def is_limited(self) -> bool:
        """Whether it ever waits."""
        return self._rate > 0

    def wait(self, records: int) -> None:
        """Waits until `records` may leave. The bucket may go into debt, so that more than it holds can leave at once, late."""
        if not self.is_limited:
            return
        while True:
            now = self._clock()
            self._tokens = min(self._bucket, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
            if self._tokens >= 0 or self._interrupt():
                break
            self._sleep(min(_SLICE_S, max(_SHORTEST_S, -self._tokens / self._rate)))
        self._tokens -= records
