# SPDX-License-Identifier: Apache-2.0
"""Growth of a process's memory over time: the least-squares slope of its samples, and the bound it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

BOUND_KIB = 2048
"""Growth over a whole leg after warm-up that still passes, KiB. In 10 minutes (two legs of 300 s, 60 of warm-up each) a leak of
9 bytes for each of the thousand flows a second is more."""
LEAST_SAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the process."""

    at_s: float
    """Since the capture started."""
    rss_kib: int
    """Resident set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What the samples after warm-up say."""

    samples: int
    first_kib: int
    last_kib: int
    slope_kib_per_s: float
    growth_kib: float
    """Slope times the time between first and last sample."""
    bound_kib: int = BOUND_KIB

    @property
    def within_bound(self) -> bool:
        """Enough samples, and no more growth than the bound. Shrinking passes."""
        return self.samples >= LEAST_SAMPLES and self.growth_kib <= self.bound_kib


def growth(samples: Sequence[Sample], *, warm_up_s: float) -> Growth:
    """Of the samples after warm-up; fewer than LEAST_SAMPLES of them prove nothing, and never pass."""
    kept = [sample for sample in samples if sample.at_s >= warm_up_s]
    if len(kept) < LEAST_SAMPLES:
        first, last = (kept[0].rss_kib, kept[-1].rss_kib) if kept else (0, 0)
        return Growth(samples=len(kept), first_kib=first, last_kib=last, slope_kib_per_s=0, growth_kib=0)
    slope = statistics.linear_regression([one.at_s for one in kept], [one.rss_kib for one in kept]).slope
    return Growth(
        samples=len(kept),
        first_kib=kept[0].rss_kib,
        last_kib=kept[-1].rss_kib,
        slope_kib_per_s=slope,
        growth_kib=slope * (kept[-1].at_s - kept[0].at_s),
    )


def resident_kib(pid: int | str = "self") -> int:
    """The process's resident set, KiB; the kernel's own rings are not in it."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - read often, no object for the path
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
