# SPDX-License-Identifier: Apache-2.0
"""What programs under measurement print about what they saw, read into numbers. Text in, counts out; nothing is run here.

None stands for a count that a program does not give: a table then shows a question mark, never a guess.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a meter says it saw."""

    packets: int | None
    flows: int | None
    biflows: bool
    """Both directions of a conversation are one flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A capturing program's own account of the frames."""

    frames: int | None
    dropped: int | None


def number(pattern: str, text: str) -> int | None:
    """The first group of the pattern's last match; counters that are printed again and again end with the last one."""
    found = re.findall(pattern, text)
    return int(found[-1]) if found else None


def version(pattern: str, text: str) -> str:
    """The first group of the pattern, or a question mark."""
    found = re.search(pattern, text)
    return found[1] if found else "?"


def jarvis_summary(printed: str) -> Counted:
    """The summary line of `jarvis-agent meter --output none`."""
    summary = json.loads(printed.splitlines()[0])
    return Counted(packets=summary["packets"], flows=summary["flows"], biflows=True)


def floor_result(printed: str) -> Counted:
    """The line of bench/floor.c."""
    result = json.loads(printed.splitlines()[-1])
    return Counted(packets=result["packets"], flows=None, biflows=True)


def nfdump_statistics(printed: str) -> Counted:
    """`nfdump -I` over the files that nfpcapd wrote."""
    return Counted(packets=number(r"(?m)^Packets: (\d+)", printed), flows=number(r"(?m)^Flows: (\d+)", printed), biflows=False)


def softflowd_statistics(printed: str) -> Counted:
    """What softflowd logs at the end of a file."""
    return Counted(
        packets=number(r"Packets processed: (\d+)", printed), flows=number(r"Flows exported: (\d+)", printed), biflows=True
    )


def pmacctd_records(lines: Iterable[str]) -> Counted:
    """The CSV that pmacctd's print plugin wrote: one row a flow and direction, its packets summed."""
    packets = flows = 0
    for row in csv.DictReader(lines):
        packets += int(row["PACKETS"])
        flows += 1
    return Counted(packets=packets, flows=flows, biflows=False)


def nfstream_totals(printed: str) -> Counted:
    """What the loop over NFStream's flows prints (peers.py)."""
    return Counted(packets=number(r"packets=(\d+)", printed), flows=number(r"flows=(\d+)", printed), biflows=True)


def tcpdump_seen(printed: str) -> Seen:
    """The last words of tcpdump."""
    return Seen(frames=number(r"(\d+) packets? captured", printed), dropped=number(r"(\d+) packets? dropped by kernel", printed))


def softflowctl_seen(printed: str) -> Seen:
    """`softflowctl statistics`."""
    return Seen(
        frames=number(r"Packets processed: (\d+)", printed), dropped=number(r"Packets dropped by libpcap: (\d+)", printed)
    )


def jarvis_seen(printed: str) -> Seen:
    """The last line of bench/live_capture.py."""
    metrics = json.loads(printed.splitlines()[-1])
    return Seen(frames=metrics["metered"], dropped=metrics["dropped"])


def nfstream_seen(printed: str) -> Seen:
    """NFStream's performance reports, the last one counting: ignored frames were seen, what the kernel dropped was not."""
    processed, ignored = number(r'"packets_processed": (\d+)', printed), number(r'"packets_ignored": (\d+)', printed)
    return Seen(
        frames=None if processed is None else processed + (ignored or 0),
        dropped=number(r'"packets_dropped_filtered_by_kernel": (\d+)', printed),
    )
