# SPDX-License-Identifier: Apache-2.0
"""The committed cffi declarations are those of the public header."""

from __future__ import annotations

import runpy

import pytest
from jarvis.capture.v1.flow_pb2 import FlowRecord
from jarvis_native._cdef import ffi
from jarvis_native.packets import PACKET_BYTES, PACKET_DTYPE
from jarvis_native.reader import arrow_schema

from tests.support import ROOT

FIRST_STATISTIC = 28
"""FlowRecord's number of the first field of statistics."""


def test_the_committed_declarations_are_those_of_the_header() -> None:
    builder = runpy.run_path(str(ROOT / "native" / "python" / "build_cdef.py"))
    assert builder["generate"]() == builder["OUTPUT"].read_text(encoding="utf-8")


def test_the_packet_layout_for_numpy_is_the_structs() -> None:
    layout = ffi.typeof("struct capture_packet").fields
    assert ffi.sizeof("struct capture_packet") == PACKET_BYTES
    assert [(name, field.offset) for name, field in layout] == list(_offsets())


def _offsets() -> list[tuple[str, int]]:
    at, offsets = 0, []
    for name, kind in PACKET_DTYPE:
        offsets.append((name, at))
        at += int(kind[2:])
    return offsets


def test_every_column_of_the_core_is_a_column_of_the_arrow_batch() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    columns = [name for name, _ in ffi.typeof("struct capture_flow_columns").fields]
    assert arrow_schema(["tcp", "sizes", "intervals", "headers"]).names == columns
    assert arrow_schema().names == columns[: len(columns) - 36]


def test_the_statistics_columns_are_named_as_the_protobuf_fields() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    fields = sorted((field.number, field.name) for field in FlowRecord.DESCRIPTOR.fields if field.number >= FIRST_STATISTIC)
    for kinds, first, last in ((["tcp"], 28, 35), (["sizes"], 36, 43), (["intervals"], 44, 51), (["headers"], 52, 63)):
        names = arrow_schema(kinds).names[-(last - first + 1) :]
        assert names == [name for number, name in fields if first <= number <= last]
