# SPDX-License-Identifier: Apache-2.0
"""Frames in batches: memoryviews into the native packet ring, no object per packet.

A batch is valid until the next one is asked for; after that its memory is the ring's again and is overwritten (reading it is safe
while a view of it lives, but shows other frames). Copy what is to be kept.
"""

from __future__ import annotations

from typing import Any, Literal

from jarvis_native.types import PacketInfo

PACKET_DTYPE: list[tuple[str, str]] = [
    ("packet_id", "<u8"),
    ("timestamp_ns", "<u8"),
    ("offset", "<u8"),
    ("captured_length", "<u4"),
    ("wire_length", "<u4"),
    ("interface_index", "<u2"),
    ("link_type", "<u2"),
    ("vlan_tci", "<u2"),
    ("reserved", "<u2"),
]
"""`struct capture_packet` for numpy.frombuffer(batch.records, dtype=PACKET_DTYPE)."""

PACKET_BYTES = 40
"""sizeof(struct capture_packet)."""

# Field -> (memoryview format, place of the first one and distance to the next one, counted in items of that format).
_COLUMNS: dict[str, tuple[Literal["Q", "I", "H"], int, int]] = {
    "packet_id": ("Q", 0, 5),
    "timestamp_ns": ("Q", 1, 5),
    "offset": ("Q", 2, 5),
    "captured_length": ("I", 6, 10),
    "wire_length": ("I", 7, 10),
    "interface_index": ("H", 16, 20),
    "link_type": ("H", 17, 20),
    "vlan_tci": ("H", 18, 20),
}


class PacketBatch:
    """Some frames of the packet ring, in place."""

    __slots__ = ("_data", "_records", "count")

    def __init__(self, *, count: int, records: memoryview, data: memoryview) -> None:
        self.count = count
        """Frames in the batch."""
        self._records = records
        self._data = data

    def __len__(self) -> int:
        return self.count

    @property
    def records(self) -> memoryview:
        """The batch's `struct capture_packet` array as bytes, PACKET_BYTES a frame, host byte order (see PACKET_DTYPE)."""
        return self._records

    @property
    def data(self) -> memoryview:
        """The ring's bytes; a frame's `offset` counts from here."""
        return self._data

    def column(self, name: str) -> memoryview[int]:
        """One field of all frames as a strided memoryview of unsigned integers; the names are PacketInfo's, and "offset"."""
        if name not in _COLUMNS:
            raise KeyError(f"no column {name!r}: there are {', '.join(_COLUMNS)}")
        form, first, step = _COLUMNS[name]
        return self._records.cast(form)[first::step]

    def frame(self, index: int) -> memoryview:
        """The captured bytes of one frame, in the ring."""
        place = self._place(index)
        start = self.column("offset")[place]
        return self._data[start : start + self.column("captured_length")[place]]

    def info(self, index: int) -> PacketInfo:
        """The frame's description as an object, made now."""
        place = self._place(index)
        return PacketInfo(**{name: self.column(name)[place] for name in _COLUMNS if name != "offset"})

    def _place(self, index: int) -> int:
        if not -self.count <= index < self.count:
            raise IndexError(f"frame {index} of a batch of {self.count}")
        return index % self.count


def batch_from_ring(ffi: Any, capture: Any, batch: Any) -> PacketBatch:
    """The façade's view of a filled `struct capture_packet_batch`; views of it keep the capture's memory alive."""

    def kept(pointer: Any) -> Any:
        return ffi.gc(pointer, lambda _pointer, _capture=capture: None)

    count = int(batch.count)
    return PacketBatch(
        count=count,
        records=memoryview(ffi.buffer(kept(batch.packets), count * PACKET_BYTES)).toreadonly(),
        data=memoryview(ffi.buffer(kept(batch.base), int(batch.size))).toreadonly(),
    )
