# SPDX-License-Identifier: Apache-2.0
"""What a session with a collector sends besides records: every template that this process's records may need, and options.

Templates are asked for before there is a capture, and must do for every later one. Which there are follows from the plan alone,
but for profile full, whose records also have what statistics the capture keeps: there, those of every combination are told.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, combinations

from jarvis_native.arguments import STATISTICS
from jarvis_native.errors import CaptureStateError
from jarvis_native.export import MESSAGE_BYTES, ExportBlock, FlowExporter, export_block

from jarvis_agent.export.feed import CollectorFeed
from jarvis_agent.export.session import SessionCounters
from jarvis_agent.export.sources import ExportTerms
from jarvis_agent.export.spool import SpoolStatus

_OFFSET = struct.Struct("=I")


class CollectorSupply:
    """A session's MessageSource; used on the sender's thread."""

    def __init__(self, terms: ExportTerms, feed: CollectorFeed, lost: Callable[[], SpoolStatus]) -> None:
        """Makes the templates.

        Args:
            terms: of the collector.
            feed: knows the capture that is exported.
            lost: what the spool dropped.
        """
        self._feed = feed
        self._lost = lost
        self._terms = terms
        self._templates = all_templates(terms)

    def templates(self) -> ExportBlock:
        """All templates; no messages where the protocol has none."""
        return self._templates

    def options(self, exported: SessionCounters) -> ExportBlock:
        """Options records; no messages where there are none."""
        lost = self._lost()
        statistics = replace(
            self._feed.metering(),
            exported_messages=exported.amount.messages,
            exported_flows=exported.amount.flows,
            exported_octets=exported.octets,
            not_sent_flows=lost.lost.flows + self._feed.overwritten,
            not_sent_packets=lost.lost.packets,
            not_sent_octets=lost.lost.octets,
            first_not_sent_ns=lost.first_lost_ns,
            last_not_sent_ns=lost.last_lost_ns,
        )
        source = self._feed.current
        if source is not None:
            with contextlib.suppress(CaptureStateError):  # the feed let go of it just now
                return source.options(statistics)
        with _exporter(self._terms, ()) as exporter:
            return exporter.options(statistics, [])


def all_templates(terms: ExportTerms) -> ExportBlock:
    """Every template that records of one collector may need in this process, whatever captures come."""
    kinds = tuple(STATISTICS) if terms.plan.profile == "full" and terms.plan.protocol in {"netflow9", "ipfix"} else ()
    choices = chain.from_iterable(combinations(kinds, count) for count in range(len(kinds) + 1))
    blocks = []
    for statistics in choices:
        with _exporter(terms, statistics) as exporter:
            blocks.append(exporter.templates())
    return joined(blocks)


def joined(blocks: Iterable[ExportBlock]) -> ExportBlock:
    """The messages of several blocks in one."""
    data, index = bytearray(), bytearray()
    for block in blocks:
        entries = bytearray(block.index)
        for place in range(0, len(entries), MESSAGE_BYTES):
            (offset,) = _OFFSET.unpack_from(entries, place)
            _OFFSET.pack_into(entries, place, offset + len(data))
        data += block.data
        index += entries
    return export_block(data, bytes(index))


def _exporter(terms: ExportTerms, statistics: Iterable[str]) -> FlowExporter:
    plan = terms.plan
    return FlowExporter(
        firmware=terms.firmware,
        protocol=plan.protocol,
        profile=plan.profile,
        time_unit=plan.time_unit,
        biflow=plan.biflow,
        observation_domain_id=plan.observation_domain_id,
        statistics=tuple(statistics),
        sampling_interval=plan.sampling_rate,
        system_init_ns=terms.system_init_ns,
        routes=terms.routes,
    )
