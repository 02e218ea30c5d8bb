# SPDX-License-Identifier: Apache-2.0
"""IMA played for hosts without it: measurement lists of our own making as the kernel writes them, and PCR 10 extended by them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jarvis_trust.ima_log import parse_ima_log
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

IMA_PCR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One entry to be."""

    path: str
    contents: bytes = b""
    digest: bytes | None = None
    """Of the file; that of `contents` unless given."""
    algorithm: str = "sha256"
    signature: bytes | None = None
    """With one the template is ima-sig."""
    is_violation: bool = False

    @property
    def template(self) -> bytes:
        """The template data."""
        digest = hashlib.sha256(self.contents).digest() if self.digest is None else self.digest
        fields = [self.algorithm.encode() + b":\0" + (bytes(len(digest)) if self.is_violation else digest)]
        fields.append(self.path.encode("utf-8", "surrogateescape") + b"\0")
        if self.signature is not None:
            fields.append(self.signature)
        return b"".join(struct.pack("<I", len(field)) + field for field in fields)

    def entry(self, *, pcr: int = IMA_PCR) -> bytes:
        """As it stands in the list."""
        name = b"ima-ng" if self.signature is None else b"ima-sig"
        template = self.template
        sha1 = bytes(20) if self.is_violation else hashlib.sha1(template, usedforsecurity=False).digest()
        return struct.pack("<I20sI", pcr, sha1, len(name)) + name + struct.pack("<I", len(template)) + template


def boot_aggregate(pcrs: Mapping[int, bytes], *, indices: Iterable[int] = range(10)) -> Measured:
    """The list's first entry as kernels since 5.8 make it: SHA-256 over PCRs 0 to 9 (zero where none is given)."""
    digest = hashlib.sha256(b"".join(pcrs.get(index, bytes(32)) for index in indices)).digest()
    return Measured(path="boot_aggregate", digest=digest)


def ima_log(measured: Sequence[Measured]) -> bytes:
    """The list of these."""
    return b"".join(one.entry() for one in measured)


def pcr_of(log: bytes, *, start: bytes = bytes(32)) -> bytes:
    """What PCR 10 of the SHA-256 bank holds after a list."""
    for entry in parse_ima_log(log):
        start = hashlib.sha256(start + entry.extended).digest()
    return start


def play(tcti: str, log: bytes) -> None:
    """Extends a TPM's PCR 10 by a list, as the kernel would have done."""
    with ESAPI(tcti) as esapi:
        for entry in parse_ima_log(log):
            values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=entry.extended))])
            esapi.pcr_extend(ESYS_TR(IMA_PCR), values)
