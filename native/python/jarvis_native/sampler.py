# SPDX-License-Identifier: Apache-2.0
"""Frames taken at random from what a capture processes: what sFlow's flow samples are made of.

    PacketCaptureEngine.open_frame_sampler ──► FrameSampler ──FlowExporter.read_samples──► ExportBlock of sFlow datagrams

The sampling is the core's, a countdown over each batch; Python sees finished datagrams alone. One thread at a time reads a
sampler; the lock here makes close safe from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jarvis_native.arguments import unsigned
from jarvis_native.errors import CaptureStateError, check

MAX_SAMPLERS = 4
"""Open ones a capture."""
DEFAULT_HEADER_BYTES = 128


class FrameSampler:
    """One exporter's place in the sampled frames. Made by PacketCaptureEngine.open_frame_sampler; also a context manager."""

    def __init__(
        self, ffi: Any, lib: Any, capture: Any, *, sampling_rate: int, header_length: int, samples: int, seed: int, lossless: bool
    ) -> None:
        self._ffi = ffi
        self._lock = threading.Lock()
        config = ffi.new("struct capture_sampler_config *")
        config.struct_size = ffi.sizeof(config[0])
        config.sampling_rate = unsigned("sampling_rate", sampling_rate)
        config.header_length = unsigned("header_length", header_length)
        config.samples = unsigned("samples", samples)
        config.seed = unsigned("seed", seed, 64)
        config.lossless = bool(lossless)
        out, info = ffi.new("capture_sampler_t **"), ffi.new("struct capture_error_info *")
        check(ffi, lib, lib.capture_sampler_open(capture, config, out, info), info)
        # The destructor holds the capture, so that a capture is never destroyed before its samplers.
        self._sampler: Any = ffi.gc(out[0], lambda raw, _capture=capture: lib.capture_sampler_close(raw))

    def borrow(self, call: Callable[[Any], int]) -> int:
        """Calls `call` with the core's sampler while nobody else reads or closes; for exporters. Returns what it returns."""
        with self._lock:
            if self._sampler is None:
                raise CaptureStateError("the sampler is closed", field="sampler")
            return call(self._sampler)

    def close(self) -> None:
        """Frames are taken for it no more. Waits for a read that is under way; may be called again."""
        with self._lock:
            if self._sampler is not None:
                self._ffi.release(self._sampler)
                self._sampler = None

    def __enter__(self) -> FrameSampler:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
