# SPDX-License-Identifier: Apache-2.0
"""Measured boot played for TPMs without firmware: event logs of our own making, and their digests extended into the PCRs.

swtpm has no firmware, so PCRs 0 to 7 are zero. `boot_log` makes a log in the TCG's crypto-agile format as a UEFI host with GRUB
writes it, and `play` extends a TPM by it: what follows is a genuine quote over a genuine chain.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jarvis_trust.boot_log import EventType, parse_boot_log
from jarvis_trust.boot_reference import BootReference, record_reference, sign_reference
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SHA1, _SHA256 = 0x0004, 0x000B


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One event to be: the digest is that of the data unless given."""

    pcr: int
    type: int
    data: bytes
    digest: bytes | None = None

    @property
    def sha256(self) -> bytes:
        """What extends the PCR."""
        return hashlib.sha256(self.data).digest() if self.digest is None else self.digest


def variable(name: str, contents: bytes, guid: uuid.UUID = GLOBAL_VARIABLE) -> bytes:
    """UEFI_VARIABLE_DATA."""
    encoded = name.encode("utf-16-le")
    return guid.bytes_le + struct.pack("<QQ", len(name), len(contents)) + encoded + contents


def uefi_boot(
    *,
    firmware: bytes = b"firmware 1.9.2",
    secure_boot: bool = True,
    kernel: bytes = b"vmlinuz-6.1.0-28-amd64",
    command_line: str = "/vmlinuz-6.1.0-28-amd64 root=/dev/sda1 ro quiet",
) -> list[Measurement]:
    """What a UEFI host measures on its way to a Linux kernel."""
    grub = command_line.encode()
    return [
        Measurement(pcr=0, type=EventType.S_CRTM_VERSION, data="1.9.2".encode("utf-16-le")),
        Measurement(pcr=0, type=EventType.EFI_PLATFORM_FIRMWARE_BLOB, data=bytes(16), digest=hashlib.sha256(firmware).digest()),
        Measurement(pcr=7, type=EventType.EFI_VARIABLE_DRIVER_CONFIG, data=variable("SecureBoot", bytes([secure_boot]))),
        Measurement(pcr=7, type=EventType.EFI_VARIABLE_DRIVER_CONFIG, data=variable("PK", b"platform key")),
        Measurement(pcr=7, type=EventType.EFI_VARIABLE_DRIVER_CONFIG, data=variable("db", b"database", SECURITY_DATABASE)),
        Measurement(pcr=1, type=EventType.EFI_VARIABLE_BOOT, data=variable("BootOrder", b"\0\0")),
        Measurement(pcr=4, type=EventType.EFI_ACTION, data=b"Calling EFI Application from Boot Option"),
        *(Measurement(pcr=pcr, type=EventType.SEPARATOR, data=bytes(4)) for pcr in range(8)),
        Measurement(
            pcr=4, type=EventType.EFI_BOOT_SERVICES_APPLICATION, data=b"device path", digest=hashlib.sha256(kernel).digest()
        ),
        Measurement(pcr=5, type=EventType.EFI_GPT_EVENT, data=b"EFI PART and its partitions"),
        Measurement(pcr=8, type=EventType.IPL, data=b"kernel_cmdline: " + grub + b"\0", digest=hashlib.sha256(grub).digest()),
        Measurement(pcr=9, type=EventType.IPL, data=b"/vmlinuz\0", digest=hashlib.sha256(kernel).digest()),
        Measurement(pcr=5, type=EventType.EFI_ACTION, data=b"Exit Boot Services Invocation"),
    ]


def boot_log(
    measurements: Iterable[Measurement], *, locality: int | None = 0, algorithms: Sequence[int] = (_SHA1, _SHA256)
) -> bytes:
    """The log that a firmware writes of these. locality: of TPM2_Startup; None = the log does not tell it."""
    sizes = {_SHA1: 20, _SHA256: 32}
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms))
    spec += b"".join(struct.pack("<HH", algorithm, sizes[algorithm]) for algorithm in algorithms) + b"\0"
    log = struct.pack("<II20sI", 0, EventType.NO_ACTION, bytes(20), len(spec)) + spec
    if locality is not None:
        told = Measurement(pcr=0, type=EventType.NO_ACTION, data=b"StartupLocality\0" + bytes([locality]), digest=bytes(32))
        measurements = [told, *measurements]
    for measurement in measurements:
        digests = {_SHA1: hashlib.sha1(measurement.data, usedforsecurity=False).digest(), _SHA256: measurement.sha256}
        log += struct.pack("<III", measurement.pcr, measurement.type, len(algorithms))
        log += b"".join(struct.pack("<H", algorithm) + digests[algorithm] for algorithm in algorithms)
        log += struct.pack("<I", len(measurement.data)) + measurement.data
    return log


def reference_of(log: bytes, *, pcrs: Iterable[int], name: str = "good", version: int = 1) -> BootReference:
    """The reference set that a log matches."""
    return record_reference(parse_boot_log(log), name=name, version=version, created="2026-11-22T10:00:00Z", pcrs=tuple(pcrs))


def signed_reference(log: bytes, private_pem: bytes, *, pcrs: Iterable[int], version: int = 1) -> dict[str, bytes]:
    """The same, as good.json and good.json.sig: what a policy names, and what lies beside it."""
    data, signature = sign_reference(reference_of(log, pcrs=pcrs, version=version), private_pem)
    return {"good.json": data, "good.json.sig": signature}


def play(tcti: str, log: bytes) -> None:
    """Extends a TPM's PCRs by everything that a log measured, as firmware would have done before the system came up."""
    with ESAPI(tcti) as esapi:
        for event in parse_boot_log(log).events:
            if event.type != EventType.NO_ACTION:
                values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=event.digest))])
                esapi.pcr_extend(ESYS_TR(event.pcr), values)
