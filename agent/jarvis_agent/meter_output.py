# SPDX-License-Identifier: Apache-2.0
"""Where the offline meter's flow records go: nowhere, JSON or CSV text, a Parquet file, or an IPFIX file (meter_export.py).

A sink takes what one read of a FlowReader yields. Text comes from the native core in blocks of up to 1 MiB and goes to the
descriptor as it is. A named file is written beside itself as PATH.tmp and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from jarvis_native.reader import FlowBatch, FlowReader, TextFormat, arrow_schema

OutputFormat = Literal["none", "json", "csv", "parquet", "ipfix"]

PARQUET_ROWS = 65_536
"""Rows of a Parquet row group."""


class OutputError(Exception):
    """The records cannot be written where they should go; the message is a sentence.

    Attributes:
        usage: the options contradict each other, and nothing was tried.
    """

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


class Sink(Protocol):
    """Takes the records of a reader."""

    def take(self, reader: FlowReader) -> FlowBatch[Any]:
        """Reads once and writes what was read."""


class TextSink:
    """JSON lines, or CSV with a header line."""

    def __init__(self, descriptor: int, form: TextFormat) -> None:
        self._descriptor = descriptor
        self._form = form
        self._header_due = form == "csv"

    def take(self, reader: FlowReader) -> FlowBatch[Any]:
        """Writes the next block of lines."""
        if self._header_due:
            self._header_due = False
            write_all(self._descriptor, reader.csv_header())
        batch = reader.read_text(self._form)
        write_all(self._descriptor, batch.data)
        return batch


class ParquetSink:
    """A Parquet file with the columns of jarvis_native.arrow_schema, zstd-compressed, a row group a read."""

    def __init__(self, path: Path, statistics: Sequence[str]) -> None:
        from pyarrow import parquet  # noqa: PLC0415 - optional dependency, imported where it is used

        self._writer = parquet.ParquetWriter(path, arrow_schema(statistics), compression="zstd")

    def take(self, reader: FlowReader) -> FlowBatch[Any]:
        """Writes the next records as one row group."""
        batch = reader.read_arrow(PARQUET_ROWS)
        if batch.records:
            self._writer.write_batch(batch.data)
        return batch

    def close(self) -> None:
        """Writes the file's footer."""
        self._writer.close()


def check_output(form: OutputFormat, path: Path | None) -> None:
    """Refuses what cannot work before anything is metered.

    Raises:
        OutputError: with the option's name.
    """
    if form == "none" and path is not None:
        raise OutputError(f"-o {path}: --output none writes no records, choose json, csv, parquet or ipfix", usage=True)
    if form == "parquet" and path is None:
        raise OutputError("--output parquet writes a file: name it with -o PATH", usage=True)
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise OutputError("--output parquet needs pyarrow: install it with pip install 'jarvis-capture[arrow]'", usage=True)


@contextlib.contextmanager
def open_sink(
    form: OutputFormat, path: Path | None, statistics: Sequence[str], *, ipfix: Callable[[int], Sink]
) -> Iterator[Sink | None]:
    """The sink for a format and place, of records with these statistics; None for "none".

    What is left of a named file after an exception is removed.

    Args:
        form: of the records.
        path: a file, or None for standard output.
        statistics: those that the capture keeps.
        ipfix: makes the sink of IPFIX messages for a descriptor.

    Raises:
        OutputError: the file cannot be made.
    """
    if form == "none":
        yield None
    elif form == "parquet":
        with _replaced(Path(path or "")) as target:
            sink = ParquetSink(target, statistics)
            try:
                yield sink
            finally:
                sink.close()
    else:
        with _written(path) as descriptor:
            yield ipfix(descriptor) if form == "ipfix" else TextSink(descriptor, form)


@contextlib.contextmanager
def _written(path: Path | None) -> Iterator[int]:
    """The descriptor to write to: standard output, or the file's."""
    if path is None:
        yield sys.stdout.fileno()
    else:
        with _replaced(path) as target, target.open("wb", buffering=0) as file:
            yield file.fileno()


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """The path to write to, PATH.tmp, which becomes PATH at the end. A device or a FIFO is written in place, never replaced."""
    if path.is_dir():
        raise OutputError(f"-o {path}: is a directory, a file name is needed")
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.with_name(path.name + ".tmp")
    try:
        target.touch()
    except OSError as error:
        raise OutputError(f"-o {path}: {target} cannot be made: {error.strerror}") from error
    try:
        yield target
        target.replace(path)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Writes every byte; a pipe may take them in pieces."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
