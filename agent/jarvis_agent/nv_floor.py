# SPDX-License-Identifier: Apache-2.0
"""The rollback floor in the TPM: an NV counter that nobody can lower, whatever becomes of the disk.

    floor = value of the counter - its base           base: what the counter began at, in the index's own public area (authPolicy)

A TPM's counters begin above every counter that it ever had (TPM 2.0 Library, part 1, NV counters), so the value alone says
nothing. The base is therefore fixed where it cannot be changed apart from the counter: as the index's authPolicy, which is part
of its Name and which no policy session can satisfy, being no digest of one. Nothing on the disk is needed to read the floor.

Attributes: TPM_NT_COUNTER; AUTHREAD and AUTHWRITE with an empty authorization, OWNERREAD; NO_DA. Whoever reaches the TPM can
raise the floor, as whoever reaches it can extend PCRs; nobody can lower it. Only the owner can delete the index: a host whose
owner authorization is set (after the first start) keeps it whatever its root does; elsewhere a new counter begins above the old
one's value, with another base. docs/adr/0013 says why not otherwise.
"""

from __future__ import annotations

import struct
from typing import Final

from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_NT, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from jarvis_agent.errors import TpmError

ATTRIBUTES: Final = (
    (int(TPM2_NT.COUNTER) << 4) | int(TPMA_NV.AUTHREAD) | int(TPMA_NV.AUTHWRITE) | int(TPMA_NV.OWNERREAD) | int(TPMA_NV.NO_DA)
)
"""Of the index once it is defined; TPMA_NV_WRITTEN comes with the first increment."""

_TAG: Final = b"jarvis-nv-floor-base-v1\0"
_COUNTER_BYTES: Final = 8
_ATTEMPTS: Final = 3
_WRITTEN: Final = int(TPMA_NV.WRITTEN)


def base_policy(base: int) -> bytes:
    """The authPolicy that says the counter's base, 32 bytes."""
    return _TAG + struct.pack(">Q", base)


class NvFloor:
    """The floor of one TPM at one NV index. On the TPM's thread only, for one operation; `close` gives its handle back."""

    def __init__(self, esapi: ESAPI, index: int, *, is_defined: bool) -> None:
        """Finds the counter, or makes it.

        Args:
            esapi: a connected context.
            index: NV index of the owner's range.
            is_defined: whether the TPM has an index of this number.

        Raises:
            TpmError: NV_FLOOR_UNUSABLE: the index is somebody else's, or the counter does not begin where it should.
            TSS2_Exception: the TPM refuses, e.g. to define an index because the owner's authorization is set.
        """
        self._esapi = esapi
        self._index = index
        self._handle: ESYS_TR | None = esapi.tr_from_tpmpublic(index) if is_defined else None
        base = self._read_base() if is_defined else None
        if base is None:
            base = self._make()
        self._base = base

    def close(self) -> None:
        """Frees the handle; the counter stays."""
        if self._handle is not None:
            self._esapi.tr_close(self._handle)
            self._handle = None

    @property
    def base(self) -> int:
        """What the counter began at."""
        return self._base

    def read(self) -> int:
        """The floor: lowest security_version that this TPM lets run."""
        return self._value() - self._base

    def raise_to(self, floor: int) -> int:
        """Increments until the floor is reached, one write of NV memory a step; a lower floor changes nothing. Gives the floor.

        A power cut on the way leaves a floor in between, and the next call goes on.
        """
        current = self.read()
        while current < floor:
            self._esapi.nv_increment(self._handle)
            current = self.read()
        return current

    def _read_base(self) -> int | None:
        """The base of the index that is there; None after removing what an interrupted start left of one.

        Raises:
            TpmError: NV_FLOOR_UNUSABLE.
        """
        public, _ = self._esapi.nv_read_public(self._handle)
        area = public.nvPublic
        attributes, policy = int(area.attributes), bytes(area.authPolicy)
        is_ours = attributes & ~_WRITTEN == ATTRIBUTES and int(area.dataSize) == _COUNTER_BYTES
        if not is_ours or (policy and (len(policy) != len(_TAG) + 8 or not policy.startswith(_TAG))):
            raise TpmError(
                "NV_FLOOR_UNUSABLE",
                f"NV index {self._index:#010x} has attributes {attributes:#010x} and is not the rollback floor: name a free one "
                "of 0x01800000 to 0x01bfffff as floor_nv_index",
            )
        if policy and attributes & _WRITTEN:
            return int(struct.unpack(">Q", policy[len(_TAG) :])[0])
        self._undefine()  # it was begun, and held no floor yet
        return None

    def _make(self) -> int:
        """Defines the counter twice: the first one shows where counters begin here, the second one names it as its base."""
        for _ in range(_ATTEMPTS):
            self._define(b"")
            self._esapi.nv_increment(self._handle)
            base = self._value() + 1
            self._undefine()
            self._define(base_policy(base))
            self._esapi.nv_increment(self._handle)
            if self._value() == base:
                return base
            self._undefine()  # another counter of this TPM moved meanwhile
        raise TpmError("NV_FLOOR_UNUSABLE", f"NV index {self._index:#010x}: other counters kept moving while it was defined")

    def _define(self, policy: bytes) -> None:
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=self._index,
                nameAlg=TPM2_ALG.SHA256,
                attributes=ATTRIBUTES,
                authPolicy=policy,
                dataSize=_COUNTER_BYTES,
            )
        )
        self._handle = self._esapi.nv_define_space(None, public)

    def _undefine(self) -> None:
        handle, self._handle = self._handle, None
        self._esapi.nv_undefine_space(handle)

    def _value(self) -> int:
        return int.from_bytes(bytes(self._esapi.nv_read(self._handle, _COUNTER_BYTES)), "big")
