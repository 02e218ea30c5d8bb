# SPDX-License-Identifier: Apache-2.0
"""Numbers, times and foreign text as people read them."""

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
#: C0, DEL and C1 controls: an agent's words must not move the operator's cursor or forge a line.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def printable(text: str) -> str:
    r"""Text that came from elsewhere, with control characters shown as \xNN."""
    return text.translate(_CONTROLS)


def scaled(value: float, unit: str) -> str:
    """With a decimal prefix and three to four digits: 420B, 1.2kB, 3.4Gbit/s."""
    if value < 1000:
        return f"{value:.0f}{unit}"
    power = 0
    # 999.95 and more would print as 1000.0.
    while value >= 999.95 and power < len(_PREFIXES) - 1:
        value /= 1000
        power += 1
    return f"{value:.1f}{_PREFIXES[power]}{unit}"


def count(value: int) -> str:
    """With thousands separated."""
    return f"{value:,}"


def span(seconds: float) -> str:
    """A length of time: 0.01s, 42.0s, 5m03s, 2h10m, 3d04h."""
    if seconds < 60:
        return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def interval(nanoseconds: int) -> str:
    """A difference of clocks: 420ns, 1.5us, 12.0ms, 37.0s."""
    sign = "-" if nanoseconds < 0 else ""
    if abs(nanoseconds) < 1000:
        return f"{nanoseconds}ns"
    value, unit = abs(nanoseconds) / 1000, "us"
    for larger in ("ms", "s"):
        # 999.95 and more would print as 1000.0.
        if value >= 999.95:
            value, unit = value / 1000, larger
    return f"{sign}{value:.1f}{unit}"


def age(time: Timestamp, now: datetime | None = None) -> str:
    """How long ago, or until then: 5m03s ago, in 9m58s; "-" when unset."""
    if not is_set(time):
        return "-"
    seconds = ((now or datetime.now(UTC)) - time.ToDatetime(UTC)).total_seconds()
    text = span(int(abs(seconds)) if abs(seconds) >= 10 else abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def is_set(time: Timestamp) -> bool:
    """Whether a time was given at all."""
    return bool(time.seconds or time.nanos)


def rfc3339(time: Timestamp) -> str | None:
    """UTC with the digits it has; None when unset."""
    return time.ToJsonString() if is_set(time) else None


def local_time(time: Timestamp) -> str:
    """In the operator's time zone, to the second; "-" when unset."""
    return f"{time.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S %z}" if is_set(time) else "-"


def seconds_of(duration: Duration) -> float:
    """Seconds as a number."""
    return duration.seconds + duration.nanos / 1e9
